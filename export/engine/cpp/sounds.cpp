#include "sounds.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "fft.h"
#include "refusal.h"

namespace pocketphi {

namespace {

constexpr float FULL_SCALE = 32768;  // the filters' floor of 1 is meant for samples of 16 bits
constexpr double MOST = 1 << 24;     // of any setting: nothing overflows

// A triangle on Kaldi's mel scale: weights of the spectrum from bin `first` on.
struct Filter {
  size_t first = 0;
  std::vector<float> weights;
};

double mel(double hertz) { return 1127.0 * std::log(1.0 + hertz / 700.0); }

// The mel filters; `count` bins of the spectrum there are.
std::vector<Filter> filters(const AudioSettings& settings, size_t count) {
  const double low = mel(settings.low_hz), high = mel(settings.high_hz);
  const auto edge = [&](size_t at) {
    return low + (high - low) * static_cast<double>(at) / static_cast<double>(settings.bins + 1);
  };
  std::vector<Filter> found(settings.bins);
  for (size_t bin = 0; bin < settings.bins; ++bin) {
    const double left = edge(bin), middle = edge(bin + 1), right = edge(bin + 2);
    for (size_t at = 0; at < count; ++at) {
      const double place = mel(static_cast<double>(at * settings.rate) / static_cast<double>(settings.fft));
      const double weight = std::min((place - left) / (middle - left), (right - place) / (right - middle));
      if (weight <= 0) continue;
      if (found[bin].weights.empty()) found[bin].first = at;
      found[bin].weights.push_back(static_cast<float>(weight));
    }
  }
  return found;
}

// One frame, windowed and emphasized; its first sample has itself before it.
void shape(const float* samples, const std::vector<double>& window, float preemphasis, double* out) {
  for (size_t at = 0; at < window.size(); ++at)
    out[at] = window[at] * static_cast<double>((samples[at] - preemphasis * samples[at > 0 ? at - 1 : 0]) * FULL_SCALE);
}

void log_of_filtered(const std::vector<Complex>& spectrum, const std::vector<Filter>& all, std::vector<float>& power,
                     float* out) {
  for (size_t at = 0; at < power.size(); ++at) {
    const auto re = static_cast<float>(spectrum[at].re), im = static_cast<float>(spectrum[at].im);
    power[at] = re * re + im * im;
  }
  for (const Filter& filter : all) {
    float sum = 0;
    for (size_t at = 0; at < filter.weights.size(); ++at) sum += power[filter.first + at] * filter.weights[at];
    *out++ = std::log(std::max(sum, 1.0f));
  }
}

std::string seconds(size_t samples, int32_t rate) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", static_cast<double>(samples) / rate);
  return text;
}

}  // namespace

AudioSettings::AudioSettings(const std::vector<double>& numbers, const std::string& where) {
  constexpr size_t COUNT = 13;
  if (numbers.size() != COUNT)
    bad_input(where + " has " + std::to_string(numbers.size()) + " numbers, " + std::to_string(COUNT) + " are known");
  const auto refuse = [&](const char* what) { bad_input(where + ": " + what); };
  for (const double number : numbers)
    if (!(number >= 0 && number <= MOST)) refuse("a number is out of range");
  const auto whole = [&](size_t at) { return static_cast<size_t>(numbers[at]); };
  rate = whole(0), bins = whole(1), frame = whole(2), hop = whole(3), fft = whole(4);
  preemphasis = numbers[5], low_hz = numbers[6], high_hz = numbers[7];
  frames_per_token = whole(8), window = whole(9), piece = whole(10), before = whole(11), after = whole(12);
  for (const size_t positive : {rate, bins, frame, hop, fft, frames_per_token, window})
    if (positive == 0) refuse("a number is 0 that must be above it");
  if (rate % 2 != 0 || frame % 2 != 0 || hop % 2 != 0 || fft % 2 != 0)
    refuse("rate, frame, hop or FFT have no half for sound of half the rate");
  if (frame > fft) refuse("a frame does not fit into an FFT");
  if (low_hz >= high_hz || high_hz > static_cast<double>(rate) / 2) refuse("mel filters reach beyond the sound");
  if (piece <= before + after || (piece - before - after) % frames_per_token != 0 || before % frames_per_token != 0)
    refuse("pieces are not cut between tokens");
}

