// What every codec checks of a job before it touches memory, and the planes of a group.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/status.h>

#include <vector>

#include "codec/api/codec.h"

namespace kvcask {

// One plane of a geometry, and where it is among them.
struct PlaneInfo {
  int layer = 0;
  StreamKind kind = StreamKind::kK;
  int heads = 0;
  int head_dim = 0;
};

// Planes of layers [layer_begin, layer_end), in Geometry's order.
std::vector<PlaneInfo> ListPlanes(const Geometry& g, int layer_begin, int layer_end);

// One group for each layer that has planes (shared layers have none and are in no group).
std::vector<Group> OneGroupPerLayer(const Geometry& g);

absl::string_view StreamName(StreamKind kind);  // "K", "V", "latent"

// INVALID_ARGUMENT says which number of the job does not fit: group, tokens, count of
// planes, of positions, of token ids, of destination bytes (`max_tile_bytes`).
absl::Status CheckEncodeJob(const Geometry& g, absl::Span<const Group> groups, const EncodeJob& job,
                            size_t max_tile_bytes);
// The same for decoding: ranges inside tile and group, planes, positions, and that no
// position leaves 0..2^32 - 1 by its offset.
absl::Status CheckDecodeJob(const Geometry& g, absl::Span<const Group> groups,
                            const DecodeJob& job);

}  // namespace kvcask
