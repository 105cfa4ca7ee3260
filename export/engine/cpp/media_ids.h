// The ids that stand in a prompt for rows of the embedding that were encoded of a picture or a sound.
//
// id = -1 - (kind << 60 | digest << 20 | row): below zero, one less with each row, and the same for the same pixels or
// samples in every engine. export/engine/media_ids.py has them too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pocketphi.h"

namespace pocketphi {

enum class MediaKind : uint8_t {
  picture = 1,
  sound_alone = 2,   // projected for prompts of mode "speech"
  sound_beside = 3,  // of mode "vision"
};

struct MediaId {
  MediaKind kind;
  uint64_t digest;  // 40 bits
  uint64_t row;     // below 2^20

  static constexpr uint64_t MOST_ROWS = 1 << 20;
  int64_t id() const {
    return -1 - static_cast<int64_t>(static_cast<uint64_t>(kind) << 60 | digest << 20 | row);
  }
  // Of an id below zero.
  static MediaId of(int64_t id) {
    const auto bits = static_cast<uint64_t>(-1 - id);
    return {static_cast<MediaKind>(bits >> 60), bits >> 20 & 0xffffffffff, bits & (MOST_ROWS - 1)};
  }
};

uint64_t picture_digest(const uint8_t* rgb, size_t width, size_t height);
uint64_t sound_digest(const float* samples, size_t count, int32_t rate);

// Which adapter a prompt is answered with: that of pictures for them and for sound that was encoded to stand beside them,
// else that of sound. Throws Refusal for an id below zero that is no media id, and where sound of both kinds, or pictures
// and sound that was encoded to stand alone, come together.
pocketphi_mode mode_of(const int64_t* ids, size_t count);

}  // namespace pocketphi
