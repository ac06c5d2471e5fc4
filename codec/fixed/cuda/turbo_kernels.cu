// FORMAT.md of codec/fixed, turbo rows of 2, 3 and 4 bits, with signs, norm-corrected, of the
// usual head_dims, from and to wide rows; any_turbo_kernels.cu does the others.
//
// Grid: x streams, y heads; 128 threads. A row belongs to two neighbouring lanes, eight elements
// by turns: lane l has those whose number is 8 l to 8 l + 7 modulo 16, all in registers. So each of
// the sixteen sums of squares stays in a lane, in order, and of the transform's stages only that of
// stride 8 crosses lanes. The coded rows of a warp, sixteen that follow each other in the tile,
// pass through shared memory on their way from or to it. Bound: memory, if the instructions keep
// up. Every operation is rounded as the CPU's, so that the bytes are the same.
#include "codec/fixed/cuda/rows_device.h"
#include "codec/fixed/cuda/turbo_device.h"
#include "codec/fixed/cuda/turbo_launch.h"
#include "device/launch.h"

namespace kvcask {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpRows = 16, kWarps = kThreads / 32;

// A head_dim and bits that have kernels here.
template <int kDim_, int kBits_>
struct Shape {
  static_assert(kDim_ % 16 == 0 && kDim_ <= 128);
  static constexpr int kDim = kDim_, kBits = kBits_;
  static constexpr int kRuns = kDim / 16;  // of eight elements, in a lane
  static constexpr int kHalf = 1 << (kBits - 1);
  static constexpr int kRowBytes = 2 + kDim * kBits / 8;
  static constexpr int kWarpBytes = (kWarpRows * kRowBytes + 15) / 16 * 16;
  // The block of the transform that a run is in, in runs: the binary digits of kRuns, the
  // largest first.
  static constexpr int BlockOf(int run) {
    int block = 1, at = 0;
    while (2 * block <= kRuns) block *= 2;
    for (;; block /= 2) {
      if ((kRuns & block) == 0) continue;
      if (run < at + block) return block;
      at += block;
    }
  }
};

__device__ __forceinline__ float Flip(float v, uint32_t sign) {
  return __uint_as_float(__float_as_uint(v) ^ sign);
}
// a becomes a + b, b a - b.
__device__ __forceinline__ void Butterfly(float& a, float& b) {
  const float sum = __fadd_rn(a, b);
  b = __fsub_rn(a, b);
  a = sum;
}

// The random signs, from this lane's elements. `odd`: the sign bit in odd lanes.
template <typename S>
__device__ __forceinline__ void ApplySigns(float* v, uint32_t odd) {
  const uint32_t even = odd ^ 0x80000000u;
#pragma unroll
  for (int i = 0; i < 8 * S::kRuns; ++i) {
    const int element = i / 8 * 16 + i % 8;  // of an even lane
    const bool of_even = IsMinusSign(element), of_odd = IsMinusSign(element + 8);
    if (of_even && of_odd) v[i] = -v[i];
    if (of_even && !of_odd) v[i] = Flip(v[i], even);
    if (!of_even && of_odd) v[i] = Flip(v[i], odd);
  }
}

// The Walsh-Hadamard transform of each block, all lanes of the warp together. `sign`: 1, in odd
// lanes -1.
template <typename S>
__device__ __forceinline__ void Transform(float* v, float sign) {
#pragma unroll
  for (int i = 0; i < 8 * S::kRuns; i += 8) {
#pragma unroll
    for (int stride = 1; stride < 8; stride *= 2) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if ((e & stride) == 0) Butterfly(v[i + e], v[i + e + stride]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 8 * S::kRuns; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, v[i], 1);
    v[i] = fmaf(v[i], sign, other);  // the product is exact: one rounding, as of a sum
  }
#pragma unroll
  for (int stride = 1; stride < S::kRuns; stride *= 2) {
#pragma unroll
    for (int k = 0; k < S::kRuns; ++k) {
      // Within its block, whose first run is a multiple of its length.
      if ((k & stride) != 0 || stride >= S::BlockOf(k)) continue;
#pragma unroll
      for (int e = 0; e < 8; ++e) Butterfly(v[8 * k + e], v[8 * (k + stride) + e]);
    }
  }
}

// |x|^2, in both lanes of the row.
template <typename S>
__device__ __forceinline__ float SumOfSquares(const float* v) {
  float sum[8];
#pragma unroll
  for (int k = 0; k < S::kRuns; ++k) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float square = __fmul_rn(v[8 * k + e], v[8 * k + e]);
      sum[e] = k == 0 ? square : __fadd_rn(sum[e], square);
    }
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) sum[e] = __fadd_rn(sum[e], __shfl_xor_sync(0xffffffffu, sum[e], 1));
#pragma unroll
  for (int step = 4; step > 0; step /= 2) {
#pragma unroll
    for (int e = 0; e < step; ++e) sum[e] = __fadd_rn(sum[e], sum[e + step]);
  }
  return sum[0];
}

