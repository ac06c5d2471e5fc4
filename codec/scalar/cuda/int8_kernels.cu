// FORMAT.md of codec/scalar: a row is the elements of one token of one head.
//
// Grid: x tiles, y heads; 256 threads. A row belongs to `width` lanes of a warp (a power of two),
// eight elements each at a time: 16 bytes of bf16 in or out, 8 of codes. Bound: memory. Every
// operation is rounded as the CPU's, so that the bytes are the same.
#include "codec/cuda/elements_device.h"
#include "codec/scalar/cuda/int8_kernels.h"
#include "device/launch.h"

namespace kvcask {
namespace {

constexpr int kHeaderBytes = 4;
constexpr int kThreads = 256;
constexpr uint32_t kNonFinite = 0x7f800000, kInfiniteHalf = 0x7c00;

__device__ __forceinline__ int WidthOf(int head_dim) {
  int width = 1;
  while (width < 32 && width * 8 < head_dim) width *= 2;
  return width;
}

__device__ __forceinline__ int64_t TokenOffset(const Int8Tile& t, const DevicePlane& plane,
                                               int token) {
  return t.pages == nullptr
             ? token * plane.token_stride
             : t.pages[token / t.page_tokens] + (token % t.page_tokens) * plane.token_stride;
}

// Elements [at, at + count) of a row, count <= 8; zeros after them.
__device__ __forceinline__ void LoadRun(const Int8Tile& t, const DevicePlane& plane,
                                        const uint8_t* row, int at, int count, float* v) {
  if (count == 8 && t.dtype != kF32 && plane.dim_stride == 2) {
    LoadEight(t.dtype, row + 2 * at, v);
    return;
  }
  for (int e = 0; e < 8; ++e)
    v[e] = e < count ? LoadAs(t.dtype, row + (at + e) * plane.dim_stride) : 0;
}

__global__ void __launch_bounds__(kThreads) EncodeKernel(const Int8Tile* tiles, int* failed) {
  const Int8Tile& t = tiles[blockIdx.x];
  if (static_cast<int>(blockIdx.y) >= t.head_count) return;
  const Int8Head head = t.heads[blockIdx.y];
  const DevicePlane plane = t.planes[head.plane];
  const uint8_t* const base = plane.data + head.head * plane.head_stride;
  const int width = WidthOf(head.head_dim);
  const int lane = threadIdx.x % width, rows = blockDim.x / width;
  bool bad = false;
  // All lanes of a warp go round equally often: they shuffle.
  for (int first = 0; first < t.tokens; first += rows) {
    const int token = first + static_cast<int>(threadIdx.x) / width;
    const bool there = token < t.tokens;
    const uint8_t* const row = base + (there ? TokenOffset(t, plane, token) : 0);
    float v[8];
    uint32_t largest = 0;
    for (int at = 8 * lane; there && at < head.head_dim; at += 8 * width) {
      LoadRun(t, plane, row, at, min(8, head.head_dim - at), v);
      for (int e = 0; e < 8; ++e) largest = max(largest, __float_as_uint(v[e]) & 0x7fffffffu);
    }
    for (int d = width / 2; d > 0; d /= 2) {
      largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, d));
    }
    if (!there) continue;
    const float quotient = __fdiv_rn(__uint_as_float(largest), 127.0f);
    uint32_t half = __half_as_ushort(__float2half_rn(quotient));
    if (half < kInfiniteHalf &&
        __half2float(__ushort_as_half(static_cast<unsigned short>(half))) < quotient) {
      ++half;
    }
    if (largest >= kNonFinite || half >= kInfiniteHalf) {
      bad = true;
      continue;
    }
    const float scale = __half2float(__ushort_as_half(static_cast<unsigned short>(half)));
    const float inverse = scale > 0 ? __fdiv_rn(1.0f, scale) : 0.0f;
    if (lane == 0) {
      uint8_t* const to =
          t.tile + kHeaderBytes + 2 * (static_cast<size_t>(head.heads_before) * t.tokens + token);
      StoreBits(kBf16, half, to);
    }
    uint8_t* const codes = t.tile + t.codes + static_cast<size_t>(head.elements_before) * t.tokens +
                           static_cast<size_t>(token) * head.head_dim;
    for (int at = 8 * lane; at < head.head_dim; at += 8 * width) {
      const int count = min(8, head.head_dim - at);
      // A row of up to 256 elements is still in registers.
      if (head.head_dim > 8 * width) LoadRun(t, plane, row, at, count, v);
      uint32_t packed[2] = {0, 0};
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int code = __float2int_rn(__fmul_rn(v[e], inverse));
        packed[e / 4] |= static_cast<uint32_t>(code & 255) << (e % 4 * 8);
      }
      if (count == 8 && Aligned(codes + at, 4)) {
        reinterpret_cast<uint32_t*>(codes + at)[0] = packed[0];
        reinterpret_cast<uint32_t*>(codes + at)[1] = packed[1];
      } else {
        for (int e = 0; e < count; ++e) {
          codes[at + e] = static_cast<uint8_t>(packed[e / 4] >> (e % 4 * 8));
        }
      }
    }
  }
  if (bad) failed[blockIdx.x] = 1;
  if (blockIdx.y == 0 && threadIdx.x < kHeaderBytes) t.tile[threadIdx.x] = threadIdx.x == 0;
}

