// Compiled without contraction of a * b + c (-ffp-contract=off), which is not equal everywhere.
#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace pocketphi {

// e^x for x <= 0, of additions and multiplications alone: the C library's is not the same everywhere.
static double exponential(double x) {
  constexpr double LOG2E = 1.4426950408889634, LN2_HIGH = 0.693147180369123816490, LN2_LOW = 1.90821492927058770002e-10;
  constexpr double INVERSE_FACTORIALS[] = {  // of 13 down to 0; Taylor's rest is below 1e-17 where |r| <= ln 2 / 2
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
      1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       1.0 / 2,      1,           1};
  if (x < -700) return 0;
  const double n = std::floor(x * LOG2E + 0.5), r = (x - n * LN2_HIGH) - n * LN2_LOW;
  double sum = 0;
  for (const double each : INVERSE_FACTORIALS) sum = sum * r + each;
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
      if (id < 0) continue;  // a picture's or a sound's
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
  weights_.clear();
  if (how_.top_k == 0 && how_.top_p == 1 && how_.min_p == 0) {
    for (size_t id = 0; id < vocab; ++id) weights_.push_back(weight(id));
    return static_cast<int64_t>(draw(vocab));
  }

  // A heap gives the likeliest in order, and no more of them than are asked for: they gather at the end of order_.
  const auto rarer = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] < logits[b] : a > b; };
  order_.resize(vocab);
  std::iota(order_.begin(), order_.end(), 0);
  std::make_heap(order_.begin(), order_.end(), rarer);
  const auto take = [&] {
    std::pop_heap(order_.begin(), order_.end() - static_cast<ptrdiff_t>(weights_.size()), rarer);
    weights_.push_back(weight(static_cast<size_t>(order_[vocab - 1 - weights_.size()])));
  };
  size_t most = vocab;
  double mass = 0;
  if (how_.top_k > 0) {
    most = std::min<size_t>(static_cast<size_t>(how_.top_k), vocab);
    while (weights_.size() < most) take(), mass += weights_.back();  // top-p is of the probability that top-k leaves
  } else if (how_.top_p < 1) {
    for (size_t id = 0; id < vocab; ++id) mass += weight(id);
  }
  size_t kept = 0;
  for (double sum = 0; kept < most && (kept == 0 || how_.top_p == 1 || sum < how_.top_p * mass); ++kept) {
    if (kept == weights_.size()) take();
    if (kept > 0 && weights_[kept] < how_.min_p) break;
    sum += weights_[kept];
  }
  return order_[vocab - 1 - draw(kept)];
}

size_t Sampler::draw(size_t count) {
  double rest = uniform() * std::accumulate(weights_.begin(), weights_.begin() + static_cast<ptrdiff_t>(count), 0.0);
  for (size_t at = 0; at < count; ++at) {
    rest -= weights_[at];
    if (rest < 0) return at;
  }
  return 0;  // rounding has left a last crumb
}

}  // namespace pocketphi
