// What the process takes of the machine's memory, as its system counts it.
#include "pocketphi.h"

#ifdef __APPLE__
#include <mach/mach.h>

void pocketphi_memory(pocketphi_memory_use* use) {
  *use = {};
  task_vm_info_data_t info = {};
  mach_msg_type_number_t count = TASK_VM_INFO_COUNT;
  if (task_info(mach_task_self(), TASK_VM_INFO, reinterpret_cast<task_info_t>(&info), &count) != KERN_SUCCESS) return;
  *use = {info.internal, info.external, info.compressed, 0, info.phys_footprint};
}
#else
#include <cstdlib>
#include <fstream>
#include <string>

// The bytes of a line "KEY:   12 kB".
static uint64_t line(const char* file, const std::string& key) {
  std::ifstream lines(file);
  for (std::string text; std::getline(lines, text);)
    if (text.compare(0, key.size(), key) == 0) return 1024 * std::strtoull(text.c_str() + key.size(), nullptr, 10);
  return 0;
}

void pocketphi_memory(pocketphi_memory_use* use) {
  constexpr char STATUS[] = "/proc/self/status";
  *use = {line(STATUS, "RssAnon:"), line(STATUS, "RssFile:"), line(STATUS, "VmSwap:"),
          line("/proc/self/smaps_rollup", "Private_Dirty:"), 0};
}
#endif