__global__ void __launch_bounds__(kThreads) DecodeKernel(const Int8Tile* tiles, int* failed) {
  const Int8Tile& t = tiles[blockIdx.x];
  if (static_cast<int>(blockIdx.y) >= t.head_count) return;
  const Int8Head head = t.heads[blockIdx.y];
  const DevicePlane plane = t.planes[head.plane];
  uint8_t* const base = plane.data + head.head * plane.head_stride;
  const uint8_t* const scales =
      t.tile + kHeaderBytes + 2 * static_cast<size_t>(head.heads_before) * t.tokens;
  const uint8_t* const codes =
      t.tile + t.codes + static_cast<size_t>(head.elements_before) * t.tokens;
  for (int token = threadIdx.x; token < t.tokens; token += blockDim.x) {
    if (U16(scales + 2 * token) >= kInfiniteHalf) failed[blockIdx.x] = 1;
  }
  const int runs = (head.head_dim + 7) / 8, wanted = t.token_end - t.token_begin;
  for (int w = threadIdx.x; w < runs * wanted; w += blockDim.x) {
    const int to = w / runs, at = w % runs * 8, count = min(8, head.head_dim - at);
    const int token = t.token_begin + to;
    const float scale =
        __half2float(__ushort_as_half(static_cast<unsigned short>(U16(scales + 2 * token))));
    const uint8_t* const from = codes + static_cast<size_t>(token) * head.head_dim + at;
    uint32_t packed[2] = {0, 0};
    if (count == 8 && Aligned(from, 4)) {
      packed[0] = reinterpret_cast<const uint32_t*>(from)[0];
      packed[1] = reinterpret_cast<const uint32_t*>(from)[1];
    } else {
      for (int e = 0; e < count; ++e) {
        packed[e / 4] |= static_cast<uint32_t>(from[e]) << (e % 4 * 8);
      }
    }
    float v[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int code = static_cast<int8_t>(packed[e / 4] >> (e % 4 * 8) & 255);
      v[e] = __fmul_rn(static_cast<float>(code), scale);
    }
    uint8_t* const row = base + TokenOffset(t, plane, to);
    if (count == 8 && t.dtype != kF32 && plane.dim_stride == 2) {
      StoreEight(t.dtype, v, row + 2 * at);
    } else {
      for (int e = 0; e < count; ++e) {
        StoreBits(t.dtype, BitsAs(t.dtype, v[e]), row + (at + e) * plane.dim_stride);
      }
    }
  }
}

}  // namespace

cudaError_t LaunchInt8Encode(const Int8Tile* tiles, int tile_count, int heads, int* failed,
                             cudaStream_t stream) {
  KVCASK_LAUNCH(EncodeKernel, dim3(tile_count, heads), kThreads, 0, stream, tiles, failed);
  return cudaGetLastError();
}

cudaError_t LaunchInt8Decode(const Int8Tile* tiles, int tile_count, int heads, int* failed,
                             cudaStream_t stream) {
  KVCASK_LAUNCH(DecodeKernel, dim3(tile_count, heads), kThreads, 0, stream, tiles, failed);
  return cudaGetLastError();
}

}  // namespace kvcask
