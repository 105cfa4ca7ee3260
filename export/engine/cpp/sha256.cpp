#include "sha256.h"

#include <algorithm>
#include <cstring>

namespace pocketphi {

namespace {

constexpr std::array<uint32_t, 64> ROUNDS = {  // fractions of the cube roots of the first 64 primes
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t turned(uint32_t word, int by) { return word >> by | word << (32 - by); }

}  // namespace

void Sha256::block(const uint8_t* bytes) {
  std::array<uint32_t, 64> w = {};
  for (size_t at = 0; at < 16; ++at, bytes += 4)
    w[at] = static_cast<uint32_t>(bytes[0]) << 24 | static_cast<uint32_t>(bytes[1]) << 16 |
            static_cast<uint32_t>(bytes[2]) << 8 | bytes[3];
  for (size_t at = 16; at < 64; ++at) {
    const uint32_t a = w[at - 15], b = w[at - 2];
    w[at] = w[at - 16] + w[at - 7] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
  }
  auto [a, b, c, d, e, f, g, h] = state_;
  for (size_t at = 0; at < 64; ++at) {
    const uint32_t one = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + ROUNDS[at] + w[at];
    const uint32_t two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
  }
  const std::array<uint32_t, 8> more = {a, b, c, d, e, f, g, h};
  for (size_t at = 0; at < 8; ++at) state_[at] += more[at];
}

void Sha256::add(const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  while (size > 0) {
    const size_t held = length_ % 64, count = std::min(size, 64 - held);
    if (held == 0 && size >= 64) {
      block(bytes);
    } else {
      std::memcpy(rest_.data() + held, bytes, count);
      if (held + count == 64) block(rest_.data());
    }
    bytes += count, size -= count, length_ += count;
  }
}

std::array<uint8_t, 32> Sha256::finish() {
  const uint64_t bits = length_ * 8;
  const uint8_t end = 0x80, zero = 0;
  add(&end, 1);
  while (length_ % 64 != 56) add(&zero, 1);
  std::array<uint8_t, 8> count = {};
  for (size_t at = 0; at < 8; ++at) count[at] = static_cast<uint8_t>(bits >> (56 - 8 * at));
  add(count.data(), count.size());
  std::array<uint8_t, 32> found = {};
  for (size_t at = 0; at < 32; ++at) found[at] = static_cast<uint8_t>(state_[at / 4] >> (24 - 8 * (at % 4)));
  return found;
}

}  // namespace pocketphi
