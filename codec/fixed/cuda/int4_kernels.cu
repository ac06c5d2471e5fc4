// FORMAT.md of codec/fixed, uniform rows of 4 bits in groups of 32.
//
// Grid: x streams, y heads; 256 threads. A group belongs to four lanes, eight elements each: 16
// bytes of bf16 on one side, a word of codes on the other, and one of the lanes has the group's
// halves. Rows follow each other in the tile, so neighbouring lanes have neighbouring words. Bound:
// memory. Every operation is rounded as the CPU's, so that the bytes are the same.
#include "codec/fixed/cuda/rows_device.h"
#include "device/launch.h"

namespace kvcask {
namespace {

constexpr int kThreads = 256;
constexpr int kTogether = 4;  // runs of eight that a thread has under way
constexpr int kLanes = 4;     // of a group
constexpr float kCodes = 15;

// A thread's share of a stream's head: runs of eight elements, four to a group, one token after
// the other.
struct Runs {
  __device__ Runs(int head_dim, int tokens)
      : dim(head_dim),
        groups((head_dim + kInt4Group - 1) / kInt4Group),
        of_row(groups * kLanes),
        all(of_row * tokens),
        magic(((1u << 31) + of_row - 1) / of_row) {}
  // w / of_row = 2 w * magic >> 32, exactly: w * of_row stays below 2^31.
  __device__ int Token(int w) const { return static_cast<int>(__umulhi(2 * w, magic)); }
  // How many elements run `run` of a row has.
  __device__ int Count(int run) const { return max(0, min(8, dim - 8 * run)); }
  int dim, groups, of_row, all;
  uint32_t magic;
};

struct Range {
  uint32_t halves;  // scale, zero
  float zero, inverse;
};

// Over the four lanes of a group; all lanes of the warp call. False: there is none.
__device__ __forceinline__ bool RangeOf(const float* v, int count, Range* range) {
  const float infinity = __uint_as_float(0x7f800000);
  float low = infinity, high = -infinity, poison = 0;  // NaN where an element is not finite
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (e < count) {
      low = fminf(low, v[e]);
      high = fmaxf(high, v[e]);
      poison = fmaf(v[e], 0.0f, poison);
    }
  }
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2) {
    low = fminf(low, __shfl_xor_sync(0xffffffffu, low, d));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, d));
  }
  const uint32_t zero = HalfNotAbove(low);
  range->zero = FloatOfHalf(zero);
  const uint32_t scale = HalfNotBelow(__fdiv_rn(__fsub_rn(high, range->zero), kCodes));
  range->inverse = scale > 0 ? __fdiv_rn(1.0f, FloatOfHalf(scale)) : 0.0f;
  range->halves = scale | zero << 16;
  return poison == 0 && IsFiniteHalfBits(zero) && IsFiniteHalfBits(scale);
}

// Codes of eight elements, the first in the lowest bits.
__device__ __forceinline__ uint32_t CodesOf(const float* v, const Range& range) {
  // 1.5 * 2^23: a sum with it has the nearest integer in its last bits, above which are kBits.
  constexpr float kRound = 12582912.0f;
  constexpr uint32_t kBits = 0x4b400000;
  uint32_t packed = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const float code = __fmul_rn(__fsub_rn(v[e], range.zero), range.inverse);
    packed += (__float_as_uint(__fadd_rn(fminf(code, kCodes), kRound)) - kBits) << (4 * e);
  }
  return packed;
}
__device__ __forceinline__ void ElementsOf(uint32_t packed, uint32_t halves, float* v) {
  const float scale = FloatOfHalf(halves & 0xffff), zero = FloatOfHalf(halves >> 16);
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    // 2^23 + code, less 2^23.
    const float code =
        __fsub_rn(__uint_as_float(0x4b000000 | (packed >> (4 * e) & 15)), 8388608.0f);
    v[e] = __fadd_rn(__fmul_rn(code, scale), zero);
  }
}
__device__ __forceinline__ bool IsRange(uint32_t halves) {
  return (halves & 0xffff) < kInfiniteHalfBits && IsFiniteHalfBits(halves >> 16);
}

__device__ __forceinline__ void StoreBytes(uint32_t word, int bytes, uint8_t* to) {
  for (int i = 0; i < bytes; ++i) to[i] = static_cast<uint8_t>(word >> (8 * i));
}
__device__ __forceinline__ uint32_t LoadBytes(const uint8_t* from, int bytes) {
  uint32_t word = 0;
  for (int i = 0; i < bytes; ++i) word |= static_cast<uint32_t>(from[i]) << (8 * i);
  return word;
}

// Whole groups, and words on either side.
__device__ __forceinline__ bool IsPlain(const FixedStream& s, const uint8_t* rows) {
  return s.wide && s.head_dim % kInt4Group == 0 && Aligned(rows, 4);
}

