// The functions of pocketphi.h: who may call when, and the order of things in a load and in an answer.
#include <fcntl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <new>
#include <thread>

#include "drafts.h"
#include "files.h"
#include "model.h"
#include "packed_weights.h"
#include "pocketphi.h"
#include "refusal.h"
#include "sampler.h"
#include "saved_session.h"
#include "text.h"
#include "threads.h"

using namespace pocketphi;

namespace {

using Clock = std::chrono::steady_clock;

double ms(Clock::time_point from, Clock::time_point to = Clock::now()) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

uint64_t private_bytes() {
  pocketphi_memory_use use;
  pocketphi_memory(&use);
  return use.anonymous + use.swapped;
}

struct Loaded {
  explicit Loaded(int32_t threads_wanted) : threads(threads_wanted) {}
  Threads threads;
  File lock;  // on the packed weights, until the model is gone
  std::unique_ptr<Model> model;
  uint64_t identity = 0;
  int64_t chunk = 0;
  std::vector<int64_t> tokens;  // whose keys and values the cache holds, from position 0 on
};

}  // namespace

struct pocketphi_engine {
  std::mutex gate;  // of the next four
  std::condition_variable left;
  bool busy = false, closing = false;
  std::thread::id caller;
  std::atomic<bool> stop{false};
  std::unique_ptr<Loaded> loaded;
};

