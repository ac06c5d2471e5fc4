// One answer on its way to a reader: a pinned plan, decoded rectangle by rectangle in any
// order and from several threads.
//
// Thread-safe: immutable after OpenGet. What it reads cannot vanish while it lives.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include "codec/format/chunk.h"
#include "server/pipeline/get_plan.h"
#include "server/pipeline/pipeline.h"

namespace kvcask {

class GetRun {
 public:
  struct Absent {
    int layer = 0;  // of the model
    uint64_t token_begin = 0, token_end = 0;
  };
  // A rectangle's place in the model.
  struct Place {
    int layer_begin = 0, layer_count = 0;
    int head_begin = 0, head_count = 0;
    uint64_t token_begin = 0;
    uint32_t token_count = 0;
  };

  const ReadPlan& plan() const { return plan_; }
  const Geometry& geometry() const { return attachment_->geometry; }
  Dtype dtype() const { return dtype_; }
  uint64_t token_begin() const { return plan_.token_begin; }
  uint64_t token_end() const { return plan_.token_end; }
  int layer_begin() const { return layer_begin_; }
  int layer_end() const { return layer_end_; }
  // Of [token_begin, token_end), where all are known.
  const std::vector<uint32_t>& token_ids() const { return token_ids_; }
  const std::vector<Absent>& absent() const { return absent_; }
  uint64_t payload_bytes() const { return payload_bytes_; }

  absl::Span<const GetRectangle> rectangles() const { return rectangles_; }
  Place PlaceOf(const GetRectangle& r) const;
  // Decodes into `out`, exactly r.bytes, [layer][stream][head][token][head_dim]. DATA_LOSS:
  // a stored chunk is corrupt; `out` is then unspecified.
  absl::Status Decode(const GetRectangle& r, absl::Span<uint8_t> out) const;

  // The rectangle as it lies in a chunk, for what can be sent from there: whole raw tiles of
  // one page, as they were put. Verified as Decode verifies; the pieces live as long as
  // `owner`. None: Decode it.
  struct Stored {
    std::vector<absl::Span<const uint8_t>> pieces;  // in order, r.bytes together
    uint32_t crc32c = 0;
    std::shared_ptr<const void> owner;
  };
  absl::StatusOr<std::optional<Stored>> AsStored(const GetRectangle& r) const;

 private:
  friend class Pipeline;

  struct ChunkState {
    ChunkRef ref;
    ChunkView view;
  };
  // Codec that wrote a chunk: the session's, or raw for an unsealed tail.
  struct ShardState {
    ShardRange range;
    Geometry geometry;
    int head_begin = 0, head_end = 0;    // wanted, of the shard
    std::shared_ptr<const Codec> codec, raw_codec;
    std::vector<ChunkState> chunks;      // in order of tokens, by page from first_page
    uint64_t first_page = 0;
  };

  GetRun() = default;
  absl::Status Init(Pipeline* pipeline, const GetParams& params);
  absl::Status InitShard(Pipeline* pipeline, const GetParams& params, const ReadPlan::Shard& from,
                         bool* wanted);
  void Plan(const GetParams& params);
  absl::Status DecodeAllHeads(const ShardState& s, const GetRectangle& r,
                              absl::Span<uint8_t> out) const;
  const Codec& CodecOf(const ShardState& s, const ChunkState& c) const {
    return c.view.header.codec == CodecId::kRaw ? *s.raw_codec : *s.codec;
  }

  ReadPlan plan_;
  std::shared_ptr<const SessionAttachment> attachment_;
  Metrics* metrics_ = nullptr;
  DecodeRates* rates_ = nullptr;
  GpuChunks* gpu_ = nullptr;
  Dtype dtype_ = Dtype::kBf16;
  int layer_begin_ = 0, layer_end_ = 0;
  int64_t position_offset_ = 0;
  std::vector<ShardState> shards_;
  std::vector<uint32_t> token_ids_;
  std::vector<Absent> absent_;
  std::vector<GetRectangle> rectangles_;
  uint64_t payload_bytes_ = 0;
};

}  // namespace kvcask
