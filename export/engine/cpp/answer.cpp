#include "answer.h"

#include <algorithm>
#include <string>

#include "clock.h"
#include "drafts.h"
#include "refusal.h"
#include "sampler.h"
#include "text.h"

namespace pocketphi {

namespace {

Sampling sampling(const pocketphi_generation& how) {
  Sampling found{how.temperature, how.top_k, how.top_p, how.min_p, how.repetition_penalty, how.seed};
  if (found.top_p == 0) found.top_p = 1;
  if (found.repetition_penalty == 0) found.repetition_penalty = 1;
  const auto within = [](const char* name, float value, float most) {
    if (!(value >= 0 && value <= most)) bad_input(std::string(name) + " " + std::to_string(value) + " is out of range");
  };
  within("temperature", found.temperature, 100);
  within("top_p", found.top_p, 1);
  within("min_p", found.min_p, 1);
  within("repetition_penalty", found.repetition_penalty, 100);
  if (found.top_k < 0 || how.max_new_tokens < 0 || how.draft_tokens < 0)
    bad_input("top_k, max_new_tokens and draft_tokens are not below 0");
  return found;
}

Text text_of(const pocketphi_generation& how) {
  std::vector<std::string> stops(how.stop_texts, how.stop_texts + how.stop_text_count);
  if (!stops.empty() && how.decode == nullptr) bad_input("stop_texts need decode");
  for (const std::string& stop : stops)
    if (stop.empty()) bad_input("a stop text is empty");
  const auto decode = [&how](const int64_t* ids, size_t count) {
    std::string text(64, '\0');
    for (;;) {
      const size_t size = how.decode(how.context, ids, count, text.data(), text.size());
      const bool whole = size <= text.size();
      text.resize(size);
      if (whole) return text;
    }
  };
  const auto listen = [&how](const std::string& text) {
    if (how.on_text != nullptr) how.on_text(how.context, text.data(), text.size());
  };
  return Text(decode, listen, std::move(stops));
}

// The loop from the first token on; how it ended.
pocketphi_end decode(
    const Model& model, Session& session, const float* logits, const pocketphi_generation& how,
    const std::atomic<bool>& stop, Sampler& sampler, Text& text, pocketphi_result& result) {
  const auto ends = [&](int64_t id) {
    const bool own = !how.ignore_eos && std::count(model.eos.begin(), model.eos.end(), id) > 0;
    return own || std::count(how.stop_ids, how.stop_ids + how.stop_id_count, id) > 0;
  };
  const int64_t room = model.context - static_cast<int64_t>(session.tokens().size());
  const int64_t most = how.max_new_tokens > 0 ? std::min(how.max_new_tokens, room) : room;
  Drafts drafts(static_cast<size_t>(std::min<int64_t>(how.draft_tokens, std::min(model.logits_positions, model.chunk) - 1)));
  std::vector<int64_t> fed;  // the last token fed and the guesses after it
  size_t right = 0;          // of those, the guesses found right so far
  auto last = Clock::now();
  for (;;) {
    const int64_t id = sampler.choose(logits, static_cast<size_t>(model.vocab), session.tokens());
    if (id < 0) failed(model.path() + " gives logits that are no numbers");
    const auto now = Clock::now();
    (result.new_tokens == 0 ? result.first_token_ms : result.decode_ms) += ms(last, now);
    if (ends(id)) return POCKETPHI_END_TOKEN;
    ++result.new_tokens;
    if (how.on_token != nullptr) how.on_token(how.context, id, ms(last, now));
    last = now;
    if (how.decode != nullptr && text.push(id)) return POCKETPHI_END_TEXT;
    if (result.new_tokens == room) return POCKETPHI_END_CONTEXT;
    if (result.new_tokens == how.max_new_tokens) return POCKETPHI_END_LIMIT;
    if (stop) return POCKETPHI_END_STOPPED;
    if (right + 1 < fed.size() && fed[right + 1] == id) {  // its keys and values are in the cache already
      ++right, ++result.accepted_tokens;
      logits += model.vocab;
    } else {
      if (!fed.empty()) drafts.learn(fed.size() - 1, right);
      fed = drafts.guess(session.tokens(), id, static_cast<size_t>(most - result.new_tokens - 1));
      result.drafted_tokens += static_cast<int64_t>(fed.size());
      fed.insert(fed.begin(), id);
      logits = session.step(fed.data(), fed.size()).data;
      right = 0, ++result.steps;
    }
    session.push(id);
  }
}

}  // namespace

void answer(
    Model& model, Session& session, const int64_t* ids, size_t count, const pocketphi_generation& how,
    const std::atomic<bool>& stop, pocketphi_result& result) {
  Sampler sampler(sampling(how));
  Text text = text_of(how);
  session.take_up(ids, count, count > 0 ? count - 1 : 0, 1);
  result.prompt_tokens = static_cast<int64_t>(count);
  result.reused_tokens = static_cast<int64_t>(session.tokens().size());
  const auto begin = Clock::now();
  const float* logits = session.feed(ids, count, stop);
  result.prefill_ms = result.first_token_ms = ms(begin);
  result.end = POCKETPHI_END_STOPPED;
  if (logits != nullptr) result.end = decode(model, session, logits, how, stop, sampler, text, result);
  if (how.decode != nullptr && result.end != POCKETPHI_END_TEXT && text.finish()) result.end = POCKETPHI_END_TEXT;
}

}  // namespace pocketphi
