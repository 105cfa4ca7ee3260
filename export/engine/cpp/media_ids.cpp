#include "media_ids.h"

#include <string>

#include "refusal.h"
#include "sha256.h"

namespace pocketphi {

// All phones and computers that we know are little-endian, as the numbers in a digest are.
static uint64_t digest_of(const char* what, uint64_t one, uint64_t other, const void* data, size_t size) {
  Sha256 sum;
  sum.add(what, std::char_traits<char>::length(what));
  sum.add(&one, sizeof one);
  sum.add(&other, sizeof other);
  sum.add(data, size);
  uint64_t found = 0;
  const auto bytes = sum.finish();
  for (size_t at = 0; at < 5; ++at) found = found << 8 | bytes[at];
  return found;
}

uint64_t picture_digest(const uint8_t* rgb, size_t width, size_t height) {
  return digest_of("picture", width, height, rgb, width * height * 3);
}

uint64_t sound_digest(const float* samples, size_t count, int32_t rate) {
  return digest_of("sound", static_cast<uint64_t>(rate), count, samples, count * sizeof *samples);
}

pocketphi_mode mode_of(const int64_t* ids, size_t count) {
  bool picture = false, alone = false, beside = false;
  for (size_t at = 0; at < count; ++at) {
    if (ids[at] >= 0) continue;
    switch (MediaId::of(ids[at]).kind) {
      case MediaKind::picture: picture = true; break;
      case MediaKind::sound_alone: alone = true; break;
      case MediaKind::sound_beside: beside = true; break;
      default: bad_input("token " + std::to_string(ids[at]) + " of the prompt is below 0 and stands for no picture or sound");
    }
  }
  if (alone && (picture || beside)) bad_input("a sound of the prompt was encoded for prompts without pictures");
  return picture || beside ? POCKETPHI_VISION : alone ? POCKETPHI_SPEECH : POCKETPHI_TEXT;
}

}  // namespace pocketphi
