// The vector paths of quantise.h: the same arithmetic, operation by operation, as wide as the
// machine is (AVX2, AVX-512; NEON and others where Highway knows them).
//
// Thread-safe: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/fklt/quantise.h"

namespace kvcask::fklt {

// Which instructions: the widest of this machine, or one for tests. Not available: kWidest.
enum class VectorTarget { kWidest, kAvx2, kAvx512 };

// As QuantiseRow and DequantiseRow of quantise.h. They touch up to 15 elements behind `count`:
// of classes and symbols (written, then read by nobody), of y; arrays have room for them.
bool QuantiseRowVector(VectorTarget target, int row_term, const float* y, int count, float rounding,
                       const float* centroids, const PlaceScales& scales, uint8_t* classes,
                       int16_t* symbols, float* error);
void DequantiseRowVector(VectorTarget target, const uint8_t* classes, const int16_t* symbols,
                         int count, const float* centroids, const float* step, float* y);

}  // namespace kvcask::fklt
