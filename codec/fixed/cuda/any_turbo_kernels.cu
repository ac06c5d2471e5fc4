// FORMAT.md of codec/fixed, turbo rows of any length: plain loops over a row in shared memory.
//
// Grid: x streams, y heads; a row for each warp. Shared memory: n floats and n codes for each warp.
// Every operation is rounded as the CPU's, so that the bytes are the same.
#include "codec/fixed/cuda/rows_device.h"
#include "codec/fixed/cuda/turbo_device.h"
#include "codec/fixed/cuda/turbo_launch.h"
#include "device/launch.h"

namespace kvcask {
namespace {

constexpr int kMostWarps = 4, kMostShared = 48 << 10;

// Of one row: a multiple of 4.
int SharedBytes(int head_dim) { return 4 * head_dim + (head_dim + 3) / 4 * 4; }
int WarpsOf(int head_dim) {
  return std::max(1, std::min(kMostWarps, kMostShared / SharedBytes(head_dim)));
}

// f(first, length) for each of the blocks of a row, the largest first.
template <typename F>
__device__ __forceinline__ void ForEachBlock(int n, F f) {
  int block = 1;
  while (block <= n / 2) block *= 2;
  for (int at = 0; at < n; block /= 2) {
    if ((n & block) == 0) continue;
    f(at, block);
    at += block;
  }
}

__device__ __forceinline__ void Transform(float* x, int n, int lane) {
  ForEachBlock(n, [&](int at, int length) {
    for (int stride = 1; stride < length; stride *= 2) {
      __syncwarp();
      for (int pair = lane; pair < length / 2; pair += 32) {
        const int i = at + pair / stride * 2 * stride + pair % stride;
        const float a = x[i], b = x[i + stride];
        x[i] = __fadd_rn(a, b);
        x[i + stride] = __fsub_rn(a, b);
      }
    }
  });
  __syncwarp();
}

__device__ __forceinline__ uint32_t SumOfWarp(uint32_t v) {
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}

// What a warp has of shared memory.
struct Row {
  float* x;
  uint8_t* codes;
};
__device__ __forceinline__ Row RowOf(uint8_t* shared, int n) {
  uint8_t* const mine = shared + threadIdx.x / 32 * (4 * n + (n + 3) / 4 * 4);
  return {reinterpret_cast<float*>(mine), mine + 4 * n};
}

__global__ void EncodeKernel(const FixedStream* streams, int bits, int head_dim, bool wide,
                             int* failed) {
  KVCASK_DYNAMIC_SHARED(shared);
  const FixedStream& s = streams[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  if (s.coder != bits || s.head_dim != head_dim || s.wide != wide || head >= s.heads) return;
  if (head == 0) WriteSpec(s);
  const DevicePlane plane = *s.plane;
  const uint8_t* const base = plane.data + head * plane.head_stride;
  const int n = head_dim, half = 1 << (bits - 1), lane = static_cast<int>(threadIdx.x % 32);
  const Row row = RowOf(shared, n);
  const float root = __fsqrt_rn(static_cast<float>(n));
  bool bad = false;
  for (int token = threadIdx.x / 32; token < s.tokens; token += blockDim.x / 32) {
    const uint8_t* const from = base + TokenOffset(s, plane, token);
    for (int i = lane; i < n; i += 32) row.x[i] = LoadAs(s.dtype, from + i * plane.dim_stride);
    __syncwarp();
    float sum = 0;  // of part lane % 16
    for (int i = lane % 16; i < n; i += 16) sum = __fadd_rn(sum, __fmul_rn(row.x[i], row.x[i]));
    for (int d = 8; d > 0; d /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, d));
    const float norm = __fsqrt_rn(sum), to_unit = norm > 0 ? __fdiv_rn(root, norm) : 0.0f;
    for (int i = lane; i < n; i += 32) {
      if (IsMinusSign(i)) row.x[i] = -row.x[i];
    }
    Transform(row.x, n, lane);
    uint32_t energy = 0;  // of 4,096 / 32 squares below 2^23
    ForEachBlock(n, [&](int at, int length) {
      const float factor =
          __fmul_rn(to_unit, __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(length))));
      for (int i = at + lane; i < at + length; i += 32) {
        const float y = __fmul_rn(row.x[i], factor);
        int m = 0;
        while (m + 1 < half && fabsf(y) >= s.table->thresholds[m + 1]) ++m;
        energy += static_cast<uint32_t>(s.table->squares[m]);
        const bool minus = __float_as_uint(y) >> 31 != 0;
        row.codes[i] = static_cast<uint8_t>(minus ? half - 1 - m : half + m);
      }
    });
    const uint64_t total =
        SumOfWarp(energy & 0xffff) + (static_cast<uint64_t>(SumOfWarp(energy >> 16)) << 16);
    const uint32_t scale = ScaleOf(norm, total);
    bad |= !isfinite(norm) || !IsFiniteHalfBits(scale);
    uint8_t* const to = RowsOfHead(s, head) + static_cast<size_t>(token) * s.row_bytes;
    if (lane < 2) to[lane] = static_cast<uint8_t>(scale >> (8 * lane));
    __syncwarp();
    for (int j = lane; j < s.row_bytes - 2; j += 32) {
      uint32_t byte = 0;
      for (int bit = 8 * j; bit < min(8 * j + 8, n * bits); ++bit) {
        byte |= (row.codes[bit / bits] >> (bit % bits) & 1u) << (bit % 8);
      }
      to[2 + j] = static_cast<uint8_t>(byte);
    }
    __syncwarp();
  }
  if (bad) failed[blockIdx.x] = 1;
}

