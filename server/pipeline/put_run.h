// One run of tokens of one shard on its way into the store.
//
// Rectangles are copied once, into staging memory by page and group; a tile is encoded as
// soon as all its elements are there, a page becomes a chunk when all its tiles are. Where a
// tile is its source (raw), the staging of a page is its chunk: each byte is copied and summed
// once, from the transport's memory to where it stays. Until Commit the store knows nothing of
// it; dropping the run leaves nothing.
//
// Add and Commit are called by one thread at a time; everything else may be called from
// any. Reference-counted: tiles that are being encoded hold the run.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include "codec/format/chunk.h"
#include "server/pipeline/pipeline.h"

namespace kvcask {

// A place in the model, as the client names it; ranges explicit.
struct RectangleSpec {
  int layer_begin = 0, layer_count = 0;
  bool k = true, v = true, latent = true;  // which streams
  int head_begin = 0, head_count = 0;      // count 0: all of the shard from head_begin
  uint64_t token_begin = 0;                // of the session
  uint32_t token_count = 0;
};

class PutRun : public std::enable_shared_from_this<PutRun> {
 public:
  struct Progress {
    uint64_t payload_bytes = 0;  // taken
    uint64_t stored_bytes = 0;   // encoded so far
  };

  // Set when this put_id was committed before; then nothing else may be called.
  const std::optional<CommitResult>& replayed() const { return replayed_; }
  const ShardSnapshot& before() const { return before_; }

  // Bytes that a rectangle's payload must have. INVALID_ARGUMENT when it leaves the run.
  absl::StatusOr<uint64_t> PayloadBytes(const RectangleSpec& r) const;
  // Takes a rectangle whose payload lies in `pieces`, in order. INVALID_ARGUMENT: it
  // leaves the run, overlaps what came before, or has another size than its shape.
  // DATA_LOSS: `crc32c` is not the payload's. After an error the run is dead.
  absl::Status Add(const RectangleSpec& r, absl::Span<const absl::Span<const uint8_t>> pieces,
                   std::optional<uint32_t> crc32c);
  // Ends the run; `done` is called once, from any thread, perhaps before this returns.
  // INVALID_ARGUMENT names the first element that is missing.
  // `durable`: it is answered when the disk tier has it. Failing that, the run is committed
  // in memory all the same, and a repeat with its put_id tries the disk again.
  void Commit(bool seal, bool durable, std::function<void(absl::StatusOr<CommitResult>)> done);
  // Nothing of this run will be stored. Encodes under way end by themselves.
  void Abort();

  Progress progress() const;
  const std::string& codec_name() const { return traits_.codec; }

 private:
  friend class Pipeline;

  // One plane of the shard, and where its rows (heads) lie in its unit's staging.
  struct Plane {
    int layer = 0;  // of the shard
    StreamKind kind = StreamKind::kK;
    int heads = 0, head_dim = 0;
    int unit = 0;
    int first_row = 0;           // in the unit
    int64_t first_element = 0;   // elements a token that precede it in the unit
  };
  // The smallest ranges of layers that no group straddles: what must be there before its
  // groups can be encoded. Mostly one group each; several when groups are single heads.
  struct Unit {
    int layer_begin = 0, layer_end = 0;
    int plane_begin = 0, plane_end = 0;
    std::vector<int> groups;
    int rows = 0;
    int64_t elements = 0;  // a token
  };
  // What came of a unit in a page: [plane][head][token][dim], every page token's room there.
  struct Staging {
    uint8_t* data = nullptr;                    // null: nothing came, or encoded already
    std::unique_ptr<uint8_t[]> memory;          // of data, unless that is the page's chunk
    std::vector<std::array<uint64_t, 2>> have;  // by row: a bit for each token of the page
    // By row, in chunks: the CRC32C of its first `summed` tokens.
    struct Sum {
      uint32_t crc32c = 0;
      int summed = 0;
    };
    std::vector<Sum> sums;
    int64_t cells_missing = 0;                  // rows x tokens
    int token_begin = 0;                        // older tokens of the page are absent
    bool submitted = false;                     // the encoder's from here on
    int tiles_left = 0;                         // not encoded yet; under mu_
  };
  struct Tile {
    std::unique_ptr<uint8_t[]> data;
    size_t bytes = 0;
    int token_begin = 0, tokens = 0;
    Certificate certificate;
  };
  struct Page {
    uint64_t token_begin = 0;  // of the session
    int tokens = 0;            // when the run is complete
    std::vector<Staging> units;
    std::vector<Tile> tiles;   // by group
    int tiles_left = 0;
    // Of runs whose tiles are their sources, once something came: the chunk to be, its tiles
    // at `layout`, its units' staging in it.
    ChunkBytes in_place;
    ChunkLayout layout;
    bool sealed = false;  // in_place has become `chunk`
    // Of shadow mode's sample: its staging stays until the chunk is made.
    bool sample_decided = false;
    std::optional<Reservation> shadow_room;
    std::optional<NewChunk> chunk;
  };
  // A rectangle in the shard's own numbers.
  struct Rows {
    std::vector<int> planes;
    int head_begin = 0, head_count = 0;  // count 0: all of each plane
    uint64_t payload_bytes = 0;
  };

