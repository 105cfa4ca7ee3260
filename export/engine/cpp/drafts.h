// Prompt-lookup decoding: guesses how a text goes on by how it went on before (github.com/apoorvumang/prompt-lookup-decoding).
//
// Guesses follow from the tokens alone and from how earlier ones fared, never from time: the same answer is guessed the
// same way everywhere. Knows nothing of the model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pocketphi {

class Drafts {
 public:
  explicit Drafts(size_t most) : most_(most) {}
  // What follows `tokens` and `last`, at most `room`: what followed the latest of the earlier places that have most in
  // common with their end; nothing where that is too little.
  std::vector<int64_t> guess(const std::vector<int64_t>& tokens, int64_t last, size_t room) const;
  // How many of a guess were right: after a poor one the next needs more in common.
  void learn(size_t guessed, size_t right);

 private:
  size_t most_;        // tokens a guess may have
  size_t needed_ = 2;  // tokens in common
};

}  // namespace pocketphi
