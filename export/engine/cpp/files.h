// Files by descriptor: whole or not at all, and their digests. Knows nothing of what is in them.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pocketphi {

// An open file or folder, closed at the end; not open where the system said no (errno is its).
class File {
 public:
  File() = default;
  File(const std::string& path, int flags, int mode = 0600);
  File(File&& other) noexcept : descriptor_(other.descriptor_) { other.descriptor_ = -1; }
  File& operator=(File&& other) noexcept;
  ~File();
  explicit operator bool() const { return descriptor_ >= 0; }
  int descriptor() const { return descriptor_; }
  struct stat status() const;
  // Fills `data` from `offset` on; false where the file ends before.
  bool read(void* data, size_t size, uint64_t offset) const;
  bool append(const void* data, size_t size) const;

 private:
  int descriptor_ = -1;
};

// A file's bytes, mapped for reading; empty where they cannot be.
class Mapping {
 public:
  explicit Mapping(const File& file);
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// A 64-bit checksum, as fast as memory: it tells accidents, not attacks. Of more than one piece: the digest of those
// before is the seed of the next.
uint64_t digest(const void* data, size_t size, uint64_t seed = 0);

// 16 hexadecimal digits.
std::string hex(uint64_t value);

// The whole of a small file, empty where there is none.
std::string read_small(const std::string& path);

// Writes a small file aside and renames it; false where that fails (errno is its).
bool write_small(const std::string& path, std::string_view text);

// What tells one `.pte` from another: its length, its program (where exporters write the digests of all weights that
// XNNPACK packs, as their names) and samples of the rest, where the other tensors are.
uint64_t model_identity(const File& model);

}  // namespace pocketphi
