#include "saved_session.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "files.h"
#include "refusal.h"

namespace pocketphi {

static constexpr uint64_t MAGIC = 0x3130697068706f70;  // "pophpi01"
static constexpr size_t BLOCK = 1 << 14;               // a page of any phone

using Bytes = PlannedMemory::Part;

static bool zero(const Bytes& part, size_t block) {
  const uint8_t* from = part.data() + block * BLOCK;
  const size_t size = std::min(BLOCK, part.size() - block * BLOCK);
  return from[0] == 0 && std::memcmp(from, from + 1, size - 1) == 0;
}

// Calls `keep` with place and length of each stretch that is not zero. The others go back to the system, which may
// have made them real by our reading them.
template <class Keep>
static void each_stretch(const Bytes& part, Keep keep) {
  const size_t blocks = (part.size() + BLOCK - 1) / BLOCK;
  for (size_t block = 0; block < blocks;) {
    const size_t first = block;
    const bool empty = zero(part, block);
    do ++block;
    while (block < blocks && zero(part, block) == empty);
    const size_t place = first * BLOCK, length = std::min(block * BLOCK, part.size()) - place;
    if (empty)
      PlannedMemory::release(part.data() + place, length);
    else
      keep(place, length);
  }
}

void save_session(const std::string& path, uint64_t identity, Model& model, const Session& session) {
  if (const File old(path, O_RDONLY); old) {
    uint64_t magic = 0;
    if (!old.read(&magic, sizeof magic, 0) || magic != MAGIC) bad_input(path + " exists and is no saved session");
  }
  const std::string aside = path + ".partial";
  const File file(aside, O_RDWR | O_CREAT | O_TRUNC);
  if (!file) bad_input(cannot(aside, "made"));
  bool written = true;
  const auto put = [&](const void* data, size_t size) { written = written && file.append(data, size); };
  const auto parts = model.session_memory();
  std::vector<uint64_t> head = {MAGIC, identity, parts.size()};
  for (const Bytes& part : parts) head.push_back(part.size());
  head.push_back(session.tokens().size());
  head.insert(head.end(), session.tokens().begin(), session.tokens().end());
  if (model.width > 0) head.push_back(session.mode());
  put(head.data(), head.size() * sizeof head[0]);
  for (size_t at = 0; at < parts.size(); ++at) {
    const Bytes& part = parts[at];
    each_stretch(part, [&](size_t place, size_t length) {
      const uint64_t stretch[] = {at, place, length};
      put(stretch, sizeof stretch);
      put(part.data() + place, length);
    });
  }
  if (written) {
    const Mapping all(file);
    const uint64_t sum = digest(all.data(), all.size());
    put(&sum, sizeof sum);
  }
  if (written && fsync(file.descriptor()) == 0 && rename(aside.c_str(), path.c_str()) == 0) return;
  const std::string sentence = cannot(path, "written");
  unlink(aside.c_str());
  failed(sentence);
}

void restore_session(const std::string& path, uint64_t identity, Model& model, Session& session) {
  const File file(path, O_RDONLY);
  if (!file) bad_input(cannot(path, "read"));
  const Mapping all(file);
  size_t at = 0;
  const size_t end = all.size() - std::min(all.size(), sizeof(uint64_t));
  const auto number = [&] {
    uint64_t value = 0;
    if (end - at < sizeof value) bad_input(path + " is a damaged session");
    std::memcpy(&value, all.data() + at, sizeof value);
    at += sizeof value;
    return value;
  };
  if (end == 0 || number() != MAGIC) bad_input(path + " is no saved session");
  uint64_t sum = 0;
  std::memcpy(&sum, all.data() + end, sizeof sum);
  if (sum != digest(all.data(), end)) bad_input(path + " is a damaged session");
  const auto parts = model.session_memory();
  bool same = number() == identity && number() == parts.size();
  for (size_t part = 0; same && part < parts.size(); ++part) same = number() == parts[part].size();
  if (!same) bad_input(path + " is a session of another model than " + model.path());
  const uint64_t count = number();
  if (count > static_cast<uint64_t>(model.context)) bad_input(path + " is a damaged session");
  std::vector<int64_t> tokens(count);
  for (int64_t& token : tokens) {
    token = static_cast<int64_t>(number());
    const bool media = token < 0 && model.width > 0;
    if ((token < 0 && !media) || token >= model.vocab) bad_input(path + " is a damaged session");
  }
  const uint64_t mode = model.width > 0 ? number() : static_cast<uint64_t>(POCKETPHI_TEXT);
  if (mode > POCKETPHI_SPEECH) bad_input(path + " is a damaged session");
  const auto each = [&](auto work) {
    for (size_t from = at; from < end;) {
      std::swap(at, from);
      const uint64_t part = number(), place = number(), length = number();
      const bool fits = part < parts.size() && place <= parts[part].size() && length <= parts[part].size() - place;
      if (!fits || length > end - at) bad_input(path + " is a damaged session");
      work(parts[part].data() + place, all.data() + at, length);
      at += length;
      std::swap(at, from);
    }
  };
  each([](uint8_t*, const uint8_t*, size_t) {});  // nothing is changed unless all of it fits
  model.memory().release();
  each([](uint8_t* to, const uint8_t* from, size_t length) { std::memcpy(to, from, length); });
  session.restore(std::move(tokens), static_cast<pocketphi_mode>(mode));
}

}  // namespace pocketphi
