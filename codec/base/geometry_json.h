// Geometry as JSON (specified in codec/profile/FORMAT.md) and as the metadata of a
// safetensors file that holds a KV cache.
//
// Both come from outside: sizes and nesting are bounded, unknown keys refused, what was found
// and what was expected is in every message. What is returned has passed Validate.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <map>
#include <string>

#include "codec/base/dtype.h"
#include "codec/base/geometry.h"

namespace kvcask {

inline constexpr size_t kMaxGeometryJsonBytes = size_t{4} << 20;

// OK for "", "none", "default", "yarn" and "llama3", which inverse frequencies and an
// attention scale express. UNIMPLEMENTED, by name, for scalings that they can't: LongRoPE,
// dynamic NTK, mRoPE. INVALID_ARGUMENT for anything else.
absl::Status CheckRopeScaling(absl::string_view scaling);

// The canonical form: one line, keys in a fixed order, equal neighbours written once with
// `repeat`, every number as it is. `g` is valid.
std::string GeometryToJson(const Geometry& g);
absl::StatusOr<Geometry> GeometryFromJson(absl::string_view text);

// What the metadata of a cache file tells: its tensors are k.LL and v.LL, [kv_heads, tokens,
// head_dim], and optionally token_ids (I32) [tokens].
struct CacheMetadata {
  std::string model;
  Geometry geometry;
  Dtype dtype = Dtype::kBf16;
  int64_t tokens = 0;
  int64_t first_position = 0;  // of the first token; positions are consecutive
};

// Reads either the plain keys of a model whose layers are all the same (layers, kv_heads,
// head_dim, rope, rope_theta, rope_dim, ...) or `geometry`, which wins where both are there.
absl::StatusOr<CacheMetadata> ParseCacheMetadata(
    const std::map<std::string, std::string>& metadata);

// Writes `geometry`, and the plain keys as far as they can express it.
std::map<std::string, std::string> MakeCacheMetadata(const CacheMetadata& cache);

}  // namespace kvcask
