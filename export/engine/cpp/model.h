// A loaded `.pte`: its constants, its planned memory, and the step that computes logits.
#pragma once

#include <executorch/extension/module/module.h>
#include <executorch/runtime/core/hierarchical_allocator.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "loader.h"

namespace pocketphi {

// The memory that a program plans for KV cache and activations: address space at first, real where it is written.
class PlannedMemory {
 public:
  using Part = executorch::runtime::Span<uint8_t>;
  explicit PlannedMemory(const std::vector<size_t>& sizes);
  PlannedMemory(const PlannedMemory&) = delete;
  PlannedMemory& operator=(const PlannedMemory&) = delete;
  ~PlannedMemory();
  // Zeros again, and nobody's memory: all of it, or a stretch that begins at a page.
  void release();
  static void release(uint8_t* from, size_t size);
  const std::vector<Part>& parts() const { return parts_; }
  uint64_t bytes() const;
  executorch::runtime::HierarchicalAllocator* allocator() { return allocator_.get(); }

 private:
  std::vector<Part> parts_;
  std::unique_ptr<executorch::runtime::HierarchicalAllocator> allocator_;
};

class Model {
 public:
  // `packed` is the file of packed weights for XNNPACK to fill or to map, empty for none. Calls `progress` with the
  // bytes of each weight and ends early where `stop` is set. Throws Refusal.
  Model(const std::string& path, const std::string& packed, const std::atomic<bool>& stop, const Progress& progress);

  struct Logits {
    const float* data = nullptr;  // float32 [rows, vocab] of the last tokens, good until the next step
    size_t rows = 0;
  };
  // Feeds tokens, the first at `position`.
  Logits step(const int64_t* ids, size_t count, int64_t position);

  const std::string& path() const { return path_; }
  PlannedMemory& memory() { return *memory_; }
  int64_t context = 0, chunk = 0, vocab = 0;  // tokens; the context, and how many one step takes
  int64_t logits_positions = 1;               // rows of logits a step gives at most
  std::vector<int64_t> eos;

 private:
  int64_t constant(const char* name);
  std::string path_;
  std::unique_ptr<PlannedMemory> memory_;  // outlives the module, whose tensors lie in it
  std::unique_ptr<executorch::extension::Module> module_;
};

}  // namespace pocketphi
