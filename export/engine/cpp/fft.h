// The discrete Fourier transform of any length, of real numbers.
#pragma once

#include <cstddef>
#include <vector>

namespace pocketphi {

struct Complex {
  double re = 0, im = 0;
};

class Fft {
 public:
  explicit Fft(size_t length);
  // Of two signals at once, `length` numbers each: those of the one are the real parts of what is transformed, those
  // of the other the imaginary parts, and symmetry tells them apart again. Writes length / 2 + 1 of each.
  void transform(const double* one, const double* other, Complex* of_one, Complex* of_other);

 private:
  void transform(const Complex* in, size_t stride, Complex* out, size_t count, size_t level) const;
  std::vector<size_t> factors_;
  std::vector<Complex> roots_, in_, out_;  // roots_[k] is exp(-2 pi i k / length)
};

}  // namespace pocketphi
