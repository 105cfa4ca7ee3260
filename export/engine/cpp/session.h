// The tokens that a model has been fed, whose keys and values its cache holds, and feeding it more.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "media.h"
#include "model.h"

namespace pocketphi {

class Session {
 public:
  // At most `chunk` tokens are fed at once.
  Session(Model& model, Media& media, int64_t chunk) : model_(model), media_(media), chunk_(chunk) {}

  // Takes up a prompt: of what the session holds the common beginning is kept, at most `most` tokens, and nothing of
  // another mode. Throws Refusal, having forgotten nothing, where the prompt cannot be fed with `room` left after it.
  void take_up(const int64_t* ids, size_t count, size_t most, int64_t room);
  // Feeds the rest of the prompt taken up, at least its last token; the logits of that one, nullptr where stopped before.
  const float* feed(const int64_t* ids, size_t count, const std::atomic<bool>& stop);
  // Logits of the last `rows` tokens, float32 [rows, vocab]. Throws Refusal where stopped.
  void feed_rows(const int64_t* ids, size_t count, size_t rows, float* logits, const std::atomic<bool>& stop);
  // Logits of tokens after those held, which `push` then adds.
  Model::Logits step(const int64_t* ids, size_t count);
  void push(int64_t id) { tokens_.push_back(id); }

  const std::vector<int64_t>& tokens() const { return tokens_; }
  pocketphi_mode mode() const { return mode_; }  // in which they have been fed
  void rewind(size_t count) { tokens_.resize(count); }
  void restore(std::vector<int64_t>&& tokens, pocketphi_mode mode) { tokens_ = std::move(tokens), mode_ = mode; }

 private:
  void check(const int64_t* ids, size_t count, int64_t room) const;
  Model::Logits advance(const int64_t* ids, size_t count, int64_t piece, const std::atomic<bool>& stop);
  Model& model_;
  Media& media_;
  int64_t chunk_;
  std::vector<int64_t> tokens_;  // from position 0 on
  pocketphi_mode mode_ = POCKETPHI_TEXT;
};

}  // namespace pocketphi
