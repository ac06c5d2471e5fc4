#include "codec/quant/bit_pack.h"

#include <cstring>

namespace kvcask {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are copied as they are");

// Fields of `width` bits at the low end of lanes of `lane` bits: pairs of neighbours move
// together, or apart again.
constexpr uint64_t Low(int width, int lane) {
  uint64_t mask = 0;
  for (int at = 0; at < 64; at += 2 * lane) mask |= ((uint64_t{1} << width) - 1) << at;
  return mask;
}
constexpr uint64_t Join(uint64_t x, int width, int lane) {
  const uint64_t low = Low(width, lane);
  return (x & low) | (x >> (lane - width) & low << width);
}
constexpr uint64_t Part(uint64_t x, int width, int lane) {
  const uint64_t low = Low(width, lane);
  return (x & low) | (x & low << width) << (lane - width);
}

// Eight bytes of kBits each, in three steps: 8 fields -> 4 -> 2 -> 1.
template <int kBits, int kBytes>
void Pack8(const uint8_t* codes, uint8_t* out) {
  uint64_t x;
  std::memcpy(&x, codes, 8);
  x = Join(Join(Join(x, kBits, 8), 2 * kBits, 16), 4 * kBits, 32);
  std::memcpy(out, &x, kBytes);
}

template <int kBits, int kBytes>
void Unpack8(const uint8_t* in, uint8_t* codes) {
  uint64_t x = 0;
  std::memcpy(&x, in, kBytes);
  x = Part(Part(Part(x, 4 * kBits, 32), 2 * kBits, 16), kBits, 8);
  std::memcpy(codes, &x, 8);
}

template <int kBits>
void PackAll(const uint8_t* codes, size_t n, uint8_t* out) {
  size_t i = 0;
  // Whole words where there is room behind: what is too much is written over.
  for (uint8_t* const end = out + PackedBytes(n, kBits); out + 8 <= end && i + 8 <= n; i += 8) {
    Pack8<kBits, 8>(codes + i, out);
    out += kBits;
  }
  for (; i + 8 <= n; i += 8, out += kBits) Pack8<kBits, kBits>(codes + i, out);
  if (i == n) return;
  uint64_t x = 0;
  for (size_t j = i; j < n; ++j) x |= static_cast<uint64_t>(codes[j]) << ((j - i) * kBits);
  std::memcpy(out, &x, PackedBytes(n - i, kBits));
}

template <int kBits>
void UnpackAll(const uint8_t* in, size_t n, uint8_t* codes) {
  size_t i = 0;
  for (const uint8_t* const end = in + PackedBytes(n, kBits); in + 8 <= end && i + 8 <= n; i += 8) {
    Unpack8<kBits, 8>(in, codes + i);
    in += kBits;
  }
  for (; i + 8 <= n; i += 8, in += kBits) Unpack8<kBits, kBits>(in, codes + i);
  if (i == n) return;
  uint64_t x = 0;
  std::memcpy(&x, in, PackedBytes(n - i, kBits));
  for (size_t j = i; j < n; ++j) {
    codes[j] = static_cast<uint8_t>(x >> ((j - i) * kBits) & ((1u << kBits) - 1));
  }
}

}  // namespace

void PackBits(const uint8_t* codes, size_t n, int bits, uint8_t* out) {
  switch (bits) {
    case 1:
      return PackAll<1>(codes, n, out);
    case 2:
      return PackAll<2>(codes, n, out);
    case 3:
      return PackAll<3>(codes, n, out);
    case 4:
      return PackAll<4>(codes, n, out);
    case 5:
      return PackAll<5>(codes, n, out);
    case 6:
      return PackAll<6>(codes, n, out);
    case 7:
      return PackAll<7>(codes, n, out);
    default:
      std::memcpy(out, codes, n);
  }
}

void UnpackBits(const uint8_t* in, size_t n, int bits, uint8_t* codes) {
  switch (bits) {
    case 1:
      return UnpackAll<1>(in, n, codes);
    case 2:
      return UnpackAll<2>(in, n, codes);
    case 3:
      return UnpackAll<3>(in, n, codes);
    case 4:
      return UnpackAll<4>(in, n, codes);
    case 5:
      return UnpackAll<5>(in, n, codes);
    case 6:
      return UnpackAll<6>(in, n, codes);
    case 7:
      return UnpackAll<7>(in, n, codes);
    default:
      std::memcpy(codes, in, n);
  }
}

}  // namespace kvcask
