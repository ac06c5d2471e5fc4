// `int8`: eight bits an element, one fp16 scale for each token and head, one group a layer.
// Symmetric and without clipping: the scale is the largest magnitude / 127, rounded up to a
// half. FORMAT.md beside this file.
//
// Error of an element, before the output's own rounding: |x^ - x| <= (1/2 + 2^-15) scale.
//
// With a profile (codec "int8") whose tensors mean.LL.k or mean.LL.v, fp32 [heads, head_dim]
// of the whole model, give a channel's mean, the mean is taken off before coding: channels
// with a bias, as Qwen2.5's keys have, then cost no precision. Keys of a layer with a mean
// are un-rotated first (the mean is one of un-rotated keys); their error turns with them, so
// that for a rotated pair the bound holds with sqrt(2) times attention_scale. Without a mean
// keys are coded as received, and another position_offset turns them by the difference.
//
// NaN and Inf: INVALID_ARGUMENT with layer, stream, head, token and element. Magnitudes for
// which no half is a scale (over 127 * 65504) make the tile raw.
#pragma once

#include <absl/status/statusor.h>

#include <memory>

#include "codec/api/codec.h"

namespace kvcask {

// FAILED_PRECONDITION: the profile is for another codec or another geometry.
// INVALID_ARGUMENT: a mean of the wrong dtype or shape, or not finite.
absl::StatusOr<std::unique_ptr<Codec>> MakeInt8Codec(const CodecSpec& spec);

}  // namespace kvcask
