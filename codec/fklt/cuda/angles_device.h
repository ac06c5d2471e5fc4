// A rotation in 32 bits. Kernels that move elements read one for each pair of a token's key: where
// a layer has few heads, they are a large part of what is read.
#pragma once

#include <cstdint>

#include "device/launch.h"

namespace kvcask::fklt {

struct Angle {
  float cosine, sine;
};

// The cosine in the low half, the sine in the high one, each as 32,768 + 32,767.0 times it: within
// 2^-16, where fp16 has 2^-12. (2^15 / (1 + 2^-15), not 32,767, so that UnpackAngle is exact.)
constexpr float kAngleUnit = (1.0f + 1.0f / 32768) / 32768;
constexpr float kAngleZero = (8388608.0f + 32768) * kAngleUnit;
static_assert(kAngleZero == 257.0f + 1.0f / 128 + 1.0f / 32768);

__device__ __forceinline__ uint32_t PackAngle(double cosine, double sine) {
  constexpr double kUnits = 1.0 / static_cast<double>(kAngleUnit);
  const uint32_t c = static_cast<uint32_t>(cosine * kUnits + 32768.5);
  const uint32_t s = static_cast<uint32_t>(sine * kUnits + 32768.5);
  return c | s << 16;
}

// What the two are multiplied with when they are unpacked.
struct AngleScale {
  float unit, zero;
};
__device__ __forceinline__ AngleScale ScaleOf(float scale) {
  return {scale * kAngleUnit, -scale * kAngleZero};
}

// The halves become the last bits of floats between 2^23 and 2^24.
__device__ __forceinline__ Angle UnpackAngle(uint32_t packed, AngleScale scale) {
  return {fmaf(__uint_as_float(0x4b000000u | (packed & 0xffff)), scale.unit, scale.zero),
          fmaf(__uint_as_float(0x4b000000u | packed >> 16), scale.unit, scale.zero)};
}

}  // namespace kvcask::fklt
