// Halves that bound a float from one side: scales and zeros of groups are stored so, and a
// range that they give never cuts off what it was made from.
//
// Thread-safe: pure functions.
#pragma once

#include <cstdint>
#include <cstring>

#include "codec/base/dtype.h"

namespace kvcask {

inline constexpr uint16_t kInfiniteHalf = 0x7c00;

// False for infinities and NaN.
constexpr bool IsFiniteHalf(uint16_t h) { return (h & 0x7fff) < kInfiniteHalf; }

// The smallest half that is at least `x`, never -0; infinity when there is none. x >= 0.
inline uint16_t HalfAtLeast(float x) {
  const uint16_t h = FloatToF16(x + 0.f);  // -0 becomes 0
  return h < kInfiniteHalf && F16ToFloat(h) < x ? static_cast<uint16_t>(h + 1) : h;
}

// The largest half that is at most `x`, never -0; not finite when there is none.
inline uint16_t HalfAtMost(float x) {
  uint16_t h = FloatToF16(x);
  if ((h & 0x7fff) == 0) return x < 0 ? 0x8001 : 0;
  if (IsFiniteHalf(h) && F16ToFloat(h) > x) h = static_cast<uint16_t>(h & 0x8000 ? h + 1 : h - 1);
  return h;
}

inline uint16_t LoadHalf(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return h;
}
inline void StoreHalf(uint16_t h, uint8_t* p) { std::memcpy(p, &h, 2); }

}  // namespace kvcask
