// The codec seam: how the service, the benchmarks and other people's programs use a
// codec. One Codec is one recipe bound to the geometry of one shard; it turns tiles of
// KV into bytes and back.
//
// A tile is (group, token run): the unit of coding, which decodes alone. Groups partition
// the shard's planes, each covering a range of whole layers here (several groups may cover
// the same layers: one head each, say). A run is at most kPageTokens tokens of one page.
// Chunk headers, directories and checksums are codec/format's, not the codec's.
//
// Thread-safe: a Codec is immutable; a Workspace belongs to one call at a time.
#pragma once

#include <absl/status/status.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "codec/api/quality.h"
#include "codec/base/dtype.h"
#include "codec/base/geometry.h"
#include "codec/base/views.h"

namespace kvcask {

inline constexpr int kPageTokens = 128;  // frozen in the file format

// Frozen in the file format; never reused.
enum class CodecId : uint16_t {
  kRaw = 1,
  kInt8 = 2,
  kFklt = 3,
  // Of constant size: codec/fixed.
  kFp8 = 4,
  kInt4 = 5,
  kTurbo2 = 6,
  kTurbo3 = 7,
  kTurbo4 = 8,
  kK8V4 = 9,
  k4BitNc = 10,
  kK3V4Nc = 11,
  k3BitNc = 12,
  kKivi2 = 13,
  kKivi4 = 14,
  kD4 = 15,
  kE8 = 16,
  kRecipe = 17,
  // codec/kakeya.
  kKakeya10 = 18,
  kKakeya12 = 19,
  kKakeya13 = 20,
  kKakeya13Ppl = 21,
};
inline constexpr CodecId kLastCodecId = CodecId::kKakeya13Ppl;

// A group's layers, of the shard's geometry. A group is encoded when all of them are
// there.
struct Group {
  int layer_begin = 0;
  int layer_end = 0;  // exclusive
};

// What a tile is worth: predicted KL(clean || decoded), nats a token, that this tile adds
// to the model's output. Negative: the codec makes no prediction.
struct Certificate {
  double predicted_kld = -1;
};

struct EncodeJob {
  // in
  int group = 0;
  int tokens = 0;                        // 1..kPageTokens
  ConstKvView source;                    // planes of the group's layers, all heads of the shard
  absl::Span<const uint32_t> positions;  // of each token, for RoPE and sinks
  absl::Span<const uint32_t> token_ids;  // of each token, or empty
  Quality quality;
  absl::Span<uint8_t> destination;  // at least MaxTileBytes(group, tokens)
  void* device_stream = nullptr;    // CUDA backends: cudaStream_t
  // out
  size_t bytes = 0;
  Certificate certificate;
  absl::Status status;  // a bad job fails alone
};

struct DecodeJob {
  // in
  int group = 0;
  int tokens = 0;                     // of the tile
  Dtype source_dtype = Dtype::kBf16;  // as it was put (chunk header)
  absl::Span<const uint8_t> tile;
  const uint8_t* device_tile = nullptr;  // CUDA backends: the same bytes on the device, if there
  absl::Span<const uint32_t> positions;  // of the tile's tokens, as they were put
  absl::Span<const uint32_t> token_ids;  // of the tile's tokens, or empty
  int token_begin = 0, token_end = 0;    // wanted, within the tile
  int layer_begin = 0, layer_end = 0;    // wanted, of the shard, within the group
  int64_t position_offset = 0;           // added to positions before keys are rotated
  KvView destination;  // token 0 is token_begin; planes from layer_begin's first; any dtype
  void* device_stream = nullptr;
  // out
  absl::Status status;
};

// Scratch memory, grown to the largest WorkspaceBytes asked for and kept.
class Workspace {
 public:
  absl::Span<uint8_t> Get(size_t bytes) {
    if (memory_.size() < bytes) memory_.resize(bytes);
    return absl::MakeSpan(memory_.data(), bytes);
  }

 private:
  std::vector<uint8_t> memory_;
};

class Codec {
 public:
  virtual ~Codec() = default;

  virtual CodecId id() const = 0;
  // The shard's geometry that this codec was made for.
  virtual const Geometry& geometry() const = 0;
  virtual absl::Span<const Group> groups() const = 0;
  // Upper bound on a tile's bytes, never exceeded: at worst the raw form (+ a few bytes).
  virtual size_t MaxTileBytes(int group, int tokens, Dtype dtype) const = 0;

  // True when a tile is its source's elements as they are, dense, in the order [layer]
  // [stream][head][token][head_dim], and certain: whoever holds them so may keep them
  // without calling Encode.
  virtual bool tile_is_source() const { return false; }

  // Encodes every job; sets bytes, certificate and status of each. The call's own status
  // is for what concerns all (a lost device). NaN or Inf: as the codec documents.
  virtual absl::Status Encode(absl::Span<EncodeJob> jobs, Workspace& workspace) const = 0;
  // Decodes every job into its destination. A tile that is not one answers DATA_LOSS in
  // job.status; the destination is then unspecified, and nothing outside it was written.
  virtual absl::Status Decode(absl::Span<DecodeJob> jobs, Workspace& workspace) const = 0;

  // What `decoded` (planes of job.source's shape, any dtype) costs against job.source, in the
  // measure and unit of certificates: their check, slow, from what came back instead of what
  // the encoder expects. `job` is one that Encode took; its destination is not looked at.
  // Negative: the codec makes no prediction.
  virtual double MeasureKld(const EncodeJob& job, const ConstKvView& decoded) const {
    (void)job, (void)decoded;
    return -1;
  }
};

class Profile;  // codec/profile/profile.h

// What a codec is made from.
struct CodecSpec {
  Geometry model;                          // the whole model's
  ShardRange shard;                        // this shard's part of it
  std::shared_ptr<const Profile> profile;  // null where none was named
  std::string setting = {};                // canonical; of codecs that have one
  // Tiles that a GPU decodes one at a time in about half the time, in a few percent more bytes, of
  // codecs that know such (fklt). Whoever reads needs not know.
  bool short_segments = false;
};

// One row of the table in codec/builtin_codecs.cc.
struct CodecEntry {
  CodecId id;
  const char* name;         // "raw"
  const char* description;  // one line
  bool needs_profile;
  bool has_quality;  // accepts the presets
  bool lossless;
  // FAILED_PRECONDITION when the profile is for another geometry (which number differs).
  absl::StatusOr<std::unique_ptr<Codec>> (*make)(const CodecSpec&);
  bool takes_means = false;  // of any profile that has means (codec/profile/means.h)
  // Codecs with a setting of their own take it where others take a quality: Q of a lattice, a
  // recipe. The canonical form of one given by a client, or why it is none; null: no setting.
  absl::StatusOr<std::string> (*canonical_setting)(absl::string_view) = nullptr;
  const char* settings = "";  // those worth showing, separated by spaces
};

}  // namespace kvcask
