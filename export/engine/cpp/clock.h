// How long something took.
#pragma once

#include <chrono>

namespace pocketphi {

using Clock = std::chrono::steady_clock;

inline double ms(Clock::time_point from, Clock::time_point to = Clock::now()) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

}  // namespace pocketphi