// A level as TurboTable's cells have it, with y's sign in the top bit.
template <typename S>
__device__ __forceinline__ uint32_t WordOf(float y, const TurboTable& table) {
  const float magnitude = fabsf(y);
  uint32_t word;
  if constexpr (S::kHalf == 2) {
    word = magnitude >= table.thresholds[1] ? table.cell_words[kTurboCells - 1][1]
                                            : table.cell_words[0][0];
  } else {
    // Four times the magnitude, rounded down: the bits of so small a float are that integer.
    const uint32_t cell =
        __float_as_uint(__fmul_rz(fminf(magnitude, (kTurboCells - 1) / 4.0f), 0x1p-147f));
    const uint2 words = *reinterpret_cast<const uint2*>(table.cell_words[cell]);
    word = magnitude >= table.cell_thresholds[cell][0] ? words.y : words.x;
  }
  return word | (__float_as_uint(y) & 0x80000000u);
}

// The codes of eight words, the first in the lowest bits. Adds the levels' squares up.
template <typename S>
__device__ __forceinline__ uint32_t CodesOf(const uint32_t* words, uint32_t* energy) {
  uint32_t packed = 0, sum = 0, tops = 0;
#pragma unroll
  for (int e = 7; e >= 0; --e) {
    packed = packed << S::kBits | words[e] >> (32 - S::kBits);
    sum += words[e];
    tops |= static_cast<uint32_t>(S::kHalf) << (S::kBits * e);
  }
  *energy += sum & ((1u << (32 - S::kBits)) - 1);  // eight squares are below 2^26
  // Of a field with sign s and level m: kHalf + m, or kHalf - 1 - m where s is set.
  const uint32_t minus = packed & tops;
  return packed ^ tops ^ (minus - (minus >> (S::kBits - 1)));
}

// Between a warp's bytes in shared memory, aligned to 4, and the tile's.
__device__ __forceinline__ void CopyRows(const uint8_t* from, uint8_t* to, int bytes) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int done = 0;
  if (Aligned(from, 4) && Aligned(to, 4)) {
    done = bytes / 4 * 4;
    for (int i = 4 * lane; i < done; i += 4 * 32) {
      *reinterpret_cast<uint32_t*>(to + i) = *reinterpret_cast<const uint32_t*>(from + i);
    }
  }
  for (int i = done + lane; i < bytes; i += 32) to[i] = from[i];
}

// The codes of a run, packed, at an address that is even unless kBits is odd.
template <int kBits>
__device__ __forceinline__ void StoreCodes(uint32_t packed, uint8_t* to) {
  if constexpr (kBits % 2 != 0) {
    for (int i = 0; i < kBits; ++i) to[i] = static_cast<uint8_t>(packed >> (8 * i));
  } else {
    for (int i = 0; i < kBits; i += 2) {
      *reinterpret_cast<uint16_t*>(to + i) = static_cast<uint16_t>(packed >> (8 * i));
    }
  }
}
template <int kBits>
__device__ __forceinline__ uint32_t LoadCodes(const uint8_t* from) {
  uint32_t packed = 0;
  if constexpr (kBits % 2 != 0) {
    for (int i = 0; i < kBits; ++i) packed |= static_cast<uint32_t>(from[i]) << (8 * i);
  } else {
    for (int i = 0; i < kBits; i += 2) {
      packed |= static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(from + i)) << (8 * i);
    }
  }
  return packed;
}

