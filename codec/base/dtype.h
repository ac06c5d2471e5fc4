// Element types of KV data, and conversions between them.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/strings/string_view.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace kvcask {

// Frozen in the file format.
enum class Dtype : uint8_t {
  kBf16 = 1,  // bfloat16
  kF16 = 2,   // IEEE 754 binary16
  kF32 = 3,   // IEEE 754 binary32
};

constexpr size_t DtypeSize(Dtype d) { return d == Dtype::kF32 ? 4 : 2; }
constexpr bool IsValidDtype(uint8_t d) { return d >= 1 && d <= 3; }
absl::string_view DtypeName(Dtype d);  // "bf16", "f16", "f32"

inline uint32_t FloatBits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

// bfloat16 <-> float. To bf16 rounds to nearest, ties to even; NaN stays NaN.
inline float Bf16ToFloat(uint16_t b) {
  uint32_t u = static_cast<uint32_t>(b) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint16_t FloatToBf16(float f) {
  const uint32_t u = FloatBits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// binary16 <-> float, round to nearest, ties to even; overflow becomes infinity.
float F16ToFloat(uint16_t h);
uint16_t FloatToF16(float f);

// One element at `p` (unaligned) of type `d`.
float LoadElement(const uint8_t* p, Dtype d);
void StoreElement(float f, Dtype d, uint8_t* p);

// `n` elements, `stride` bytes apart on the typed side, contiguous floats on the other.
void LoadRow(const uint8_t* src, int64_t stride, Dtype d, size_t n, float* dst);
void StoreRow(const float* src, size_t n, Dtype d, uint8_t* dst, int64_t stride);

}  // namespace kvcask
