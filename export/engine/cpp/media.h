// Pictures and sounds that have been encoded: their rows of the embedding, by the ids that stand for them.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "media_ids.h"
#include "model.h"
#include "pocketphi.h"

namespace pocketphi {

class Media {
 public:
  // `on_part` may change in between.
  Media(Model& model, const OnPart& on_part) : model_(model), on_part_(on_part) {}
  // As the functions of pocketphi.h. Throw Refusal, also where stopped.
  pocketphi_encoded picture(const uint8_t* rgb, size_t width, size_t height);
  pocketphi_encoded sound(const float* samples, size_t count, int32_t rate, pocketphi_mode mode);
  int64_t picture_tokens(size_t width, size_t height) const;
  int64_t sound_tokens(size_t samples, int32_t rate) const;
  void forget();
  // float32 [width] of a media id; nullptr where it has not been encoded, or is forgotten.
  const float* row(int64_t id);

 private:
  struct Kept {
    std::vector<float> rows;
    size_t parts;
    uint64_t used;  // when last
  };
  const ImageSettings& images() const;
  const AudioSettings& audio() const;
  // What is kept of it, or what `encode` makes, which takes the result to tell times.
  template <class Encode>
  pocketphi_encoded find(MediaKind kind, uint64_t digest, size_t tokens, Encode encode);
  void drop_unused();
  Model& model_;
  const OnPart& on_part_;
  uint64_t uses_ = 0;
  std::map<std::pair<MediaKind, uint64_t>, Kept> kept_;
};

}  // namespace pocketphi
