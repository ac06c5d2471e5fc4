// One plane of a layer, [heads][tokens][dim], through a Kakeya codec: keys un-rotated and
// whitened, rows put in order and coded as one section. What a tile of the service and a whole
// cache in a file have in common.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/status.h>
#include <absl/types/span.h>

#include <cstdint>
#include <vector>

#include "codec/kakeya/calibration.h"
#include "codec/kakeya/section.h"
#include "codec/transform/rope.h"

namespace kvcask::kakeya {

struct PlaneShape {
  StreamKind kind = StreamKind::kK;
  int layer = 0;       // of the model
  int first_head = 0;  // of the model
  int heads = 0, dim = 0;
  const Rope* rope = nullptr;
};

// What was done to rows before they were coded; written beside them.
struct PlaneForm {
  bool pooled = false;
  bool unrotated = false;
  bool whitened = false;
};

// Of that plane, with the bits of its layer.
StreamParams ParamsOf(const Calibration& c, const PlaneShape& shape);
const std::vector<std::vector<float>>& TablesOf(const Calibration& c, StreamKind kind);
PlaneForm FormOf(const Calibration& c, const PlaneShape& shape);
// False: this plane is kept as it was received (a boundary layer, a stream that is not coded).
bool IsCoded(const Calibration& c, const PlaneShape& shape);

// `rows` is [heads][positions.size()][dim], K after RoPE, finite; it is overwritten by the rows
// as they are coded. Appends a section. `weights`: of each token in the PCA, or none. OUT_OF_RANGE
// as EncodeSection. `trace` is in the order and the terms of the coded rows.
absl::Status EncodePlane(const Calibration& c, const PlaneShape& shape,
                         absl::Span<const uint32_t> positions, absl::Span<const double> weights,
                         absl::Span<float> rows, StageTrace* trace, std::vector<uint8_t>* out);

// Tokens [begin, end) of a section of `positions.size()` tokens to out[heads][end - begin][dim],
// K after RoPE at positions + offset, not yet rounded. DATA_LOSS: not such a section.
absl::Status DecodePlane(const Calibration& c, const PlaneShape& shape, const PlaneForm& form,
                         absl::Span<const uint8_t> section, absl::Span<const uint32_t> positions,
                         int begin, int end, int64_t offset, float* out);

// What DecodePlane does after the section: rows in the section's order and terms, all tokens,
// to [heads][tokens][dim]. For the stages of an audit.
std::vector<float> RestoreRows(const Calibration& c, const PlaneShape& shape, const PlaneForm& form,
                               absl::Span<const uint32_t> positions,
                               absl::Span<const float> coded_rows, int64_t offset);

}  // namespace kvcask::kakeya
