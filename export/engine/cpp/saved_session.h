// A session in a file: its tokens, and what its model's planned memory holds (the KV cache) but for zeros.
//
// All numbers are uint64 in the machine's order: MAGIC, the model's identity, how many parts and the bytes of each, how
// many tokens and each of them; then for each stretch of memory its part, place and length, and its bytes; at the end
// the digest of all before.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"

namespace pocketphi {

// Whole or not at all, over nothing but an older one. Throws Refusal.
void save_session(const std::string& path, uint64_t identity, Model& model, const std::vector<int64_t>& tokens);

// The tokens of a session saved with this model, whose planned memory then is as it was. Throws Refusal, having changed
// nothing.
std::vector<int64_t> restore_session(const std::string& path, uint64_t identity, Model& model);

}  // namespace pocketphi
