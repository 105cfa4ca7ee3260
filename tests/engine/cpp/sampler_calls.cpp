// The sampler as a C function, for Python to compare with its own.
#include "sampler.h"

// `count` choices in a row by one sampler.
extern "C" void choose(
    float temperature, int32_t top_k, float top_p, float min_p, float penalty, uint64_t seed, const float* logits,
    size_t vocab, const int64_t* history, size_t length, int64_t* ids, size_t count) {
  pocketphi::Sampler sampler({temperature, top_k, top_p, min_p, penalty, seed});
  const std::vector<int64_t> tokens(history, history + length);
  for (size_t at = 0; at < count; ++at) ids[at] = sampler.choose(logits, vocab, tokens);
}
