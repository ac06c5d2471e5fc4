#include "server/pipeline/put_run.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <absl/strings/str_cat.h>

#include "codec/base/crc32c.h"
#include "codec/builtin_codecs.h"
#include "codec/format/chunk.h"
#include "server/clock/steady_now.h"
#include "server/pipeline/errors.h"

namespace kvcask {
namespace {

absl::Status Invalid(absl::string_view reason, const std::string& text) {
  return WithReason(absl::InvalidArgumentError(text), reason);
}

// Bits [from, from + count) of a page's tokens.
std::array<uint64_t, 2> Bits(int from, int count) {
  auto below = [](int n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; };
  std::array<uint64_t, 2> m;
  for (int w = 0; w < 2; ++w) {
    const int lo = std::clamp(from - 64 * w, 0, 64);
    const int hi = std::clamp(from + count - 64 * w, 0, 64);
    m[w] = below(hi) & ~below(lo);
  }
  return m;
}

// Copies bytes out of a list of pieces, in order.
class Cursor {
 public:
  explicit Cursor(absl::Span<const absl::Span<const uint8_t>> pieces) : pieces_(pieces) {}
  void Copy(uint8_t* to, uint64_t n) {
    Each(n, [&](const uint8_t* from, uint64_t k) {
      std::memcpy(to, from, k);
      to += k;
    });
  }
  // The same, and extends `crc` by them; `copy` is one of crc32c.h's.
  uint32_t CopyAndSum(decltype(Crc32cCopy)& copy, uint8_t* to, uint64_t n, uint32_t crc) {
    Each(n, [&](const uint8_t* from, uint64_t k) {
      crc = copy(to, from, k, crc);
      to += k;
    });
    return crc;
  }

 private:
  template <typename F>
  void Each(uint64_t n, F f) {
    while (n > 0) {
      const auto piece = pieces_[piece_];
      const uint64_t k = std::min<uint64_t>(n, piece.size() - at_);
      f(piece.data() + at_, k);
      n -= k;
      at_ += k;
      if (at_ == piece.size()) {
        ++piece_;
        at_ = 0;
      }
    }
  }

  absl::Span<const absl::Span<const uint8_t>> pieces_;
  size_t piece_ = 0;
  uint64_t at_ = 0;
};

}  // namespace

void PutRun::MapPlanes() {
  const auto groups = codec_->groups();
  // Units: groups sorted by their first layer; ranges that overlap are one.
  std::vector<int> order(groups.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return groups[a].layer_begin < groups[b].layer_begin;
  });
  group_units_.resize(groups.size());
  for (int g : order) {
    if (units_.empty() || groups[g].layer_begin >= units_.back().layer_end) {
      units_.emplace_back();
      units_.back().layer_begin = groups[g].layer_begin;
      units_.back().layer_end = groups[g].layer_end;
    }
    Unit& u = units_.back();
    u.layer_end = std::max(u.layer_end, groups[g].layer_end);
    u.groups.push_back(g);
    group_units_[g] = static_cast<int>(units_.size()) - 1;
  }
  size_t unit = 0;
  for (size_t l = 0; l < shard_geometry_.layers.size(); ++l) {
    layer_planes_.push_back(static_cast<int>(planes_.size()));
    while (unit + 1 < units_.size() && static_cast<int>(l) >= units_[unit].layer_end) ++unit;
    Unit& u = units_[unit];
    for (const StreamGeometry& s : shard_geometry_.layers[l].streams) {
      Plane p;
      p.layer = static_cast<int>(l);
      p.kind = s.kind;
      p.heads = s.heads;
      p.head_dim = s.head_dim;
      p.unit = static_cast<int>(unit);
      p.first_row = u.rows;
      p.first_element = u.elements;
      u.rows += s.heads;
      u.elements += int64_t{s.heads} * s.head_dim;
      planes_.push_back(p);
    }
  }
  layer_planes_.push_back(static_cast<int>(planes_.size()));
  for (Unit& u : units_) {
    u.plane_begin = layer_planes_[u.layer_begin];
    u.plane_end = layer_planes_[u.layer_end];
  }
  in_place_ = codec_->tile_is_source() &&
              std::all_of(units_.begin(), units_.end(),
                          [](const Unit& u) { return u.groups.size() == 1; });
}

void PutRun::Stage(Page& page, int unit) {
  Staging& st = page.units[unit];
  if (st.data != nullptr) return;
  if (!in_place_) {
    st.memory.reset(new uint8_t[StagingBytes(units_[unit], page)]);
    st.data = st.memory.get();
    return;
  }
  if (page.in_place.empty()) {
    std::vector<size_t> sizes(codec_->groups().size());
    for (size_t g = 0; g < sizes.size(); ++g) {
      sizes[g] = StagingBytes(units_[group_units_[g]], page);
    }
    page.layout = LayOutChunk(HeaderOf(page, codec_->id()), sizes);
    page.in_place.resize(page.layout.bytes);
  }
  st.data = page.in_place.data() + page.layout.tiles[units_[unit].groups[0]];
  st.sums.resize(units_[unit].rows);
}

