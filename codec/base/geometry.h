// The shape of a model's KV cache: a list of layers. Everything that codecs need to
// know of a model without a profile.
//
// A plane is one (layer, stream) pair, [heads, tokens, head_dim]; planes are numbered
// layer by layer, K before V. Shared layers have none.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace kvcask {

enum class StreamKind : uint8_t { kK = 1, kV = 2, kLatent = 3 };
enum class LayerKind : uint8_t { kFull = 1, kSliding = 2, kChunked = 3, kShared = 4, kLatent = 5 };
enum class RopeStyle : uint8_t { kNone = 0, kRotateHalf = 1, kInterleaved = 2 };

struct StreamGeometry {
  StreamKind kind = StreamKind::kK;
  int heads = 0;     // 1..1024
  int head_dim = 0;  // 1..4096
};

// Rotation of the K stream. Pair i turns by position * inv_freq[i] radians, scaled by
// attention_scale (YaRN). Su et al. 2021 (RoFormer).
struct Rope {
  RopeStyle style = RopeStyle::kNone;
  int dims = 0;                 // leading elements that turn; even, <= head_dim
  std::vector<float> inv_freq;  // dims / 2
  float attention_scale = 1;
};

struct LayerGeometry {
  LayerKind kind = LayerKind::kFull;
  int window = 0;       // tokens; sliding and chunked
  int shared_with = 0;  // shared
  std::vector<StreamGeometry> streams;
  Rope rope;
};

using Fingerprint = std::array<uint8_t, 32>;  // SHA-256

struct Geometry {
  std::vector<LayerGeometry> layers;

  // INVALID_ARGUMENT names the layer, what was found and what was expected.
  absl::Status Validate() const;
  // SHA-256 of the canonical serialisation (codec/format/FORMAT.md): the same on every
  // machine and in every process.
  Fingerprint ComputeFingerprint() const;
  // Elements one token has in layers [layer_begin, layer_end).
  int64_t ElementsPerToken(int layer_begin, int layer_end) const;
  int64_t ElementsPerToken() const { return ElementsPerToken(0, static_cast<int>(layers.size())); }
};

// Limits of Validate.
inline constexpr int kMaxLayers = 1024;
inline constexpr int kMaxHeads = 1024;
inline constexpr int kMaxHeadDim = 4096;
// Elements of one token in one layer: a page of it in fp32 is at most 2 GiB.
inline constexpr int64_t kMaxLayerElements = int64_t{1} << 22;

// A shard's part of a model: layers [layer_begin, layer_end) x heads [head_begin,
// head_end) of each of their streams. From 0 to the most heads that any stream has: all
// heads of every stream, also of those that have fewer.
struct ShardRange {
  int index = 0;
  int count = 1;
  int layer_begin = 0, layer_end = 0;
  int head_begin = 0, head_end = 0;
};

// The geometry of the shard alone (its layers renumbered from 0, its heads from 0).
// INVALID_ARGUMENT when the range leaves the model or cuts a shared layer from its
// source.
absl::StatusOr<Geometry> SliceGeometry(const Geometry& model, const ShardRange& shard);

// A geometry in which every layer is the same: the common case.
Geometry UniformGeometry(int layers, int kv_heads, int head_dim, const Rope& rope);
// RoPE with the textbook frequencies theta^(-2i/dims).
Rope StandardRope(RopeStyle style, int dims, double theta);

// The first number in which two geometries differ, in words ("layer 3: stream 0 heads 4 in
// the profile, 8 in the data"); empty where their fingerprints are the same.
std::string DescribeGeometryDifference(const Geometry& a, const Geometry& b,
                                       const std::string& a_name, const std::string& b_name);

std::string ToHex(const Fingerprint& f);

}  // namespace kvcask
