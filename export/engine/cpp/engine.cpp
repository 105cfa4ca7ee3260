// The functions of pocketphi.h: who may call when, and the order of things in a load.
#include <fcntl.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <new>
#include <thread>

#include "answer.h"
#include "clock.h"
#include "files.h"
#include "media.h"
#include "model.h"
#include "packed_weights.h"
#include "pocketphi.h"
#include "refusal.h"
#include "saved_session.h"
#include "session.h"
#include "threads.h"

using namespace pocketphi;

namespace {

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
  std::unique_ptr<Media> media;
  std::unique_ptr<Session> session;
  uint64_t identity = 0;
};

}  // namespace

struct pocketphi_engine {
  std::mutex gate;  // of the next four
  std::condition_variable left;
  bool busy = false, closing = false;
  std::thread::id caller;
  std::atomic<bool> stop{false};
  OnPart on_part = [](size_t, size_t) {};
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
    (void)Model(options.model, weights.begin(), stop, progress, true);
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

  Model& model = *loaded->model;
  const int64_t chunk = options.prefill_chunk > 0 ? std::min<int64_t>(options.prefill_chunk, model.chunk) : model.chunk;
  loaded->media = std::make_unique<Media>(model, engine->on_part);
  loaded->session = std::make_unique<Session>(model, *loaded->media, chunk);
  report.context_length = model.context, report.vocab_size = model.vocab, report.prefill_chunk = chunk;
  report.logits_positions = model.logits_positions;
  report.threads = loaded->threads.count();
  report.planned_bytes = model.memory().bytes();
  report.takes_pictures = model.images.has_value(), report.takes_sound = model.audio.has_value();
  report.sound_rate = model.audio ? static_cast<int32_t>(model.audio->rate) : 0;
  std::snprintf(report.packed_note, sizeof report.packed_note, "%s", note.c_str());
  const uint64_t after = private_bytes();
  report.private_bytes = after > before ? after - before : 0;
  report.load_ms = ms(begin);
  engine->loaded = std::move(loaded);
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

pocketphi_status pocketphi_watch_encoding(
    pocketphi_engine* engine, void (*on_part)(void* context, int64_t done, int64_t of), void* context,
    pocketphi_error* error) {
  return call(engine, error, [&] {
    engine->on_part = [on_part, context](size_t done, size_t of) {
      if (on_part != nullptr) on_part(context, static_cast<int64_t>(done), static_cast<int64_t>(of));
    };
  });
}

pocketphi_status pocketphi_picture(
    pocketphi_engine* engine, const uint8_t* rgb, size_t width, size_t height, pocketphi_encoded* encoded,
    pocketphi_error* error) {
  return call(engine, error, [&] {
    const auto found = model_of(engine).media->picture(rgb, width, height);
    if (encoded != nullptr) *encoded = found;
  });
}

pocketphi_status pocketphi_sound(
    pocketphi_engine* engine, const float* samples, size_t count, int32_t rate, pocketphi_mode mode,
    pocketphi_encoded* encoded, pocketphi_error* error) {
  return call(engine, error, [&] {
    const auto found = model_of(engine).media->sound(samples, count, rate, mode);
    if (encoded != nullptr) *encoded = found;
  });
}

pocketphi_status pocketphi_picture_tokens(
    pocketphi_engine* engine, size_t width, size_t height, int64_t* count, pocketphi_error* error) {
  return call(engine, error, [&] {
    const int64_t found = model_of(engine).media->picture_tokens(width, height);
    if (count != nullptr) *count = found;
  });
}

pocketphi_status pocketphi_sound_tokens(
    pocketphi_engine* engine, size_t samples, int32_t rate, int64_t* count, pocketphi_error* error) {
  return call(engine, error, [&] {
    const int64_t found = model_of(engine).media->sound_tokens(samples, rate);
    if (count != nullptr) *count = found;
  });
}

pocketphi_status pocketphi_forget_media(pocketphi_engine* engine, pocketphi_error* error) {
  return call(engine, error, [&] { model_of(engine).media->forget(); });
}

pocketphi_status pocketphi_generate(
    pocketphi_engine* engine, const int64_t* ids, size_t count, const pocketphi_generation* how, pocketphi_result* result,
    pocketphi_error* error) {
  pocketphi_result own = {};
  const auto status = call(engine, error, [&] {
    if (how == nullptr) bad_input("nothing says how to answer");
    Loaded& loaded = model_of(engine);
    answer(*loaded.model, *loaded.session, ids, count, *how, engine->stop, own);
  });
  if (result != nullptr) *result = own;
  return status;
}

pocketphi_status pocketphi_feed(
    pocketphi_engine* engine, const int64_t* ids, size_t count, float* logits, pocketphi_error* error) {
  return call(engine, error, [&] {
    Loaded& loaded = model_of(engine);
    loaded.session->take_up(ids, count, count > 0 ? count - 1 : 0, 0);
    const float* found = loaded.session->feed(ids, count, engine->stop);
    if (found == nullptr) stopped();
    if (logits != nullptr) std::copy_n(found, loaded.model->vocab, logits);
  });
}

pocketphi_status pocketphi_feed_rows(
    pocketphi_engine* engine, const int64_t* ids, size_t count, size_t rows, float* logits, pocketphi_error* error) {
  return call(engine, error, [&] {
    Loaded& loaded = model_of(engine);
    if (rows == 0 || rows > count || logits == nullptr)
      bad_input("logits of " + std::to_string(rows) + " tokens are asked for, of " + std::to_string(count));
    loaded.session->take_up(ids, count, count - rows, 0);
    loaded.session->feed_rows(ids, count, rows, logits, engine->stop);
  });
}

pocketphi_status pocketphi_tokens(
    pocketphi_engine* engine, int64_t* ids, size_t capacity, size_t* count, pocketphi_error* error) {
  return call(engine, error, [&] {
    const auto& tokens = model_of(engine).session->tokens();
    if (ids != nullptr) std::copy_n(tokens.begin(), std::min(capacity, tokens.size()), ids);
    if (count != nullptr) *count = tokens.size();
  });
}

pocketphi_status pocketphi_rewind(pocketphi_engine* engine, size_t count, pocketphi_error* error) {
  return call(engine, error, [&] {
    Session& session = *model_of(engine).session;
    if (count > session.tokens().size())
      bad_input("the session has " + std::to_string(session.tokens().size()) + " tokens, not " + std::to_string(count));
    session.rewind(count);
  });
}

pocketphi_status pocketphi_release(pocketphi_engine* engine, pocketphi_error* error) {
  return call(engine, error, [&] {
    Loaded& loaded = model_of(engine);
    loaded.session->rewind(0);
    loaded.model->memory().release();
  });
}

pocketphi_status pocketphi_save(pocketphi_engine* engine, const char* path, pocketphi_error* error) {
  return call(engine, error, [&] {
    Loaded& loaded = model_of(engine);
    if (path == nullptr) bad_input("no path is given");
    save_session(path, loaded.identity, *loaded.model, *loaded.session);
  });
}

pocketphi_status pocketphi_restore(pocketphi_engine* engine, const char* path, pocketphi_error* error) {
  return call(engine, error, [&] {
    Loaded& loaded = model_of(engine);
    if (path == nullptr) bad_input("no path is given");
    restore_session(path, loaded.identity, *loaded.model, *loaded.session);
  });
}
