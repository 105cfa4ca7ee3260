#include "encoders.h"

#include <executorch/extension/tensor/tensor.h>

#include <algorithm>

#include "clock.h"
#include "refusal.h"

namespace pocketphi {

using executorch::aten::ScalarType;
using executorch::extension::from_blob;

namespace {

constexpr char CROP[] = "vision_crop", SEPARATORS[] = "vision_separators", SUBSAMPLE[] = "audio_subsample";
constexpr char ALONE[] = "audio_conformer_speech", BESIDE[] = "audio_conformer_vision";
const std::vector<std::string>& all() {
  static const std::vector<std::string> names = {CROP, SEPARATORS, SUBSAMPLE, ALONE, BESIDE};
  return names;
}

const char* conformer(MediaKind kind) { return kind == MediaKind::sound_beside ? BESIDE : ALONE; }

auto tensor(const float* data, const std::vector<size_t>& sizes) {
  return from_blob(const_cast<float*>(data), {sizes.begin(), sizes.end()}, ScalarType::Float);
}

}  // namespace

Encoders::Encoders(Program& program, size_t width)
    : program_(program), width_(width), methods_(program, all(), Workspace::of_these) {}

bool Encoders::of_pictures(const Program& program) { return program.has(CROP) && program.has(SEPARATORS); }

bool Encoders::of_sound(const Program& program, MediaKind kind) {
  return program.has(SUBSAMPLE) && program.has(conformer(kind));
}

void Encoders::load() {
  for (const std::string& name : all())
    if (program_.has(name)) methods_.load(name);
}

void Encoders::run(
    const std::string& name, const std::vector<executorch::runtime::EValue>& inputs, size_t skip, size_t count,
    float* out) {
  if (program_.stopped_now()) stopped();
  const auto found = methods_.run(name, inputs, "what is given to " + name);
  if (static_cast<size_t>(found.numel()) < skip + count)
    failed(program_.path() + ": " + name + " gives " + std::to_string(found.numel()) + " numbers, not " +
           std::to_string(skip + count));
  std::copy_n(found.const_data_ptr<float>() + skip, count, out);
}

std::vector<float> Encoders::picture(
    const Picture& picture, const ImageSettings& settings, const OnPart& on_part, double& prepare_ms) {
  const Tiling& plan = picture.tiling();
  const size_t side = settings.crop;
  std::vector<float> rows(plan.tokens * width_), pixels(3 * side * side);
  std::vector<float> features(settings.pooled * settings.pooled * width_), separators(2 * width_);
  for (size_t number = 0; number < plan.valid.size(); ++number) {
    on_part(number, plan.valid.size());
    const auto begin = Clock::now();
    picture.crop(number, pixels.data());
    prepare_ms += ms(begin);
    int64_t valid[] = {static_cast<int64_t>(plan.valid[number].first), static_cast<int64_t>(plan.valid[number].second)};
    auto inside = from_blob(valid, {2}, ScalarType::Long);
    run(CROP, {*tensor(pixels.data(), {1, 3, side, side}), *inside}, 0, features.size(), features.data());
    place_crop(plan, settings, number, features.data(), width_, rows.data());
  }
  run(SEPARATORS, {}, 0, separators.size(), separators.data());
  place_separators(plan, settings, separators.data(), separators.data() + width_, width_, rows.data());
  return rows;
}

std::vector<float> Encoders::sound(
    const std::vector<float>& spectrogram, const AudioSettings& settings, MediaKind kind, const OnPart& on_part) {
  const auto meta = program_.meta(SUBSAMPLE);
  program_.check(meta.error(), "finds no audio_subsample in it");
  const auto output = meta->output_tensor_meta(0);
  program_.check(output.error(), "finds no result of audio_subsample");
  const auto hidden = static_cast<size_t>(output->sizes()[output->sizes().size() - 1]);
  const size_t frames = spectrogram.size() / settings.bins, total = tokens_of(frames, settings);
  const auto pieces = pieces_of(frames, settings);
  const auto windows = windows_of(total, settings);
  size_t done = 0;
  const auto part = [&] { on_part(done++, pieces.size() + windows.size()); };
  std::vector<float> whole;
  whole.reserve(total * hidden);
  for (const Piece& piece : pieces) {
    part();
    const size_t at = whole.size();
    whole.resize(at + piece.tokens * hidden);
    const auto input = tensor(spectrogram.data() + piece.start * settings.bins, {1, piece.stop - piece.start, settings.bins});
    run(SUBSAMPLE, {*input}, piece.skip * hidden, piece.tokens * hidden, whole.data() + at);
  }
  std::vector<float> rows(total * width_);
  whole.resize((total + windows.back().padding) * hidden);  // zeros
  for (const Window& window : windows) {
    part();
    const size_t own = window.stop - window.start;
    const auto input = tensor(whole.data() + window.start * hidden, {1, own + window.padding, hidden});
    run(conformer(kind), {*input}, 0, own * width_, rows.data() + window.start * width_);
  }
  return rows;
}

}  // namespace pocketphi
