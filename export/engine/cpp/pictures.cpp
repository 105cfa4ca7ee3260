// Compiled without contraction of a * b + c (-ffp-contract=off), so that numpy's float32 comes out to the bit.
#include "pictures.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "refusal.h"

namespace pocketphi {

namespace {

constexpr size_t MIN_SIDE = 10;         // pixels of the scaled picture: the original refuses what is narrower
constexpr size_t MAX_SIDE = 1 << 20;    // pixels: products of sizes stay far below 2^63
constexpr float CUBIC = -0.75f;         // the coefficient of torch's bicubic kernel
constexpr uint8_t WHITE = 255;
constexpr int FRACTION = 22;            // bits: Pillow multiplies bytes by weights of 32 bits

// How many times `by`, which settings have above 0, cover `value`.
size_t up(size_t value, size_t by) { return by == 0 ? 0 : (value + by - 1) / by; }

std::string pixels(size_t width, size_t height) { return std::to_string(width) + " x " + std::to_string(height); }

// Columns and rows of crops: as many as cover the picture, else the shape nearest to it; of two equally near ones the
// larger wins if the picture has more than half of its pixels.
std::pair<size_t, size_t> shape(size_t width, size_t height, const ImageSettings& settings) {
  const size_t columns = up(width, settings.crop), rows = up(height, settings.crop);
  if (columns * rows <= settings.max_crops) return {columns, rows};
  std::pair<size_t, size_t> best = {1, 1};
  double distance = HUGE_VAL;
  const double ratio = static_cast<double>(width) / static_cast<double>(height);
  const double area = static_cast<double>(width) * static_cast<double>(height);
  for (size_t count = 1; count <= settings.max_crops; ++count)
    for (size_t across = 1; across <= count; ++across) {
      if (count % across != 0) continue;
      const size_t down = count / across;
      const double other = std::fabs(ratio - static_cast<double>(across) / static_cast<double>(down));
      const bool half = area > 0.5 * static_cast<double>(settings.crop * settings.crop * count);
      if (other < distance || (other == distance && half)) best = {across, down};
      distance = std::min(distance, other);
    }
  return best;
}

// What an output pixel is made of along one side: inputs from `first` on, times weights of FRACTION bits.
struct Taps {
  size_t first = 0;
  std::vector<int32_t> weights;
};

std::vector<Taps> taps(size_t from, size_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to), reach = std::max(scale, 1.0);
  std::vector<Taps> found(to);
  std::vector<double> weights;
  for (size_t at = 0; at < to; ++at) {
    const double center = (static_cast<double>(at) + 0.5) * scale;
    const auto first = static_cast<size_t>(std::max(center - reach + 0.5, 0.0));
    const size_t end = std::min(from, static_cast<size_t>(std::floor(center + reach + 0.5)));
    double sum = 0;
    weights.clear();
    for (size_t place = first; place < end; ++place) {
      const double away = std::fabs((static_cast<double>(place) - center + 0.5) * (1.0 / reach));
      weights.push_back(away < 1 ? 1 - away : 0);
      sum += weights.back();
    }
    found[at].first = first;
    for (const double weight : weights)
      found[at].weights.push_back(static_cast<int32_t>(std::floor(weight / sum * (1 << FRACTION) + 0.5)));
  }
  return found;
}

uint8_t rounded(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> FRACTION, 0, 255)); }

constexpr int32_t HALF = 1 << (FRACTION - 1);

std::vector<uint8_t> resize_rows(const uint8_t* rgb, size_t width, size_t height, size_t to) {
  const auto all = taps(width, to);
  std::vector<uint8_t> found(height * to * 3);
  uint8_t* out = found.data();
  for (size_t row = 0; row < height; ++row, rgb += width * 3)
    for (const Taps& each : all) {
      int32_t red = HALF, green = HALF, blue = HALF;
      const uint8_t* pixel = rgb + each.first * 3;
      for (const int32_t weight : each.weights) {
        red += pixel[0] * weight, green += pixel[1] * weight, blue += pixel[2] * weight;
        pixel += 3;
      }
      *out++ = rounded(red), *out++ = rounded(green), *out++ = rounded(blue);
    }
  return found;
}

