// The guesses as a C function, for Python to compare with its own.
#include <algorithm>

#include "drafts.h"

// One guess after `fates` of pairs (guessed, right); returns its length.
extern "C" size_t guess(
    size_t most, const size_t* fates, size_t pairs, const int64_t* tokens, size_t count, int64_t last, size_t room,
    int64_t* out) {
  pocketphi::Drafts drafts(most);
  for (size_t at = 0; at < pairs; ++at) drafts.learn(fates[2 * at], fates[2 * at + 1]);
  const auto found = drafts.guess({tokens, tokens + count}, last, room);
  std::copy(found.begin(), found.end(), out);
  return found.size();
}