absl::Status PutRun::Init() {
  MapPlanes();
  first_token_ = params_.token_begin / kPageTokens * kPageTokens;
  const uint64_t end = params_.token_begin + params_.token_count;
  const auto groups = codec_->groups();

  ChunkHeader header;
  header.tokens = kPageTokens;
  header.positions.resize(kPageTokens);
  if (!params_.token_ids.empty()) header.token_ids.resize(kPageTokens);
  if (params_.profile) header.profile = params_.profile;
  const uint64_t overhead = std::max(ChunkOverheadBytes(static_cast<int>(groups.size()), header),
                                     ChunkOverheadBytes(static_cast<int>(raw_codec_->groups().size()), header));
  uint64_t need = 0, full_page = 0;
  for (uint64_t t = first_token_; t < end; t += kPageTokens) {
    Page page;
    page.token_begin = t;
    page.tokens = static_cast<int>(std::min<uint64_t>(kPageTokens, end - t));
    page.tiles_left = static_cast<int>(groups.size());
    page.tiles.resize(groups.size());
    page.units.resize(units_.size());
    for (size_t u = 0; u < units_.size(); ++u) {
      page.units[u].cells_missing = int64_t{units_[u].rows} * page.tokens;
    }
    uint64_t bytes = full_page;
    if (page.tokens < kPageTokens || full_page == 0) {
      bytes = overhead;
      for (size_t g = 0; g < groups.size(); ++g) {
        bytes += codec_->MaxTileBytes(static_cast<int>(g), page.tokens, params_.dtype);
      }
      if (page.tokens == kPageTokens) full_page = bytes;
    }
    need += bytes;
    pages_.push_back(std::move(page));
  }
  if (absl::Status s = pipeline_->store_->CheckQuota(params_.session.ns, 1); !s.ok()) {
    return WithReason(s, "QUOTA");
  }
  auto reservation = pipeline_->budget_->Reserve(need, "a run");
  if (!reservation.ok() && !pipeline_->budget_->NeverFits(need)) {
    pipeline_->store_->MakeRoom(need);
    reservation = pipeline_->budget_->Reserve(need, "a run");
  }
  if (!reservation.ok()) {
    absl::Status s = WithReason(reservation.status(), "OVER_BUDGET");
    return pipeline_->budget_->NeverFits(need) ? s : WithRetry(s, absl::Seconds(1));
  }
  {
    std::lock_guard<std::mutex> lock(mu_);
    reservation_ = *std::move(reservation);
  }

  // Positions and ids of the tokens from the first page on: the tail's, then the run's.
  bool have_ids = !params_.token_ids.empty();
  if (before_.tail) {
    const uint64_t seen = before_.tail_tokens;
    auto view = ParseChunk(before_.tail->bytes, Verify::kAll);
    if (!view.ok()) {
      pipeline_->metrics_->ChecksumFailure("stored");
      return WithReason(view.status(), "CORRUPT_CHUNK");
    }
    positions_ = view->header.positions;
    token_ids_ = view->header.token_ids;
    positions_.resize(std::min<size_t>(positions_.size(), seen));
    token_ids_.resize(std::min<size_t>(token_ids_.size(), seen));
    if (token_ids_.empty() == have_ids && params_.token_begin > first_token_) {
      return Invalid("TOKEN_IDS", absl::StrCat("the session's last ", seen,
                                               " tokens were put ", have_ids ? "without" : "with",
                                               " token ids, this run comes ",
                                               have_ids ? "with" : "without", " them"));
    }
  }
  for (uint32_t i = 0; i < params_.token_count; ++i) {
    const uint64_t position = params_.explicit_positions.empty()
                                  ? params_.first_position + params_.token_begin + i
                                  : params_.explicit_positions[i];
    if (position > UINT32_MAX) {
      return Invalid("POSITION", absl::StrCat("token ", params_.token_begin + i, " is at position ",
                                              position, ", expected less than 2^32"));
    }
    positions_.push_back(static_cast<uint32_t>(position));
  }
  token_ids_.insert(token_ids_.end(), params_.token_ids.begin(), params_.token_ids.end());

  // Shared only where every page before is named and positions are the plain ones.
  bool plain = have_ids && (first_token_ == 0 || before_.last_prefix_id.has_value());
  for (size_t i = 0; plain && i < positions_.size(); ++i) {
    plain = positions_[i] == params_.first_position + first_token_ + i;
  }
  if (plain) {
    PrefixId parent = first_token_ == 0
                          ? pipeline_->hasher_.Root(params_.session.ns, params_.model_id,
                                                    params_.extra_key, params_.first_position)
                          : *before_.last_prefix_id;
    for (const Page& p : pages_) {
      if (p.tokens < kPageTokens) break;
      parent = pipeline_->hasher_.Page(params_.session.ns, parent, Slice(token_ids_, p, 0, p.tokens));
      prefix_ids_.push_back(parent);
    }
  }
  return before_.tail ? LoadTail() : absl::OkStatus();
}