  PutRun() = default;
  absl::Status Init();
  void MapPlanes();
  absl::Status LoadTail();
  absl::Status Take(const RectangleSpec& r, absl::Span<const absl::Span<const uint8_t>> pieces,
                    std::optional<uint32_t> crc32c);
  absl::StatusOr<Rows> Resolve(const RectangleSpec& r) const;
  // Marks the rectangle's cells as come. INVALID_ARGUMENT when one had come before.
  absl::Status Mark(const RectangleSpec& r, const Rows& rows);
  void CountDown(const RectangleSpec& r, const Rows& rows);
  std::vector<ConstPlaneView> Views(const Page& page, int layer_begin, int layer_end,
                                    int token_begin) const;
  absl::Status CheckAbsent(const Page& page, int unit, int* token_begin) const;
  absl::Status CloseUnit(int page, int unit);
  absl::Status EncodeTail(Page& page);
  void Submit(int page, int unit);
  // `data`: the memory of job.destination, which the tile keeps.
  void OnEncoded(const EncodeTask& task, const EncodeJob& job, std::unique_ptr<uint8_t[]> data);
  bool dead() const;  // an error or an abort: nothing of it will be stored
  // Room for what comes of a unit.
  void Stage(Page& page, int unit);
  ChunkHeader HeaderOf(const Page& page, CodecId codec) const;
  // All of the page came, into its chunk to be.
  bool WholeInPlace(const Page& page) const;
  void SealInPlace(Page& page);
  // Decides whether the page is of shadow mode's sample, before its first tile is encoded.
  void Sample(Page& page);
  // Its chunk, with what it was made of, to shadow mode.
  void KeepShadow(Page& page, absl::Span<const uint8_t> chunk);
  void FinishPage(Page& page, CodecId codec, absl::Span<const Group> groups);
  // `tiles`: of bytes, where the chunk's are.
  void KeepChunk(Page& page, const ChunkHeader& header, absl::Span<const PlacedTile> tiles,
                 ChunkBytes bytes);
  void MaybeCommit();
  uint64_t StagingBytes(const Unit& u, const Page& p) const {
    return static_cast<uint64_t>(u.elements) * p.tokens * DtypeSize(params_.dtype);
  }
  absl::Span<const uint32_t> Slice(const std::vector<uint32_t>& v, const Page& p, int from,
                                   int count) const {
    if (v.empty()) return {};
    return absl::MakeSpan(v).subspan(p.token_begin - first_token_ + from, count);
  }

  // Fixed after Init.
  Pipeline* pipeline_ = nullptr;
  PutParams params_;
  SessionTraits traits_;
  ShardSnapshot before_;
  std::optional<CommitResult> replayed_;
  Geometry shard_geometry_;
  Fingerprint geometry_fingerprint_{};
  std::shared_ptr<const Codec> codec_, raw_codec_;
  Quality quality_ = Quality::kDefault;
  std::string setting_;  // of codecs that have one, canonical
  std::vector<Plane> planes_;
  std::vector<int> layer_planes_;  // first plane of each layer; one more at the end
  std::vector<Unit> units_;
  std::vector<int> group_units_;
  bool in_place_ = false;  // each unit is one tile, which is its source
  uint64_t first_token_ = 0;                     // of the first page
  std::vector<uint32_t> positions_, token_ids_;  // from first_token_
  std::vector<PrefixId> prefix_ids_;             // of the whole pages; or none

  // Staging belongs to Add until its unit is submitted, then to the encoder; the rest is
  // under mu_.
  std::vector<Page> pages_;
  mutable std::mutex mu_;
  Reservation reservation_ ABSL_GUARDED_BY(mu_);
  Progress progress_ ABSL_GUARDED_BY(mu_);
  int outstanding_ ABSL_GUARDED_BY(mu_) = 0;  // tiles being encoded
  absl::Status error_ ABSL_GUARDED_BY(mu_);
  bool committing_ ABSL_GUARDED_BY(mu_) = false;
  bool seal_ ABSL_GUARDED_BY(mu_) = false;
  bool durable_ = false;  // set before committing_
  std::function<void(absl::StatusOr<CommitResult>)> done_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvcask
