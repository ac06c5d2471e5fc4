#include "codec/base/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>
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

}  // namespace

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

}  // namespace kvcask
