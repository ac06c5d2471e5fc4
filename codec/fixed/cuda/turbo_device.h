// What the turbo kernels share: signs, levels, codes and lengths of one row. For kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "codec/fixed/cuda/rows_device.h"

namespace kvcask {

// HadamardSigns (codec/transform/hadamard.h): true where element i is multiplied by -1.
__host__ __device__ constexpr bool IsMinusSign(int i) {
  uint64_t z = static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return ((z ^ (z >> 31)) >> 63) != 0;
}

// How many of thresholds[1..kHalf - 1], which rise, a magnitude reaches; by halving.
template <int kHalf>
__device__ __forceinline__ uint32_t LevelOf(float magnitude, const float* thresholds) {
  if constexpr (kHalf == 2) return magnitude >= thresholds[1];
  if constexpr (kHalf == 4) {
    const bool a = magnitude >= thresholds[2];
    return 2u * a + (magnitude >= (a ? thresholds[3] : thresholds[1]));
  }
  if constexpr (kHalf == 8) {
    const bool a = magnitude >= thresholds[4];
    const bool b = magnitude >= (a ? thresholds[6] : thresholds[2]);
    const float last =
        a ? (b ? thresholds[7] : thresholds[5]) : (b ? thresholds[3] : thresholds[1]);
    return 4u * a + 2u * b + (magnitude >= last);
  }
}

// kHalf + m, or kHalf - 1 - m where y has its sign bit set.
template <int kHalf>
__device__ __forceinline__ uint32_t CodeOf(uint32_t m, float y) {
  const auto minus = static_cast<uint32_t>(static_cast<int32_t>(__float_as_uint(y)) >> 31);
  return ((m ^ minus) & (2 * kHalf - 1)) ^ kHalf;
}

// The half of a row whose length is `norm` and whose levels' integers have squares that sum up
// to `energy`.
__device__ __forceinline__ uint32_t ScaleOf(float norm, uint64_t energy) {
  const float length = __fmul_rn(__fsqrt_rn(static_cast<float>(energy)), 1.0f / 1024);
  return NearestHalf(__fdiv_rn(norm, length));
}

}  // namespace kvcask
