#include "threads.h"

#include <mutex>
#include <string>

#include "refusal.h"

// Of extension/threadpool in executorch 1.5.1, whose headers (threadpool.h, cpuinfo_utils.h) the wheel and the Swift
// package leave out. The reset is private there ("unsafe": not while anything computes), and the only way to a number.
namespace executorch::extension {
namespace threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t count);
};
ThreadPool* get_threadpool();
}  // namespace threadpool
namespace cpuinfo {
uint32_t get_num_performant_cores();
}
}  // namespace executorch::extension

namespace pocketphi {

static std::mutex gate;
static int users = 0;

Threads::Threads(int32_t count) {
  const std::lock_guard<std::mutex> lock(gate);
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool == nullptr) failed("ExecuTorch has no thread pool");
  const auto wanted = count > 0 ? static_cast<uint32_t>(count) : executorch::extension::cpuinfo::get_num_performant_cores();
  const auto found = static_cast<uint32_t>(pool->get_thread_count());
  if (wanted > 0 && wanted != found) {
    if (users > 0)
      bad_input("threads: " + std::to_string(wanted) + " while another engine is loaded with " + std::to_string(found));
    if (!pool->_unsafe_reset_threadpool(wanted)) failed("ExecuTorch's thread pool cannot be resized");
  }
  count_ = static_cast<int32_t>(pool->get_thread_count());
  ++users;
}

Threads::~Threads() {
  const std::lock_guard<std::mutex> lock(gate);
  --users;
}

}  // namespace pocketphi
