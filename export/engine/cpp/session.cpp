#include "session.h"

#include <algorithm>
#include <string>

#include "refusal.h"

namespace pocketphi {

void Session::check(const int64_t* ids, size_t count, int64_t room) const {
  if (ids == nullptr || count == 0) bad_input("the prompt is empty");
  if (static_cast<int64_t>(count) > model_.context - room)
    bad_input("the prompt has " + std::to_string(count) + " tokens, " + model_.path() + " has a context of " +
              std::to_string(model_.context));
  const int64_t least = model_.width > 0 ? INT64_MIN : 0;  // media ids are below 0
  for (size_t at = 0; at < count; ++at)
    if (ids[at] < least || ids[at] >= model_.vocab)
      bad_input("token " + std::to_string(ids[at]) + " of the prompt is outside the vocabulary of " +
                std::to_string(model_.vocab));
}

void Session::take_up(const int64_t* ids, size_t count, size_t most, int64_t room) {
  check(ids, count, room);
  const pocketphi_mode mode = mode_of(ids, count);
  if (!model_.takes(mode))
    bad_input(model_.path() + " takes no " + (mode == POCKETPHI_VISION ? "pictures" : "sound") + ", the prompt has some");
  const auto end = tokens_.begin() + static_cast<ptrdiff_t>(mode == mode_ ? std::min(tokens_.size(), most) : 0);
  const auto kept = std::mismatch(tokens_.begin(), end, ids).first;
  for (auto at = static_cast<size_t>(kept - tokens_.begin()); at < count; ++at)
    if (ids[at] < 0 && media_.row(ids[at]) == nullptr)
      bad_input("what token " + std::to_string(at) + " of the prompt stands for is not encoded, or is forgotten: give the " +
                (MediaId::of(ids[at]).kind == MediaKind::picture ? "picture" : "sound") + " again");
  tokens_.erase(kept, tokens_.end());
  mode_ = mode;
}

Model::Logits Session::step(const int64_t* ids, size_t count) {
  const auto position = static_cast<int64_t>(tokens_.size());
  if (mode_ == POCKETPHI_TEXT) return model_.step(ids, count, position);
  std::vector<float> rows(count * model_.width);
  std::vector<int64_t> words(ids, ids + count);
  std::replace_if(words.begin(), words.end(), [](int64_t id) { return id < 0; }, 0);
  const auto media = [](int64_t id) { return id < 0; };
  if (!std::all_of(ids, ids + count, media)) model_.embed(words.data(), count, rows.data());
  for (size_t at = 0; at < count; ++at)
    if (media(ids[at])) std::copy_n(media_.row(ids[at]), model_.width, rows.data() + at * model_.width);
  return model_.step(rows.data(), count, position, mode_);
}

// Feeds what the session does not hold of the first `count` tokens, `piece` at once; the logits of the last step, no data
// where stopped before or nothing was to be fed.
Model::Logits Session::advance(const int64_t* ids, size_t count, int64_t piece, const std::atomic<bool>& stop) {
  Model::Logits found;
  while (tokens_.size() < count) {
    if (stop) return {};
    const size_t at = tokens_.size(), size = std::min(count - at, static_cast<size_t>(piece));
    found = step(ids + at, size);
    tokens_.insert(tokens_.end(), ids + at, ids + at + size);
  }
  return found;
}

const float* Session::feed(const int64_t* ids, size_t count, const std::atomic<bool>& stop) {
  const auto found = advance(ids, count, chunk_, stop);
  return found.data == nullptr ? nullptr : found.data + (found.rows - 1) * static_cast<size_t>(model_.vocab);
}

// They are fed as many at once as a step gives logits of, what is before them by chunks.
void Session::feed_rows(const int64_t* ids, size_t count, size_t rows, float* logits, const std::atomic<bool>& stop) {
  const auto vocab = static_cast<size_t>(model_.vocab);
  const auto piece = std::min(chunk_, model_.logits_positions);
  (void)advance(ids, count - rows, chunk_, stop);
  while (tokens_.size() < count) {
    const size_t before = tokens_.size(), size = std::min(count - before, static_cast<size_t>(piece));
    const auto found = advance(ids, before + size, piece, stop);
    if (found.data == nullptr) stopped();
    if (found.rows < size) failed(model_.path() + " gives logits of " + std::to_string(found.rows) + " tokens, not " +
                                  std::to_string(size));
    logits = std::copy_n(found.data + (found.rows - size) * vocab, size * vocab, logits);
  }
}

}  // namespace pocketphi