__global__ void __launch_bounds__(kThreads) EncodeKernel(const FixedStream* streams, int* failed) {
  const FixedStream& s = streams[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  if (s.coder != kInt4Coder || head >= s.heads) return;
  if (head == 0) WriteSpec(s);
  const DevicePlane plane = *s.plane;
  const uint8_t* const base = plane.data + head * plane.head_stride;
  uint8_t* const rows = RowsOfHead(s, head);
  const Runs runs(s.head_dim, s.tokens);
  const int dtype = s.dtype, row_bytes = s.row_bytes;
  const int step = static_cast<int>(blockDim.x), mine = static_cast<int>(threadIdx.x);
  bool bad = false;
  // All lanes of a warp go round equally often: they shuffle.
  if (IsPlain(s, rows)) {
    for (int first = mine; first - mine < runs.all; first += kTogether * step) {
      uint4 raw[kTogether];
      uint32_t* row[kTogether];
      int run[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int w = min(first + i * step, runs.all - 1), token = runs.Token(w);
        run[i] = w - token * runs.of_row;
        row[i] = reinterpret_cast<uint32_t*>(rows + token * row_bytes);
        raw[i] = LoadWide(base + TokenOffset(s, plane, token) + 16 * run[i]);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        float v[8];
        UnpackEight(dtype, raw[i], v);
        Range range;
        bad |= !RangeOf(v, 8, &range);
        if (first + i * step >= runs.all) continue;
        if (run[i] % kLanes == 0) row[i][run[i] / kLanes] = range.halves;
        row[i][runs.groups + run[i]] = CodesOf(v, range);
      }
    }
  } else {
    for (int first = mine; first - mine < runs.all; first += step) {
      const bool there = first < runs.all;
      const int w = there ? first : runs.all - 1, token = runs.Token(w);
      const int run = w - token * runs.of_row, count = runs.Count(run);
      float v[8];
      LoadElements(dtype, plane.dim_stride, base + TokenOffset(s, plane, token), 8 * run, count, v);
      Range range;
      bad |= !RangeOf(v, count, &range) && there;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if (e >= count) v[e] = range.zero;  // codes 0
      }
      if (!there) continue;
      uint8_t* const row = rows + token * row_bytes;
      if (run % kLanes == 0) StoreBytes(range.halves, 4, row + 4 * (run / kLanes));
      StoreBytes(CodesOf(v, range), (count + 1) / 2, row + 4 * runs.groups + 4 * run);
    }
  }
  if (bad) failed[blockIdx.x] = 1;
}

__global__ void __launch_bounds__(kThreads) DecodeKernel(const FixedStream* streams, int* failed) {
  const FixedStream& s = streams[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  if (s.coder != kInt4Coder || head >= s.heads) return;
  const DevicePlane plane = *s.plane;
  uint8_t* const base = plane.data + head * plane.head_stride;
  const uint8_t* const rows =
      RowsOfHead(s, head) + static_cast<size_t>(s.token_begin) * s.row_bytes;
  const Runs runs(s.head_dim, s.token_end - s.token_begin);
  const int dtype = s.dtype, row_bytes = s.row_bytes, step = static_cast<int>(blockDim.x);
  bool bad = false;
  if (IsPlain(s, rows)) {
    // Loads of all runs are under way before the first is stored.
    for (int first = threadIdx.x; first < runs.all; first += kTogether * step) {
      uint32_t halves[kTogether], packed[kTogether];
      uint8_t* to[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int w = min(first + i * step, runs.all - 1), token = runs.Token(w);
        const int run = w - token * runs.of_row;
        const auto* const row = reinterpret_cast<const uint32_t*>(rows + token * row_bytes);
        halves[i] = row[run / kLanes];
        packed[i] = row[runs.groups + run];
        to[i] = base + TokenOffset(s, plane, token) + 16 * run;
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (first + i * step >= runs.all) break;
        bad |= !IsRange(halves[i]);
        float v[8];
        ElementsOf(packed[i], halves[i], v);
        StoreWide(dtype, v, to[i]);
      }
    }
  } else {
    for (int w = threadIdx.x; w < runs.all; w += step) {
      const int token = runs.Token(w), run = w - token * runs.of_row, count = runs.Count(run);
      const uint8_t* const row = rows + token * row_bytes;
      const uint32_t halves = LoadBytes(row + 4 * (run / kLanes), 4);
      bad |= !IsRange(halves);
      float v[8];
      ElementsOf(LoadBytes(row + 4 * runs.groups + 4 * run, (count + 1) / 2), halves, v);
      StoreElements(dtype, plane.dim_stride, base + TokenOffset(s, plane, token), 8 * run, count,
                    v);
    }
  }
  if (bad) failed[blockIdx.x] = 1;
}

}  // namespace

cudaError_t LaunchInt4Encode(const FixedLaunch& l) {
  KVCASK_LAUNCH(EncodeKernel, dim3(l.count, l.heads), kThreads, 0, l.stream, l.streams, l.failed);
  return cudaGetLastError();
}

cudaError_t LaunchInt4Decode(const FixedLaunch& l) {
  KVCASK_LAUNCH(DecodeKernel, dim3(l.count, l.heads), kThreads, 0, l.stream, l.streams, l.failed);
  return cudaGetLastError();
}

}  // namespace kvcask
