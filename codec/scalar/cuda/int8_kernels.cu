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
constexpr int kTogether = 4;  // runs of eight that a thread has under way
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

// The scale of a row whose largest magnitude has these bits: as a half, and its inverse. False:
// there is none.
__device__ __forceinline__ bool ScaleOf(uint32_t largest, uint32_t* half, float* inverse) {
  const float quotient = __fdiv_rn(__uint_as_float(largest), 127.0f);
  *half = __half_as_ushort(__float2half_rn(quotient));
  if (*half < kInfiniteHalf &&
      __half2float(__ushort_as_half(static_cast<unsigned short>(*half))) < quotient) {
    ++*half;
  }
  const float scale = __half2float(__ushort_as_half(static_cast<unsigned short>(*half)));
  *inverse = scale > 0 ? __fdiv_rn(1.0f, scale) : 0.0f;
  return largest < kNonFinite && *half < kInfiniteHalf;
}

__device__ __forceinline__ void StoreCodes(const float* v, float inverse, int count, uint8_t* to) {
  uint32_t packed[2] = {0, 0};
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const int code = __float2int_rn(__fmul_rn(v[e], inverse));
    packed[e / 4] |= static_cast<uint32_t>(code & 255) << (e % 4 * 8);
  }
  if (count == 8 && Aligned(to, 4)) {
    reinterpret_cast<uint32_t*>(to)[0] = packed[0];
    reinterpret_cast<uint32_t*>(to)[1] = packed[1];
    return;
  }
  for (int e = 0; e < count; ++e) to[e] = static_cast<uint8_t>(packed[e / 4] >> (e % 4 * 8));
}

__device__ __forceinline__ uint32_t LargestOf(const float* v, uint32_t largest) {
#pragma unroll
  for (int e = 0; e < 8; ++e) largest = max(largest, __float_as_uint(v[e]) & 0x7fffffffu);
  return largest;
}
// Over the lanes of a row; all lanes of the warp call.
__device__ __forceinline__ uint32_t LargestOfRow(uint32_t largest, int width) {
  for (int d = width / 2; d > 0; d /= 2) {
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, d));
  }
  return largest;
}

__global__ void __launch_bounds__(kThreads) EncodeKernel(const Int8Tile* tiles, int* failed) {
  const Int8Tile& t = tiles[blockIdx.x];
  if (static_cast<int>(blockIdx.y) >= t.head_count) return;
  const Int8Head head = t.heads[blockIdx.y];
  const DevicePlane plane = t.planes[head.plane];
  const uint8_t* const base = plane.data + head.head * plane.head_stride;
  uint8_t* const scales =
      t.tile + kHeaderBytes + 2 * static_cast<size_t>(head.heads_before) * t.tokens;
  uint8_t* const codes = t.tile + t.codes + static_cast<size_t>(head.elements_before) * t.tokens;
  const int tokens = t.tokens, dtype = t.dtype, head_dim = head.head_dim;
  const int width = WidthOf(head_dim);
  const int lane = threadIdx.x % width, rows = blockDim.x / width;
  const int mine = static_cast<int>(threadIdx.x) / width;
  bool bad = false;
  // All lanes of a warp go round equally often: they shuffle.
  if (dtype != kF32 && plane.dim_stride == 2 && head_dim == 8 * width) {
    for (int first = mine; first - mine < tokens; first += kTogether * rows) {
      uint4 raw[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int token = min(first + i * rows, tokens - 1);
        raw[i] = BitsOfEight(base + TokenOffset(t, plane, token) + 16 * lane);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int token = first + i * rows;
        float v[8], inverse;
        UnpackEight(dtype, raw[i], v);
        uint32_t half;
        const bool good = ScaleOf(LargestOfRow(LargestOf(v, 0), width), &half, &inverse);
        bad |= !good;
        if (token >= tokens || !good) continue;
        if (lane == 0) StoreBits(kBf16, half, scales + 2 * token);
        StoreCodes(v, inverse, 8, codes + static_cast<size_t>(token) * head_dim + 8 * lane);
      }
    }
  } else {
    for (int first = 0; first < tokens; first += rows) {
      const int token = first + mine;
      const bool there = token < tokens;
      const uint8_t* const row = base + (there ? TokenOffset(t, plane, token) : 0);
      float v[8], inverse;
      uint32_t largest = 0, half;
      for (int at = 8 * lane; there && at < head_dim; at += 8 * width) {
        LoadRun(t, plane, row, at, min(8, head_dim - at), v);
        largest = LargestOf(v, largest);
      }
      const bool good = ScaleOf(LargestOfRow(largest, width), &half, &inverse);
      if (!there) continue;
      bad |= !good;
      if (!good) continue;
      if (lane == 0) StoreBits(kBf16, half, scales + 2 * token);
      for (int at = 8 * lane; at < head_dim; at += 8 * width) {
        const int count = min(8, head_dim - at);
        // A row of up to 256 elements is still in registers.
        if (head_dim > 8 * width) LoadRun(t, plane, row, at, count, v);
        StoreCodes(v, inverse, count, codes + static_cast<size_t>(token) * head_dim + at);
      }
    }
  }
  if (bad) failed[blockIdx.x] = 1;
  if (blockIdx.y == 0 && threadIdx.x < kHeaderBytes) t.tile[threadIdx.x] = threadIdx.x == 0;
}