namespace {

pocketphi_status told(pocketphi_error* error, pocketphi_status status, const char* sentence) {
  if (error != nullptr) std::snprintf(error->text, sizeof error->text, "%s", sentence);
  return status;
}

// Does `work` as the engine's one running call.
template <class Work>
pocketphi_status call(pocketphi_engine* engine, pocketphi_error* error, Work work) {
  if (engine == nullptr) return told(error, POCKETPHI_BAD_INPUT, "there is no engine");
  {
    const std::lock_guard<std::mutex> lock(engine->gate);
    if (engine->closing) return told(error, POCKETPHI_BUSY, "the engine is being closed");
    if (engine->busy) return told(error, POCKETPHI_BUSY, "the engine is busy with another call");
    engine->busy = true, engine->caller = std::this_thread::get_id(), engine->stop = false;
  }
  pocketphi_status status = POCKETPHI_OK;
  try {
    work();
  } catch (const Refusal& refusal) {
    status = told(error, refusal.status, refusal.what());
  } catch (const std::bad_alloc&) {
    status = told(error, POCKETPHI_FAILED, "memory has run out");
  } catch (const std::exception& problem) {
    status = told(error, POCKETPHI_FAILED, problem.what());
  }
  const std::lock_guard<std::mutex> lock(engine->gate);
  engine->busy = false;
  engine->left.notify_all();
  return status;
}

Loaded& model_of(pocketphi_engine* engine) {
  if (!engine->loaded) bad_input("no model is loaded");
  return *engine->loaded;
}

// ---- load

void load_packed(
    Loaded& loaded, const pocketphi_load_options& options, pocketphi_load_report& report, const std::atomic<bool>& stop,
    const Progress& progress) {
  PackedWeights weights(options.cache_dir, options.model, stop);
  report.packing = weights.found() ? POCKETPHI_REUSED : POCKETPHI_PACKED;
  if (report.packing == POCKETPHI_PACKED) {
    const auto begin = Clock::now();
    // In a model of its own: what maps the finished file afterwards holds nothing of the packing.
    (void)Model(options.model, weights.begin(), stop, progress);
    weights.packed();
    report.pack_ms = ms(begin);
  }
  const uint64_t before = private_bytes();
  loaded.model = std::make_unique<Model>(
      options.model, weights.path(), stop, report.packing == POCKETPHI_REUSED ? progress : Progress());
  const uint64_t after = private_bytes();
  weights.confirm(after > before ? after - before : 0);
  if (report.packing == POCKETPHI_PACKED) weights.publish();
  report.packed_bytes = weights.length();
  loaded.lock = weights.release();
}

void load(pocketphi_engine* engine, const pocketphi_load_options& options, pocketphi_load_report& report) {
  if (options.model == nullptr) bad_input("no model is given");
  if (options.threads < 0 || options.prefill_chunk < 0) bad_input("threads and prefill_chunk are not below 0");
  engine->loaded.reset();
  const auto begin = Clock::now();
  const uint64_t before = private_bytes();
  auto loaded = std::make_unique<Loaded>(options.threads);
  const File file(options.model, O_RDONLY);
  if (!file) bad_input(cannot(options.model, "read"));
  loaded->identity = model_identity(file);

  const auto length = static_cast<uint64_t>(file.status().st_size);
  uint64_t done = 0;
  const Progress progress = [&](uint64_t bytes) {
    done = std::min(length, done + bytes);
    if (options.on_progress != nullptr) options.on_progress(options.context, done, length);
  };
  std::string note = "no folder is given";
  if (options.cache_dir != nullptr) {
    try {
      load_packed(*loaded, options, report, engine->stop, progress);
      note.clear();
    } catch (const Refusal& refusal) {
      if (refusal.status == POCKETPHI_STOPPED) throw;
      report.packing = POCKETPHI_UNPACKED, report.packed_bytes = 0;
      note = refusal.what();
      done = 0;
    }
  }
  if (!loaded->model) loaded->model = std::make_unique<Model>(options.model, "", engine->stop, progress);

  const Model& model = *loaded->model;
  loaded->chunk = options.prefill_chunk > 0 ? std::min<int64_t>(options.prefill_chunk, model.chunk) : model.chunk;
  report.context_length = model.context, report.vocab_size = model.vocab, report.prefill_chunk = loaded->chunk;
  report.logits_positions = model.logits_positions;
  report.threads = loaded->threads.count();
  report.planned_bytes = loaded->model->memory().bytes();
  std::snprintf(report.packed_note, sizeof report.packed_note, "%s", note.c_str());
  const uint64_t after = private_bytes();
  report.private_bytes = after > before ? after - before : 0;
  report.load_ms = ms(begin);
  engine->loaded = std::move(loaded);
}

// ---- answer

void check_ids(const Loaded& loaded, const int64_t* ids, size_t count, int64_t room) {
  const Model& model = *loaded.model;
  if (ids == nullptr || count == 0) bad_input("the prompt is empty");
  if (static_cast<int64_t>(count) > model.context - room)
    bad_input("the prompt has " + std::to_string(count) + " tokens, " + model.path() + " has a context of " +
              std::to_string(model.context));
  for (size_t at = 0; at < count; ++at)
    if (ids[at] < 0 || ids[at] >= model.vocab)
      bad_input("token " + std::to_string(ids[at]) + " of the prompt is outside the vocabulary of " +
                std::to_string(model.vocab));
}

// Keeps of the session what it has in common with the beginning of `ids`, at most `most` tokens.
void keep_common(Loaded& loaded, const int64_t* ids, size_t most) {
  auto& tokens = loaded.tokens;
  const auto end = tokens.begin() + static_cast<ptrdiff_t>(std::min(tokens.size(), most));
  tokens.erase(std::mismatch(tokens.begin(), end, ids).first, tokens.end());
}

// Feeds what the session does not hold of the first `count` tokens, `piece` at once; the logits of the last step, no data
// where stopped before or nothing was to be fed.
Model::Logits advance(Loaded& loaded, const int64_t* ids, size_t count, int64_t piece, const std::atomic<bool>& stop) {
  auto& tokens = loaded.tokens;
  Model::Logits found;
  while (tokens.size() < count) {
    if (stop) return {};
    const size_t at = tokens.size(), size = std::min(count - at, static_cast<size_t>(piece));
    found = loaded.model->step(ids + at, size, static_cast<int64_t>(at));
    tokens.insert(tokens.end(), ids + at, ids + at + size);
  }
  return found;
}

// Feeds what the session does not hold already, at least the last token; the logits of that one, nullptr where stopped
// before.
const float* feed(Loaded& loaded, const int64_t* ids, size_t count, const std::atomic<bool>& stop, int64_t* reused) {
  keep_common(loaded, ids, count - 1);
  *reused = static_cast<int64_t>(loaded.tokens.size());
  const auto found = advance(loaded, ids, count, loaded.chunk, stop);
  return found.data == nullptr ? nullptr : found.data + (found.rows - 1) * static_cast<size_t>(loaded.model->vocab);
}

// Logits of the last `rows` tokens: they are fed as many at once as a step gives logits of, what is before them by chunks.
void feed_rows(
    Loaded& loaded, const int64_t* ids, size_t count, size_t rows, float* logits, const std::atomic<bool>& stop) {
  const auto vocab = static_cast<size_t>(loaded.model->vocab);
  const auto piece = std::min(loaded.chunk, loaded.model->logits_positions);
  keep_common(loaded, ids, count - rows);
  (void)advance(loaded, ids, count - rows, loaded.chunk, stop);
  while (loaded.tokens.size() < count) {
    const size_t before = loaded.tokens.size(), size = std::min(count - before, static_cast<size_t>(piece));
    const auto found = advance(loaded, ids, before + size, piece, stop);
    if (found.data == nullptr) stopped();
    if (found.rows < size) failed(loaded.model->path() + " gives logits of " + std::to_string(found.rows) + " tokens, not " +
                                  std::to_string(size));
    logits = std::copy_n(found.data + (found.rows - size) * vocab, size * vocab, logits);
  }
}

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
    Loaded& loaded, const float* logits, const pocketphi_generation& how, const std::atomic<bool>& stop, Sampler& sampler,
    Text& text, pocketphi_result& result) {
  const Model& model = *loaded.model;
  const auto ends = [&](int64_t id) {
    const bool own = !how.ignore_eos && std::count(model.eos.begin(), model.eos.end(), id) > 0;
    return own || std::count(how.stop_ids, how.stop_ids + how.stop_id_count, id) > 0;
  };
  const int64_t room = model.context - static_cast<int64_t>(loaded.tokens.size());
  const int64_t most = how.max_new_tokens > 0 ? std::min(how.max_new_tokens, room) : room;
  Drafts drafts(static_cast<size_t>(std::min<int64_t>(how.draft_tokens, std::min(model.logits_positions, model.chunk) - 1)));
  std::vector<int64_t> fed;  // the last token fed and the guesses after it
  size_t right = 0;          // of those, the guesses found right so far
  auto last = Clock::now();
  for (;;) {
    const int64_t id = sampler.choose(logits, static_cast<size_t>(model.vocab), loaded.tokens);
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
      fed = drafts.guess(loaded.tokens, id, static_cast<size_t>(most - result.new_tokens - 1));
      result.drafted_tokens += static_cast<int64_t>(fed.size());
      fed.insert(fed.begin(), id);
      logits = loaded.model->step(fed.data(), fed.size(), static_cast<int64_t>(loaded.tokens.size())).data;
      right = 0, ++result.steps;
    }
    loaded.tokens.push_back(id);
  }
}

