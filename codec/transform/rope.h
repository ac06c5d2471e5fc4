// Rotary position embedding (Su et al. 2021, RoFormer) of rows of keys, and its inverse.
//
// Pair i of a row at position p turns by the angle p * inv_freq[i]:
//   (x, y) -> (x cos - y sin, x sin + y cos)
// Rotate-half pairs elements (i, i + dims/2), interleaved pairs (2i, 2i + 1); elements from
// `dims` on stay as they are. Angles and their cosines are computed in double and rounded to
// float once, so that position 1,000,000 is as exact as position 5.
//
// Thread-safe: values and pure functions.
#pragma once

#include <absl/types/span.h>

#include <cstdint>
#include <vector>

#include "codec/base/geometry.h"

namespace kvcask {

enum class RopeDirection {
  kRotate,    // un-rotated keys -> keys as engines hold them: scaled by attention_scale
  kUnrotate,  // the inverse: divided by attention_scale
};

// Cosines and sines, with the scale multiplied in, of a run of rows: [rows][dims / 2].
// One row serves all rows of ApplyRope.
struct RopeTable {
  int rows = 0;
  int pairs = 0;
  std::vector<float> cosines;
  std::vector<float> sines;
};

// For tokens at positions[i] + offset. Fast where positions are consecutive.
RopeTable MakeRopeTable(const Rope& rope, absl::Span<const uint32_t> positions, int64_t offset,
                        RopeDirection direction);

// One row that moves keys that are rotated already by `offset` positions, whatever their
// own: rotations add up. The attention scale, which they carry already, is not applied.
RopeTable MakeRopeShift(const Rope& rope, int64_t offset);

// Turns `rows` rows of fp32 keys in place; row r begins at x + r * row_stride (elements) and
// has at least rope.dims elements. The table has one row or at least `rows`. Does nothing for
// RopeStyle::kNone.
void ApplyRope(const Rope& rope, const RopeTable& table, int rows, int64_t row_stride, float* x);

}  // namespace kvcask
