#include "codec/quant/fp8.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

namespace kvcask {
namespace {

std::array<float, 256> MakeTable() {
  std::array<float, 256> table;
  for (int e = 0; e < 256; ++e) {
    const int exponent = e >> 3 & 15, mantissa = e & 7;
    float x = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                            : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    if ((e & 0x7f) == 0x7f) x = std::numeric_limits<float>::quiet_NaN();
    table[e] = e & 0x80 ? -x : x;
  }
  return table;
}

const std::array<float, 256>& Table() {
  static const std::array<float, 256> kTable = MakeTable();
  return kTable;
}

}  // namespace

uint8_t FloatToE4m3(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint8_t sign = static_cast<uint8_t>(u >> 24 & 0x80);
  u &= 0x7fffffff;
  constexpr uint32_t kLargest = 0x43e00000, kSmallestNormal = 0x3c800000;  // 448, 2^-6
  if (u >= kLargest) return sign | 0x7e;
  if (u < kSmallestNormal) {
    // Adding 2^14 leaves multiples of 2^-9 in the mantissa, rounded to nearest, ties to even.
    float magnitude;
    std::memcpy(&magnitude, &u, 4);
    magnitude += 0x1p14f;
    std::memcpy(&u, &magnitude, 4);
    return static_cast<uint8_t>(sign | (u & 15));
  }
  u += 0x7ffff + (u >> 20 & 1);
  return static_cast<uint8_t>(sign | ((u >> 20) - (120 << 3)));
}

float E4m3ToFloat(uint8_t e) { return Table()[e]; }

void QuantiseE4m3(const float* x, size_t n, float inverse_scale, uint8_t* q) {
  for (size_t i = 0; i < n; ++i) q[i] = FloatToE4m3(x[i] * inverse_scale);
}

void DequantiseE4m3(const uint8_t* q, size_t n, float scale, float* x) {
  const std::array<float, 256>& table = Table();
  for (size_t i = 0; i < n; ++i) x[i] = table[q[i]] * scale;
}

}  // namespace kvcask
