#include "planned_memory.h"

#include <sys/mman.h>

#include <string>

#include "refusal.h"

namespace pocketphi {

// Anonymous memory that takes none until it is written.
static void* reserve(void* at, size_t size) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at != nullptr ? MAP_FIXED : 0);
  void* found = mmap(at, size, PROT_READ | PROT_WRITE, flags, -1, 0);
#ifdef MADV_NOHUGEPAGE  // a token of KV cache is 4 KiB here and there, a huge page would be 2 MiB each time
  if (found != MAP_FAILED) madvise(found, size, MADV_NOHUGEPAGE);
#endif
  return found;
}

PlannedMemory::PlannedMemory(const std::vector<size_t>& sizes) {
  for (const size_t size : sizes) {
    if (size == 0) {
      parts_.emplace_back();
      continue;
    }
    void* place = reserve(nullptr, size);
    if (place == MAP_FAILED) failed("no " + std::to_string(size) + " bytes of address space for KV cache and activations");
    parts_.emplace_back(static_cast<uint8_t*>(place), size);
  }
  allocator_ = std::make_unique<executorch::runtime::HierarchicalAllocator>(
      executorch::runtime::Span<Part>(parts_.data(), parts_.size()));
}

PlannedMemory::~PlannedMemory() {
  for (const Part& part : parts_)
    if (part.size() > 0) munmap(part.data(), part.size());
}

void PlannedMemory::release() {
  for (const Part& part : parts_) release(part.data(), part.size());
}

void PlannedMemory::release(uint8_t* from, size_t size) {
  if (size > 0 && reserve(from, size) == MAP_FAILED) failed(cannot("planned memory", "released"));
}

uint64_t PlannedMemory::bytes() const {
  uint64_t sum = 0;
  for (const Part& part : parts_) sum += part.size();
  return sum;
}

}  // namespace pocketphi
