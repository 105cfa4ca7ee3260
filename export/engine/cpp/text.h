// Turns ids into text as they come: whole characters only, and nothing of a stop string.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace pocketphi {

class Text {
 public:
  using Decode = std::function<std::string(const int64_t* ids, size_t count)>;
  using Listen = std::function<void(const std::string&)>;
  Text(Decode decode, Listen listen, std::vector<std::string> stops)
      : decode_(std::move(decode)), listen_(std::move(listen)), stops_(std::move(stops)) {}
  // Tells the listener what this id completes; true where a stop string has come.
  bool push(int64_t id);
  // Tells what is left, with U+FFFD for characters that never got whole; true as above.
  bool finish();

 private:
  bool take(bool last);
  bool tell(bool last);
  Decode decode_;
  Listen listen_;
  std::vector<std::string> stops_;
  std::vector<int64_t> ids_;
  size_t shown_ = 0, read_ = 0;  // the text of ids_[..read_] has been taken; decoding starts at shown_ for context
  std::string held_;             // taken, but it may be the start of a stop string
};

}  // namespace pocketphi
