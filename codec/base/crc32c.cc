#include "codec/base/crc32c.h"

#include <isa-l/crc.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

namespace kvcask {
namespace {

// isa-l takes an int.
constexpr size_t kMaxCall = size_t{1} << 30;
// Half of a small L1, so that source and destination both stay in it.
constexpr size_t kCopyBlock = 8 << 10;

uint32_t Extend(uint32_t state, const uint8_t* p, size_t n) {
  while (n > 0) {
    const size_t step = std::min(n, kMaxCall);
    // The signature lacks const; the function only reads.
    state = crc32_iscsi(const_cast<uint8_t*>(p), static_cast<int>(step), state);
    p += step;
    n -= step;
  }
  return state;
}

#ifdef __SSE2__
// Of the copy past the caches: small, so that the next one's lines are on their way from memory
// while this one is summed. Half again as fast as 8 KiB without, when the source is cold.
constexpr size_t kStreamBlock = 2 << 10;

void Prefetch(const uint8_t* p, size_t n) {
  for (size_t i = 0; i < n; i += 64) _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T0);
}

void CopyPastCache(uint8_t* dst, const uint8_t* src, size_t n) {
  // Whole lines only: half a line written past the caches costs a read of the other half.
  constexpr size_t kLine = 64;
  const size_t head = std::min(n, -reinterpret_cast<uintptr_t>(dst) % kLine);
  std::memcpy(dst, src, head);
  size_t at = head;
  for (; n - at >= kLine; at += kLine) {
    const auto* from = reinterpret_cast<const __m128i*>(src + at);
    auto* to = reinterpret_cast<__m128i*>(dst + at);
    const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1),
                  c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
    _mm_stream_si128(to, a);
    _mm_stream_si128(to + 1, b);
    _mm_stream_si128(to + 2, c);
    _mm_stream_si128(to + 3, d);
  }
  std::memcpy(dst + at, src + at, n - at);
}
#endif

// Polynomials over GF(2) modulo CRC32C's, bits reversed: bit 31 is x^0.
uint32_t MultiplyMod(uint32_t a, uint32_t b) {
  constexpr uint32_t kPolynomial = 0x82f63b78;
  uint32_t product = 0;
  for (uint32_t bit = uint32_t{1} << 31; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = (b & 1) ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

// x^(2^i), i from 0.
std::array<uint32_t, 67> PowersOfPowers() {
  std::array<uint32_t, 67> powers;
  powers[0] = uint32_t{1} << 30;
  for (size_t i = 1; i < powers.size(); ++i) {
    powers[i] = MultiplyMod(powers[i - 1], powers[i - 1]);
  }
  return powers;
}

}  // namespace

uint32_t Crc32cConcat(uint32_t crc_a, uint32_t crc_b, uint64_t bytes_b) {
  static const std::array<uint32_t, 67> powers = PowersOfPowers();
  // Appending B multiplies A's polynomial by x^(8 bytes); the inversions at both ends of a
  // CRC cancel out.
  uint32_t shifted = crc_a;
  for (size_t i = 3; bytes_b != 0; ++i, bytes_b >>= 1) {
    if (bytes_b & 1) shifted = MultiplyMod(powers[i], shifted);
  }
  return shifted ^ crc_b;
}

uint32_t Crc32cExtend(uint32_t crc, absl::Span<const uint8_t> bytes) {
  return ~Extend(~crc, bytes.data(), bytes.size());
}

uint32_t Crc32cCopy(uint8_t* dst, const uint8_t* src, size_t n, uint32_t crc) {
  uint32_t state = ~crc;
  while (n > 0) {
    const size_t step = std::min(n, kCopyBlock);
    std::memcpy(dst, src, step);
    state = Extend(state, dst, step);
    dst += step;
    src += step;
    n -= step;
  }
  return ~state;
}

uint32_t Crc32cCopyPastCache(uint8_t* dst, const uint8_t* src, size_t n, uint32_t crc) {
#ifdef __SSE2__
  uint32_t state = ~crc;
  Prefetch(src, std::min(n, kStreamBlock));
  while (n > 0) {
    const size_t step = std::min(n, kStreamBlock);
    Prefetch(src + step, std::min(n - step, kStreamBlock));
    state = Extend(state, src, step);
    CopyPastCache(dst, src, step);
    dst += step;
    src += step;
    n -= step;
  }
  _mm_sfence();  // such stores are not ordered with the ones that hand the memory on
  return ~state;
#else
  return Crc32cCopy(dst, src, n, crc);
#endif
}

}  // namespace kvcask