// Decodes the session's tail into the first page's staging: a raw one, or the beginning of an
// encoded page that the session shares since a fork or rewind.
absl::Status PutRun::LoadTail() {
  Page& page = pages_[0];
  auto view = ParseChunk(before_.tail->bytes, Verify::kHeaderOnly);
  if (!view.ok()) return view.status();
  const Codec& codec = view->header.codec == CodecId::kRaw ? *raw_codec_ : *codec_;
  const auto groups = codec.groups();
  if (view->header.codec != codec.id() || view->tiles.size() != groups.size()) {
    return absl::InternalError("a tail of another codec");
  }
  const int seen = static_cast<int>(before_.tail_tokens);
  for (size_t u = 0; u < units_.size(); ++u) {
    Staging& st = page.units[u];
    Stage(page, static_cast<int>(u));
    st.have.resize(units_[u].rows);
  }
  Workspace workspace;
  for (size_t i = 0; i < view->tiles.size(); ++i) {
    const TileEntry& entry = view->tiles[i];
    const int tokens = std::min(entry.tokens, seen - entry.token_begin);
    if (tokens <= 0) continue;
    DecodeJob job;
    job.group = entry.group;
    job.tokens = entry.tokens;
    job.source_dtype = params_.dtype;
    job.tile = view->tile(static_cast<int>(i));
    job.positions = absl::MakeSpan(view->header.positions).subspan(entry.token_begin, entry.tokens);
    if (!view->header.token_ids.empty()) {
      job.token_ids =
          absl::MakeSpan(view->header.token_ids).subspan(entry.token_begin, entry.tokens);
    }
    job.token_end = tokens;
    job.layer_begin = groups[entry.group].layer_begin;
    job.layer_end = groups[entry.group].layer_end;
    std::vector<PlaneView> planes;
    for (const ConstPlaneView& v : Views(page, job.layer_begin, job.layer_end, entry.token_begin)) {
      planes.push_back({const_cast<uint8_t*>(v.data), v.head_stride, v.token_stride, v.dim_stride});
    }
    job.destination.dtype = params_.dtype;
    job.destination.planes = planes;
    absl::Status s = codec.Decode(absl::MakeSpan(&job, 1), workspace);
    if (s.ok()) s = job.status;
    if (!s.ok()) return s;
    for (int p = layer_planes_[job.layer_begin]; p < layer_planes_[job.layer_end]; ++p) {
      Staging& st = page.units[planes_[p].unit];
      const auto bits = Bits(entry.token_begin, tokens);
      for (int h = 0; h < planes_[p].heads; ++h) st.have[planes_[p].first_row + h] = bits;
      st.cells_missing -= int64_t{planes_[p].heads} * tokens;
    }
  }
  return absl::OkStatus();
}

// Views of a page's staging for a range of layers, token 0 of the view being token_begin.
// Units whose staging is not there give null data.
std::vector<ConstPlaneView> PutRun::Views(const Page& page, int layer_begin, int layer_end,
                                          int token_begin) const {
  const int64_t size = static_cast<int64_t>(DtypeSize(params_.dtype));
  std::vector<ConstPlaneView> out;
  for (int p = layer_planes_[layer_begin]; p < layer_planes_[layer_end]; ++p) {
    const Plane& plane = planes_[p];
    const uint8_t* base = page.units[plane.unit].data;
    ConstPlaneView v;
    v.dim_stride = size;
    v.token_stride = plane.head_dim * size;
    v.head_stride = v.token_stride * page.tokens;
    if (base != nullptr) {
      v.data = base + plane.first_element * page.tokens * size + token_begin * v.token_stride;
    }
    out.push_back(v);
  }
  return out;
}

absl::StatusOr<PutRun::Rows> PutRun::Resolve(const RectangleSpec& r) const {
  const ShardRange& s = params_.shard;
  const uint64_t end = params_.token_begin + params_.token_count;
  if (r.token_count == 0 || r.layer_count <= 0) {
    return Invalid("EMPTY_RECTANGLE",
                   absl::StrCat("rectangle has ", r.token_count, " tokens and ", r.layer_count,
                                " layers, expected at least one of each"));
  }
  if (r.token_begin < params_.token_begin || r.token_begin >= end ||
      r.token_count > end - r.token_begin) {
    return Invalid("RECTANGLE_RANGE",
                   absl::StrCat("rectangle's tokens [", r.token_begin, ", ",
                                r.token_begin + r.token_count, ") leave the run [",
                                params_.token_begin, ", ", end, ")"));
  }
  if (r.layer_begin < s.layer_begin || r.layer_begin >= s.layer_end ||
      r.layer_count > s.layer_end - r.layer_begin) {
    return Invalid("RECTANGLE_RANGE",
                   absl::StrCat("rectangle's layers [", r.layer_begin, ", ",
                                int64_t{r.layer_begin} + r.layer_count, ") leave the shard's [",
                                s.layer_begin, ", ", s.layer_end, ")"));
  }
  Rows rows;
  rows.head_begin = r.head_begin - s.head_begin;
  rows.head_count = r.head_count;
  const bool all_heads = r.head_count == 0 && r.head_begin == 0;
  if (all_heads) rows.head_begin = 0;
  const int first = layer_planes_[r.layer_begin - s.layer_begin];
  const int last = layer_planes_[r.layer_begin - s.layer_begin + r.layer_count];
  uint64_t elements = 0;
  for (int p = first; p < last; ++p) {
    const Plane& plane = planes_[p];
    if ((plane.kind == StreamKind::kK && !r.k) || (plane.kind == StreamKind::kV && !r.v) ||
        (plane.kind == StreamKind::kLatent && !r.latent)) {
      continue;
    }
    const int count = rows.head_count == 0 ? plane.heads - rows.head_begin : rows.head_count;
    if (rows.head_begin < 0 || count <= 0 || rows.head_begin > plane.heads - count) {
      return Invalid("RECTANGLE_RANGE",
                     absl::StrCat("rectangle's heads [", r.head_begin, ", ",
                                  r.head_begin + r.head_count, ") leave the shard's [", s.head_begin,
                                  ", ", s.head_begin + plane.heads, ") in layer ",
                                  plane.layer + s.layer_begin));
    }
    rows.planes.push_back(p);
    elements += uint64_t(count) * plane.head_dim;
  }
  if (rows.planes.empty()) {
    return Invalid("EMPTY_RECTANGLE",
                   absl::StrCat("rectangle has no streams in layers [", r.layer_begin, ", ",
                                r.layer_begin + r.layer_count, ")"));
  }
  // At most 1024 layers x 2 x 1024 heads x 4096 x 2^20 tokens x 4: fits in 64 bits.
  rows.payload_bytes = elements * r.token_count * DtypeSize(params_.dtype);
  return rows;
}