std::vector<uint8_t> resize_columns(const uint8_t* rgb, size_t width, size_t height, size_t to) {
  const size_t line = width * 3;
  std::vector<uint8_t> found(to * line);
  std::vector<int32_t> sums(line);
  uint8_t* out = found.data();
  for (const Taps& each : taps(height, to)) {
    std::fill(sums.begin(), sums.end(), HALF);
    const uint8_t* row = rgb + each.first * line;
    for (const int32_t weight : each.weights) {
      for (size_t at = 0; at < line; ++at) sums[at] += row[at] * weight;
      row += line;
    }
    out = std::transform(sums.begin(), sums.end(), out, rounded);
  }
  return found;
}

// For each of `side` outputs the four of `size` inputs that it is made of, and their weights: torch's bicubic, not
// smoothed.
struct Cubic {
  size_t inputs[4];
  float weights[4];
};

std::vector<Cubic> cubic(size_t size, size_t side) {
  const auto scale = static_cast<float>(static_cast<double>(size) / static_cast<double>(side));
  const auto near = [](float x) { return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1; };
  const auto far = [](float x) { return ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC; };
  std::vector<Cubic> found(side);
  for (size_t at = 0; at < side; ++at) {
    const float place = (static_cast<float>(at) + 0.5f) * scale - 0.5f, first = std::floor(place), past = place - first;
    const auto start = static_cast<int64_t>(first) - 1;
    for (int64_t tap = 0; tap < 4; ++tap)
      found[at].inputs[tap] =
          static_cast<size_t>(std::clamp<int64_t>(start + tap, 0, static_cast<int64_t>(size) - 1));
    found[at].weights[0] = far(past + 1), found[at].weights[1] = near(past);
    found[at].weights[2] = near(1 - past), found[at].weights[3] = far(2 - past);
  }
  return found;
}

}  // namespace

ImageSettings::ImageSettings(const std::vector<double>& numbers, const std::string& where) {
  constexpr size_t COUNT = 6;
  if (numbers.size() != COUNT)
    bad_input(where + " has " + std::to_string(numbers.size()) + " numbers, " + std::to_string(COUNT) + " are known");
  for (size_t at = 0; at < COUNT; ++at)
    if (!(numbers[at] >= (at < 4 ? 1 : 0) && numbers[at] <= MAX_SIDE))
      bad_input(where + ": number " + std::to_string(at + 1) + " is out of range");
  const auto whole = [&](size_t at) { return static_cast<size_t>(numbers[at]); };
  crop = whole(0), patch = whole(1), pooled = whole(2), max_crops = whole(3), mean = numbers[4], std = numbers[5];
  if (std == 0 || crop % (patch * pooled) != 0)
    bad_input(where + ": a crop of " + std::to_string(crop) + " pixels is not cut evenly into patches of " +
              std::to_string(patch) + " pixels and " + std::to_string(pooled) + " tokens on a side, or std is 0");
}

Tiling tile(size_t width, size_t height, const ImageSettings& settings) {
  const std::string named = "the picture is " + pixels(width, height) + " pixels";
  if (width == 0 || height == 0) bad_input(named + ", there is nothing to see");
  if (width > MAX_SIDE || height > MAX_SIDE) bad_input(named + ", at most " + std::to_string(MAX_SIDE) + " on a side");
  Tiling found;
  std::tie(found.columns, found.rows) = shape(width, height, settings);
  const size_t full_width = found.columns * settings.crop, full_height = found.rows * settings.crop;
  const double across = static_cast<double>(full_width) / static_cast<double>(width);
  const double down = static_cast<double>(full_height) / static_cast<double>(height);
  found.width = across < down ? full_width : static_cast<size_t>(static_cast<double>(width) * down);
  found.height = across < down ? static_cast<size_t>(static_cast<double>(height) * across) : full_height;
  if (std::min(found.width, found.height) < MIN_SIDE)
    bad_input(named + ": too narrow, scaled to its crops it is " + pixels(found.width, found.height) + ", less than " +
              std::to_string(MIN_SIDE) + " pixels on a side");
  const size_t grid = settings.grid();
  const size_t patch_columns = found.columns * grid - (full_width - found.width) / settings.patch;
  const size_t patch_rows = found.rows * grid - (full_height - found.height) / settings.patch;
  const auto inside = [grid](size_t patches, size_t before) { return std::min(patches - std::min(patches, before), grid); };
  found.valid.emplace_back(grid, grid);
  for (size_t row = 0; row < found.rows; ++row)
    for (size_t column = 0; column < found.columns; ++column)
      found.valid.emplace_back(inside(patch_rows, row * grid), inside(patch_columns, column * grid));
  found.token_rows = up(patch_rows, settings.pool()), found.token_columns = up(patch_columns, settings.pool());
  found.tokens = found.token_rows * (found.token_columns + 1) + 1 + settings.pooled * (settings.pooled + 1);
  return found;
}

