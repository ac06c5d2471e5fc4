// The integer arithmetic of a tile (FORMAT.md 3.1 to 3.3): which rows are coded, how they
// are cut into segments, which table a symbol takes. Shared by host and device code, so that no
// two backends can disagree.
#pragma once

#include <cstdint>
#include <initializer_list>

#ifdef __CUDACC__
#define KVCASK_HOST_DEVICE __host__ __device__
#else
#define KVCASK_HOST_DEVICE
#endif

namespace kvcask::fklt {

// Frozen in the file format.
inline constexpr int kMaxTokens = 128;
inline constexpr int kMaxDimensions = 16384;
inline constexpr int kMaxLaneSteps = 512;
inline constexpr int kMaxStepLimitShift = 2;
inline constexpr int kSegmentSymbols = 16384;  // of the longest segment
inline constexpr int kGroupSymbols = 32;
inline constexpr int kClasses = 40;
inline constexpr int kMaxStepClass = 6;  // and the least is -6
inline constexpr int kRawHeaderBytes = 4;
inline constexpr int kHeaderBytes = 6;  // of a coded tile
inline constexpr int kMaxGroups = 65535;
inline constexpr int kMinStepExponent = -900;
inline constexpr int kMaxStepExponent = 900;
enum TileMode : uint8_t {
  kRawMode = 0,
  kCodedMode = 1,       // sinks as received
  kCodedSinksMode = 2,  // sinks in 10 bits
};

// Number of coordinates that a token of step class k has: those with
// sigma[r] - 2 i + 8 k >= threshold. sigma never rises.
KVCASK_HOST_DEVICE inline int ActiveRows(const int16_t* sigma, int dimensions, int step_exponent,
                                         int k, int threshold) {
  const int least = threshold + 2 * step_exponent - 8 * k;
  int low = 0, high = dimensions;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (sigma[middle] >= least) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The two terms of e, which choose the table of symbol (r, t) together.
KVCASK_HOST_DEVICE inline int RowTerm(int sigma, int step_exponent) {
  return sigma - 2 * step_exponent;
}
KVCASK_HOST_DEVICE inline int TokenTerm(int amplitude, int k) {
  return 8 * (amplitude - 8) + 8 * k;
}
KVCASK_HOST_DEVICE inline int CoordinateClass(int row_term, int token_term) {
  const int c = ((5 * (row_term + token_term) + 16) >> 5) + 16;
  return c < 0 ? 0 : c > kClasses - 1 ? kClasses - 1 : c;
}

// Symbols up to the first coordinate: two classes of each token, and padding.
KVCASK_HOST_DEVICE inline int ClassSymbols(int tokens) {
  return (2 * tokens + kGroupSymbols - 1) / kGroupSymbols * kGroupSymbols;
}

// How the groups of 32 symbols are cut, for lanes of at most 512 >> step_limit_shift steps.
struct SegmentCut {
  int segments;
  int groups_each;  // the last may have fewer
  int steps;        // that a lane has at most
};
KVCASK_HOST_DEVICE inline SegmentCut CutSegments(int groups, int step_limit_shift = 0) {
  const int steps = kMaxLaneSteps >> step_limit_shift;
  const int segments = (groups + steps - 1) / steps;
  return {segments, (groups + segments - 1) / segments, steps};
}

// 2^(n/8) for n = 0..7, as floats.
KVCASK_HOST_DEVICE inline float EighthOctave(int n) {
  constexpr float kRoots[8] = {1.0f,        1.09050773f, 1.18920712f, 1.29683955f,
                               1.41421356f, 1.54221083f, 1.68179283f, 1.83400809f};
  return kRoots[n];
}
// step_t, or 1 / step_t with both arguments negated: 2^((i - 4k) / 8).
KVCASK_HOST_DEVICE inline float StepOf(int step_exponent, int k) {
  const int n = step_exponent - 4 * k;
  float power = 1;
  const int octaves = n >> 3;
  // ldexp by bits: |octaves| <= 131; two factors keep each a normal number.
  const int half = octaves / 2;
  for (int e : {half, octaves - half}) {
    union {
      uint32_t u;
      float f;
    } scale;
    scale.u = static_cast<uint32_t>(e + 127) << 23;
    power *= scale.f;
  }
  return EighthOctave(n & 7) * power;
}

// Sinks in 10 bits (FORMAT.md 3.7): q = u - kSinkBias in steps of 2^((exponent byte - 192) / 8).
inline constexpr int kSinkBias = 512;
inline constexpr int kSinkLargest = 511;
inline constexpr int kSinkExponentBias = 192;
KVCASK_HOST_DEVICE inline float SinkStep(int exponent_byte) {
  return StepOf(exponent_byte - kSinkExponentBias, 0);
}

}  // namespace kvcask::fklt
