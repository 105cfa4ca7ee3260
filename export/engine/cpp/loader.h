// How ExecuTorch reads a `.pte` here: mapped, and no further once told to stop.
#pragma once

#include <executorch/runtime/core/data_loader.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <set>

#include "files.h"

namespace pocketphi {

using Progress = std::function<void(uint64_t bytes)>;

// In place of MmapDataLoader of executorch 1.5.1, whose header Apple's package leaves out.
class StoppableLoader final : public executorch::runtime::DataLoader {
 public:
  // Calls `progress` with the bytes of each piece, the first time that it is read, until `finish`.
  StoppableLoader(File&& file, const std::atomic<bool>& stop, const Progress& progress)
      : file_(std::move(file)), length_(static_cast<size_t>(file_.status().st_size)), stop_(stop), progress_(progress) {}

  executorch::runtime::Result<executorch::runtime::FreeableBuffer> load(
      size_t offset, size_t size, const SegmentInfo& segment) const override;
  executorch::runtime::Error load_into(
      size_t offset, size_t size, const SegmentInfo& segment, void* buffer) const override;
  executorch::runtime::Result<size_t> size() const override { return length_; }
  void finish() { progress_ = {}, seen_.clear(); }  // whoever was told is gone after the load

 private:
  executorch::runtime::Error refusal(size_t offset, size_t size) const;
  File file_;
  size_t length_;
  const std::atomic<bool>& stop_;
  Progress progress_;
  mutable std::set<size_t> seen_;  // places of pieces: methods have weights in common
};

}  // namespace pocketphi
