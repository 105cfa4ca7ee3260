// Text by ExecuTorch's own tokenizers, through the one function of its LLM runner that makes them.
//
// Only the interface of a tokenizer is used, so that no header beyond it is needed: neither of JSON nor of RE2. Two
// things of pytorch_tokenizers 1.5.0 are worked around in `piece`, where a vocabulary writes spaces as U+2581 (Llama 2,
// Phi-3): decoding a tokenizer.json's token alone drops the space in front of every word, and throws at half a
// character; SentencePiece spells bytes out, as "<0xF0>".
#include "pocketphi_tokenizer.h"

#include <pytorch/tokenizers/tokenizer.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "refusal.h"

// As the runner's llm_runner_helper.h declares it, which neither the wheel nor Apple's frameworks have. Where that has
// changed, linking fails.
namespace executorch::extension::llm {
std::unique_ptr<tokenizers::Tokenizer> load_tokenizer(
    const std::string& path, std::unique_ptr<std::vector<std::string>> special_tokens, std::optional<std::string> pattern,
    size_t bos_index, size_t eos_index);
}

using namespace pocketphi;

static constexpr std::string_view SPACE = "\xe2\x96\x81";  // U+2581

struct pocketphi_tokenizer {
  std::string path;
  std::unique_ptr<tokenizers::Tokenizer> library;
  bool sentencepiece = false;  // else a tokenizer.json or tiktoken
  bool marks_spaces = false;   // with U+2581
  bool adds_space = false;     // in front of a text
};

namespace {

std::vector<uint64_t> encode(const pocketphi_tokenizer& of, const std::string& text, int8_t num_bos) {
  auto ids = of.library->encode(text, num_bos, 0);
  if (!ids.ok()) bad_input(of.path + " cannot encode the text");
  return std::move(ids.get());
}

std::string spelled(const pocketphi_tokenizer& of, uint64_t id) {
  auto found = of.library->id_to_piece(id);
  return found.ok() ? std::move(found.get()) : "";
}

std::unique_ptr<pocketphi_tokenizer> load(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) bad_input(cannot(path, "read"));
  char first = 0;
  file >> first;
  auto made = std::make_unique<pocketphi_tokenizer>();
  made->path = path;
  made->library = executorch::extension::llm::load_tokenizer(path, nullptr, std::nullopt, 0, 1);
  const auto probe = made->library ? made->library->encode("a a") : tokenizers::Error::LoadFailure;
  if (!probe.ok() || probe->empty()) bad_input(made->path + " is no tokenizer that ExecuTorch's runner reads");
  for (const uint64_t id : *probe) made->marks_spaces |= spelled(*made, id).find(SPACE) != std::string::npos;
  made->adds_space = made->marks_spaces && spelled(*made, probe->front()).compare(0, SPACE.size(), SPACE) == 0;
  made->sentencepiece = made->marks_spaces && first != '{';
  return made;
}

bool is_hex(char digit) { return std::isxdigit(static_cast<unsigned char>(digit)) != 0; }

// Text of one id in the middle of others.
std::string piece(const pocketphi_tokenizer& of, int64_t id) {
  const auto token = static_cast<uint64_t>(id);
  // SentencePiece ends the process at an id that it has not.
  if (id < 0 || (of.sentencepiece && id >= of.library->vocab_size())) return "";
  if (!of.marks_spaces) {
    auto text = of.library->decode(token, token, false);
    return text.ok() ? std::move(text.get()) : "";
  }
  std::string text = spelled(of, token);
  if (of.sentencepiece && text != SPACE) {
    const auto shown = of.library->decode(token, token, false);
    if (shown.ok() && shown.get() == " ") return "";  // its way to show a control token
  }
  if (text.size() == 6 && text.compare(0, 3, "<0x") == 0 && text[5] == '>' && is_hex(text[3]) && is_hex(text[4]))
    return {static_cast<char>(std::strtoul(text.c_str() + 3, nullptr, 16))};
  for (size_t at = 0; (at = text.find(SPACE, at)) != std::string::npos; ++at) text.replace(at, SPACE.size(), " ");
  return text;
}

template <class Work>
pocketphi_status guarded(pocketphi_error* error, Work work) {
  const auto told = [error](pocketphi_status status, const char* sentence) {
    if (error != nullptr) std::snprintf(error->text, sizeof error->text, "%s", sentence);
    return status;
  };
  try {
    work();
    return POCKETPHI_OK;
  } catch (const Refusal& refusal) {
    return told(refusal.status, refusal.what());
  } catch (const std::bad_alloc&) {
    return told(POCKETPHI_FAILED, "memory has run out");
  } catch (const std::exception& problem) {  // of the library, which throws at text or files that it does not expect
    return told(POCKETPHI_BAD_INPUT, problem.what());
  }
}

}  // namespace

pocketphi_tokenizer* pocketphi_tokenizer_load(const char* path, pocketphi_error* error) {
  std::unique_ptr<pocketphi_tokenizer> made;
  guarded(error, [&] {
    if (path == nullptr) bad_input("no tokenizer is given");
    made = load(path);
  });
  return made.release();
}

void pocketphi_tokenizer_free(pocketphi_tokenizer* tokenizer) { delete tokenizer; }

pocketphi_status pocketphi_tokenizer_encode(
    pocketphi_tokenizer* tokenizer, const char* text, size_t length, int8_t num_bos, int64_t* ids, size_t capacity,
    size_t* count, pocketphi_error* error) {
  return guarded(error, [&] {
    if (tokenizer == nullptr || count == nullptr) bad_input("there is no tokenizer, or no place for the count");
    const auto found = encode(*tokenizer, std::string(text, length), num_bos);
    for (size_t at = 0; at < std::min(capacity, found.size()); ++at) ids[at] = static_cast<int64_t>(found[at]);
    *count = found.size();
  });
}

size_t pocketphi_tokenizer_decode(
    pocketphi_tokenizer* tokenizer, const int64_t* ids, size_t count, char* out, size_t capacity) {
  std::string text;
  guarded(nullptr, [&] {
    for (size_t at = 0; at < count; ++at) text += piece(*tokenizer, ids[at]);
    if (tokenizer->adds_space && text.compare(0, 1, " ") == 0) text.erase(0, 1);
  });
  if (text.size() <= capacity) text.copy(out, text.size());
  return text.size();
}
