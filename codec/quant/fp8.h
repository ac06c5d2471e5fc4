// float8 e4m3fn (Micikevicius et al. 2022): 4 bits of exponent with bias 7, 3 of mantissa,
// largest 448, smallest 2^-9, no infinities; 0x7f and 0xff are NaN.
//
// Thread-safe: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcask {

inline constexpr float kLargestE4m3 = 448;

// To nearest, ties to even; magnitudes over 448 become 448. x is not NaN.
uint8_t FloatToE4m3(float x);
float E4m3ToFloat(uint8_t e);  // NaN for 0x7f and 0xff
constexpr bool IsNanE4m3(uint8_t e) { return (e & 0x7f) == 0x7f; }

// q[i] = FloatToE4m3(x[i] * inverse_scale); x[i] = E4m3ToFloat(q[i]) * scale.
void QuantiseE4m3(const float* x, size_t n, float inverse_scale, uint8_t* q);
void DequantiseE4m3(const uint8_t* q, size_t n, float scale, float* x);

}  // namespace kvcask