absl::StatusOr<uint64_t> PutRun::PayloadBytes(const RectangleSpec& r) const {
  auto rows = Resolve(r);
  if (!rows.ok()) return rows.status();
  return rows->payload_bytes;
}

// Calls f(page index, from, count) for the pieces of [begin, begin + count) by page.
template <typename F>
static void ForPages(uint64_t begin, uint32_t count, uint64_t first_token, F f) {
  const uint64_t end = begin + count;
  for (uint64_t t = begin; t < end;) {
    const uint64_t page = (t - first_token) / kPageTokens;
    const int from = static_cast<int>((t - first_token) % kPageTokens);
    const int n = static_cast<int>(std::min<uint64_t>(kPageTokens - from, end - t));
    f(static_cast<int>(page), from, n);
    t += n;
  }
}

absl::Status PutRun::Mark(const RectangleSpec& r, const Rows& rows) {
  absl::Status status;
  ForPages(r.token_begin, r.token_count, first_token_, [&](int pi, int from, int n) {
    Page& page = pages_[pi];
    const auto bits = Bits(from, n);
    for (int p : rows.planes) {
      const Plane& plane = planes_[p];
      Staging& st = page.units[plane.unit];
      if (st.have.empty()) st.have.resize(units_[plane.unit].rows);
      const int heads = rows.head_count == 0 ? plane.heads - rows.head_begin : rows.head_count;
      for (int h = rows.head_begin; h < rows.head_begin + heads; ++h) {
        auto& have = st.have[plane.first_row + h];
        if ((have[0] & bits[0]) | (have[1] & bits[1])) {
          if (status.ok()) {
            status = Invalid(
                "OVERLAP",
                absl::StrCat("rectangle overlaps what came before: layer ",
                             plane.layer + params_.shard.layer_begin, " ",
                             plane.kind == StreamKind::kV ? "V" : "K", " head ",
                             h + params_.shard.head_begin, " tokens [", page.token_begin + from,
                             ", ", page.token_begin + from + n, ")"));
          }
          return;
        }
        have[0] |= bits[0];
        have[1] |= bits[1];
      }
    }
  });
  return status;
}

void PutRun::CountDown(const RectangleSpec& r, const Rows& rows) {
  ForPages(r.token_begin, r.token_count, first_token_, [&](int pi, int, int n) {
    Page& page = pages_[pi];
    int last_unit = -1;
    for (int p : rows.planes) {
      const Plane& plane = planes_[p];
      const int heads = rows.head_count == 0 ? plane.heads - rows.head_begin : rows.head_count;
      page.units[plane.unit].cells_missing -= int64_t{heads} * n;
      last_unit = plane.unit;
    }
    if (page.tokens < kPageTokens) return;  // a tail waits for the commit
    if (in_place_) {
      if (WholeInPlace(page)) SealInPlace(page);
      return;
    }
    for (int u = planes_[rows.planes.front()].unit; u <= last_unit; ++u) {
      Staging& st = page.units[u];
      if (st.cells_missing == 0 && !st.submitted) Submit(pi, u);
    }
  });
}

absl::Status PutRun::Add(const RectangleSpec& r, absl::Span<const absl::Span<const uint8_t>> pieces,
                         std::optional<uint32_t> crc32c) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (!error_.ok()) return error_;
  }
  const absl::Status status = Take(r, pieces, crc32c);
  if (!status.ok()) {
    std::lock_guard<std::mutex> lock(mu_);
    if (error_.ok()) error_ = status;
  }
  return status;
}

