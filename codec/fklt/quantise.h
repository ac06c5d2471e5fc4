// The quantiser and its inverse, row by row, and the statistics of tokens that choose its
// classes. The same arithmetic on every path, operation by operation (no fused multiply-add,
// no sum across tokens), so that paths agree to the bit given the same y.
//
// Thread-safe: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/entropy/rans.h"
#include "codec/fklt/tile_layout.h"

namespace kvcask::fklt {

// Of each place of a tile (FORMAT.md 3.1). Arrays have room for kMaxTokens.
struct PlaceScales {
  alignas(32) float step[kMaxTokens];
  alignas(32) float inverse_step[kMaxTokens];
  alignas(32) int16_t terms[kMaxTokens];  // TokenTerm
};

// Quantises one coordinate of the first `count` places: y[p] -> classes[p], symbols[p], and adds
// (y - y^)^2 to error[p]. False when an integer leaves 16 bits (or y is not a number).
bool QuantiseRow(int row_term, const float* y, int count, float rounding, const float* centroids,
                 const PlaceScales& scales, uint8_t* classes, int16_t* symbols, float* error,
                 RansPath path);

// y^ of one coordinate of the first `count` places.
// Both may touch up to 15 elements of classes, symbols and y behind `count`.
void DequantiseRow(const uint8_t* classes, const int16_t* symbols, int count,
                   const float* centroids, const float* step, float* y, RansPath path);

// Adds one leading coordinate to the predictor: eta[t] += (c + d u) u with u = y / sigma
// clamped to +-8 (FORMAT.md 5.2).
void AddToPredictor(const float* y, int tokens, float inverse_sigma, float c, float d, float* eta,
                    RansPath path);

// amplitude[t] += (y / sigma)^2.
void AddToAmplitude(const float* y, int tokens, float inverse_sigma, float* amplitude,
                    RansPath path);

}  // namespace kvcask::fklt
