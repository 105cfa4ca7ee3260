#include "drafts.h"

#include <algorithm>

namespace pocketphi {

namespace {
constexpr size_t LEAST = 2, LONGEST = 8;  // tokens in common: a single one says too little
}

std::vector<int64_t> Drafts::guess(const std::vector<int64_t>& tokens, int64_t last, size_t room) const {
  std::vector<int64_t> found;
  const size_t size = std::min(most_, room), end = tokens.size() + 1;
  const auto token = [&](size_t at) { return at < tokens.size() ? tokens[at] : at < end ? last : found[at - end]; };
  const auto word = [&](size_t at) { return token(at) >= 0; };  // not a picture's or a sound's
  size_t best = needed_ - 1, place = 0;
  for (size_t at = end; --at > 0 && best < LONGEST;) {  // tokens before the continuation
    size_t common = 0;
    while (common < std::min(at, LONGEST) && token(at - 1 - common) == token(end - 1 - common) && word(at - 1 - common))
      ++common;
    if (common > best && word(at)) best = common, place = at;
  }
  while (place > 0 && found.size() < size && word(place + found.size()))
    found.push_back(token(place + found.size()));  // may repeat itself
  return found;
}

void Drafts::learn(size_t guessed, size_t right) {
  if (guessed == 0) return;
  // A step of several tokens takes about as long as two steps of one, whether it checks two guesses or seven.
  needed_ = right > 1 || right == guessed ? LEAST : std::min(needed_ + 1, LONGEST);
}

}  // namespace pocketphi
