#include "fft.h"

#include <algorithm>
#include <cmath>

namespace pocketphi {

// Not std::complex, whose product looks after infinities.
static Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
static Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
static Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }

Fft::Fft(size_t length) : roots_(length), in_(length), out_(length) {
  const double turn = -2 * std::acos(-1.0) / static_cast<double>(length);
  for (size_t k = 0; k < length; ++k)
    roots_[k] = {std::cos(turn * static_cast<double>(k)), std::sin(turn * static_cast<double>(k))};
  for (size_t rest = length, factor = 2; rest > 1;) {
    if (rest % factor == 0)
      factors_.push_back(factor), rest /= factor;
    else
      ++factor;
  }
}

// Cooley and Tukey's: the transforms of every p-th number, mixed by the roots of unity. Of `count` numbers, the factors
// from `level` on.
void Fft::transform(const Complex* in, size_t stride, Complex* out, size_t count, size_t level) const {
  if (count <= 1) {
    std::copy_n(in, count, out);
    return;
  }
  const size_t factor = factors_[level], part = count / factor, step = roots_.size() / count;
  for (size_t r = 0; r < factor; ++r) transform(in + r * stride, stride * factor, out + r * part, part, level + 1);
  if (factor == 2) {
    for (size_t k = 0; k < part; ++k) {
      const Complex even = out[k], odd = out[part + k] * roots_[k * step];
      out[k] = even + odd, out[part + k] = even - odd;
    }
    return;
  }
  std::vector<Complex> parts(factor);
  for (size_t k = 0; k < part; ++k) {
    for (size_t r = 0; r < factor; ++r) parts[r] = out[r * part + k];
    for (size_t q = 0; q < factor; ++q) {
      const size_t place = q * part + k;
      out[place] = parts[0];
      for (size_t r = 1; r < factor; ++r) out[place] = out[place] + parts[r] * roots_[r * place % count * step];
    }
  }
}

void Fft::transform(const double* one, const double* other, Complex* of_one, Complex* of_other) {
  const size_t length = roots_.size();
  for (size_t at = 0; at < length; ++at) in_[at] = {one[at], other[at]};
  transform(in_.data(), 1, out_.data(), length, 0);
  for (size_t k = 0; k <= length / 2; ++k) {
    const Complex a = out_[k], b = out_[(length - k) % length];
    of_one[k] = {(a.re + b.re) / 2, (a.im - b.im) / 2};
    of_other[k] = {(a.im + b.im) / 2, (b.re - a.re) / 2};
  }
}

}  // namespace pocketphi