size_t frames_of(size_t samples, int32_t rate, const AudioSettings& settings) {
  const auto own = static_cast<int64_t>(settings.rate);
  if (rate != own && rate != own / 2)
    bad_input("the sound has " + std::to_string(rate) + " samples a second, " + std::to_string(own) + " or " +
              std::to_string(own / 2) + " are taken");
  const size_t slower = rate == own ? 1 : 2, length = settings.frame / slower;
  if (samples < length)
    bad_input("the sound lasts " + seconds(samples, rate) + " seconds, at least " + seconds(length, rate) + " are needed");
  return (samples - length) / (settings.hop / slower) + 1;
}

std::vector<float> log_mel(const float* samples, size_t count, int32_t rate, const AudioSettings& settings) {
  const size_t total = frames_of(count, rate, settings), slower = settings.rate / static_cast<size_t>(rate);
  if (!std::all_of(samples, samples + count, [](float sample) { return std::isfinite(sample); }))
    bad_input("the sound has samples that are no finite numbers");
  const size_t length = settings.frame / slower, hop = settings.hop / slower, size = settings.fft / slower;
  std::vector<double> window(length);
  const double turn = 2 * std::acos(-1.0) / static_cast<double>(std::max<size_t>(length - 1, 1));
  for (size_t at = 0; at < length; ++at) window[at] = 0.54 - 0.46 * std::cos(turn * static_cast<double>(at));
  // At half the rate the original drops the highest bin, and what lies above is zero.
  const auto all = filters(settings, size / 2 + (slower == 1 ? 1 : 0));
  Fft fft(size);
  std::vector<double> one(size), other(size);
  std::vector<Complex> of_one(size / 2 + 1), of_other(size / 2 + 1);
  std::vector<float> power(size / 2 + 1), found(total * settings.bins);
  const auto emphasis = static_cast<float>(settings.preemphasis);
  for (size_t at = 0; at < total; at += 2) {
    const bool pair = at + 1 < total;
    shape(samples + at * hop, window, emphasis, one.data());
    shape(samples + (pair ? at + 1 : at) * hop, window, emphasis, other.data());
    fft.transform(one.data(), other.data(), of_one.data(), of_other.data());
    log_of_filtered(of_one, all, power, found.data() + at * settings.bins);
    if (pair) log_of_filtered(of_other, all, power, found.data() + (at + 1) * settings.bins);
  }
  return found;
}

std::vector<Piece> pieces_of(size_t total, const AudioSettings& settings) {
  const size_t per = settings.frames_per_token, core = settings.piece - settings.before - settings.after;
  std::vector<Piece> found;
  for (size_t done = 0, end = tokens_of(total, settings); done < end; done += found.back().tokens) {
    size_t start = done * per > settings.before ? done * per - settings.before : 0, stop = start + settings.piece;
    size_t count = (core + (start == 0 ? settings.before : 0)) / per;
    if (stop >= total) {  // the last one reaches back as far as it must to be of full length
      start = std::min(start, total > settings.piece ? (total - settings.piece + per - 1) / per * per : 0);
      stop = total, count = end - done;
    }
    found.push_back({start, stop, done - start / per, count});
  }
  return found;
}

std::vector<Window> windows_of(size_t total, const AudioSettings& settings) {
  std::vector<Window> found;
  for (size_t start = 0; start < total; start += settings.window) {
    const size_t stop = std::min(start + settings.window, total);
    found.push_back({start, stop, total > settings.window ? settings.window - (stop - start) : 0});
  }
  return found;
}

}  // namespace pocketphi