void generate(
    pocketphi_engine* engine, const int64_t* ids, size_t count, const pocketphi_generation& how, pocketphi_result& result) {
  Loaded& loaded = model_of(engine);
  Sampler sampler(sampling(how));
  Text text = text_of(how);
  check_ids(loaded, ids, count, 1);
  result.prompt_tokens = static_cast<int64_t>(count);
  const auto begin = Clock::now();
  const float* logits = feed(loaded, ids, count, engine->stop, &result.reused_tokens);
  result.prefill_ms = result.first_token_ms = ms(begin);
  result.end = POCKETPHI_END_STOPPED;
  if (logits != nullptr) result.end = decode(loaded, logits, how, engine->stop, sampler, text, result);
  if (how.decode != nullptr && result.end != POCKETPHI_END_TEXT && text.finish()) result.end = POCKETPHI_END_TEXT;
}

}  // namespace

// ---- the functions

pocketphi_engine* pocketphi_create(void) { return new (std::nothrow) pocketphi_engine(); }

pocketphi_status pocketphi_close(pocketphi_engine* engine, pocketphi_error* error) {
  if (engine == nullptr) return POCKETPHI_OK;
  {
    std::unique_lock<std::mutex> lock(engine->gate);
    if (engine->closing) return told(error, POCKETPHI_BUSY, "the engine is being closed");
    if (engine->busy && engine->caller == std::this_thread::get_id())
      return told(error, POCKETPHI_BUSY, "an engine cannot be closed from within its callbacks");
    engine->closing = true, engine->stop = true;
    engine->left.wait(lock, [&] { return !engine->busy; });
  }
  delete engine;
  return POCKETPHI_OK;
}

