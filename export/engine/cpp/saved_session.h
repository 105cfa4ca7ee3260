// A session in a file: its tokens, and what its model's planned memory holds (the KV cache) but for zeros.
//
// All numbers are uint64 in the machine's order: MAGIC, the model's identity, how many parts and the bytes of each, how
// many tokens and each of them, of a multimodal model the mode in which they were fed; then for each stretch of memory its part, place and length, and its bytes; at the end
// the digest of all before.
#pragma once

#include <cstdint>
#include <string>

#include "model.h"
#include "session.h"

namespace pocketphi {

// Whole or not at all, over nothing but an older one. Throws Refusal.
void save_session(const std::string& path, uint64_t identity, Model& model, const Session& session);

// Takes up a session saved with this model, whose planned memory then is as it was. Throws Refusal, having changed nothing.
void restore_session(const std::string& path, uint64_t identity, Model& model, Session& session);

}  // namespace pocketphi
