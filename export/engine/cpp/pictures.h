// A picture to the crops that a vision encoder takes, and the encoder's features to the picture's tokens.
//
// export/media/pictures.py says what is done and why; here it is done in C++, pixel for pixel. Knows pixels and sizes;
// nothing of files, and of an encoder only the shape of its features.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace pocketphi {

// Of a file's get_image_settings, in the order of export/media/settings.py.
struct ImageSettings {
  // Throws Refusal for numbers that are no settings; `where` stands in its sentence for what has them.
  ImageSettings(const std::vector<double>& numbers, const std::string& where);
  size_t crop, patch;        // pixels on a side
  size_t pooled, max_crops;  // tokens on a side of a crop; crops of a picture, its global view not counted
  double mean, std;          // of every channel, where pixels are 0 to 1
  size_t grid() const { return crop / patch; }     // patches on a side of a crop
  size_t pool() const { return grid() / pooled; }  // patches on a side of a token
};

// Where a picture lies on its crops; all of it follows from the picture's size.
struct Tiling {
  size_t columns = 0, rows = 0;                 // of crops
  size_t width = 0, height = 0;                 // pixels of the scaled picture
  std::vector<std::pair<size_t, size_t>> valid;  // rows and columns of patches that hold picture, global view first
  size_t token_rows = 0, token_columns = 0;     // without the global view, and the separators
  size_t tokens = 0;                            // with both, and the divider
};

// Throws Refusal where the picture is too narrow.
Tiling tile(size_t width, size_t height, const ImageSettings& settings);

// RGB of `height` rows to that of other sizes: bilinear, smoothed where it shrinks, as Pillow rounds.
std::vector<uint8_t> resize(const uint8_t* rgb, size_t width, size_t height, size_t to_width, size_t to_height);

// A picture scaled onto white paper; its crops are made one by one, for all of them take much memory.
class Picture {
 public:
  Picture(const uint8_t* rgb, size_t width, size_t height, const ImageSettings& settings);
  // Crop `number`, 0 for the global view, then row by row: float32 [3, crop, crop], normalized.
  void crop(size_t number, float* out) const;
  const Tiling& tiling() const { return tiling_; }

 private:
  float normalized(float value) const;
  void global_view(float* out) const;
  ImageSettings settings_;
  Tiling tiling_;
  size_t width_, height_;  // of the paper
  std::vector<uint8_t> paper_;
};

// Puts the features of crop `number`, float32 [pooled * pooled, width], among the picture's rows [tokens, width].
void place_crop(
    const Tiling& tiling, const ImageSettings& settings, size_t number, const float* features, size_t width, float* rows);

// Puts what stands before the global view, and what ends each row of tokens, among them.
void place_separators(
    const Tiling& tiling, const ImageSettings& settings, const float* divider, const float* separator, size_t width,
    float* rows);

}  // namespace pocketphi
