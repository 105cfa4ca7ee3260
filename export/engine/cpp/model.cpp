#include "model.h"

#include <executorch/extension/tensor/tensor.h>

#include <algorithm>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "refusal.h"

namespace pocketphi {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::extension::from_blob;

namespace {

// text_decoder is that of pictures where a file has any, else that of sound: the stock runners know no other name.
constexpr char TEXT[] = "forward", EMBEDDING[] = "token_embedding", STOCK[] = "text_decoder", SPEECH[] = "text_decoder_speech";
constexpr size_t CACHE = 1;  // of planned memory, in files of several methods: export/program/arenas.py

std::string tokens_at(size_t count, int64_t position) {
  return std::to_string(count) + " tokens at position " + std::to_string(position);
}

}  // namespace

Model::Model(
    const std::string& path, const std::string& packed, const std::atomic<bool>& stop, const Progress& progress, bool whole)
    : program_(path, packed, stop, progress) {
  context = program_.count("get_max_context_len"), chunk = program_.count("get_max_seq_len");
  vocab = program_.count("get_vocab_size");
  for (const auto& value : program_.constants("get_eos_ids")) eos.push_back(value.toInt());
  const auto meta = program_.meta(TEXT);
  program_.check(meta.error(), "finds no forward in it");
  if (const auto found = meta->output_tensor_meta(0); found.ok() && found->sizes().size() == 3)
    logits_positions = found->sizes()[1];
  find_media();
  std::vector<std::string> names = {TEXT};
  if (width > 0) names.insert(names.end(), {EMBEDDING, STOCK, SPEECH});
  decoders_ = std::make_unique<Methods>(program_, names, Workspace::of_all);
  decoders_->load(TEXT);
  if (whole && width > 0) {
    for (const std::string& name : names)
      if (program_.has(name)) decoders_->load(name);
    encoders().load();
  }
  program_.finish();
}

void Model::find_media() {
  constexpr char PICTURES[] = "get_image_settings", SOUND[] = "get_audio_settings";
  if (!program_.has(EMBEDDING) || !program_.has(STOCK)) return;
  if (program_.has(PICTURES) && Encoders::of_pictures(program_))
    images.emplace(program_.numbers(PICTURES), std::string(PICTURES) + " of " + path());
  if (program_.has(SOUND) && Encoders::of_sound(program_, MediaKind::sound_alone))
    audio.emplace(program_.numbers(SOUND), std::string(SOUND) + " of " + path());
  if (!images && !audio) return;
  const auto meta = program_.meta(EMBEDDING);
  program_.check(meta.error(), "finds no token_embedding in it");
  const auto found = meta->output_tensor_meta(0);
  program_.check(found.error(), "finds no result of token_embedding");
  width = static_cast<size_t>(found->sizes()[found->sizes().size() - 1]);
}

bool Model::takes(pocketphi_mode mode) const {
  if (mode == POCKETPHI_TEXT) return true;
  return mode == POCKETPHI_VISION ? images.has_value() : audio.has_value();
}

const char* Model::decoder(pocketphi_mode mode) const {
  if (mode == POCKETPHI_TEXT) return TEXT;
  return mode == POCKETPHI_SPEECH && program_.has(SPEECH) ? SPEECH : STOCK;
}

void Model::ready(pocketphi_mode mode) {
  decoders_->load(decoder(mode));
  if (mode != POCKETPHI_TEXT) decoders_->load(EMBEDDING);
}

Model::Logits Model::logits(const Tensor& found, const std::string& what) const {
  if (found.numel() < vocab || found.numel() % vocab != 0)
    failed(path() + " gives no float32 logits of " + std::to_string(vocab) + " for " + what);
  return {found.const_data_ptr<float>(), static_cast<size_t>(found.numel() / vocab)};
}

Model::Logits Model::step(const int64_t* ids, size_t count, int64_t position) {
  auto tokens = from_blob(const_cast<int64_t*>(ids), {1, static_cast<int>(count)}, ScalarType::Long);
  auto start = from_blob(&position, {1}, ScalarType::Long);
  const std::string what = tokens_at(count, position);
  return logits(decoders_->run(TEXT, {*tokens, *start}, what), what);
}

Model::Logits Model::step(const float* rows, size_t count, int64_t position, pocketphi_mode mode) {
  auto embeddings = from_blob(
      const_cast<float*>(rows), {1, static_cast<int>(count), static_cast<int>(width)}, ScalarType::Float);
  auto start = from_blob(&position, {1}, ScalarType::Long);
  const std::string what = tokens_at(count, position);
  return logits(decoders_->run(decoder(mode), {*embeddings, *start}, what), what);
}

void Model::embed(const int64_t* ids, size_t count, float* rows) {
  auto tokens = from_blob(const_cast<int64_t*>(ids), {1, static_cast<int>(count)}, ScalarType::Long);
  const auto found = decoders_->run(EMBEDDING, {*tokens}, "the embedding of " + std::to_string(count) + " tokens");
  if (static_cast<size_t>(found.numel()) != count * width)
    failed(path() + " embeds " + std::to_string(count) + " tokens as " + std::to_string(found.numel()) + " numbers");
  // Not handed on as they are: the decoder's copy of them is planned for the same memory.
  std::copy_n(found.const_data_ptr<float>(), count * width, rows);
}

Encoders& Model::encoders() {
  if (!encoders_) encoders_ = std::make_unique<Encoders>(program_, width);
  return *encoders_;
}

void Model::leave_encoders(bool in_any_case) {
  if (!encoders_ || (program_.packed().empty() && !in_any_case)) return;
  encoders_.reset();
#ifdef __GLIBC__  // which keeps what is freed for the next who asks
  malloc_trim(0);
#endif
}

std::vector<PlannedMemory::Part> Model::session_memory() {
  const auto& parts = memory().parts();
  if (width == 0 || parts.size() <= CACHE) return parts;
  return {parts[CACHE]};
}

}  // namespace pocketphi
