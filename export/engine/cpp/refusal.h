// How a sentence travels to the C functions, which turn it into a status.
#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

#include "pocketphi.h"

namespace pocketphi {

struct Refusal : std::runtime_error {
  Refusal(pocketphi_status kind, const std::string& sentence) : std::runtime_error(sentence), status(kind) {}
  pocketphi_status status;
};

[[noreturn]] inline void bad_input(const std::string& sentence) { throw Refusal(POCKETPHI_BAD_INPUT, sentence); }
[[noreturn]] inline void failed(const std::string& sentence) { throw Refusal(POCKETPHI_FAILED, sentence); }
[[noreturn]] inline void stopped() { throw Refusal(POCKETPHI_STOPPED, "stopped"); }

// "PATH cannot be DONE: No such file or directory", of the system call that has just failed.
inline std::string cannot(const std::string& path, const char* done) {
  const int code = errno;
  // Not strerror, which on some systems has one text for all threads.
  return path + " cannot be " + done + ": " + std::generic_category().message(code);
}

}  // namespace pocketphi
