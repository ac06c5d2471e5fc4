// Loops over rows of fp32 that codecs share, in the widest instructions of the CPU they run
// on (Highway). Each gives the same bits on every CPU; row_kernels_test.cc has the slow
// definitions. Pointers need no alignment and must not overlap.
//
// Thread-safe: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcask {

// The bits of the largest magnitude in the row, sign cleared; 0 for none. At least
// kNonFiniteBits where an element is infinite or NaN.
uint32_t MaxMagnitudeBits(const float* x, size_t n);
inline constexpr uint32_t kNonFiniteBits = 0x7f800000;

// q[i] = x[i] * inverse_scale rounded to the nearest integer, ties to even. The products
// are within -127.5 to 127.5.
void QuantiseInt8(const float* x, size_t n, float inverse_scale, int8_t* q);
// x[i] = q[i] * scale.
void DequantiseInt8(const int8_t* q, size_t n, float scale, float* x);

// Contiguous conversions, as FloatToBf16 and its kin in dtype.h define them.
void Bf16ToFloatRow(const uint8_t* src, size_t n, float* dst);
void FloatToBf16Row(const float* src, size_t n, uint8_t* dst);
void F16ToFloatRow(const uint8_t* src, size_t n, float* dst);
void FloatToF16Row(const float* src, size_t n, uint8_t* dst);

}  // namespace kvcask
