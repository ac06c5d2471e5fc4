#include "server/pipeline/get_run.h"

#include <algorithm>
#include <cstring>

#include <absl/strings/str_cat.h>

#include "codec/base/crc32c.h"
#include "codec/builtin_codecs.h"
#include "server/clock/steady_now.h"
#include "server/pipeline/errors.h"

namespace kvcask {
namespace {

absl::Status Corrupt(const absl::Status& s, uint64_t token_begin) {
  if (s.code() != absl::StatusCode::kDataLoss) return s;
  return WithReason(
      absl::DataLossError(absl::StrCat("the chunk of tokens from ", token_begin, ": ", s.message())),
      "CORRUPT_CHUNK");
}

// Of opening a plan: what reading from disk may add.
absl::Status Explain(const absl::Status& s) {
  if (absl::IsDataLoss(s)) return WithReason(s, "LOST_TOKENS");
  if (absl::IsResourceExhausted(s)) {
    return WithReason(WithRetry(s, absl::Milliseconds(200)), "OVER_BUDGET");
  }
  return s;
}

void Append(TokenRanges& ranges, uint64_t begin, uint64_t end) {
  if (begin >= end) return;
  if (!ranges.empty() && ranges.back().second == begin) {
    ranges.back().second = end;
  } else {
    ranges.emplace_back(begin, end);
  }
}

}  // namespace

absl::Status GetRun::Init(Pipeline* pipeline, const GetParams& params) {
  metrics_ = pipeline->metrics_;
  rates_ = &pipeline->decode_rates_;
  position_offset_ = params.position_offset;
  if (params.session) {
    auto plan = pipeline->store_->OpenRead(*params.session, params.token_begin, params.token_end);
    if (!plan.ok()) return Explain(plan.status());
    plan_ = *std::move(plan);
  } else {
    const auto ids = pipeline->PrefixIds(params.ns, params.model_id, params.extra_key, 0,
                                         params.prefix_token_ids);
    auto plan =
        pipeline->store_->OpenPrefix(params.ns, ids, params.token_begin, params.token_end);
    if (!plan.ok()) return Explain(plan.status());
    plan_ = *std::move(plan);
  }
  attachment_ = std::static_pointer_cast<const SessionAttachment>(plan_.stat.traits.attachment);
  gpu_ = pipeline->options_.gpu;
  if (attachment_ == nullptr) {
    return WithReason(absl::OutOfRangeError("the session holds no tokens yet"), "EMPTY_SESSION");
  }
  const int layers = static_cast<int>(attachment_->geometry.layers.size());
  layer_begin_ = params.layer_begin;
  layer_end_ = params.layer_end == 0 ? layers : params.layer_end;
  if (layer_begin_ < 0 || layer_end_ > layers || layer_begin_ >= layer_end_) {
    return WithReason(absl::OutOfRangeError(absl::StrCat("layers [", layer_begin_, ", ", layer_end_,
                                                         ") leave the model's [0, ", layers, ")")),
                      "LAYER_RANGE");
  }
  bool wanted = false;
  for (const ReadPlan::Shard& s : plan_.shards) {
    if (absl::Status st = InitShard(pipeline, params, s, &wanted); !st.ok()) return st;
  }
  if (!wanted) {
    return WithReason(absl::OutOfRangeError(absl::StrCat("nothing is held of heads [",
                                                         params.head_begin, ", ", params.head_end,
                                                         ") in these layers")),
                      "HEAD_RANGE");
  }
  Plan(params);
  return absl::OkStatus();
}

absl::Status GetRun::InitShard(Pipeline* pipeline, const GetParams& params,
                               const ReadPlan::Shard& from, bool* wanted) {
  ShardState s;
  const CodecEntry* entry = nullptr;
  std::vector<uint32_t> ids;
  for (const ChunkRef& ref : from.chunks) {
    ChunkState c;
    c.ref = ref;
    auto view = ParseChunk(ref->bytes, Verify::kHeaderOnly);
    if (!view.ok()) {
      metrics_->ChecksumFailure("stored");
      return Corrupt(view.status(), ref->token_begin);
    }
    c.view = *std::move(view);
    const ChunkHeader& h = c.view.header;
    if (h.token_begin != ref->token_begin || h.tokens != static_cast<int>(ref->tokens)) {
      return Corrupt(absl::DataLossError("its header names other tokens"), ref->token_begin);
    }
    s.range = h.shard;
    if (h.codec != CodecId::kRaw || entry == nullptr) entry = FindCodec(h.codec);
    dtype_ = params.dtype.value_or(h.dtype);
    const uint64_t begin = std::max(plan_.token_begin, h.token_begin);
    const uint64_t end = std::min<uint64_t>(plan_.token_end, h.token_begin + h.tokens);
    for (uint64_t t = begin; t < end && !h.token_ids.empty(); ++t) {
      ids.push_back(h.token_ids[t - h.token_begin]);
    }
    s.chunks.push_back(std::move(c));
  }
  if (s.chunks.empty() || entry == nullptr) return absl::InternalError("a plan without chunks");
  if (token_ids_.empty() && ids.size() == plan_.token_end - plan_.token_begin) {
    token_ids_ = std::move(ids);
  }
  s.first_page = s.chunks.front().ref->token_begin / kPageTokens;

  CodecSpec spec;
  spec.model = attachment_->geometry;
  spec.shard = s.range;
  auto sliced = SliceGeometry(spec.model, s.range);
  if (!sliced.ok()) return sliced.status();
  s.geometry = *std::move(sliced);
  auto raw = pipeline->codecs_.Get(*FindCodec(CodecId::kRaw), spec, plan_.stat.traits.geometry);
  if (!raw.ok()) return raw.status();
  s.raw_codec = *std::move(raw);
  spec.profile = attachment_->profile;
  // Only to spare it work: tiles say themselves how they were coded.
  if (entry->canonical_setting != nullptr) spec.setting = plan_.stat.traits.quality;
  if (entry->id == CodecId::kRaw) {
    s.codec = s.raw_codec;
  } else {
    auto codec = pipeline->codecs_.Get(*entry, spec, plan_.stat.traits.geometry);
    if (!codec.ok()) return codec.status();
    s.codec = *std::move(codec);
  }
  for (ChunkState& c : s.chunks) {
    const auto groups = CodecOf(s, c).groups();
    if (c.view.tiles.size() != groups.size()) {
      return Corrupt(absl::DataLossError(absl::StrCat("it has ", c.view.tiles.size(),
                                                      " tiles, expected ", groups.size())),
                     c.ref->token_begin);
    }
  }
  s.head_begin = std::max(params.head_begin - s.range.head_begin, 0);
  s.head_end = (params.head_end == 0 ? s.range.head_end : std::min(params.head_end, s.range.head_end)) -
               s.range.head_begin;
  if (s.head_begin < s.head_end && s.range.layer_begin < layer_end_ &&
      layer_begin_ < s.range.layer_end) {
    *wanted = true;
  } else {
    s.head_end = s.head_begin;  // nothing of this shard
  }
  shards_.push_back(std::move(s));
  return absl::OkStatus();
}

void GetRun::Plan(const GetParams& params) {
  for (size_t i = 0; i < shards_.size(); ++i) {
    ShardState& s = shards_[i];
    if (s.head_begin >= s.head_end) continue;
    GetPlanInput in;
    in.shard = static_cast<int>(i);
    in.layer_begin = std::max(layer_begin_, s.range.layer_begin) - s.range.layer_begin;
    in.layer_end = std::min(layer_end_, s.range.layer_end) - s.range.layer_begin;
    in.token_begin = plan_.token_begin;
    in.token_end = plan_.token_end;
    in.groups = s.codec->groups();
    in.layer_major = params.layer_major;
    in.held.resize(s.geometry.layers.size());
    for (const LayerGeometry& l : s.geometry.layers) {
      uint64_t bytes = 0;
      for (const StreamGeometry& st : l.streams) {
        const int heads = std::min(s.head_end, st.heads) - s.head_begin;
        if (heads > 0) bytes += uint64_t(heads) * st.head_dim * DtypeSize(dtype_);
      }
      in.layer_token_bytes.push_back(bytes);
    }
    for (const ChunkState& c : s.chunks) {
      const auto groups = CodecOf(s, c).groups();
      std::vector<bool> seen(s.geometry.layers.size());
      for (size_t g = 0; g < groups.size(); ++g) {
        const TileEntry& t = c.view.tiles[g];
        const uint64_t begin =
            std::max<uint64_t>(c.ref->token_begin + t.token_begin, in.token_begin);
        const uint64_t end =
            std::min<uint64_t>(c.ref->token_begin + t.token_begin + t.tokens, in.token_end);
        for (int l = groups[g].layer_begin; l < groups[g].layer_end; ++l) {
          if (!seen[l]) Append(in.held[l], begin, end);
          seen[l] = true;
        }
      }
    }
    for (int l = in.layer_begin; l < in.layer_end; ++l) {
      if (in.layer_token_bytes[l] == 0) continue;
      uint64_t at = in.token_begin;
      for (const auto& [begin, end] : in.held[l]) {
        if (at < begin) absent_.push_back({l + s.range.layer_begin, at, begin});
        at = end;
      }
      if (at < in.token_end) absent_.push_back({l + s.range.layer_begin, at, in.token_end});
    }
    for (const GetRectangle& r : PlanGet(in)) {
      rectangles_.push_back(r);
      payload_bytes_ += r.bytes;
    }
  }
  // Shards of a page follow one another, so that a reader can use the page.
  if (shards_.size() > 1) {
    std::stable_sort(rectangles_.begin(), rectangles_.end(),
                     [&](const GetRectangle& a, const GetRectangle& b) {
                       const int la = a.layer_begin + shards_[a.shard].range.layer_begin;
                       const int lb = b.layer_begin + shards_[b.shard].range.layer_begin;
                       if (params.layer_major && la != lb) return la < lb;
                       return a.token_begin < b.token_begin;
                     });
  }
}

GetRun::Place GetRun::PlaceOf(const GetRectangle& r) const {
  const ShardState& s = shards_[r.shard];
  return {r.layer_begin + s.range.layer_begin,
          r.layer_end - r.layer_begin,
          s.head_begin + s.range.head_begin,
          s.head_end - s.head_begin,
          r.token_begin,
          static_cast<uint32_t>(r.token_end - r.token_begin)};
}

absl::StatusOr<std::optional<GetRun::Stored>> GetRun::AsStored(const GetRectangle& r) const {
  const ShardState& s = shards_[r.shard];
  const uint64_t page = r.token_begin / kPageTokens;
  if (position_offset_ != 0 || (r.token_end - 1) / kPageTokens != page) return std::nullopt;
  const ChunkState& c = s.chunks[page - s.first_page];
  const Codec& codec = CodecOf(s, c);
  if (!codec.tile_is_source() || c.view.header.dtype != dtype_) return std::nullopt;
  const auto groups = codec.groups();
  std::vector<int> tiles;
  uint64_t bytes = 0;
  int layer = r.layer_begin;
  for (size_t g = 0; g < groups.size(); ++g) {
    if (groups[g].layer_end <= r.layer_begin || groups[g].layer_begin >= r.layer_end) continue;
    const TileEntry& tile = c.view.tiles[g];
    if (tile.tokens == 0) continue;  // a layer without streams here, or without these tokens
    const uint64_t first = c.ref->token_begin + tile.token_begin;
    if (groups[g].layer_begin < layer || groups[g].layer_end > r.layer_end ||
        first != r.token_begin || first + tile.tokens != r.token_end) {
      return std::nullopt;
    }
    layer = groups[g].layer_end;
    bytes += tile.bytes;
    tiles.push_back(static_cast<int>(g));
  }
  if (bytes != r.bytes) return std::nullopt;  // of some heads, or of some layers
  const absl::Time start = SteadyNow();
  Stored stored;
  stored.owner = c.ref;
  for (int g : tiles) {
    if (absl::Status v = VerifyTile(c.view, g); !v.ok()) {
      metrics_->ChecksumFailure("stored");
      return Corrupt(v, c.ref->token_begin);
    }
    const absl::Span<const uint8_t> tile = c.view.tile(g);
    stored.crc32c = Crc32cConcat(stored.crc32c, c.view.tiles[g].crc32c, tile.size());
    auto& pieces = stored.pieces;
    if (!pieces.empty() && pieces.back().end() == tile.begin()) {
      pieces.back() = {pieces.back().data(), pieces.back().size() + tile.size()};
    } else {
      pieces.push_back(tile);
    }
  }
  const absl::Duration took = SteadyNow() - start;
  const char* name = FindCodec(s.codec->id())->name;
  const uint64_t raw_bytes = r.bytes / DtypeSize(dtype_) * 2;
  metrics_->Decoded(name, raw_bytes, took);
  rates_->Add(name, raw_bytes, took);
  return stored;
}

absl::Status GetRun::Decode(const GetRectangle& r, absl::Span<uint8_t> out) const {
  if (out.size() != r.bytes) return absl::InternalError("a buffer of another size");
  const ShardState& s = shards_[r.shard];
  // Codecs write all heads of the shard; a reader of some gets a copy of those.
  uint64_t all = 0;
  for (int l = r.layer_begin; l < r.layer_end; ++l) {
    for (const auto& st : s.geometry.layers[l].streams) all += uint64_t(st.heads) * st.head_dim;
  }
  all *= (r.token_end - r.token_begin) * DtypeSize(dtype_);
  if (all == r.bytes) return DecodeAllHeads(s, r, out);
  std::vector<uint8_t> whole(all);
  if (absl::Status st = DecodeAllHeads(s, r, absl::MakeSpan(whole)); !st.ok()) return st;
  const uint8_t* from = whole.data();
  uint8_t* to = out.data();
  for (int l = r.layer_begin; l < r.layer_end; ++l) {
    for (const auto& st : s.geometry.layers[l].streams) {
      const uint64_t head = (r.token_end - r.token_begin) * st.head_dim * DtypeSize(dtype_);
      const int end = std::min(s.head_end, st.heads);
      if (end > s.head_begin) {
        std::memcpy(to, from + s.head_begin * head, (end - s.head_begin) * head);
        to += (end - s.head_begin) * head;
      }
      from += st.heads * head;
    }
  }
  return absl::OkStatus();
}

absl::Status GetRun::DecodeAllHeads(const ShardState& s, const GetRectangle& r,
                                    absl::Span<uint8_t> out) const {
  const absl::Time start = SteadyNow();
  const int64_t size = static_cast<int64_t>(DtypeSize(dtype_));
  const int64_t tokens = static_cast<int64_t>(r.token_end - r.token_begin);
  // The rectangle's planes, token 0 being its first.
  std::vector<PlaneView> planes;
  std::vector<int> layer_planes;
  uint8_t* at = out.data();
  for (int l = r.layer_begin; l < r.layer_end; ++l) {
    layer_planes.push_back(static_cast<int>(planes.size()));
    for (const auto& st : s.geometry.layers[l].streams) {
      planes.push_back({at, tokens * st.head_dim * size, st.head_dim * size, size});
      at += st.heads * tokens * st.head_dim * size;
    }
  }
  layer_planes.push_back(static_cast<int>(planes.size()));

  std::vector<DecodeJob> jobs[2];                // the codec's; raw tails
  std::vector<std::vector<PlaneView>> storage;   // of the jobs' planes
  std::vector<GpuTier::Lease> on_gpu;            // of the jobs' chunks, but the page at hand
  // Tiles are verified, then decoded while they are still in the cache.
  constexpr uint64_t kPortionBytes = 256 << 10;
  uint64_t portion_bytes = 0;
  thread_local Workspace workspace;
  const auto decode = [&]() -> absl::Status {
    for (int i = 0; i < 2; ++i) {
      if (jobs[i].empty()) continue;
      const Codec& codec = i == 0 ? *s.codec : *s.raw_codec;
      if (absl::Status st = codec.Decode(absl::MakeSpan(jobs[i]), workspace); !st.ok()) return st;
      for (const DecodeJob& j : jobs[i]) {
        if (!j.status.ok()) return Corrupt(j.status, r.token_begin);
      }
      jobs[i].clear();
    }
    on_gpu.clear();
    portion_bytes = 0;
    return absl::OkStatus();
  };
  const uint64_t last_page = (r.token_end - 1) / kPageTokens;
  storage.reserve((last_page - r.token_begin / kPageTokens + 1) *
                  std::max(s.codec->groups().size(), s.raw_codec->groups().size()));
  for (uint64_t page = r.token_begin / kPageTokens; page <= last_page; ++page) {
    const ChunkState& c = s.chunks[page - s.first_page];
    const auto groups = CodecOf(s, c).groups();
    GpuTier::Lease copy;  // of the chunk, if there is one
    bool asked = false;
    const auto tile_on_device = [&](absl::Span<const uint8_t> tile) -> const uint8_t* {
      if (gpu_ != nullptr && !asked) copy = gpu_->FindOrAdd(c.ref);
      asked = true;
      return copy.bytes().empty() ? nullptr
                                  : copy.bytes().data() + (tile.data() - c.ref->bytes.data());
    };
    for (size_t g = 0; g < groups.size(); ++g) {
      const int begin = std::max(groups[g].layer_begin, r.layer_begin);
      const int end = std::min(groups[g].layer_end, r.layer_end);
      const TileEntry& tile = c.view.tiles[g];
      if (begin >= end || tile.tokens == 0) continue;
      const uint64_t first = c.ref->token_begin + tile.token_begin;  // of the tile
      const uint64_t from = std::max(first, r.token_begin);
      const uint64_t to = std::min(first + tile.tokens, r.token_end);
      if (from >= to) continue;
      if (absl::Status v = VerifyTile(c.view, static_cast<int>(g)); !v.ok()) {
        metrics_->ChecksumFailure("stored");
        return Corrupt(v, c.ref->token_begin);
      }
      storage.emplace_back(planes.begin() + layer_planes[begin - r.layer_begin],
                           planes.begin() + layer_planes[end - r.layer_begin]);
      for (PlaneView& p : storage.back()) {
        p.data += static_cast<int64_t>(from - r.token_begin) * p.token_stride;
      }
      DecodeJob job;
      job.group = static_cast<int>(g);
      job.tokens = tile.tokens;
      job.source_dtype = c.view.header.dtype;
      job.tile = c.view.tile(static_cast<int>(g));
      job.device_tile = tile_on_device(job.tile);
      job.positions =
          absl::MakeSpan(c.view.header.positions).subspan(tile.token_begin, tile.tokens);
      if (!c.view.header.token_ids.empty()) {
        job.token_ids =
            absl::MakeSpan(c.view.header.token_ids).subspan(tile.token_begin, tile.tokens);
      }
      job.token_begin = static_cast<int>(from - first);
      job.token_end = static_cast<int>(to - first);
      job.layer_begin = begin;
      job.layer_end = end;
      job.position_offset = position_offset_;
      job.destination.dtype = dtype_;
      job.destination.planes = storage.back();
      jobs[&CodecOf(s, c) == s.codec.get() ? 0 : 1].push_back(job);
      portion_bytes += tile.bytes;
      if (portion_bytes >= kPortionBytes) {
        if (absl::Status st = decode(); !st.ok()) return st;
      }
    }
    if (!copy.bytes().empty()) on_gpu.push_back(std::move(copy));
  }
  if (absl::Status st = decode(); !st.ok()) return st;
  const char* name = FindCodec(s.codec->id())->name;
  const absl::Duration took = SteadyNow() - start;
  metrics_->Decoded(name, r.bytes / size * 2, took);
  rates_->Add(name, r.bytes / size * 2, took);
  return absl::OkStatus();
}

}  // namespace kvcask
