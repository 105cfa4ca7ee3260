// How pictures and sound are prepared, as C functions, for Python to compare with its own. Settings are the numbers of a
// file's constant methods. A refusal's sentence goes to `refused`, and the result is then -1.
#include <algorithm>
#include <cstdio>

#include "media_ids.h"
#include "pictures.h"
#include "refusal.h"
#include "sounds.h"

using namespace pocketphi;

template <class Work>
static int64_t call(char* refused, Work work) {
  try {
    return static_cast<int64_t>(work());
  } catch (const Refusal& refusal) {
    std::snprintf(refused, sizeof(pocketphi_error), "%s", refusal.what());
    return -1;
  }
}

static std::vector<double> numbers(const double* from, size_t count) { return {from, from + count}; }

// The numbers of a tiling, then rows and columns of patches of each crop.
extern "C" int64_t tiling(
    const double* settings, size_t count, size_t width, size_t height, int64_t* out, char* refused) {
  return call(refused, [&] {
    const Tiling found = tile(width, height, ImageSettings(numbers(settings, count), "the settings"));
    for (const size_t number : {found.columns, found.rows, found.width, found.height, found.token_rows, found.token_columns,
                                found.tokens})
      *out++ = static_cast<int64_t>(number);
    for (const auto& [rows, columns] : found.valid)
      *out++ = static_cast<int64_t>(rows), *out++ = static_cast<int64_t>(columns);
    return found.valid.size();
  });
}

extern "C" void resized(const uint8_t* rgb, size_t width, size_t height, size_t to_width, size_t to_height, uint8_t* out) {
  const auto found = resize(rgb, width, height, to_width, to_height);
  std::copy(found.begin(), found.end(), out);
}

extern "C" int64_t crops(
    const double* settings, size_t count, const uint8_t* rgb, size_t width, size_t height, float* out, char* refused) {
  return call(refused, [&] {
    const ImageSettings how(numbers(settings, count), "the settings");
    const Picture picture(rgb, width, height, how);
    const size_t all = picture.tiling().valid.size();
    for (size_t number = 0; number < all; ++number) picture.crop(number, out + number * 3 * how.crop * how.crop);
    return all;
  });
}

extern "C" int64_t merged(
    const double* settings, size_t count, size_t width, size_t height, const float* features, const float* divider,
    const float* separator, size_t wide, float* rows, char* refused) {
  return call(refused, [&] {
    const ImageSettings how(numbers(settings, count), "the settings");
    const Tiling plan = tile(width, height, how);
    for (size_t number = 0; number < plan.valid.size(); ++number)
      place_crop(plan, how, number, features + number * how.pooled * how.pooled * wide, wide, rows);
    place_separators(plan, how, divider, separator, wide, rows);
    return plan.tokens;
  });
}

// Frames; the spectrogram too where there is room for it.
extern "C" int64_t spectrogram(
    const double* settings, size_t count, const float* samples, size_t length, int32_t rate, float* out, char* refused) {
  return call(refused, [&] {
    const AudioSettings how(numbers(settings, count), "the settings");
    if (out != nullptr) {
      const auto found = log_mel(samples, length, rate, how);
      std::copy(found.begin(), found.end(), out);
    }
    return frames_of(length, rate, how);
  });
}

// Pieces of so many frames, four numbers each, then windows of their tokens, three each; how many pieces.
extern "C" int64_t cuts(const double* settings, size_t count, size_t total, int64_t* out, char* refused) {
  return call(refused, [&] {
    const AudioSettings how(numbers(settings, count), "the settings");
    const auto all = pieces_of(total, how);
    for (const Piece& piece : all)
      for (const size_t number : {piece.start, piece.stop, piece.skip, piece.tokens}) *out++ = static_cast<int64_t>(number);
    for (const Window& window : windows_of(tokens_of(total, how), how))
      for (const size_t number : {window.start, window.stop, window.padding}) *out++ = static_cast<int64_t>(number);
    return all.size();
  });
}

extern "C" int64_t media_id(uint64_t kind, uint64_t digest, uint64_t row) {
  return MediaId{static_cast<MediaKind>(kind), digest, row}.id();
}
extern "C" uint64_t digest_of_picture(const uint8_t* rgb, size_t width, size_t height) {
  return picture_digest(rgb, width, height);
}
extern "C" uint64_t digest_of_sound(const float* samples, size_t count, int32_t rate) {
  return sound_digest(samples, count, rate);
}
extern "C" int64_t mode(const int64_t* ids, size_t count, char* refused) {
  return call(refused, [&] { return mode_of(ids, count); });
}
