// The CPU's features, by which XNNPACK chooses how it packs weights.
#pragma once

#include <string>

namespace pocketphi {

// A short name without spaces, equal on equal CPUs.
std::string cpu_features();

}  // namespace pocketphi