void pocketphi_stop(pocketphi_engine* engine) {
  if (engine != nullptr) engine->stop = true;
}

pocketphi_status pocketphi_load(
    pocketphi_engine* engine, const pocketphi_load_options* options, pocketphi_load_report* report, pocketphi_error* error) {
  pocketphi_load_report own = {};
  const auto status = call(engine, error, [&] {
    if (options == nullptr) bad_input("no options are given");
    load(engine, *options, own);
  });
  if (report != nullptr) *report = own;
  return status;
}

pocketphi_status pocketphi_generate(
    pocketphi_engine* engine, const int64_t* ids, size_t count, const pocketphi_generation* how, pocketphi_result* result,
    pocketphi_error* error) {
  pocketphi_result own = {};
  const auto status = call(engine, error, [&] {
    if (how == nullptr) bad_input("nothing says how to answer");
    generate(engine, ids, count, *how, own);
  });
  if (result != nullptr) *result = own;
  return status;
}

pocketphi_status pocketphi_feed(
    pocketphi_engine* engine, const int64_t* ids, size_t count, float* logits, pocketphi_error* error) {
  return call(engine, error, [&] {
    Loaded& loaded = model_of(engine);
    check_ids(loaded, ids, count, 0);
    int64_t reused = 0;
    const float* found = feed(loaded, ids, count, engine->stop, &reused);
    if (found == nullptr) stopped();
    if (logits != nullptr) std::copy_n(found, loaded.model->vocab, logits);
  });
}

pocketphi_status pocketphi_feed_rows(
    pocketphi_engine* engine, const int64_t* ids, size_t count, size_t rows, float* logits, pocketphi_error* error) {
  return call(engine, error, [&] {
    Loaded& loaded = model_of(engine);
    check_ids(loaded, ids, count, 0);
    if (rows == 0 || rows > count || logits == nullptr)
      bad_input("logits of " + std::to_string(rows) + " tokens are asked for, of " + std::to_string(count));
    feed_rows(loaded, ids, count, rows, logits, engine->stop);
  });
}

pocketphi_status pocketphi_tokens(
    pocketphi_engine* engine, int64_t* ids, size_t capacity, size_t* count, pocketphi_error* error) {
  return call(engine, error, [&] {
    const auto& tokens = model_of(engine).tokens;
    if (ids != nullptr) std::copy_n(tokens.begin(), std::min(capacity, tokens.size()), ids);
    if (count != nullptr) *count = tokens.size();
  });
}

pocketphi_status pocketphi_rewind(pocketphi_engine* engine, size_t count, pocketphi_error* error) {
  return call(engine, error, [&] {
    auto& tokens = model_of(engine).tokens;
    if (count > tokens.size())
      bad_input("the session has " + std::to_string(tokens.size()) + " tokens, not " + std::to_string(count));
    tokens.resize(count);
  });
}

pocketphi_status pocketphi_release(pocketphi_engine* engine, pocketphi_error* error) {
  return call(engine, error, [&] {
    Loaded& loaded = model_of(engine);
    loaded.tokens.clear();
    loaded.model->memory().release();
  });
}

pocketphi_status pocketphi_save(pocketphi_engine* engine, const char* path, pocketphi_error* error) {
  return call(engine, error, [&] {
    Loaded& loaded = model_of(engine);
    if (path == nullptr) bad_input("no path is given");
    save_session(path, loaded.identity, *loaded.model, loaded.tokens);
  });
}

pocketphi_status pocketphi_restore(pocketphi_engine* engine, const char* path, pocketphi_error* error) {
  return call(engine, error, [&] {
    Loaded& loaded = model_of(engine);
    if (path == nullptr) bad_input("no path is given");
    loaded.tokens = restore_session(path, loaded.identity, *loaded.model);
  });
}
