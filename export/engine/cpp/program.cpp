#include "program.h"

#include <executorch/runtime/platform/runtime.h>
#include <fcntl.h>

#include <algorithm>
#include <cstring>

#include "refusal.h"

namespace pocketphi {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::MethodMeta;
using executorch::runtime::Result;

static std::string code(Error error) { return "0x" + hex(static_cast<uint64_t>(error)).substr(14); }

Program::Program(
    const std::string& path, const std::string& packed, const std::atomic<bool>& stop, const Progress& progress)
    : path_(path), packed_(packed), stop_(stop) {
  executorch::runtime::runtime_init();
  File file(path, O_RDONLY);
  if (!file) bad_input(cannot(path, "read"));
  if (char head[8] = {}; !file.read(head, sizeof head, 0) || std::memcmp(head + 4, "ET12", 4) != 0)
    bad_input(path + " is not an ExecuTorch program: bytes 4 to 8 are not ET12");
  auto loader = std::make_unique<StoppableLoader>(std::move(file), stop, progress);
  loader_ = loader.get();
  module_ = std::make_unique<Module>(std::move(loader));
  check(module_->load(executorch::runtime::Program::Verification::InternalConsistency), "refuses it");
  auto names = module_->method_names();
  check(names.error(), "finds no methods in it");
  names_ = std::move(*names);
}

void Program::check(Error error, const std::string& what) const {
  if (stop_) stopped();
  if (error != Error::Ok) bad_input(path_ + ": ExecuTorch's runtime " + what + " (" + code(error) + ")");
}

std::vector<EValue> Program::constants(const char* name) {
  auto values = module_->execute(name, std::vector<EValue>());
  check(values.error(), std::string("fails in ") + name);
  return std::move(*values);
}

std::vector<double> Program::numbers(const char* name) {
  std::vector<double> found;
  for (const EValue& value : constants(name)) {
    if (!value.isDouble()) bad_input(path_ + ": " + name + " gives no numbers");
    found.push_back(value.toDouble());
  }
  return found;
}

int64_t Program::count(const char* name) {
  const auto values = has(name) ? constants(name) : std::vector<EValue>();
  if (values.size() != 1 || !values[0].isInt() || values[0].toInt() < 1)
    bad_input(path_ + " is not a language model of Pocketphi: it has no " + name);
  return values[0].toInt();
}

Result<MethodMeta> Program::meta(const std::string& method) { return module_->method_meta(method); }

// In each place the most that any of the methods plans there.
static std::vector<size_t> planned(Program& program, const std::vector<std::string>& names) {
  std::vector<size_t> sizes;
  for (const std::string& name : names) {
    if (!program.has(name)) continue;
    const auto meta = program.meta(name);
    program.check(meta.error(), "finds no " + name + " in it");
    sizes.resize(std::max(sizes.size(), meta->num_memory_planned_buffers()));
    for (size_t at = 0; at < meta->num_memory_planned_buffers(); ++at)
      sizes[at] = std::max(sizes[at], static_cast<size_t>(meta->memory_planned_buffer_size(at).get()));
  }
  return sizes;
}

Methods::Methods(Program& program, const std::vector<std::string>& names, Workspace workspace)
    : program_(program), memory_(planned(program, names)), module_(program.shared()) {
  (void)xnnpack_.set_option("weight_cache_enabled", true);
  (void)xnnpack_.set_option("workspace_sharing_mode", static_cast<int>(workspace));
  if (!program.packed().empty()) (void)xnnpack_.set_option("packed_cache_path", program.packed().c_str());
  program.check(options_.set_options("XnnpackBackend", xnnpack_.view()), "takes no options of XNNPACK");
}

void Methods::load(const std::string& name) {
  if (module_.is_method_loaded(name)) return;
  program_.check(module_.load_method(name, memory_.allocator(), nullptr, &options_), "does not load its " + name);
}

Tensor Methods::run(const std::string& name, const std::vector<EValue>& inputs, const std::string& what) {
  load(name);
  const auto outputs = module_.execute(name, inputs);
  const std::string& path = program_.path();
  if (!outputs.ok()) failed(path + ": ExecuTorch's runtime fails on " + what + " (" + code(outputs.error()) + ")");
  if (outputs->empty() || !outputs->at(0).isTensor()) failed(path + " gives nothing for " + what);
  Tensor found = outputs->at(0).toTensor();
  if (found.scalar_type() != ScalarType::Float) failed(path + " gives no float32 for " + what);
  return found;
}

}  // namespace pocketphi
