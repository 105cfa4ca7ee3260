#include "loader.h"

#include <sys/mman.h>
#include <unistd.h>

namespace pocketphi {

using executorch::runtime::Error;
using executorch::runtime::FreeableBuffer;
using executorch::runtime::Result;

// How far `place`, an address or an offset, is into its page.
static size_t into_page(size_t place) { return place & (static_cast<size_t>(sysconf(_SC_PAGESIZE)) - 1); }

static void unmap(void*, void* data, size_t size) {
  const size_t before = into_page(reinterpret_cast<size_t>(data));
  munmap(static_cast<uint8_t*>(data) - before, before + size);
}

Error StoppableLoader::refusal(size_t offset, size_t size) const {
  if (stop_) return Error::AccessFailed;
  return offset > length_ || size > length_ - offset ? Error::InvalidArgument : Error::Ok;
}

Result<FreeableBuffer> StoppableLoader::load(size_t offset, size_t size, const SegmentInfo&) const {
  if (const Error error = refusal(offset, size); error != Error::Ok) return error;
  if (progress_ && seen_.insert(offset).second) progress_(size);
  if (size == 0) return FreeableBuffer(nullptr, 0, nullptr);
  const size_t before = into_page(offset);
  void* pages = mmap(nullptr, before + size, PROT_READ, MAP_SHARED, file_.descriptor(), static_cast<off_t>(offset - before));
  if (pages == MAP_FAILED) return Error::AccessFailed;
  return FreeableBuffer(static_cast<uint8_t*>(pages) + before, size, unmap);
}

Error StoppableLoader::load_into(size_t offset, size_t size, const SegmentInfo&, void* buffer) const {
  if (const Error error = refusal(offset, size); error != Error::Ok) return error;
  return file_.read(buffer, size, offset) ? Error::Ok : Error::AccessFailed;
}

}  // namespace pocketphi
