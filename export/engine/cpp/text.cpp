#include "text.h"

#include <algorithm>

namespace pocketphi {

static constexpr const char* REPLACEMENT = "\xef\xbf\xbd";  // U+FFFD

// How many bytes at the end are the start of a character whose rest is missing.
static size_t unfinished(const std::string& text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if (byte < 0x80) return 0;
    if (byte >= 0xc0) return back < (byte >= 0xf0 ? 4u : byte >= 0xe0 ? 3u : 2u) ? back : 0;
  }
  return 0;
}

static bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool Text::push(int64_t id) {
  ids_.push_back(id);
  return take(false);
}

bool Text::finish() { return take(true); }

bool Text::take(bool last) {
  // Some decoders drop a space in front, so the ids before are decoded with the new ones and cut off again.
  const std::string before = decode_(ids_.data() + shown_, read_ - shown_);
  std::string text = decode_(ids_.data() + shown_, ids_.size() - shown_);
  if (const size_t missing = unfinished(text); missing > 0) text.replace(text.size() - missing, missing, REPLACEMENT);
  if (!last && ends_with(text, REPLACEMENT)) return false;
  shown_ = read_, read_ = ids_.size();
  if (text.size() > before.size()) held_ += text.substr(before.size());
  return tell(last);
}

bool Text::tell(bool last) {
  size_t stop = std::string::npos;
  for (const std::string& each : stops_) stop = std::min(stop, held_.find(each));
  size_t hold = 0;  // the longest end that a stop string starts with
  if (stop == std::string::npos && !last)
    for (const std::string& each : stops_)
      for (size_t count = std::min(each.size() - 1, held_.size()); count > hold; --count)
        if (ends_with(held_, each.substr(0, count))) hold = count;
  const std::string now = held_.substr(0, stop != std::string::npos ? stop : held_.size() - hold);
  held_.erase(0, now.size());
  if (!now.empty()) listen_(now);
  return stop != std::string::npos;
}

}  // namespace pocketphi
