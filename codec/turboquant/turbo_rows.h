// TurboQuant's rows (Zandieh et al. 2025; turbo2/3/4 of TurboQuant+, and the keys of vLLM's
// presets): a row's length and direction apart; the direction is turned by a Hadamard
// transform, so that its elements are nearly normal, and each takes a Lloyd-Max code.
//
// A row: one half, then PackedBytes(n, bits): bits * n + 16 bits.
//
// Thread-safe: immutable values and pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/quant/lloyd_max.h"

namespace kvcask {

struct TurboRow {
  size_t n = 0;                     // at most kMaxTurboRow
  int bits = 0;                     // 1..4
  const Codebook* book = nullptr;   // of so many bits
  std::vector<float> signs;         // HadamardSigns(n), or none
  // The half is |x| / |code vector|, so that |x^| = |x| but for the half's rounding; else
  // |x| / sqrt(n), and |x^| is as the codebook gives it.
  bool norm_corrected = true;

  size_t bytes() const { return 2 + (n * bits + 7) / 8; }
};
inline constexpr size_t kMaxTurboRow = 4096;

// Encodes `rows` rows, one after the other on both sides; x is finite and is overwritten.
// False when a length is beyond a half's range; `out` is then unspecified.
bool EncodeTurboRows(const TurboRow& shape, float* x, size_t rows, uint8_t* out);
// False when a row's half is negative or not finite.
bool DecodeTurboRows(const TurboRow& shape, const uint8_t* in, size_t rows, float* x);

}  // namespace kvcask
