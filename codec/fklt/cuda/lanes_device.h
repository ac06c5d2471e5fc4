// How a segment begins: the states of its lanes (FORMAT.md 3.4).
#pragma once

#include <cstdint>

#include "device/launch.h"

namespace kvcask::fklt {

constexpr unsigned kAllOfWarp = 0xffffffffu;

// Lane states and where the words begin. False: too short, or unused bits are set.
__device__ inline bool OpenLanes(const uint8_t* p, uint32_t bytes, int lanes, int lane, uint32_t* x,
                                 uint32_t* begin) {
  const uint32_t head = (lanes + 1) / 2;
  if (bytes < head || bytes % 2 != 0) return false;
  const int length = lane < lanes ? (p[lane / 2] >> (lane % 2 * 4) & 15) + 12 : 0;
  int end = length;  // prefix sum of bits
  for (int d = 1; d < 32; d *= 2) {
    const int v = __shfl_up_sync(kAllOfWarp, end, d);
    if (lane >= d) end += v;
  }
  const int total = __shfl_sync(kAllOfWarp, end, 31);
  *begin = (head + (total + 7) / 8 + 1) / 2 * 2;
  if (bytes < *begin) return false;
  const int bit = end - length;
  uint64_t bits = 0;
  for (int b = 0; b < 5; ++b) {
    const uint32_t i = head + bit / 8 + b;
    if (i < *begin) bits |= static_cast<uint64_t>(p[i]) << (8 * b);
  }
  bits >>= bit % 8;
  *x = length == 0 ? 1u << 12 : 1u << length | (static_cast<uint32_t>(bits) & ((1u << length) - 1));
  // What is left after the last lane's bits must be zero.
  bool stray = lanes == 1 && p[0] >> 4 != 0;
  if (lane == 31) {
    uint32_t i = head + total / 8;
    if (i < *begin && total % 8 != 0) stray |= p[i++] >> total % 8 != 0;
    for (; i < *begin; ++i) stray |= p[i] != 0;
  }
  return !__any_sync(kAllOfWarp, stray);
}

}  // namespace kvcask::fklt
