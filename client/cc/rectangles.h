// Rectangles: what a message of KV data covers, as planes of a geometry, and how a run is cut
// into them.
//
// The elements of a rectangle are in the order [layer][stream][head][token][head_dim], no
// padding; so they are a sequence of rows, one for each (plane, head), each row a run of
// tokens.
//
// Thread-safe: values and pure functions.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "codec/base/geometry.h"
#include "codec/base/views.h"
#include "kvcask/v1/cache.pb.h"

namespace kvcask {

// The part of a rectangle that lies in one plane.
struct RectanglePlane {
  int layer = 0;
  int plane = 0;       // of the geometry, from 0
  int head_begin = 0;  // of the model
  int head_end = 0;    // exclusive
  int head_dim = 0;
};

// The planes of `rectangle` in the order of its elements. INVALID_ARGUMENT: it leaves the
// geometry, names a stream that no layer of it has, or holds nothing.
absl::StatusOr<std::vector<RectanglePlane>> PlanesOf(const Geometry& geometry,
                                                     const v1::Rectangle& rectangle);

// Bytes of its elements.
int64_t RectangleBytes(absl::Span<const RectanglePlane> planes, int64_t tokens, Dtype dtype);

// Number of the first plane of `layer`; of one past the last layer: how many there are.
int FirstPlane(const Geometry& geometry, int layer);

enum class PutOrder {
  kTokenMajor,  // page by page, all layers of each: tiles of all layers fill at once
  kLayerMajor,  // layer by layer, as engines save while they compute
};

// Cuts tokens [token_begin, token_end) of `shard` (count 0: the whole model) into rectangles
// of about `target_bytes`, never more than one token of one layer over it. Token-major
// rectangles end at multiples of 128 tokens. Layers without streams are in none.
std::vector<v1::Rectangle> CutRun(const Geometry& geometry, const v1::Shard& shard, Dtype dtype,
                                  uint64_t token_begin, uint64_t token_end, PutOrder order,
                                  uint64_t target_bytes);

}  // namespace kvcask
