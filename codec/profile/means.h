// The means of un-rotated keys and of values that a profile holds, for codecs that take them
// off before coding: channels with a bias, as Qwen2.5's keys have, then cost no precision.
//
// Thread-safe: a pure function.
#pragma once

#include <absl/status/statusor.h>

#include <vector>

#include "codec/api/codec.h"
#include "codec/api/jobs.h"

namespace kvcask {

// One mean of [heads][head_dim] for each plane of the shard, in ListPlanes' order, or none where
// the profile has none. From tensors `mean.LL.k` and `mean.LL.v` (codec/scalar/FORMAT.md), or
// from an fklt profile's groups (codec/fklt/FORMAT.md 2.2). No profile: all none.
//
// FAILED_PRECONDITION: the profile is for another geometry, or for a codec whose means are
// not known. INVALID_ARGUMENT: a mean of the wrong dtype or shape, or not finite.
absl::StatusOr<std::vector<std::vector<float>>> ReadMeans(const CodecSpec& spec,
                                                          const Geometry& shard_geometry);

// The codecs whose profiles ReadMeans reads.
bool ProfileHasMeans(absl::string_view codec);

}  // namespace kvcask
