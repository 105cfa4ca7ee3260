// Runs a .pte with a file of packed weights, which upstream takes only together with a load and Python cannot give.
// Called from a process that has the wheel's kernels and custom operators loaded.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/options.h>

#include <algorithm>

using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::Error;

// Feeds `calls[i]` tokens in each call, from position 0 on, and writes the logits of its last one, [count, vocab].
// Returns 0 or the runtime's error.
extern "C" int run(
    const char* pte, const char* packed, int64_t* tokens, const int32_t* calls, size_t count, float* logits, size_t vocab) {
  executorch::runtime::BackendOptions<2> options;
  (void)options.set_option("weight_cache_enabled", true);
  (void)options.set_option("packed_cache_path", packed);
  executorch::runtime::LoadBackendOptionsMap backends;
  (void)backends.set_options("XnnpackBackend", options.view());
  Module module(pte, Module::LoadMode::Mmap);
  if (Error error = module.load(backends); error != Error::Ok) return static_cast<int>(error);
  int64_t position = 0;
  for (size_t call = 0; call < count; ++call) {
    auto step = from_blob(tokens + position, {1, calls[call]}, ScalarType::Long);
    auto start = from_blob(&position, {1}, ScalarType::Long);
    auto outputs = module.forward({step, start});
    if (!outputs.ok()) return static_cast<int>(outputs.error());
    auto all = outputs->at(0).toTensor();
    std::copy_n(all.const_data_ptr<float>() + all.numel() - vocab, vocab, logits + call * vocab);
    position += calls[call];
  }
  return 0;
}
