// Chooses the next token from logits. The same seed and logits give the same choice on every platform.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pocketphi {

struct Sampling {
  float temperature = 0;  // 0: the likeliest, the first of equals
  int32_t top_k = 0;      // 0: all
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  uint64_t seed = 0;
};

class Sampler {
 public:
  explicit Sampler(const Sampling& how) : how_(how), state_(how.seed) {}
  // The id chosen, or -1 where the logits are no numbers. `history` are the tokens that the penalty is for.
  int64_t choose(const float* logits, size_t vocab, const std::vector<int64_t>& history);

 private:
  double uniform();
  // One of the first `count` of weights_, each as often as it weighs.
  size_t draw(size_t count);
  Sampling how_;
  uint64_t state_;
  std::vector<float> logits_;
  std::vector<int32_t> order_;
  std::vector<double> weights_;
  std::vector<bool> seen_;
};

}  // namespace pocketphi
