// Compiled without contraction of a * b + c (-ffp-contract=off), which is not equal everywhere.
#include "sampler.h"

#include <algorithm>
#include <cmath>

namespace pocketphi {

// e^x for x <= 0, of additions and multiplications alone: the C library's is not the same everywhere.
static double exponential(double x) {
  constexpr double LOG2E = 1.4426950408889634, LN2_HIGH = 0.693147180369123816490, LN2_LOW = 1.90821492927058770002e-10;
  if (x < -700) return 0;
  const double n = std::floor(x * LOG2E + 0.5), r = (x - n * LN2_HIGH) - n * LN2_LOW;  // |r| <= ln 2 / 2
  double sum = 1;
  for (int i = 13; i > 0; --i) sum = 1 + sum * r / i;  // Taylor: the rest is below 1e-17
  return std::ldexp(sum, static_cast<int>(n));
}

// In [0, 1), 53 bits (splitmix64, public domain: Steele, Lea and Flood 2014).
double Sampler::uniform() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

int64_t Sampler::choose(const float* logits, size_t vocab, const std::vector<int64_t>& history) {
  if (how_.repetition_penalty != 1) {
    logits_.assign(logits, logits + vocab);
    seen_.assign(vocab, false);
    for (const int64_t id : history) {
      const auto at = static_cast<size_t>(id);
      if (seen_[at]) continue;
      seen_[at] = true;
      logits_[at] = logits_[at] > 0 ? logits_[at] / how_.repetition_penalty : logits_[at] * how_.repetition_penalty;
    }
    logits = logits_.data();
  }
  const float* likeliest = logits;
  for (const float* logit = logits; logit < logits + vocab; ++logit) {
    if (std::isnan(*logit)) return -1;
    if (*logit > *likeliest) likeliest = logit;
  }
  if (!std::isfinite(*likeliest)) return -1;
  if (how_.temperature == 0) return likeliest - logits;

  // Weights are probabilities up to a factor; the likeliest has 1.
  const auto weight = [&](size_t id) {
    return exponential((static_cast<double>(logits[id]) - *likeliest) / how_.temperature);
  };
  const bool all = how_.top_k == 0 && how_.top_p == 1 && how_.min_p == 0;
  order_.resize(vocab);
  for (size_t id = 0; id < vocab; ++id) order_[id] = static_cast<int32_t>(id);
  auto end = order_.end();
  if (!all) {  // a heap gives the likeliest ones in order, and no more of them than are kept
    const auto rarer = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] < logits[b] : a > b; };
    double mass = 0;
    const size_t most = how_.top_k > 0 ? std::min<size_t>(static_cast<size_t>(how_.top_k), vocab) : vocab;
    std::make_heap(order_.begin(), order_.end(), rarer);
    const auto pop = [&](size_t count) { std::pop_heap(order_.begin(), order_.end() - static_cast<ptrdiff_t>(count), rarer); };
    size_t kept = 0;
    if (how_.top_k > 0) {  // top-p is of the probability that top-k leaves
      for (; kept < most; ++kept) pop(kept), mass += weight(static_cast<size_t>(order_[vocab - 1 - kept]));
    } else {
      for (size_t id = 0; id < vocab; ++id) mass += weight(id);
    }
    double sum = 0;
    size_t wanted = 0;
    while (wanted < most && (wanted == 0 || how_.top_p == 1 || sum < how_.top_p * mass)) {
      if (wanted == kept) pop(kept++);
      const double next = weight(static_cast<size_t>(order_[vocab - 1 - wanted]));
      if (wanted > 0 && next < how_.min_p) break;
      sum += next, ++wanted;
    }
    std::reverse(order_.begin(), order_.end());
    end = order_.begin() + static_cast<ptrdiff_t>(wanted);
  }
  double total = 0;
  for (auto id = order_.begin(); id != end; ++id) total += weight(static_cast<size_t>(*id));
  double rest = uniform() * total;
  for (auto id = order_.begin(); id != end; ++id)
    if ((rest -= weight(static_cast<size_t>(*id))) < 0) return *id;
  return *order_.begin();  // rounding has left a last crumb
}

}  // namespace pocketphi
