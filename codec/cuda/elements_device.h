// Elements of the reader's and writer's layouts, in kernels: one at a time at any address, or eight
// of 16 bits at once.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "device/launch.h"

namespace kvcask {

constexpr int kBf16 = 1, kF32 = 3;  // Dtype

__device__ __forceinline__ uint32_t U16(const uint8_t* p) { return p[0] | p[1] << 8; }
__device__ __forceinline__ bool Aligned(const void* p, int bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

__device__ __forceinline__ float LoadAs(int dtype, const uint8_t* p) {
  if (dtype == kF32) {
    if (Aligned(p, 4)) return *reinterpret_cast<const float*>(p);
    return __uint_as_float(U16(p) | U16(p + 2) << 16);
  }
  const uint32_t u = Aligned(p, 2) ? *reinterpret_cast<const uint16_t*>(p) : U16(p);
  if (dtype == kBf16) return __uint_as_float(u << 16);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(u)));
}

__device__ __forceinline__ uint32_t BitsAs(int dtype, float v) {
  if (dtype == kF32) return __float_as_uint(v);
  if (dtype == kBf16) {  // to nearest, ties to even
    const uint32_t u = __float_as_uint(v);
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
  }
  return __half_as_ushort(__float2half_rn(v));
}

__device__ __forceinline__ void StoreBits(int dtype, uint32_t bits, uint8_t* p) {
  if (dtype == kF32) {
    if (Aligned(p, 4)) {
      *reinterpret_cast<uint32_t*>(p) = bits;
      return;
    }
    p[2] = static_cast<uint8_t>(bits >> 16);
    p[3] = static_cast<uint8_t>(bits >> 24);
  } else if (Aligned(p, 2)) {
    *reinterpret_cast<uint16_t*>(p) = static_cast<uint16_t>(bits);
    return;
  }
  p[0] = static_cast<uint8_t>(bits);
  p[1] = static_cast<uint8_t>(bits >> 8);
}

// Two elements of 16 bits.
__device__ __forceinline__ uint32_t PackTwo(int dtype, float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t out;
  if (dtype == kBf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  }
  return out;
#else
  return BitsAs(dtype, low) | BitsAs(dtype, high) << 16;
#endif
}
__device__ __forceinline__ void UnpackTwo(int dtype, uint32_t two, float* v) {
  if (dtype == kBf16) {
    v[0] = __uint_as_float(two << 16);
    v[1] = __uint_as_float(two & 0xffff0000u);
  } else {
    v[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(two & 0xffff)));
    v[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(two >> 16)));
  }
}

// Eight elements of 16 bits that lie one after another.
__device__ __forceinline__ uint4 BitsOfEight(const uint8_t* p) {
  if (Aligned(p, 16)) return *reinterpret_cast<const uint4*>(p);
  return make_uint4(U16(p) | U16(p + 2) << 16, U16(p + 4) | U16(p + 6) << 16,
                    U16(p + 8) | U16(p + 10) << 16, U16(p + 12) | U16(p + 14) << 16);
}
__device__ __forceinline__ void UnpackEight(int dtype, const uint4& w, float* v) {
  UnpackTwo(dtype, w.x, v);
  UnpackTwo(dtype, w.y, v + 2);
  UnpackTwo(dtype, w.z, v + 4);
  UnpackTwo(dtype, w.w, v + 6);
}
__device__ __forceinline__ void LoadEight(int dtype, const uint8_t* p, float* v) {
  UnpackEight(dtype, BitsOfEight(p), v);
}
__device__ __forceinline__ void StoreEight(int dtype, const float* v, uint8_t* p) {
  const uint4 w = make_uint4(PackTwo(dtype, v[0], v[1]), PackTwo(dtype, v[2], v[3]),
                             PackTwo(dtype, v[4], v[5]), PackTwo(dtype, v[6], v[7]));
  if (Aligned(p, 16)) {
    *reinterpret_cast<uint4*>(p) = w;
    return;
  }
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    StoreBits(kBf16, words[i] & 0xffff, p + 4 * i);
    StoreBits(kBf16, words[i] >> 16, p + 4 * i + 2);
  }
}
// Eight floats at an address aligned to 16.
__device__ __forceinline__ void LoadFloats(const float* p, float* v) {
  const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

}  // namespace kvcask
