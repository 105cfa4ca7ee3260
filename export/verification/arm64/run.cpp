// Runs a .pte with the libraries of executorch's wheel, as the phones do: mapped, XNNPACK's weight cache on and one
// workspace for all delegates, which upstream's presets for Android and Apple compile in and the wheel does not.
//
// usage: run FILE.pte
// stdin:  a line for each call of forward: the position of its first token, then the token ids
// stdout: for each: rows and columns of the logits as int64, then the logits as float32
// Exit codes beside 0: REFUSED the runtime does not load the file, FAILED a call fails; stderr has its log.
#include <sys/prctl.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/options.h>

using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::BackendOptions;
using executorch::runtime::Error;
using executorch::runtime::LoadBackendOptionsMap;

constexpr int REFUSED = 3, FAILED = 4;
constexpr int GLOBAL = 2;  // XNNPACK's WorkspaceSharingMode, whose header the wheel does not have

int main(int, char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // nobody reads what an orphan computes
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);

  BackendOptions<2> phone;
  LoadBackendOptionsMap options;
  Module module(argv[1], Module::LoadMode::Mmap);
  if (phone.set_option("weight_cache_enabled", true) != Error::Ok ||
      phone.set_option("workspace_sharing_mode", GLOBAL) != Error::Ok ||
      options.set_options("XnnpackBackend", phone.view()) != Error::Ok || module.load(options) != Error::Ok ||
      module.load_forward() != Error::Ok)
    return REFUSED;

  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    int64_t position = 0;
    words >> position;
    std::vector<int64_t> ids;
    for (int64_t id; words >> id;) ids.push_back(id);
    auto tokens = from_blob(ids.data(), {1, static_cast<int>(ids.size())}, ScalarType::Long);
    auto start = from_blob(&position, {1}, ScalarType::Long);
    auto result = module.forward({tokens, start});
    if (!result.ok() || !result->at(0).isTensor()) return FAILED;
    auto logits = result->at(0).toTensor();
    if (logits.scalar_type() != ScalarType::Float) return FAILED;
    const int64_t columns = logits.size(logits.dim() - 1), shape[] = {logits.numel() / columns, columns};
    fwrite(shape, sizeof shape, 1, stdout);
    fwrite(logits.const_data_ptr<float>(), sizeof(float), logits.numel(), stdout);
    fflush(stdout);
  }
}
