// The raw form of a tile: what `raw` writes, and what other codecs fall back to.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/status.h>
#include <absl/types/span.h>

#include <cstddef>
#include <cstdint>

#include "codec/api/codec.h"

namespace kvcask {

size_t RawTileBytes(const Geometry& g, const Group& group, int tokens, Dtype dtype);

// Writes RawTileBytes to `out`. `source` has the planes of the group's layers.
void EncodeRawTile(const Geometry& g, const Group& group, const ConstKvView& source, int tokens,
                   uint8_t* out);

// Decodes what the job wants, from `tile` (the job's own may have a prefix of the codec's).
// The job has passed CheckDecodeJob. DATA_LOSS when the size is not that of the raw form.
absl::Status DecodeRawTile(const Geometry& g, const Group& group, absl::Span<const uint8_t> tile,
                           const DecodeJob& job, Workspace& workspace);

}  // namespace kvcask