absl::Status PutRun::Take(const RectangleSpec& r,
                          absl::Span<const absl::Span<const uint8_t>> pieces,
                          std::optional<uint32_t> crc32c) {
  auto rows = Resolve(r);
  if (!rows.ok()) return rows.status();
  uint64_t size = 0;
  for (const auto& p : pieces) size += p.size();
  if (size != rows->payload_bytes) {
    return Invalid("PAYLOAD_SIZE",
                   absl::StrCat("payload has ", size, " bytes, the rectangle (", r.layer_count,
                                " layers from ", r.layer_begin, ", ", r.token_count,
                                " tokens from ", r.token_begin, ", ", DtypeName(params_.dtype),
                                ") needs ", rows->payload_bytes));
  }
  if (absl::Status s = Mark(r, *rows); !s.ok()) return s;

  Cursor cursor(pieces);
  uint32_t sum = 0;  // of the payload, if it has to be known
  const uint64_t element = DtypeSize(params_.dtype);
  for (int p : rows->planes) {
    const Plane& plane = planes_[p];
    const int heads = rows->head_count == 0 ? plane.heads - rows->head_begin : rows->head_count;
    for (int h = rows->head_begin; h < rows->head_begin + heads; ++h) {
      ForPages(r.token_begin, r.token_count, first_token_, [&](int pi, int from, int n) {
        Page& page = pages_[pi];
        Staging& st = page.units[plane.unit];
        Stage(page, plane.unit);
        const uint64_t row = plane.head_dim * element;
        uint8_t* to = st.data + plane.first_element * page.tokens * element +
                      (uint64_t(h) * page.tokens + from) * row;
        Staging::Sum* row_sum = in_place_ ? &st.sums[plane.first_row + h] : nullptr;
        if (row_sum != nullptr && row_sum->summed == from) {
          // One pass for both the payload's sum and the tile's.
          const uint32_t crc = cursor.CopyAndSum(Crc32cCopyPastCache, to, n * row, 0);
          row_sum->crc32c = Crc32cConcat(row_sum->crc32c, crc, n * row);
          row_sum->summed += n;
          if (crc32c) sum = Crc32cConcat(sum, crc, n * row);
        } else if (crc32c) {
          sum = cursor.CopyAndSum(Crc32cCopy, to, n * row, sum);
        } else {
          cursor.Copy(to, n * row);
        }
      });
    }
  }
  if (crc32c && *crc32c != sum) {
    pipeline_->metrics_->ChecksumFailure("received");
    return WithReason(
        absl::DataLossError(absl::StrCat("payload's CRC32C is ", absl::Hex(sum, absl::kZeroPad8),
                                         ", the message says ", absl::Hex(*crc32c, absl::kZeroPad8),
                                         " (layers from ", r.layer_begin, ", tokens from ",
                                         r.token_begin, ")")),
        "PAYLOAD_CHECKSUM");
  }
  {
    std::lock_guard<std::mutex> lock(mu_);
    progress_.payload_bytes += size;
  }
  CountDown(r, *rows);
  return absl::OkStatus();
}

void PutRun::Submit(int page, int unit) {
  Staging& st = pages_[page].units[unit];
  st.submitted = true;
  Sample(pages_[page]);
  {
    std::lock_guard<std::mutex> lock(mu_);
    st.tiles_left = static_cast<int>(units_[unit].groups.size());
    outstanding_ += st.tiles_left;
  }
  const uint64_t bytes = StagingBytes(units_[unit], pages_[page]) / units_[unit].groups.size();
  for (int g : units_[unit].groups) {
    Tile& tile = pages_[page].tiles[g];
    tile.token_begin = st.token_begin;
    tile.tokens = pages_[page].tokens - st.token_begin;
  }
  for (int g : units_[unit].groups) {
    pipeline_->encode_batcher_->Add(EncodeTask{shared_from_this(), page, g}, bytes);
  }
}

// On an executor thread.
void PutRun::OnEncoded(const EncodeTask& task, const EncodeJob& job,
                       std::unique_ptr<uint8_t[]> data) {
  Page& page = pages_[task.page];
  Staging& st = page.units[group_units_[task.group]];
  bool page_done = false;
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (!job.status.ok()) {
      if (error_.ok()) {
        error_ = WithReason(absl::Status(job.status.code(),
                                         absl::StrCat("tokens [", page.token_begin, ", ",
                                                      page.token_begin + page.tokens,
                                                      "): ", job.status.message())),
                            "ENCODE");
      }
    } else {
      Tile& tile = page.tiles[task.group];
      tile.data = std::move(data);
      tile.bytes = job.bytes;
      tile.certificate = job.certificate;
      progress_.stored_bytes += job.bytes;
    }
    if (--st.tiles_left == 0 && !page.shadow_room) {
      st.memory.reset();
      st.data = nullptr;
    }
    page_done = --page.tiles_left == 0 && error_.ok();
  }
  if (page_done) FinishPage(page, codec_->id(), codec_->groups());
  {
    std::lock_guard<std::mutex> lock(mu_);
    --outstanding_;
  }
  MaybeCommit();
}

