#include "files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

namespace pocketphi {

File::File(const std::string& path, int flags, int mode) : descriptor_(open(path.c_str(), flags | O_CLOEXEC, mode)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) close(descriptor_);
}

struct stat File::status() const {
  struct stat found = {};
  fstat(descriptor_, &found);
  return found;
}

constexpr size_t MOST = 1 << 30;  // in one call: Darwin refuses 2 GiB and more

bool File::read(void* data, size_t size, uint64_t offset) const {
  auto* place = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t count = pread(descriptor_, place, std::min(size, MOST), static_cast<off_t>(offset));
    if (count <= 0) return false;
    place += count, size -= static_cast<size_t>(count), offset += static_cast<uint64_t>(count);
  }
  return true;
}

bool File::append(const void* data, size_t size) const {
  const auto* place = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = write(descriptor_, place, std::min(size, MOST));
    if (count < 0) return false;
    place += count, size -= static_cast<size_t>(count);
  }
  return true;
}

Mapping::Mapping(const File& file) {
  if (!file) return;
  const auto size = static_cast<size_t>(file.status().st_size);
  void* data = size > 0 ? mmap(nullptr, size, PROT_READ, MAP_SHARED, file.descriptor(), 0) : MAP_FAILED;
  if (data == MAP_FAILED) return;
  data_ = static_cast<const uint8_t*>(data), size_ = size;
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

uint64_t digest(const void* data, size_t size, uint64_t seed) {
  // Four sums side by side, because each step waits for the multiplication before. A step is a bijection of the sum:
  // any one changed word changes it.
  constexpr uint64_t PRIME = 0x9e3779b97f4a7c15;
  uint64_t sums[4] = {seed ^ size, seed + 1, seed + 2, seed + 3};
  const auto step = [](uint64_t& sum, uint64_t word) { sum = (sum ^ word) * PRIME, sum ^= sum >> 29; };
  const auto* bytes = static_cast<const uint8_t*>(data);
  for (; size > 0;) {
    uint64_t words[4] = {};
    const size_t count = std::min(size, sizeof words);
    std::memcpy(words, bytes, count);
    for (int lane = 0; lane < 4; ++lane) step(sums[lane], words[lane]);
    bytes += count, size -= count;
  }
  for (int lane = 1; lane < 4; ++lane) step(sums[0], sums[lane]);
  step(sums[0], 0);
  return sums[0];
}

std::string hex(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

std::string read_small(const std::string& path) {
  const File file(path, O_RDONLY);
  std::string text(file ? static_cast<size_t>(std::min<off_t>(file.status().st_size, 1 << 16)) : 0, '\0');
  return file && file.read(text.data(), text.size(), 0) ? text : "";
}

bool write_small(const std::string& path, std::string_view text) {
  const std::string aside = path + ".partial";
  const File file(aside, O_WRONLY | O_CREAT | O_TRUNC);
  if (file && file.append(text.data(), text.size()) && fsync(file.descriptor()) == 0 &&
      rename(aside.c_str(), path.c_str()) == 0)
    return true;
  unlink(aside.c_str());
  return false;
}

uint64_t model_identity(const File& model) {
  constexpr size_t PROGRAM = 64 << 20, SAMPLES = 256, SAMPLE = 4096;
  const auto length = static_cast<uint64_t>(model.status().st_size);
  // schema/extended_header.h of executorch: "eh00" at 8, the end of the program at 16.
  char head[24] = {};
  uint64_t program = 0;
  if (model.read(head, sizeof head, 0) && std::memcmp(head + 8, "eh00", 4) == 0) std::memcpy(&program, head + 16, 8);
  if (program == 0 || program > length) program = length;
  std::vector<char> bytes(std::min<uint64_t>(program, PROGRAM));
  (void)model.read(bytes.data(), bytes.size(), 0);
  uint64_t sum = digest(bytes.data(), bytes.size(), length);
  for (uint64_t at = 0; at < SAMPLES; ++at) {
    char sample[SAMPLE] = {};
    const uint64_t place = length / SAMPLES * at;
    (void)model.read(sample, std::min<uint64_t>(SAMPLE, length - place), place);
    sum = digest(sample, SAMPLE, sum);
  }
  return sum;
}

}  // namespace pocketphi
