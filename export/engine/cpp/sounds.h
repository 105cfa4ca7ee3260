// Samples of sound to the log-mel spectrogram that an audio encoder takes, and how it is cut for the encoder.
//
// export/media/sounds.py says what is done and why. Knows samples and counts; nothing of files or of what an encoder
// computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pocketphi {

// Of a file's get_audio_settings, in the order of export/media/settings.py.
struct AudioSettings {
  // Throws Refusal for numbers that are no settings; `where` stands in its sentence for what has them.
  AudioSettings(const std::vector<double>& numbers, const std::string& where);
  size_t rate;             // samples a second; half of it is taken too
  size_t bins;             // of the log-mel spectrogram
  size_t frame, hop, fft;  // samples
  double preemphasis;
  double low_hz, high_hz;  // what the mel filters reach over
  size_t frames_per_token;
  size_t window;                // tokens that attend to each other
  size_t piece, before, after;  // frames that are made tokens at once, and of them those that other tokens need
};

// Frames [start, stop) that are made tokens at once: `skip` of them another piece makes, the next `tokens` count.
struct Piece {
  size_t start, stop, skip, tokens;
};

// Tokens [start, stop) that attend to each other, and to as many of zeros after them.
struct Window {
  size_t start, stop, padding;
};

// Whole frames in so many samples at the settings' rate or half of it. Throws Refusal for other rates, or none.
size_t frames_of(size_t samples, int32_t rate, const AudioSettings& settings);

// float32 [frames, bins]. Throws Refusal as `frames_of` does, and for samples that are no numbers.
std::vector<float> log_mel(const float* samples, size_t count, int32_t rate, const AudioSettings& settings);

// Tokens that so many frames become.
inline size_t tokens_of(size_t total, const AudioSettings& settings) {
  return (total + settings.frames_per_token - 1) / settings.frames_per_token;
}

// Cuts `total` frames so that the tokens of the pieces are those of the whole.
std::vector<Piece> pieces_of(size_t total, const AudioSettings& settings);

// Cuts `total` tokens; a sound of one window is not padded, and of more than one the last is.
std::vector<Window> windows_of(size_t total, const AudioSettings& settings);

}  // namespace pocketphi