ChunkHeader PutRun::HeaderOf(const Page& page, CodecId codec) const {
  ChunkHeader h;
  h.codec = codec;
  h.quality = codec == CodecId::kRaw ? Quality::kDefault : quality_;
  h.dtype = params_.dtype;
  h.shard = params_.shard;
  h.geometry = geometry_fingerprint_;
  if (codec != CodecId::kRaw && params_.profile) h.profile = *params_.profile;
  h.token_begin = page.token_begin;
  h.tokens = page.tokens;
  const auto positions = Slice(positions_, page, 0, page.tokens);
  const auto ids = Slice(token_ids_, page, 0, page.tokens);
  h.positions.assign(positions.begin(), positions.end());
  h.token_ids.assign(ids.begin(), ids.end());
  return h;
}

void PutRun::Sample(Page& page) {
  if (page.sample_decided) return;
  page.sample_decided = true;
  Shadow& shadow = pipeline_->shadow_;
  if (!shadow.on()) return;
  // Shared pages are named by what is in them, others by where they are.
  const uint64_t index = (page.token_begin - first_token_) / kPageTokens;
  std::string name;
  if (index < prefix_ids_.size()) {
    name.assign(reinterpret_cast<const char*>(prefix_ids_[index].data()), prefix_ids_[index].size());
  } else {
    name = absl::StrCat(params_.session.ns, "\n", params_.session.id, "\n", page.token_begin);
  }
  absl::StrAppend(&name, "\n", params_.shard.index);
  if (!shadow.Samples(name)) return;
  // The planes, what came back in fp32, the coded form.
  uint64_t bytes = 0;
  for (const Unit& u : units_) {
    bytes += StagingBytes(u, page) + sizeof(float) * static_cast<uint64_t>(u.elements) * page.tokens;
  }
  for (size_t g = 0; g < codec_->groups().size(); ++g) {
    bytes += codec_->MaxTileBytes(static_cast<int>(g), page.tokens, params_.dtype);
  }
  page.shadow_room = shadow.TakeRoom(bytes);
}

void PutRun::KeepShadow(Page& page, absl::Span<const uint8_t> chunk) {
  ShadowBlock block;
  block.session = absl::StrCat(params_.session.ns, "/", params_.session.id, " tokens ",
                               page.token_begin, " to ", page.token_begin + page.tokens);
  block.shard = static_cast<uint32_t>(params_.shard.index);
  block.codec_name = traits_.codec;
  block.codec = codec_;
  block.quality = quality_;
  block.chunk.assign(chunk.begin(), chunk.end());
  block.source = Views(page, 0, static_cast<int>(shard_geometry_.layers.size()), 0);
  for (Staging& st : page.units) {
    block.memory.push_back(std::move(st.memory));
    st.data = nullptr;
  }
  block.room = *std::move(page.shadow_room);
  page.shadow_room.reset();
  pipeline_->shadow_.Submit(std::move(block));
}

void PutRun::FinishPage(Page& page, CodecId codec, absl::Span<const Group> groups) {
  const ChunkHeader h = HeaderOf(page, codec);
  std::vector<size_t> sizes;
  for (const Tile& t : page.tiles) sizes.push_back(t.bytes);
  const ChunkLayout layout = LayOutChunk(h, sizes);
  ChunkBytes bytes(layout.bytes);
  std::vector<PlacedTile> placed;
  for (size_t g = 0; g < groups.size(); ++g) {
    const Tile& t = page.tiles[g];
    const uint32_t crc = Crc32cCopy(bytes.data() + layout.tiles[g], t.data.get(), t.bytes);
    placed.push_back({t.token_begin, t.tokens, t.bytes, crc, t.certificate});
  }
  std::vector<Tile>().swap(page.tiles);
  ChunkBytes().swap(page.in_place);
  KeepChunk(page, h, placed, std::move(bytes));
  if (page.shadow_room) KeepShadow(page, page.chunk->bytes);
}

bool PutRun::WholeInPlace(const Page& page) const {
  if (page.in_place.empty() || page.sealed) return false;
  return std::all_of(page.units.begin(), page.units.end(),
                     [](const Staging& st) { return st.cells_missing == 0; });
}

void PutRun::SealInPlace(Page& page) {
  const absl::Time start = SteadyNow();
  const uint64_t element = DtypeSize(params_.dtype);
  std::vector<PlacedTile> placed(codec_->groups().size());
  uint64_t raw_bytes = 0, stored_bytes = 0;
  for (size_t u = 0; u < units_.size(); ++u) {
    Staging& st = page.units[u];
    st.submitted = true;
    if (units_[u].elements == 0) continue;  // of no tokens
    PlacedTile& tile = placed[units_[u].groups[0]];
    tile.tokens = page.tokens;
    tile.bytes = StagingBytes(units_[u], page);
    tile.certificate.predicted_kld = 0;
    bool all = true;
    for (const Staging::Sum& sum : st.sums) all = all && sum.summed == page.tokens;
    if (all) {
      for (int p = units_[u].plane_begin; p < units_[u].plane_end; ++p) {
        const Plane& plane = planes_[p];
        for (int h = 0; h < plane.heads; ++h) {
          tile.crc32c = Crc32cConcat(tile.crc32c, st.sums[plane.first_row + h].crc32c,
                                     plane.head_dim * element * page.tokens);
        }
      }
    } else {  // some of it came out of order, or from the session's tail
      tile.crc32c = Crc32c({st.data, tile.bytes});
    }
    raw_bytes += 2 * static_cast<uint64_t>(units_[u].elements) * page.tokens;
    stored_bytes += tile.bytes;
    st.data = nullptr;
  }
  page.sealed = true;
  KeepChunk(page, HeaderOf(page, codec_->id()), placed, std::move(page.in_place));
  {
    std::lock_guard<std::mutex> lock(mu_);
    progress_.stored_bytes += stored_bytes;
  }
  pipeline_->metrics_->Encoded(FindCodec(codec_->id())->name, raw_bytes, stored_bytes,
                               SteadyNow() - start);
}

