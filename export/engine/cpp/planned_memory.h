// The memory that a program plans for KV cache and activations: address space at first, real where it is written.
#pragma once

#include <executorch/runtime/core/hierarchical_allocator.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace pocketphi {

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

}  // namespace pocketphi
