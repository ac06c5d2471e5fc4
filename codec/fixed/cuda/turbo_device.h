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

// The half of a row whose length is `norm` and whose levels' integers have squares that sum up
// to `energy`.
__device__ __forceinline__ uint32_t ScaleOf(float norm, uint64_t energy) {
  const float length = __fmul_rn(__fsqrt_rn(static_cast<float>(energy)), 1.0f / 1024);
  return NearestHalf(__fdiv_rn(norm, length));
}

}  // namespace kvcask
