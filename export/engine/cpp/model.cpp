#include "model.h"

#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/platform/runtime.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "loader.h"
#include "refusal.h"

namespace pocketphi {

using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::BackendOptions;
using executorch::runtime::Error;
using executorch::runtime::LoadBackendOptionsMap;

namespace {

constexpr int GLOBAL = 2;  // WorkspaceSharingMode of both phone presets; its header is in no package

std::string code(Error error) { return "0x" + hex(static_cast<uint64_t>(error)).substr(14); }

// Anonymous memory that takes none until it is written.
void* reserve(void* at, size_t size) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at != nullptr ? MAP_FIXED : 0);
  void* found = mmap(at, size, PROT_READ | PROT_WRITE, flags, -1, 0);
#ifdef MADV_NOHUGEPAGE  // a token of KV cache is 4 KiB here and there, a huge page would be 2 MiB each time
  if (found != MAP_FAILED) madvise(found, size, MADV_NOHUGEPAGE);
#endif
  return found;
}

}  // namespace

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

Model::Model(const std::string& path, const std::string& packed, const std::atomic<bool>& stop, const Progress& progress)
    : path_(path) {
  executorch::runtime::runtime_init();
  const auto check = [&](Error error, const char* what) {
    if (stop) stopped();
    if (error != Error::Ok) bad_input(path + ": ExecuTorch's runtime " + what + " (" + code(error) + ")");
  };
  File file(path, O_RDONLY);
  if (!file) bad_input(cannot(path, "read"));
  if (char head[8] = {}; !file.read(head, sizeof head, 0) || std::memcmp(head + 4, "ET12", 4) != 0)
    bad_input(path + " is not an ExecuTorch program: bytes 4 to 8 are not ET12");

  BackendOptions<3> xnnpack;
  LoadBackendOptionsMap options;
  (void)xnnpack.set_option("weight_cache_enabled", true);
  (void)xnnpack.set_option("workspace_sharing_mode", GLOBAL);
  if (!packed.empty()) (void)xnnpack.set_option("packed_cache_path", packed.c_str());
  check(options.set_options("XnnpackBackend", xnnpack.view()), "takes no options of XNNPACK");

  auto stoppable = std::make_unique<StoppableLoader>(std::move(file), stop, progress);
  StoppableLoader& reads = *stoppable;
  module_ = std::make_unique<Module>(std::move(stoppable));
  check(module_->load(options, executorch::runtime::Program::Verification::InternalConsistency), "refuses it");
  context = constant("get_max_context_len"), chunk = constant("get_max_seq_len"), vocab = constant("get_vocab_size");
  const auto ends = module_->execute("get_eos_ids", std::vector<executorch::runtime::EValue>());
  check(ends.error(), "fails in get_eos_ids");
  eos.reserve(ends->size());
  for (const auto& value : *ends) eos.push_back(value.toInt());

  const auto meta = module_->method_meta("forward");
  check(meta.error(), "finds no forward in it");
  if (const auto logits = meta->output_tensor_meta(0); logits.ok() && logits->sizes().size() == 3)
    logits_positions = logits->sizes()[1];
  std::vector<size_t> sizes;
  sizes.reserve(meta->num_memory_planned_buffers());
  for (size_t at = 0; at < meta->num_memory_planned_buffers(); ++at)
    sizes.push_back(static_cast<size_t>(meta->memory_planned_buffer_size(at).get()));
  memory_ = std::make_unique<PlannedMemory>(sizes);
  check(module_->load_method("forward", memory_->allocator(), nullptr, &options), "does not load its forward");
  reads.finish();
}

int64_t Model::constant(const char* name) {
  const auto values = module_->execute(name, std::vector<executorch::runtime::EValue>());
  if (!values.ok() || values->size() != 1 || !values->at(0).isInt() || values->at(0).toInt() < 1)
    bad_input(path_ + " is not a language model of Pocketphi: it has no " + name);
  return values->at(0).toInt();
}

Model::Logits Model::step(const int64_t* ids, size_t count, int64_t position) {
  const std::string what = std::to_string(count) + " tokens at position " + std::to_string(position);
  auto tokens = from_blob(const_cast<int64_t*>(ids), {1, static_cast<int>(count)}, ScalarType::Long);
  auto start = from_blob(&position, {1}, ScalarType::Long);
  const auto outputs = module_->execute("forward", {*tokens, *start});
  if (!outputs.ok()) failed(path_ + ": ExecuTorch's runtime fails on " + what + " (" + code(outputs.error()) + ")");
  if (outputs->empty() || !outputs->at(0).isTensor()) failed(path_ + " gives no logits for " + what);
  const auto logits = outputs->at(0).toTensor();
  if (logits.scalar_type() != ScalarType::Float || logits.numel() < vocab || logits.numel() % vocab != 0)
    failed(path_ + " gives no float32 logits of " + std::to_string(vocab) + " for " + what);
  return {logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel() / vocab)};
}

}  // namespace pocketphi
