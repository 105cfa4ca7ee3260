#include "packed_weights.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#include "cpu.h"
#include "refusal.h"

#ifndef POCKETPHI_EXECUTORCH_VERSION
#error "define POCKETPHI_EXECUTORCH_VERSION: packed weights are of one version of ExecuTorch"
#endif

namespace pocketphi {

namespace {

constexpr char PACKED[] = ".packed", CHECK[] = ".check", PARTIAL[] = ".partial";
constexpr uint64_t MARGIN = 32 << 20;  // each weight is rounded up to a page, and the index comes on top

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// Reads front to back and does not map: what Linux brings into memory this way comes in large folios, whose pages lie side
// by side. Decoding from the small ones that faults bring is slower by an eighth (x86-64, 2.2 GB: misses of the TLB).
uint64_t file_digest(const File& file, const std::atomic<bool>& stop) {
  constexpr uint64_t PIECE = 4 << 20;
  std::vector<char> piece(PIECE);
  uint64_t sum = 0;
  for (uint64_t at = 0, size = static_cast<uint64_t>(file.status().st_size); at < size; at += PIECE) {
    if (stop) stopped();
    const auto count = static_cast<size_t>(std::min(PIECE, size - at));
    if (!file.read(piece.data(), count, at)) failed("packed weights cannot be read at byte " + std::to_string(at));
    sum = digest(piece.data(), count, sum);
  }
  return sum;
}

// Whether most of the file has to come from the disk first, where the system tells that and large folios matter.
bool cold(const File& file) {
#ifdef __linux__
  const Mapping bytes(file);
  std::vector<unsigned char> pages((bytes.size() >> 12) + 1);
  if (bytes.size() == 0 || mincore(const_cast<uint8_t*>(bytes.data()), bytes.size(), pages.data()) != 0) return false;
  const size_t count = (bytes.size() - 1) / static_cast<size_t>(sysconf(_SC_PAGESIZE)) + 1;
  return static_cast<size_t>(std::count_if(pages.begin(), pages.begin() + static_cast<ptrdiff_t>(count),
                                           [](unsigned char page) { return (page & 1) != 0; })) < count / 2;
#else
  (void)file;
  return false;
#endif
}

// "TAG": what besides the model decides what is packed.
std::string tag() { return "-" POCKETPHI_EXECUTORCH_VERSION "-" + cpu_features(); }

std::string real(const std::string& path) {
  char* found = realpath(path.c_str(), nullptr);
  std::string copy = found != nullptr ? found : path;
  free(found);
  return copy;
}

}  // namespace

PackedWeights::PackedWeights(const std::string& folder, const std::string& model, const std::atomic<bool>& stop)
    : folder_(folder), model_(real(model)), stop_(stop) {
  const File file(model, O_RDONLY);
  if (!file) bad_input(cannot(model, "read"));
  model_length_ = static_cast<uint64_t>(file.status().st_size);
  name_ = folder_ + "/" + hex(model_identity(file)) + tag();
  path_ = name_ + PACKED;
  // BackendOption of executorch 1.5.1 holds 255 bytes and cuts what is longer.
  if (path_.size() + sizeof PARTIAL > 255) bad_input(path_ + " is longer than XNNPACK's option takes");
  if (mkdir(folder_.c_str(), 0700) != 0 && errno != EEXIST) failed(cannot(folder_, "made"));
  lock_ = File(folder_, O_RDONLY | O_DIRECTORY);
  if (!lock_) failed(cannot(folder_, "opened"));
  lock_folder(LOCK_SH);
}

void PackedWeights::lock_folder(int kind) {
  flock(lock_.descriptor(), LOCK_UN);
  while (flock(lock_.descriptor(), kind | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) failed(cannot(folder_, "locked"));
    if (stop_) stopped();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

bool PackedWeights::found() {
  if (sound()) return true;
  if (access(folder_.c_str(), W_OK) != 0) failed(cannot(folder_, "written to"));
  lock_folder(LOCK_EX);
  return sound();  // made by the process that held the lock
}

bool PackedWeights::sound() {
  file_ = File(path_, O_RDONLY);
  if (!file_) return false;
  length_ = static_cast<uint64_t>(file_.status().st_size);
  std::istringstream check(read_small(name_ + CHECK));
  uint64_t length = 0;
  std::string sum, name;
  if (!(check >> length >> sum >> name) || length != length_ || name != base()) return false;
  if (flock(file_.descriptor(), LOCK_SH | LOCK_NB) != 0) failed(cannot(path_, "shared"));
  const bool untouched = check.str() == check_line(std::strtoull(sum.c_str(), nullptr, 16));
  if (untouched && !cold(file_)) return true;
  // A copy, a backup or a fault; or it has to come from the disk anyway, and best front to back.
  digest_ = file_digest(file_, stop_);
  if (hex(digest_) != sum) return false;
  if (!untouched) (void)write_small(name_ + CHECK, check_line(digest_));
  return true;
}

std::string PackedWeights::base() const { return name_.substr(folder_.size() + 1); }

std::string PackedWeights::check_line(uint64_t sum) const {
  const struct stat now = file_.status();
#ifdef __APPLE__
  const timespec times[] = {now.st_mtimespec, now.st_ctimespec};
#else
  const timespec times[] = {now.st_mtim, now.st_ctim};
#endif
  std::ostringstream line;
  line << now.st_size << ' ' << hex(sum) << ' ' << base() << ' ' << now.st_ino;
  for (const timespec& time : times) line << ' ' << time.tv_sec << '.' << time.tv_nsec;
  line << '\n' << model_ << '\n';
  return line.str();
}

// Goes by the folder's exclusive lock: partial files are nobody's, and of the packed ones those stay that this version
// and CPU can use for a `.pte` that is still there and is not the one about to be packed.
void PackedWeights::clean() const {
  DIR* folder = opendir(folder_.c_str());
  if (folder == nullptr) failed(cannot(folder_, "read"));
  std::vector<std::string> names;
  while (const dirent* entry = readdir(folder)) names.emplace_back(entry->d_name);
  closedir(folder);
  for (const std::string& name : names) {
    const std::string place = folder_ + "/" + name;
    if (ends_with(name, PARTIAL)) unlink(place.c_str());
    if (ends_with(name, CHECK) && !exists(place.substr(0, place.size() - (sizeof CHECK - 1)) + PACKED)) unlink(place.c_str());
    if (!ends_with(name, PACKED)) continue;
    const std::string check = place.substr(0, place.size() - (sizeof PACKED - 1)) + CHECK;
    std::istringstream lines(read_small(check));
    std::string facts, model;
    std::getline(lines, facts);
    std::getline(lines, model);
    if (ends_with(name, tag() + PACKED) && exists(model) && model != model_) continue;
    unlink(check.c_str());
    unlink(place.c_str());
  }
}

std::string PackedWeights::begin() {
  clean();
  struct statvfs disk = {};
  if (statvfs(folder_.c_str(), &disk) != 0) failed(cannot(folder_, "asked for its room"));
  const uint64_t free = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize, needed = model_length_ + MARGIN;
  if (free < needed)
    failed(folder_ + " has " + std::to_string(free) + " bytes free, packed weights may need " + std::to_string(needed));
  path_ += PARTIAL;
  if (!File(path_, O_RDWR | O_CREAT | O_EXCL)) failed(cannot(path_, "made"));
  return path_;
}

void PackedWeights::packed() {
  file_ = File(path_, O_RDONLY);
  length_ = file_ ? static_cast<uint64_t>(file_.status().st_size) : 0;
  if (length_ == 0) failed("XNNPACK packed nothing into " + path_);
#ifdef __linux__  // packing brought it into memory fault by fault: see file_digest
  if (fsync(file_.descriptor()) != 0) failed(cannot(path_, "written"));
  (void)posix_fadvise(file_.descriptor(), 0, 0, POSIX_FADV_DONTNEED);
#endif
  digest_ = file_digest(file_, stop_);
  if (flock(file_.descriptor(), LOCK_SH | LOCK_NB) != 0) failed(cannot(path_, "shared"));
}

void PackedWeights::confirm(uint64_t grown) const {
#ifndef __APPLE__  // it has no such list
  const auto inode = std::to_string(file_.status().st_ino);
  std::ifstream maps("/proc/self/maps");
  bool mapped = false;
  for (std::string line, word; !mapped && std::getline(maps, line);) {
    std::istringstream words(line);  // addresses, rights, offset, device, inode, path
    for (int field = 0; field < 5; ++field) words >> word;
    mapped = word == inode;
  }
  if (!mapped) failed("XNNPACK has not mapped " + path_);
#endif
  constexpr uint64_t NOISE = 32 << 20;
  if (length_ > NOISE && grown > length_ / 2)
    failed("private memory grew by " + std::to_string(grown) + " bytes beside the " + std::to_string(length_) + " of " + path_);
}

void PackedWeights::publish() {
  const std::string whole = name_ + PACKED;
  if (fsync(file_.descriptor()) != 0 || rename(path_.c_str(), whole.c_str()) != 0) failed(cannot(path_, "renamed"));
  path_ = whole;
  if (!write_small(name_ + CHECK, check_line(digest_))) failed(cannot(name_ + CHECK, "written"));
}

PackedWeights::~PackedWeights() {
  if (ends_with(path_, PARTIAL)) unlink(path_.c_str());
}

File PackedWeights::release() {
  lock_ = File();
  return std::move(file_);
}

}  // namespace pocketphi
