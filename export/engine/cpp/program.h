// An opened `.pte`: its constants, and its methods as they are loaded and called.
#pragma once

#include <executorch/extension/module/module.h>
#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/options.h>

#include <atomic>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "loader.h"
#include "planned_memory.h"

namespace pocketphi {

class Program {
 public:
  // `packed` is the file of packed weights for XNNPACK to fill or to map, empty for none. Calls `progress` with the
  // bytes of each weight until `finish`; what is loaded ends early where `stop` is set. Throws Refusal.
  Program(const std::string& path, const std::string& packed, const std::atomic<bool>& stop, const Progress& progress);
  bool has(const std::string& method) const { return names_.count(method) > 0; }
  // The values of a constant method, which there is. Throws Refusal.
  std::vector<executorch::runtime::EValue> constants(const char* name);
  std::vector<double> numbers(const char* name);  // of a list of floats
  // The only value, an integer above 0. Throws Refusal where the file has none.
  int64_t count(const char* name);
  executorch::runtime::Result<executorch::runtime::MethodMeta> meta(const std::string& method);
  void finish() { loader_->finish(); }

  const std::string& path() const { return path_; }
  const std::string& packed() const { return packed_; }
  bool stopped_now() const { return stop_; }
  // Throws Refusal for an error, and where the load has been stopped.
  void check(executorch::runtime::Error error, const std::string& what) const;
  std::shared_ptr<executorch::runtime::Program> shared() { return module_->program(); }

 private:
  std::string path_, packed_;
  const std::atomic<bool>& stop_;
  StoppableLoader* loader_ = nullptr;  // the module's
  std::unique_ptr<executorch::extension::Module> module_;
  std::unordered_set<std::string> names_;
};

// Who shares the memory in which XNNPACK keeps what it computes in between: its WorkspaceSharingMode, whose header is in
// no package.
enum class Workspace : uint8_t {
  of_these = 1,  // PerModel: the methods of one object, with which it goes
  of_all = 2,    // Global, as in both phone presets
};

// Methods that share planned memory, each loaded when it is first called; all that they take goes with this object.
class Methods {
 public:
  // Those of `names` that the program has. Throws Refusal.
  Methods(Program& program, const std::vector<std::string>& names, Workspace workspace);
  void load(const std::string& name);
  // The one result of a method, good until any of these is called again; `what` stands in sentences for the inputs.
  executorch::aten::Tensor run(
      const std::string& name, const std::vector<executorch::runtime::EValue>& inputs, const std::string& what);
  PlannedMemory& memory() { return memory_; }

 private:
  Program& program_;
  executorch::runtime::BackendOptions<3> xnnpack_;
  executorch::runtime::LoadBackendOptionsMap options_;  // looks at xnnpack_
  PlannedMemory memory_;                                // outlives the module, whose tensors lie in it
  executorch::extension::Module module_;                // whose allocator gives nothing back before its end
};

}  // namespace pocketphi