template <typename S>
__global__ void __launch_bounds__(kThreads) EncodeKernel(const FixedStream* streams, int* failed) {
  __shared__ uint4 staging[kWarps][S::kWarpBytes / 16];
  __shared__ TurboTable table;
  const FixedStream& s = streams[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  if (s.coder != S::kBits || s.head_dim != S::kDim || !s.wide || head >= s.heads) return;
  if (head == 0) WriteSpec(s);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(TurboTable) / 4); i += kThreads) {
    reinterpret_cast<uint32_t*>(&table)[i] = reinterpret_cast<const uint32_t*>(s.table)[i];
  }
  __syncthreads();
  const DevicePlane plane = *s.plane;
  const uint8_t* const base = plane.data + head * plane.head_stride;
  uint8_t* const rows = RowsOfHead(s, head);
  const int tokens = s.tokens, dtype = s.dtype;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int row_of_lane = lane / 2, part = lane % 2;
  const uint32_t odd = static_cast<uint32_t>(part) << 31;
  const float sign = part == 0 ? 1.0f : -1.0f;
  uint8_t* const staged = reinterpret_cast<uint8_t*>(staging[warp]);
  uint8_t* const my_row = staged + row_of_lane * S::kRowBytes;
  const float root = __fsqrt_rn(static_cast<float>(S::kDim));
  bool bad = false;
  for (int first = kWarpRows * warp; first < tokens; first += kWarpRows * kWarps) {
    const int token = min(first + row_of_lane, tokens - 1);
    const uint8_t* const row = base + TokenOffset(s, plane, token);
    float v[8 * S::kRuns];
    uint4 raw[S::kRuns];
#pragma unroll
    for (int k = 0; k < S::kRuns; ++k) raw[k] = LoadWide(row + 32 * k + 16 * part);
#pragma unroll
    for (int k = 0; k < S::kRuns; ++k) UnpackEight(dtype, raw[k], v + 8 * k);
    const float norm = __fsqrt_rn(SumOfSquares<S>(v));
    bad |= !isfinite(norm);
    const float to_unit = norm > 0 ? __fdiv_rn(root, norm) : 0.0f;
    ApplySigns<S>(v, odd);
    Transform<S>(v, sign);
    uint32_t energy = 0;  // below 128 * 2^23
#pragma unroll
    for (int k = 0; k < S::kRuns; ++k) {
      const float factor =
          __fmul_rn(to_unit, __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(16 * S::BlockOf(k)))));
      uint32_t words[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) words[e] = WordOf<S>(__fmul_rn(v[8 * k + e], factor), table);
      StoreCodes<S::kBits>(CodesOf<S>(words, &energy), my_row + 2 + (2 * k + part) * S::kBits);
    }
    energy += __shfl_xor_sync(0xffffffffu, energy, 1);
    const uint32_t half = ScaleOf(norm, energy);
    bad |= !IsFiniteHalfBits(half);
    if (part == 0) *reinterpret_cast<uint16_t*>(my_row) = static_cast<uint16_t>(half);
    __syncwarp();
    CopyRows(staged, rows + static_cast<size_t>(first) * S::kRowBytes,
             min(kWarpRows, tokens - first) * S::kRowBytes);
    __syncwarp();
  }
  if (bad) failed[blockIdx.x] = 1;
}

