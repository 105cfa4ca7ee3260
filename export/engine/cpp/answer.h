// An answer to a prompt: from the prompt's logits on, token by token.
#pragma once

#include <atomic>

#include "pocketphi.h"
#include "session.h"

namespace pocketphi {

// As pocketphi_generate. Throws Refusal.
void answer(
    Model& model, Session& session, const int64_t* ids, size_t count, const pocketphi_generation& how,
    const std::atomic<bool>& stop, pocketphi_result& result);

}  // namespace pocketphi
