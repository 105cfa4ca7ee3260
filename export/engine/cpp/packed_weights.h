// XNNPACK's packed weights, kept in a folder between starts.
//
// A first load fills `NAME.packed.partial`, which becomes `NAME.packed` with `NAME.check` beside it once it has been
// loaded whole; NAME is the identity of the `.pte`, the version of ExecuTorch and the CPU's features, since each of
// them changes what is packed. Upstream (executorch 1.5.1, XNNWeightsCache.cpp) checks nothing but the last bytes and
// writes into the file it finds: so a file is used only with its check, and under a shared lock, for upstream takes an
// exclusive one before it writes. With that lock many processes map one file. Not noticed: a change of the stored bytes
// beneath the file system, which leaves length, times and inode as they were.
#pragma once

#include <atomic>
#include <string>

#include "files.h"

namespace pocketphi {

class PackedWeights {
 public:
  // Makes the folder if its parent exists, and waits while another process packs there. Throws Refusal.
  PackedWeights(const std::string& folder, const std::string& model, const std::atomic<bool>& stop);
  PackedWeights(const PackedWeights&) = delete;
  PackedWeights& operator=(const PackedWeights&) = delete;
  ~PackedWeights();  // deletes what was begun and not published

  // Whether a sound file is there for this model and CPU; then `path` may be loaded.
  bool found();

  // Deletes what nobody can use, checks the room, and gives the path to pack into. Throws Refusal.
  std::string begin();
  // After packing and before the load that uses it: takes the digest, and locks the file against upstream's writing.
  // Throws Refusal where nothing was packed.
  void packed();
  // Throws Refusal unless the file is mapped, and private memory has not grown by the like of it instead: where upstream
  // cannot use the file, it packs into private memory and only logs it.
  void confirm(uint64_t grown) const;
  // Gives the file, once loaded, its name and its check. Throws Refusal.
  void publish();

  const std::string& path() const { return path_; }
  uint64_t length() const { return length_; }
  // What keeps upstream from writing, for as long as the model is loaded. Lets other processes pack.
  File release();

 private:
  void lock_folder(int kind);
  bool sound();
  std::string base() const;
  std::string check_line(uint64_t sum) const;
  void clean() const;

  std::string folder_, model_, name_, path_;
  const std::atomic<bool>& stop_;
  uint64_t model_length_ = 0, length_ = 0, digest_ = 0;
  File lock_, file_;
};

}  // namespace pocketphi
