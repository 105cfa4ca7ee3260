// A loaded `.pte`: its facts, its KV cache, the steps that compute logits, and its encoders of pictures and sound.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "encoders.h"
#include "pocketphi.h"
#include "program.h"

namespace pocketphi {

class Model {
 public:
  // As of `Program`. Of a multimodal file only the decoder of text is loaded, the rest when it is first needed; `whole`
  // loads it all, so that XNNPACK packs it all. Throws Refusal.
  Model(const std::string& path, const std::string& packed, const std::atomic<bool>& stop, const Progress& progress,
        bool whole = false);

  struct Logits {
    const float* data = nullptr;  // float32 [rows, vocab] of the last tokens, good until the next step
    size_t rows = 0;
  };
  // Feeds tokens, the first at `position`.
  Logits step(const int64_t* ids, size_t count, int64_t position);
  // Feeds rows of the embedding, float32 [count, width], to the decoder for prompts of `mode`, not text.
  Logits step(const float* rows, size_t count, int64_t position, pocketphi_mode mode);
  // Rows of the embedding, float32 [count, width], of at most `chunk` tokens.
  void embed(const int64_t* ids, size_t count, float* rows);

  // Whether the file has what prompts of this mode need.
  bool takes(pocketphi_mode mode) const;
  // Loads what they need, so that their first step takes no longer than the next.
  void ready(pocketphi_mode mode);
  bool takes_sound(MediaKind kind) const { return audio && Encoders::of_sound(program_, kind); }
  Encoders& encoders();
  // Frees the encoders where their weights are mapped; in private memory, they would have to be packed again.
  void leave_encoders(bool in_any_case = false);

  const std::string& path() const { return program_.path(); }
  PlannedMemory& memory() { return decoders_->memory(); }
  // What a session is in memory: in a file of one method the KV cache lies among the activations.
  std::vector<PlannedMemory::Part> session_memory();
  int64_t context = 0, chunk = 0, vocab = 0;  // tokens; the context, and how many one step takes
  int64_t logits_positions = 1;               // rows of logits a step gives at most
  size_t width = 0;                           // of a row of the embedding; 0 where the file takes text only
  std::vector<int64_t> eos;
  std::optional<ImageSettings> images;  // of a file that takes pictures
  std::optional<AudioSettings> audio;   // of one that takes sound

 private:
  void find_media();
  const char* decoder(pocketphi_mode mode) const;
  Logits logits(const executorch::aten::Tensor& found, const std::string& what) const;
  Program program_;
  std::unique_ptr<Methods> decoders_;
  std::unique_ptr<Encoders> encoders_;
};

}  // namespace pocketphi
