// Uses the engine in every way, for the sanitizers to watch: `driver alone|together|media MODEL CACHE_DIR SESSION`.
// `alone` prints the ids of one greedy answer; `media` is for a multimodal file. A thing that is not as it should be ends
// the program with its line.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "pocketphi.h"

#define CHECK(condition)                                                                            \
  do {                                                                                              \
    if (!(condition)) std::fprintf(stderr, "driver.cpp:%d: %s\n", __LINE__, #condition), std::exit(1); \
  } while (0)

static const std::vector<int64_t> PROMPT = {72, 101, 108, 108, 111, 32, 119, 111, 114};

static size_t spell(void*, const int64_t* ids, size_t count, char* out, size_t capacity) {
  std::string text;
  for (size_t at = 0; at < count; ++at) text += "<" + std::to_string(ids[at]) + ">";
  if (text.size() <= capacity) std::memcpy(out, text.data(), text.size());
  return text.size();
}

static void collect_id(void* context, int64_t id, double) { static_cast<std::vector<int64_t>*>(context)->push_back(id); }

static std::vector<int64_t> answer(
    pocketphi_engine* engine, const std::vector<int64_t>& prompt, int64_t count, int32_t drafts = 0) {
  std::vector<int64_t> found;
  pocketphi_generation how = {};
  how.max_new_tokens = count, how.draft_tokens = drafts, how.ignore_eos = true, how.on_token = collect_id, how.context = &found;
  CHECK(pocketphi_generate(engine, prompt.data(), prompt.size(), &how, nullptr, nullptr) == POCKETPHI_OK);
  return found;
}

static void load(pocketphi_engine* engine, const char* model, const char* folder, int32_t packing) {
  const pocketphi_load_options options = {model, folder, 0, 4, nullptr, nullptr};
  pocketphi_load_report report;
  pocketphi_error error = {};
  if (pocketphi_load(engine, &options, &report, &error) != POCKETPHI_OK) std::fprintf(stderr, "%s\n", error.text), std::exit(1);
  if (report.packing != packing) std::fprintf(stderr, "packing %d: %s\n", report.packing, report.packed_note), std::exit(1);
}

static void alone(const char* model, const char* folder, const char* session) {
  pocketphi_engine* engine = pocketphi_create();
  pocketphi_error error = {};
  CHECK(pocketphi_rewind(engine, 0, &error) == POCKETPHI_BAD_INPUT && std::strlen(error.text) > 0);
  load(engine, model, nullptr, POCKETPHI_UNPACKED);
  const auto expected = answer(engine, PROMPT, 24);
  for (const int32_t packing : {POCKETPHI_PACKED, POCKETPHI_REUSED}) {
    load(engine, model, folder, packing);
    CHECK(answer(engine, PROMPT, 24) == expected);
    CHECK(answer(engine, PROMPT, 24, 7) == expected);
  }
  CHECK(pocketphi_save(engine, session, nullptr) == POCKETPHI_OK);
  CHECK(pocketphi_release(engine, nullptr) == POCKETPHI_OK);
  CHECK(pocketphi_restore(engine, session, nullptr) == POCKETPHI_OK);
  size_t count = 0;
  CHECK(pocketphi_tokens(engine, nullptr, 0, &count, nullptr) == POCKETPHI_OK && count == PROMPT.size() + 23);
  CHECK(pocketphi_rewind(engine, 12, nullptr) == POCKETPHI_OK);
  CHECK(answer(engine, PROMPT, 24) == expected);
  CHECK(pocketphi_restore(engine, model, &error) == POCKETPHI_BAD_INPUT);

  const int64_t stop_id = expected[5];
  const std::string stop_text = std::to_string(expected[3]) + "><";
  const char* stop_texts[] = {stop_text.c_str(), "never"};
  pocketphi_generation how = {};
  how.temperature = 0.8f, how.top_k = 40, how.top_p = 0.9f, how.min_p = 0.01f, how.repetition_penalty = 1.1f, how.seed = 7;
  how.max_new_tokens = 16, how.decode = spell, how.stop_ids = &stop_id, how.stop_id_count = 1;
  how.stop_texts = stop_texts, how.stop_text_count = 2;
  pocketphi_result result;
  CHECK(pocketphi_generate(engine, PROMPT.data(), PROMPT.size(), &how, &result, &error) == POCKETPHI_OK);
  how.top_p = 2;
  CHECK(pocketphi_generate(engine, PROMPT.data(), PROMPT.size(), &how, &result, &error) == POCKETPHI_BAD_INPUT);
  CHECK(pocketphi_generate(engine, nullptr, 0, &how, &result, &error) == POCKETPHI_BAD_INPUT);
  pocketphi_memory_use use;
  pocketphi_memory(&use);
  CHECK(use.anonymous > 0);
  CHECK(pocketphi_close(engine, nullptr) == POCKETPHI_OK);
  for (const int64_t id : expected) std::printf("%lld ", static_cast<long long>(id));
}

static void stop_soon(void* context, int64_t, double) { pocketphi_stop(static_cast<pocketphi_engine*>(context)); }
static void stop_load(void* context, uint64_t, uint64_t) { pocketphi_stop(static_cast<pocketphi_engine*>(context)); }
static void close_inside(void* context, int64_t, double) {
  CHECK(pocketphi_close(static_cast<pocketphi_engine*>(context), nullptr) == POCKETPHI_BUSY);
}

static void together(const char* model, const char* folder) {
  pocketphi_engine* engine = pocketphi_create();
  const pocketphi_load_options stopping = {model, folder, 0, 0, stop_load, engine};
  CHECK(pocketphi_load(engine, &stopping, nullptr, nullptr) == POCKETPHI_STOPPED);
  load(engine, model, folder, POCKETPHI_PACKED);
  const auto expected = answer(engine, PROMPT, 24);

  pocketphi_generation how = {};
  pocketphi_result result;
  how.ignore_eos = true, how.on_token = close_inside, how.context = engine, how.max_new_tokens = 2;
  CHECK(pocketphi_generate(engine, PROMPT.data(), PROMPT.size(), &how, &result, nullptr) == POCKETPHI_OK);
  how.on_token = stop_soon, how.max_new_tokens = 0;
  CHECK(pocketphi_generate(engine, PROMPT.data(), PROMPT.size(), &how, &result, nullptr) == POCKETPHI_OK);
  CHECK(result.end == POCKETPHI_END_STOPPED && result.new_tokens == 1);

  // Another engine answers beside, while three threads ask this one, a fourth stops it and a fifth closes it.
  std::atomic<bool> running{true};
  std::thread other([&] {
    pocketphi_engine* second = pocketphi_create();
    load(second, model, folder, POCKETPHI_REUSED);
    for (int i = 0; i < 3; ++i) CHECK(answer(second, PROMPT, 24) == expected);
    CHECK(pocketphi_close(second, nullptr) == POCKETPHI_OK);
  });
  how.on_token = nullptr;
  std::vector<std::thread> askers;
  for (int i = 0; i < 3; ++i)
    askers.emplace_back([&] {
      while (running) {
        const auto status = pocketphi_generate(engine, PROMPT.data(), PROMPT.size(), &how, nullptr, nullptr);
        CHECK(status == POCKETPHI_OK || status == POCKETPHI_BUSY);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
  for (int i = 0; i < 50; ++i) pocketphi_stop(engine), std::this_thread::sleep_for(std::chrono::milliseconds(2));
  running = false;
  for (std::thread& asker : askers) asker.join();
  std::atomic<bool> begun{false};
  how.context = &begun;
  how.on_token = [](void* context, int64_t, double) { *static_cast<std::atomic<bool>*>(context) = true; };
  std::thread last([&] { (void)pocketphi_generate(engine, PROMPT.data(), PROMPT.size(), &how, nullptr, nullptr); });
  while (!begun) std::this_thread::yield();
  CHECK(pocketphi_close(engine, nullptr) == POCKETPHI_OK);
  last.join();
  other.join();
}

static std::vector<int64_t> prompt_of(const pocketphi_encoded& encoded) {
  std::vector<int64_t> ids = {5, 6};
  for (int64_t row = 0; row < encoded.count; ++row) ids.push_back(encoded.first_id - row);
  ids.insert(ids.end(), {5, 6, 7, 5, 6});
  return ids;
}

static void stop_encoding(void* context, int64_t done, int64_t of) {
  CHECK(done < of);
  if (done == 1) pocketphi_stop(static_cast<pocketphi_engine*>(context));
}

static void media(const char* model, const char* folder, const char* session) {
  pocketphi_engine* engine = pocketphi_create();
  pocketphi_encoded picture, alone, beside;
  pocketphi_error error = {};
  constexpr size_t WIDTH = 517, HEIGHT = 301, COUNT = 42 * 16000;
  std::vector<uint8_t> rgb(WIDTH * HEIGHT * 3);
  for (size_t at = 0; at < rgb.size(); ++at) rgb[at] = static_cast<uint8_t>(at * 7);
  std::vector<float> samples(COUNT);
  for (size_t at = 0; at < COUNT; ++at) samples[at] = 0.001f * static_cast<float>(at % 997);
  for (const int32_t packing : {POCKETPHI_PACKED, POCKETPHI_REUSED}) {
    load(engine, model, folder, packing);
    CHECK(pocketphi_watch_encoding(engine, stop_encoding, engine, nullptr) == POCKETPHI_OK);
    CHECK(pocketphi_picture(engine, rgb.data(), WIDTH, HEIGHT, &picture, &error) == POCKETPHI_STOPPED);
    CHECK(pocketphi_sound(engine, samples.data(), COUNT, 16000, POCKETPHI_SPEECH, &alone, &error) == POCKETPHI_STOPPED);
    CHECK(pocketphi_watch_encoding(engine, nullptr, nullptr, nullptr) == POCKETPHI_OK);
    CHECK(pocketphi_picture(engine, rgb.data(), WIDTH, HEIGHT, &picture, &error) == POCKETPHI_OK);
    CHECK(pocketphi_sound(engine, samples.data(), COUNT, 16000, POCKETPHI_SPEECH, &alone, &error) == POCKETPHI_OK);
    CHECK(pocketphi_sound(engine, samples.data(), 201, 8000, POCKETPHI_VISION, &beside, &error) == POCKETPHI_OK);
    CHECK(beside.count == 1 && alone.count > 500 && picture.parts == 3);
    int64_t count = 0;
    CHECK(pocketphi_picture_tokens(engine, WIDTH, HEIGHT, &count, nullptr) == POCKETPHI_OK && count == picture.count);
    CHECK(pocketphi_sound_tokens(engine, COUNT, 16000, &count, nullptr) == POCKETPHI_OK && count == alone.count);
    const auto seen = answer(engine, prompt_of(picture), 6, 7), heard = answer(engine, prompt_of(alone), 6, 7);
    CHECK(answer(engine, prompt_of(picture), 6) == seen && answer(engine, prompt_of(alone), 6) == heard);
    CHECK(pocketphi_save(engine, session, nullptr) == POCKETPHI_OK);
    CHECK(pocketphi_forget_media(engine, nullptr) == POCKETPHI_OK);
    CHECK(pocketphi_restore(engine, session, nullptr) == POCKETPHI_OK);
    CHECK(answer(engine, prompt_of(alone), 6) == heard);
    auto both = prompt_of(alone);
    both.push_back(picture.first_id);
    CHECK(pocketphi_feed(engine, both.data(), both.size(), nullptr, &error) == POCKETPHI_BAD_INPUT);
    CHECK(pocketphi_picture(engine, rgb.data(), 20000, 10, &picture, &error) == POCKETPHI_BAD_INPUT);
    CHECK(pocketphi_picture(engine, nullptr, 5, 5, &picture, &error) == POCKETPHI_BAD_INPUT);
    CHECK(pocketphi_sound(engine, nullptr, 5, 16000, POCKETPHI_SPEECH, &alone, &error) == POCKETPHI_BAD_INPUT);
  }
  CHECK(pocketphi_close(engine, nullptr) == POCKETPHI_OK);
}

int main(int, char** argv) {
  if (std::strcmp(argv[1], "alone") == 0)
    alone(argv[2], argv[3], argv[4]);
  else if (std::strcmp(argv[1], "media") == 0)
    media(argv[2], argv[3], argv[4]);
  else
    together(argv[2], argv[3]);
}