std::vector<uint8_t> resize(const uint8_t* rgb, size_t width, size_t height, size_t to_width, size_t to_height) {
  if (width == to_width && height == to_height) return {rgb, rgb + width * height * 3};
  if (width == to_width) return resize_columns(rgb, width, height, to_height);
  auto found = resize_rows(rgb, width, height, to_width);
  return height == to_height ? found : resize_columns(found.data(), to_width, height, to_height);
}

Picture::Picture(const uint8_t* rgb, size_t width, size_t height, const ImageSettings& settings)
    : settings_(settings),
      tiling_(tile(width, height, settings)),
      width_(tiling_.columns * settings.crop),
      height_(tiling_.rows * settings.crop),
      paper_(width_ * height_ * 3, WHITE) {
  const auto scaled = resize(rgb, width, height, tiling_.width, tiling_.height);
  for (size_t row = 0; row < tiling_.height; ++row)
    std::copy_n(scaled.data() + row * tiling_.width * 3, tiling_.width * 3, paper_.data() + row * width_ * 3);
}

float Picture::normalized(float value) const {
  return (value - static_cast<float>(settings_.mean * WHITE)) / static_cast<float>(settings_.std * WHITE);
}

void Picture::crop(size_t number, float* out) const {
  if (number == 0) return global_view(out);
  const size_t side = settings_.crop, row = (number - 1) / tiling_.columns, column = (number - 1) % tiling_.columns;
  for (size_t y = 0; y < side; ++y) {
    const uint8_t* pixel = paper_.data() + ((row * side + y) * width_ + column * side) * 3;
    for (size_t x = 0; x < side; ++x)
      for (size_t channel = 0; channel < 3; ++channel) out[(channel * side + y) * side + x] = normalized(*pixel++);
  }
}

// Interpolation is linear and its weights sum to one: so it may come before the normalization.
void Picture::global_view(float* out) const {
  const size_t side = settings_.crop, line = width_ * 3;
  const auto rows = cubic(height_, side), columns = cubic(width_, side);
  std::vector<float> mixed(line);
  for (size_t y = 0; y < side; ++y) {
    std::fill(mixed.begin(), mixed.end(), 0.0f);
    for (size_t tap = 0; tap < 4; ++tap) {
      const uint8_t* from = paper_.data() + rows[y].inputs[tap] * line;
      for (size_t at = 0; at < line; ++at) mixed[at] += static_cast<float>(from[at]) * rows[y].weights[tap];
    }
    for (size_t x = 0; x < side; ++x)
      for (size_t channel = 0; channel < 3; ++channel) {
        float sum = 0;
        for (size_t tap = 0; tap < 4; ++tap) sum += mixed[columns[x].inputs[tap] * 3 + channel] * columns[x].weights[tap];
        out[(channel * side + y) * side + x] = normalized(sum);
      }
  }
}

void place_crop(
    const Tiling& tiling, const ImageSettings& settings, size_t number, const float* features, size_t width, float* rows) {
  const size_t pooled = settings.pooled;
  size_t top = 0, left = 0, height = pooled, columns = pooled;  // of the global view, which is a picture by itself
  if (number == 0) {
    rows += (tiling.token_rows * (tiling.token_columns + 1) + 1) * width;
  } else {
    top = (number - 1) / tiling.columns * pooled, left = (number - 1) % tiling.columns * pooled;
    height = tiling.token_rows, columns = tiling.token_columns;
  }
  if (left >= columns) return;
  for (size_t y = 0; y < pooled && top + y < height; ++y)
    std::copy_n(features + y * pooled * width, std::min(pooled, columns - left) * width,
                rows + ((top + y) * (columns + 1) + left) * width);
}

void place_separators(
    const Tiling& tiling, const ImageSettings& settings, const float* divider, const float* separator, size_t width,
    float* rows) {
  const auto end_lines = [&](size_t count, size_t columns) {
    for (; count > 0; --count) rows = std::copy_n(separator, width, rows + columns * width);
  };
  end_lines(tiling.token_rows, tiling.token_columns);
  rows = std::copy_n(divider, width, rows);
  end_lines(settings.pooled, settings.pooled);
}

}  // namespace pocketphi
