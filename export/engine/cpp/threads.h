// The threads that the runtime's kernels share, one pool for the process.
#pragma once

#include <cstdint>

namespace pocketphi {

// While one lives, the pool keeps its size: XNNPACK holds on to the pool of the time a model was loaded.
class Threads {
 public:
  // 0: one for each performance core. Throws Refusal where another engine is loaded with another number.
  explicit Threads(int32_t count);
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads();
  int32_t count() const { return count_; }

 private:
  int32_t count_;
};

}  // namespace pocketphi