__global__ void DecodeKernel(const FixedStream* streams, int bits, int head_dim, bool wide,
                             int* failed) {
  KVCASK_DYNAMIC_SHARED(shared);
  const FixedStream& s = streams[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  if (s.coder != bits || s.head_dim != head_dim || s.wide != wide || head >= s.heads) return;
  const DevicePlane plane = *s.plane;
  uint8_t* const base = plane.data + head * plane.head_stride;
  const int n = head_dim, lane = static_cast<int>(threadIdx.x % 32);
  float* const x = RowOf(shared, n).x;
  bool bad = false;
  for (int token = s.token_begin + static_cast<int>(threadIdx.x / 32); token < s.token_end;
       token += blockDim.x / 32) {
    const uint8_t* const from = RowsOfHead(s, head) + static_cast<size_t>(token) * s.row_bytes;
    const uint32_t half = U16(from);
    bad |= half >= kInfiniteHalfBits;
    const float norm = FloatOfHalf(half);
    ForEachBlock(n, [&](int at, int length) {
      const float factor = __fmul_rn(norm, __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(length))));
      for (int i = at + lane; i < at + length; i += 32) {
        uint32_t code = 0;
        for (int b = 0; b < bits; ++b) {
          const int bit = i * bits + b;
          code |= (from[2 + bit / 8] >> (bit % 8) & 1u) << b;
        }
        x[i] = __fmul_rn(s.table->levels[code], factor);
      }
    });
    Transform(x, n, lane);
    uint8_t* const to = base + TokenOffset(s, plane, token - s.token_begin);
    for (int i = lane; i < n; i += 32) {
      const float v = IsMinusSign(i) ? -x[i] : x[i];
      StoreBits(s.dtype, BitsAs(s.dtype, v), to + i * plane.dim_stride);
    }
    __syncwarp();
  }
  if (bad) failed[blockIdx.x] = 1;
}

}  // namespace

cudaError_t LaunchAnyTurboEncode(const FixedLaunch& l, int bits, int head_dim, bool wide) {
  const int warps = WarpsOf(head_dim);
  KVCASK_LAUNCH(EncodeKernel, dim3(l.count, l.heads), 32 * warps, warps * SharedBytes(head_dim),
                l.stream, l.streams, bits, head_dim, wide, l.failed);
  return cudaGetLastError();
}

cudaError_t LaunchAnyTurboDecode(const FixedLaunch& l, int bits, int head_dim, bool wide) {
  const int warps = WarpsOf(head_dim);
  KVCASK_LAUNCH(DecodeKernel, dim3(l.count, l.heads), 32 * warps, warps * SharedBytes(head_dim),
                l.stream, l.streams, bits, head_dim, wide, l.failed);
  return cudaGetLastError();
}

}  // namespace kvcask
