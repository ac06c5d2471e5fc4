// Where the rows of a stream are, on either side; and halves that bound a float from one side
// (codec/quant/half.h). For kernels.
#pragma once

#include "codec/cuda/elements_device.h"
#include "codec/fixed/cuda/fixed_kernels.h"

namespace kvcask {

constexpr uint32_t kInfiniteHalfBits = 0x7c00;

__device__ __forceinline__ int64_t TokenOffset(const FixedStream& s, const DevicePlane& plane,
                                               int token) {
  return s.pages == nullptr
             ? token * plane.token_stride
             : s.pages[token / s.page_tokens] + (token % s.page_tokens) * plane.token_stride;
}

__device__ __forceinline__ uint8_t* RowsOfHead(const FixedStream& s, int head) {
  return s.tile + s.body + static_cast<size_t>(head) * s.tokens * s.row_bytes;
}

// What a tile says of a stream; with the first one, of itself. By one block of a stream.
__device__ __forceinline__ void WriteSpec(const FixedStream& s) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < kFixedSpecBytes) s.tile[kFixedHeaderBytes + kFixedSpecBytes * s.index + i] = s.spec[i];
  if (s.index == 0 && i < kFixedHeaderBytes) s.tile[i] = i == 0;
}

// Elements [at, at + count) of a row, count <= 8.
__device__ __forceinline__ void LoadElements(int dtype, int64_t dim_stride, const uint8_t* row,
                                             int at, int count, float* v) {
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (e < count) v[e] = LoadAs(dtype, row + (at + e) * dim_stride);
  }
}
__device__ __forceinline__ void StoreElements(int dtype, int64_t dim_stride, uint8_t* row, int at,
                                              int count, const float* v) {
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (e < count) StoreBits(dtype, BitsAs(dtype, v[e]), row + (at + e) * dim_stride);
  }
}
// Eight elements of 16 bits at an address aligned to 16.
__device__ __forceinline__ uint4 LoadWide(const uint8_t* from) {
  return *reinterpret_cast<const uint4*>(from);
}
__device__ __forceinline__ void StoreWide(int dtype, const float* v, uint8_t* to) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(PackTwo(dtype, v[0], v[1]), PackTwo(dtype, v[2], v[3]), PackTwo(dtype, v[4], v[5]),
                 PackTwo(dtype, v[6], v[7]));
}

__device__ __forceinline__ float FloatOfHalf(uint32_t half) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(half)));
}
__device__ __forceinline__ uint32_t NearestHalf(float x) {
  return __half_as_ushort(__float2half_rn(x));
}
__device__ __forceinline__ bool IsFiniteHalfBits(uint32_t half) {
  return (half & 0x7fff) < kInfiniteHalfBits;
}
// The smallest half >= x, never -0; infinity where there is none. x >= 0.
__device__ __forceinline__ uint32_t HalfNotBelow(float x) {
  const uint32_t h = NearestHalf(__fadd_rn(x, 0.0f));
  return h + (h < kInfiniteHalfBits && FloatOfHalf(h) < x);
}
// The largest half <= x, never -0; not finite where there is none.
__device__ __forceinline__ uint32_t HalfNotAbove(float x) {
  const uint32_t h = NearestHalf(x);
  if ((h & 0x7fff) == 0) return x < 0 ? 0x8001 : 0;
  const bool down = IsFiniteHalfBits(h) && FloatOfHalf(h) > x;
  return (h & 0x8000) != 0 ? h + down : h - down;
}

}  // namespace kvcask
