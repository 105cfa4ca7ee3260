// ExecuTorch's tokenizers as far as export/engine/cpp/tokenizer uses them: Apple's executorch_llm holds their code and
// no header of it. Of release 1.5.1, whose binary this must match: tables of virtual functions and fields in its order.
// tests/test_ios_app.py calls the wheel's library of the same release by it.
#pragma once

#include <cstdint>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace tokenizers {

enum class Error : uint32_t { Ok = 0, LoadFailure = 4 };

// A value, or why there is none.
template <class T>
class Result final {
 public:
  Result(Error error) : error_(error), has_value_(false) {}
  Result(Result&& other) noexcept : has_value_(other.has_value_) {
    if (has_value_)
      new (&value_) T(std::move(other.value_));
    else
      error_ = other.error_;
  }
  ~Result() {
    if (has_value_) value_.~T();
  }
  bool ok() const { return has_value_; }
  T& get() { return value_; }
  const T& get() const { return value_; }
  const T& operator*() const { return value_; }
  const T* operator->() const { return &value_; }

 private:
  union {
    T value_;
    Error error_;
  };
  const bool has_value_;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual Error load(const std::string& path) = 0;
  virtual Result<std::string> id_to_piece(uint64_t token) const = 0;
  virtual Result<uint64_t> piece_to_id(const std::string& text) const = 0;
  virtual Result<std::vector<uint64_t>> encode(const std::string& text, int8_t bos = 0, int8_t eos = 0) const = 0;
  virtual Result<std::string> decode(uint64_t before, uint64_t token, bool skip_special = false) const = 0;
  virtual bool is_loaded() const = 0;
  int32_t vocab_size() const { return vocab_size_; }

 protected:
  bool initialized_ = false;
  int32_t vocab_size_ = 0;
};

}  // namespace tokenizers
