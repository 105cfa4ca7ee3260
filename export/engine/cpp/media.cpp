#include "media.h"

#include <algorithm>
#include <string>

#include "clock.h"
#include "refusal.h"

namespace pocketphi {

const ImageSettings& Media::images() const {
  if (!model_.images) bad_input(model_.path() + " takes no pictures");
  return *model_.images;
}

const AudioSettings& Media::audio() const {
  if (!model_.audio) bad_input(model_.path() + " takes no sound");
  return *model_.audio;
}

template <class Encode>
pocketphi_encoded Media::find(MediaKind kind, uint64_t digest, size_t tokens, Encode encode) {
  if (tokens > MediaId::MOST_ROWS)
    bad_input("it would be " + std::to_string(tokens) + " tokens, there are ids for " + std::to_string(MediaId::MOST_ROWS));
  pocketphi_encoded result = {};
  auto place = kept_.find({kind, digest});
  result.reused = place != kept_.end();
  if (!result.reused) {
    struct Leaving {
      Model& model;
      ~Leaving() { model.leave_encoders(); }
    } leaving{model_};
    place = kept_.emplace(std::make_pair(kind, digest), encode(result)).first;
  }
  place->second.used = ++uses_;
  drop_unused();
  model_.ready(kind == MediaKind::sound_alone ? POCKETPHI_SPEECH : POCKETPHI_VISION);
  result.first_id = MediaId{kind, digest, 0}.id();
  result.count = static_cast<int64_t>(tokens);
  result.parts = static_cast<int64_t>(place->second.parts);
  return result;
}

// Keeps rows of as many tokens as a prompt can have, and in any case what was used last.
void Media::drop_unused() {
  size_t numbers = 0;
  for (const auto& [key, kept] : kept_) numbers += kept.rows.size();
  while (kept_.size() > 1 && numbers > static_cast<size_t>(model_.context) * model_.width) {
    const auto oldest = std::min_element(
        kept_.begin(), kept_.end(), [](const auto& a, const auto& b) { return a.second.used < b.second.used; });
    numbers -= oldest->second.rows.size();
    kept_.erase(oldest);
  }
}

pocketphi_encoded Media::picture(const uint8_t* rgb, size_t width, size_t height) {
  const ImageSettings& settings = images();
  if (rgb == nullptr) bad_input("no picture is given");
  const Tiling plan = tile(width, height, settings);
  return find(MediaKind::picture, picture_digest(rgb, width, height), plan.tokens, [&](pocketphi_encoded& result) {
    auto begin = Clock::now();
    const Picture picture(rgb, width, height, settings);
    result.prepare_ms = ms(begin);
    begin = Clock::now();
    double cropping = 0;
    Kept made = {model_.encoders().picture(picture, settings, on_part_, cropping), plan.valid.size(), 0};
    result.prepare_ms += cropping;
    result.encode_ms = ms(begin) - cropping;
    return made;
  });
}

pocketphi_encoded Media::sound(const float* samples, size_t count, int32_t rate, pocketphi_mode mode) {
  const AudioSettings& settings = audio();
  if (samples == nullptr) bad_input("no sound is given");
  if (mode != POCKETPHI_VISION && mode != POCKETPHI_SPEECH)
    bad_input("mode " + std::to_string(mode) + " is not one in which a prompt has sound");
  const MediaKind kind = mode == POCKETPHI_VISION ? MediaKind::sound_beside : MediaKind::sound_alone;
  if (!model_.takes(mode) || !model_.takes_sound(kind)) bad_input(model_.path() + " takes no sound beside pictures");
  const size_t total = frames_of(count, rate, settings);
  return find(kind, sound_digest(samples, count, rate), tokens_of(total, settings), [&](pocketphi_encoded& result) {
    auto begin = Clock::now();
    const auto spectrogram = log_mel(samples, count, rate, settings);
    result.prepare_ms = ms(begin);
    begin = Clock::now();
    Kept made = {model_.encoders().sound(spectrogram, settings, kind, on_part_), pieces_of(total, settings).size(), 0};
    result.encode_ms = ms(begin);
    return made;
  });
}

int64_t Media::picture_tokens(size_t width, size_t height) const {
  return static_cast<int64_t>(tile(width, height, images()).tokens);
}

int64_t Media::sound_tokens(size_t samples, int32_t rate) const {
  return static_cast<int64_t>(tokens_of(frames_of(samples, rate, audio()), audio()));
}

void Media::forget() {
  kept_.clear();
  model_.leave_encoders(true);
}

const float* Media::row(int64_t id) {
  const MediaId found = MediaId::of(id);
  const auto place = kept_.find({found.kind, found.digest});
  if (place == kept_.end() || (found.row + 1) * model_.width > place->second.rows.size()) return nullptr;
  place->second.used = ++uses_;
  return place->second.rows.data() + found.row * model_.width;
}

}  // namespace pocketphi
