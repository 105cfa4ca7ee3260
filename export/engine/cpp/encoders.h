// The encoders of a multimodal `.pte`: a picture's crops and a sound's spectrogram to rows of the embedding.
//
// What export/engine/encoders.py does. All that encoding takes, but for the rows, goes with the object.
#pragma once

#include <functional>
#include <vector>

#include "media_ids.h"
#include "pictures.h"
#include "program.h"
#include "sounds.h"

namespace pocketphi {

using OnPart = std::function<void(size_t done, size_t of)>;  // called before each part that is encoded

class Encoders {
 public:
  // `width` numbers are a row.
  Encoders(Program& program, size_t width);
  static bool of_pictures(const Program& program);
  static bool of_sound(const Program& program, MediaKind kind);
  // Loads all that there are.
  void load();
  // float32 [tokens, width]; adds to `prepare_ms` what the crops took. Throws Refusal, also where stopped.
  std::vector<float> picture(
      const Picture& picture, const ImageSettings& settings, const OnPart& on_part, double& prepare_ms);
  std::vector<float> sound(
      const std::vector<float>& spectrogram, const AudioSettings& settings, MediaKind kind, const OnPart& on_part);

 private:
  // Copies `count` numbers of the result; Refusal where it has fewer.
  void run(const std::string& name, const std::vector<executorch::runtime::EValue>& inputs, size_t skip, size_t count,
           float* out);
  Program& program_;
  size_t width_;
  Methods methods_;
};

}  // namespace pocketphi
