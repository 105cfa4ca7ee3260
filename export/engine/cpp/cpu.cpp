#include "cpu.h"

#include "files.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace pocketphi {

std::string cpu_features() {
  uint64_t bits = 0;
#if defined(__APPLE__)
  uint32_t family = 0;
  size_t size = sizeof family;
  sysctlbyname("hw.cpufamily", &family, &size, nullptr, 0);
  bits = family;
  const std::string kind = "apple";
#elif defined(__aarch64__)
  const unsigned long words[] = {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
  bits = digest(words, sizeof words);
  const std::string kind = "arm64";
#elif defined(__x86_64__)
  for (const bool has : {__builtin_cpu_supports("sse4.1") != 0, __builtin_cpu_supports("avx") != 0,
                         __builtin_cpu_supports("fma") != 0, __builtin_cpu_supports("avx2") != 0,
                         __builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
                         __builtin_cpu_supports("avx512vl") != 0, __builtin_cpu_supports("avx512vbmi") != 0,
                         __builtin_cpu_supports("avx512vnni") != 0})
    bits = 2 * bits + has;
  const std::string kind = "x86";
#else
  const std::string kind = "other";
#endif
  return kind + "_" + hex(bits);
}

}  // namespace pocketphi