void PutRun::KeepChunk(Page& page, const ChunkHeader& header,
                       absl::Span<const PlacedTile> tiles, ChunkBytes bytes) {
  SealChunk(header, tiles, absl::MakeSpan(bytes));
  NewChunk chunk;
  double kld = 0;
  bool certified = false;
  for (const PlacedTile& t : tiles) {
    if (t.certificate.predicted_kld < 0) continue;
    certified = true;
    kld += t.certificate.predicted_kld;
  }
  for (size_t u = 0; u < units_.size(); ++u) {
    const int tokens = page.tokens - page.units[u].token_begin;
    chunk.raw_bytes += 2 * static_cast<uint64_t>(units_[u].elements) * tokens;
  }
  chunk.token_begin = page.token_begin;
  chunk.tokens = static_cast<uint32_t>(page.tokens);
  chunk.bytes = std::move(bytes);
  if (certified) chunk.predicted_kld = kld;
  const uint64_t index = (page.token_begin - first_token_) / kPageTokens;
  if (index < prefix_ids_.size()) {
    chunk.prefix_id = prefix_ids_[index];
  }
  page.chunk = std::move(chunk);  // read only once outstanding_ is zero
}

// What may be missing of a unit at the end of a run: the oldest tokens of sliding layers,
// outside their window, the same for all rows.
absl::Status PutRun::CheckAbsent(const Page& page, int unit, int* token_begin) const {
  const Unit& u = units_[unit];
  const Staging& st = page.units[unit];
  *token_begin = 0;
  if (st.cells_missing == 0) return absl::OkStatus();
  const uint64_t end = params_.token_begin + params_.token_count;
  int begin = -1;
  for (int p = u.plane_begin; p < u.plane_end; ++p) {
    const Plane& plane = planes_[p];
    const LayerGeometry& layer = shard_geometry_.layers[plane.layer];
    for (int h = 0; h < plane.heads; ++h) {
      const auto have = st.have.empty() ? std::array<uint64_t, 2>{} : st.have[plane.first_row + h];
      int first = 0;  // the oldest token of those that came, if they reach to the end
      while (first < page.tokens &&
             Bits(first, page.tokens - first) !=
                 std::array<uint64_t, 2>{have[0] & Bits(first, page.tokens - first)[0],
                                         have[1] & Bits(first, page.tokens - first)[1]}) {
        ++first;
      }
      const bool prefix_only = have == Bits(first, page.tokens - first);
      const bool outside = layer.kind == LayerKind::kSliding &&
                           page.token_begin + first + layer.window <= end;
      if (first > 0 && (!prefix_only || !outside)) {
        return Invalid(
            "INCOMPLETE",
            absl::StrCat("the run is incomplete: layer ", plane.layer + params_.shard.layer_begin, " ",
                         plane.kind == StreamKind::kV ? "V" : "K", " head ",
                         h + params_.shard.head_begin, " lacks tokens in [", page.token_begin, ", ",
                         page.token_begin + first, ")"));
      }
      if (begin >= 0 && first != begin) {
        return Invalid("INCOMPLETE",
                       absl::StrCat("layers [", u.layer_begin, ", ", u.layer_end,
                                    ") are coded together, but of tokens [", page.token_begin, ", ",
                                    page.token_begin + page.tokens,
                                    ") they hold different parts"));
      }
      begin = first;
    }
  }
  *token_begin = std::max(begin, 0);
  return absl::OkStatus();
}

absl::Status PutRun::CloseUnit(int page_index, int unit) {
  Page& page = pages_[page_index];
  Staging& st = page.units[unit];
  if (st.submitted) return absl::OkStatus();
  return CheckAbsent(page, unit, &st.token_begin);
}