// Eight codes, or `count` of them and zeros.
__device__ __forceinline__ uint2 LoadCodes(const uint8_t* from, int count) {
  if (count == 8 && Aligned(from, 4)) {
    const uint32_t* const words = reinterpret_cast<const uint32_t*>(from);
    return make_uint2(words[0], words[1]);
  }
  uint32_t packed[2] = {0, 0};
  for (int e = 0; e < count; ++e) {
    packed[e / 4] |= static_cast<uint32_t>(from[e]) << (e % 4 * 8);
  }
  return make_uint2(packed[0], packed[1]);
}

__device__ __forceinline__ void Values(uint2 packed, float scale, float* v) {
  // A code + 128 as the last bits of 2^23, less that: a conversion has a quarter of the rate.
  const uint32_t biased[2] = {packed.x ^ 0x80808080u, packed.y ^ 0x80808080u};
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const uint32_t bits = 0x4b000000u | (biased[e / 4] >> (e % 4 * 8) & 255);
    v[e] = __fmul_rn(__uint_as_float(bits) - 8388736.0f, scale);
  }
}

__global__ void __launch_bounds__(kThreads, 6) DecodeKernel(const Int8Tile* tiles, int* failed) {
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
  const int dtype = t.dtype, head_dim = head.head_dim, runs = (head_dim + 7) / 8;
  const int wanted = t.token_end - t.token_begin, threads = static_cast<int>(blockDim.x);
  const bool whole = dtype != kF32 && plane.dim_stride == 2 && head_dim % 8 == 0;
  if (whole && threads % runs == 0 && Aligned(codes, 4) && Aligned(scales, 2)) {
    // A thread has the same run of every row, of some rows.
    const int at = static_cast<int>(threadIdx.x) % runs * 8, rows = threads / runs;
    for (int first = static_cast<int>(threadIdx.x) / runs; first < wanted;
         first += kTogether * rows) {
      // All loads are under way before the first store.
      uint2 packed[kTogether];
      uint32_t scale[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int token = t.token_begin + min(first + i * rows, wanted - 1);
        scale[i] = reinterpret_cast<const uint16_t*>(scales)[token];
        const uint32_t* const words =
            reinterpret_cast<const uint32_t*>(codes + token * head_dim + at);
        packed[i] = make_uint2(words[0], words[1]);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int to = first + i * rows;
        if (to >= wanted) break;
        float v[8];
        Values(packed[i], __half2float(__ushort_as_half(static_cast<unsigned short>(scale[i]))), v);
        StoreEight(dtype, v, base + TokenOffset(t, plane, to) + 2 * at);
      }
    }
    return;
  }
  // w / runs = 2 w * magic >> 32, exactly: there are fewer than 2^21 runs in a page's head.
  const uint32_t magic = ((1u << 31) + runs - 1) / runs;
  for (int w = static_cast<int>(threadIdx.x); w < runs * wanted; w += threads) {
    const int to = static_cast<int>(__umulhi(2 * w, magic));
    const int token = t.token_begin + to, at = (w - to * runs) * 8;
    const int count = min(8, head_dim - at);
    float v[8];
    Values(LoadCodes(codes + static_cast<size_t>(token) * head_dim + at, count),
           LoadAs(/*fp16*/ 2, scales + 2 * token), v);
    uint8_t* const row = base + TokenOffset(t, plane, to);
    if (count == 8 && whole) {
      StoreEight(dtype, v, row + 2 * at);
    } else {
      for (int e = 0; e < count; ++e) {
        StoreBits(dtype, BitsAs(dtype, v[e]), row + (at + e) * plane.dim_stride);
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
