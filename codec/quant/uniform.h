// Uniform scalar quantisers over rows of fp32, in the widest instructions of the CPU
// (Highway). Each gives the same bits on every CPU; uniform_test.cc has the slow definitions.
//
// Thread-safe: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcask {

// Asymmetric: x^ = zero + code * scale, code 0 .. 2^bits - 1, over groups of consecutive
// elements of a row (Jacob et al. 2018; per group as in KIVI, Liu et al. 2024). zero is the
// largest half <= the least element, scale the smallest half >= (largest - zero) / (2^bits - 1),
// so that |x^ - x| <= (1/2 + 2^-15) scale + an ulp of x.
//
// One row: `groups` = ceil(n / group) pairs (scale, zero) of halves, then PackedBytes(n, bits).
struct UniformRow {
  size_t n = 0;   // elements of a row
  int group = 0;  // elements of a group; the last one may have fewer
  int bits = 0;   // 1..8
  size_t groups() const { return (n + group - 1) / group; }
  size_t bytes() const { return 4 * groups() + (n * bits + 7) / 8; }
};
inline constexpr size_t kMaxUniformRow = 4096;

// Encodes `rows` rows, one after the other on both sides. x is finite. False when no half is a
// zero or a scale for some row; `out` is then unspecified.
bool EncodeUniformRows(const UniformRow& shape, const float* x, size_t rows, uint8_t* out);
// False when a scale is negative or a scale or zero not finite.
bool DecodeUniformRows(const UniformRow& shape, const uint8_t* in, size_t rows, float* x);

// The same by columns: groups of `tokens` elements of one channel, x is [tokens][channels].
// `channels` pairs (scale, zero), then PackedBytes(tokens * channels, bits), token by token.
size_t UniformColumnsBytes(size_t tokens, size_t channels, int bits);
bool EncodeUniformColumns(const float* x, size_t tokens, size_t channels, int bits, uint8_t* out);
// Tokens [begin, end) of them.
bool DecodeUniformColumns(const uint8_t* in, size_t tokens, size_t channels, int bits,
                          size_t begin, size_t end, float* x);

}  // namespace kvcask
