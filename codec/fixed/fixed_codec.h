// A codec of constant size: each stream of each layer has a CoderSpec, and a tile's bytes follow
// from its shape, its positions (for sinks) and nothing else. fp8, int4, kivi, turboquant, the
// lattices and every recipe are this codec under a name of their own.
//
// One group for each layer. Tiles say of themselves how they were coded, so that any such codec
// of the same geometry reads them; the means are the profile's. FORMAT.md beside this file.
//
// NaN and Inf: INVALID_ARGUMENT with layer, stream, head, token and element, but in streams
// that are kept raw. What a form cannot carry makes the tile raw.
#pragma once

#include <absl/functional/function_ref.h>
#include <absl/status/statusor.h>

#include <memory>
#include <vector>

#include "codec/api/codec.h"
#include "codec/api/jobs.h"
#include "codec/fixed/plane_coder.h"

namespace kvcask {

// The recipe of a plane. `layer` is counted in the whole model.
using ChooseCoder = absl::FunctionRef<CoderSpec(int layer, const PlaneInfo& plane)>;

// Where a mean is taken off, tokens at positions below this are kept raw at least. Means are those
// of all other tokens: the first ones, which attention sinks into, are nothing like them, and
// with the mean off they would be the worst coded of all (SmolLM2: twice the KLD).
inline constexpr int kSinksWithMean = 4;

// Takes profiles that ReadMeans reads; where it gives a plane a mean and the plane's spec says
// minus_mean, the mean is taken off.
absl::StatusOr<std::unique_ptr<Codec>> MakeFixedCodec(CodecId id, const char* name,
                                                      const CodecSpec& spec, ChooseCoder choose);

// Bytes of one plane of a tile in coded form: of the rows that are kept as received, and of those
// that are coded. `sink_rows`: tokens of the tile that are sinks of this plane.
size_t ExactRowBytes(const PlaneInfo& plane, const CoderSpec& spec, int tokens, int sink_rows,
                     Dtype dtype);
size_t CodedRowBytes(const PlaneInfo& plane, const CoderSpec& spec, int tokens, int sink_rows);
// Of a whole tile, without sinks: in raw form where that is not longer.
size_t FixedTileBytes(absl::Span<const PlaneInfo> planes, absl::Span<const CoderSpec> specs,
                      int tokens, Dtype dtype);

}  // namespace kvcask