template <typename S>
__global__ void __launch_bounds__(kThreads) DecodeKernel(const FixedStream* streams, int* failed) {
  __shared__ uint4 staging[kWarps][S::kWarpBytes / 16];
  __shared__ float levels[2 * S::kHalf];
  const FixedStream& s = streams[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  if (s.coder != S::kBits || s.head_dim != S::kDim || !s.wide || head >= s.heads) return;
  if (threadIdx.x < 2 * S::kHalf) levels[threadIdx.x] = s.table->levels[threadIdx.x];
  __syncthreads();
  const DevicePlane plane = *s.plane;
  uint8_t* const base = plane.data + head * plane.head_stride;
  const uint8_t* const rows =
      RowsOfHead(s, head) + static_cast<size_t>(s.token_begin) * S::kRowBytes;
  const int tokens = s.token_end - s.token_begin, dtype = s.dtype;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int part = lane % 2;
  const uint32_t odd = static_cast<uint32_t>(part) << 31;
  const float sign = part == 0 ? 1.0f : -1.0f;
  uint8_t* const staged = reinterpret_cast<uint8_t*>(staging[warp]);
  bool bad = false;
  for (int first = kWarpRows * warp; first < tokens; first += kWarpRows * kWarps) {
    const int there = min(kWarpRows, tokens - first), row_of_lane = min(lane / 2, there - 1);
    CopyRows(rows + static_cast<size_t>(first) * S::kRowBytes, staged, there * S::kRowBytes);
    __syncwarp();
    const uint8_t* const my_row = staged + row_of_lane * S::kRowBytes;
    const uint32_t half = *reinterpret_cast<const uint16_t*>(my_row);
    bad |= half >= kInfiniteHalfBits;
    const float norm = FloatOfHalf(half);
    float v[8 * S::kRuns];
#pragma unroll
    for (int k = 0; k < S::kRuns; ++k) {
      const float factor =
          __fmul_rn(norm, __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(16 * S::BlockOf(k)))));
      const uint32_t packed = LoadCodes<S::kBits>(my_row + 2 + (2 * k + part) * S::kBits);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const uint32_t code = packed >> (S::kBits * e) & (2 * S::kHalf - 1);
        v[8 * k + e] = __fmul_rn(levels[code], factor);
      }
    }
    Transform<S>(v, sign);
    ApplySigns<S>(v, odd);
    __syncwarp();
    if (lane / 2 >= there) continue;
    uint8_t* const to = base + TokenOffset(s, plane, first + row_of_lane);
#pragma unroll
    for (int k = 0; k < S::kRuns; ++k) StoreWide(dtype, v + 8 * k, to + 32 * k + 16 * part);
  }
  if (bad) failed[blockIdx.x] = 1;
}

// Calls f with the shape; false: there is none here.
template <int kBits, typename F>
bool ForDim(int head_dim, F f) {
  switch (head_dim) {
    case 64:
      f(Shape<64, kBits>());
      return true;
    case 80:
      f(Shape<80, kBits>());
      return true;
    case 96:
      f(Shape<96, kBits>());
      return true;
    case 128:
      f(Shape<128, kBits>());
      return true;
    default:
      return false;
  }
}
template <typename F>
bool ForShape(int bits, int head_dim, F f) {
  if (bits == 2) return ForDim<2>(head_dim, f);
  if (bits == 3) return ForDim<3>(head_dim, f);
  return bits == 4 && ForDim<4>(head_dim, f);
}

}  // namespace

cudaError_t LaunchTurboEncode(const FixedLaunch& l, int bits, int head_dim, bool wide) {
  const bool known = wide && ForShape(bits, head_dim, [&](auto shape) {
                       using S = decltype(shape);
                       KVCASK_LAUNCH(EncodeKernel<S>, dim3(l.count, l.heads), kThreads, 0, l.stream,
                                     l.streams, l.failed);
                     });
  return known ? cudaGetLastError() : LaunchAnyTurboEncode(l, bits, head_dim, wide);
}

cudaError_t LaunchTurboDecode(const FixedLaunch& l, int bits, int head_dim, bool wide) {
  const bool known = wide && ForShape(bits, head_dim, [&](auto shape) {
                       using S = decltype(shape);
                       KVCASK_LAUNCH(DecodeKernel<S>, dim3(l.count, l.heads), kThreads, 0, l.stream,
                                     l.streams, l.failed);
                     });
  return known ? cudaGetLastError() : LaunchAnyTurboDecode(l, bits, head_dim, wide);
}

}  // namespace kvcask