// An unsealed tail is kept in raw form: it will be encoded when its page is full.
absl::Status PutRun::EncodeTail(Page& page) {
  const auto groups = raw_codec_->groups();
  page.tiles = std::vector<Tile>(groups.size());
  Workspace workspace;
  for (size_t g = 0; g < groups.size(); ++g) {
    Tile& tile = page.tiles[g];
    const int plane = layer_planes_[groups[g].layer_begin];
    if (plane < layer_planes_[groups[g].layer_end]) {
      tile.token_begin = page.units[planes_[plane].unit].token_begin;
    }
    tile.tokens = page.tokens - tile.token_begin;
    if (tile.tokens == 0) continue;
    const auto planes = Views(page, groups[g].layer_begin, groups[g].layer_end, tile.token_begin);
    const size_t most =
        raw_codec_->MaxTileBytes(static_cast<int>(g), tile.tokens, params_.dtype);
    tile.data.reset(new uint8_t[most]);
    EncodeJob job;
    job.group = static_cast<int>(g);
    job.tokens = tile.tokens;
    job.source.dtype = params_.dtype;
    job.source.planes = planes;
    job.positions = Slice(positions_, page, tile.token_begin, tile.tokens);
    job.destination = absl::MakeSpan(tile.data.get(), most);
    absl::Status s = raw_codec_->Encode(absl::MakeSpan(&job, 1), workspace);
    if (s.ok()) s = job.status;
    if (!s.ok()) return s;
    tile.bytes = job.bytes;
  }
  FinishPage(page, CodecId::kRaw, groups);
  return absl::OkStatus();
}

void PutRun::Commit(bool seal, bool durable,
                    std::function<void(absl::StatusOr<CommitResult>)> done) {
  absl::Status status;
  for (size_t p = 0; status.ok() && p < pages_.size(); ++p) {
    for (size_t u = 0; status.ok() && u < units_.size(); ++u) {
      status = CloseUnit(static_cast<int>(p), static_cast<int>(u));
    }
  }
  for (size_t p = 0; status.ok() && p < pages_.size(); ++p) {
    Page& page = pages_[p];
    if (page.sealed) continue;
    if (WholeInPlace(page)) {
      SealInPlace(page);
      continue;
    }
    if (page.tokens < kPageTokens && !seal) {
      status = EncodeTail(page);
      continue;
    }
    for (size_t u = 0; u < units_.size(); ++u) {
      Staging& st = page.units[u];
      if (st.submitted) continue;  // on its way already
      if (st.token_begin < page.tokens && units_[u].elements > 0) {
        Submit(static_cast<int>(p), static_cast<int>(u));
        continue;
      }
      st.submitted = true;  // nothing of it is held
      bool page_done;
      {
        std::lock_guard<std::mutex> lock(mu_);
        page.tiles_left -= static_cast<int>(units_[u].groups.size());
        page_done = page.tiles_left == 0;
      }
      if (page_done) FinishPage(page, codec_->id(), codec_->groups());
    }
  }
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (error_.ok()) error_ = status;
    committing_ = true;
    seal_ = seal;
    durable_ = durable;
    done_ = std::move(done);
  }
  pipeline_->encode_batcher_->Flush();
  MaybeCommit();
}

void PutRun::MaybeCommit() {
  std::function<void(absl::StatusOr<CommitResult>)> done;
  CommitRequest request;
  absl::Status error;
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (!committing_ || outstanding_ > 0 || !done_) return;
    done = std::move(done_);
    done_ = nullptr;
    error = error_;
    if (error.ok()) {
      uint64_t bytes = 0;
      for (Page& p : pages_) {
        bytes += p.chunk->bytes.size();
        request.chunks.push_back(std::move(*p.chunk));
      }
      request.reservation = reservation_.Split(std::min(bytes, reservation_.bytes()));
    }
    reservation_ = Reservation();
  }
  if (!error.ok()) {
    done(error);
    return;
  }
  request.session = params_.session;
  request.traits = traits_;
  request.shard = static_cast<uint32_t>(params_.shard.index);
  request.shard_label =
      absl::StrCat(params_.shard.layer_begin, ":", params_.shard.layer_end, ":",
                   params_.shard.head_begin, ":", params_.shard.head_end);
  request.base_version = before_.version;
  request.incarnation = before_.incarnation;
  request.token_begin = params_.token_begin;
  request.tokens = params_.token_count;
  request.seal = seal_;
  request.put_id = params_.put_id;
  request.ttl = params_.ttl;
  request.labels = params_.labels;
  auto result = pipeline_->store_->Commit(std::move(request));
  if (absl::IsResourceExhausted(result.status())) {
    return done(WithReason(result.status(), "QUOTA"));
  }
  if (result.ok() && !result->replayed) {
    pipeline_->metrics_->Committed(traits_.codec, result->raw_bytes, result->stored_bytes,
                                  result->predicted_kld);
  }
  if (!durable_ || !result.ok()) return done(std::move(result));
  pipeline_->store_->WhenDurable(
      params_.session, [done = std::move(done), result = *std::move(result)](absl::Status s) {
        if (s.ok()) return done(result);
        done(WithReason(s, "DURABILITY"));
      });
}

bool PutRun::dead() const {
  std::lock_guard<std::mutex> lock(mu_);
  return !error_.ok();
}

void PutRun::Abort() {
  std::lock_guard<std::mutex> lock(mu_);
  if (error_.ok()) error_ = absl::CancelledError("the run was aborted");
}

PutRun::Progress PutRun::progress() const {
  std::lock_guard<std::mutex> lock(mu_);
  return progress_;
}

}  // namespace kvcask
