#include "codec/fixed/fixed_codec.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "codec/base/row_kernels.h"
#include "codec/base/strided.h"
#include "codec/profile/means.h"
#include "codec/raw/raw_tile.h"
#include "codec/transform/rope_cache.h"

namespace kvcask {
namespace {

// Frozen in the file format.
constexpr size_t kHeaderBytes = 4;
constexpr uint8_t kRawForm = 0;
constexpr uint8_t kCodedForm = 1;

struct Plane {
  PlaneInfo info;
  CoderSpec spec;
  std::vector<float> mean;                  // [heads][head_dim], or none; of the profile
  std::shared_ptr<const PlaneCoder> coder;  // null for kRaw
};

// Which tokens of a tile a plane codes, and which it keeps raw: sinks, and what does not fill
// a coder's last group of tokens.
struct Rows {
  Rows(const CoderSpec& spec, const PlaneCoder* coder, absl::Span<const uint32_t> positions) {
    const int tokens = static_cast<int>(positions.size());
    const auto is_sink = [&](int t) { return positions[t] < static_cast<uint32_t>(spec.sinks); };
    int others = 0;
    for (int t = 0; t < tokens; ++t) others += !is_sink(t);
    coded_count = coder == nullptr ? 0 : coder->CodedRows(others);
    for (int t = 0; t < tokens; ++t) {
      const bool code = !is_sink(t) && static_cast<int>(coded.size()) < coded_count;
      (code ? coded : raw).push_back(t);
    }
  }
  int coded_count = 0;
  std::vector<int> coded, raw;  // tokens, rising
};

size_t PlaneBytes(const Plane& plane, const Rows& rows, Dtype dtype) {
  const size_t raw = rows.raw.size() * plane.info.head_dim * DtypeSize(dtype);
  const size_t coded = plane.coder == nullptr ? 0 : plane.coder->Bytes(rows.coded_count);
  return (raw + coded) * plane.info.heads;
}

class FixedCodec : public Codec {
 public:
  FixedCodec(CodecId id, const char* name, Geometry geometry, ShardRange shard,
             std::vector<std::vector<Plane>> planes)
      : id_(id),
        name_(name),
        geometry_(std::move(geometry)),
        shard_(shard),
        groups_(OneGroupPerLayer(geometry_)),
        planes_(std::move(planes)) {}

  CodecId id() const override { return id_; }
  const Geometry& geometry() const override { return geometry_; }
  absl::Span<const Group> groups() const override { return groups_; }
  size_t MaxTileBytes(int group, int tokens, Dtype dtype) const override {
    return kHeaderBytes + RawTileBytes(geometry_, groups_[group], tokens, dtype);
  }

  absl::Status Encode(absl::Span<EncodeJob> jobs, Workspace& workspace) const override {
    RopeCache ropes;
    for (EncodeJob& job : jobs) {
      job.status = EncodeOne(job, ropes, workspace);
      job.certificate = Certificate();
      if (!job.status.ok()) job.bytes = 0;
    }
    return absl::OkStatus();
  }
  absl::Status Decode(absl::Span<DecodeJob> jobs, Workspace& workspace) const override {
    RopeCache ropes;
    for (DecodeJob& job : jobs) job.status = DecodeOne(job, ropes, workspace);
    return absl::OkStatus();
  }

 private:
  absl::Status EncodeOne(EncodeJob& job, RopeCache& ropes, Workspace& workspace) const;
  // The rows of one head as they are coded, all tokens: un-rotated, less their mean.
  absl::Status LoadRows(const EncodeJob& job, int plane, int head, RopeCache& ropes,
                        absl::Span<float> rows, bool* finite) const;
  absl::Status NotFinite(const EncodeJob& job, int plane, int head) const;
  absl::Status DecodeOne(DecodeJob& job, RopeCache& ropes, Workspace& workspace) const;
  absl::Status DecodePlane(const DecodeJob& job, const Plane& plane, const Rows& rows,
                           const uint8_t* body, int out_plane, RopeCache& ropes,
                           Workspace& workspace) const;
  template <typename... Args>
  absl::Status Corrupt(const DecodeJob& job, const Args&... what) const {
    return absl::DataLossError(
        absl::StrCat(name_, " tile of group ", job.group, ": ", what...));
  }

  const CodecId id_;
  const std::string name_;
  const Geometry geometry_;
  const ShardRange shard_;
  const std::vector<Group> groups_;
  const std::vector<std::vector<Plane>> planes_;  // of each group
};

absl::Span<float> Floats(Workspace& workspace, size_t n) {
  return {reinterpret_cast<float*>(workspace.Get(n * sizeof(float)).data()), n};
}

void AddMean(const float* mean, float sign, int tokens, int head_dim, float* rows) {
  for (int t = 0; t < tokens; ++t, rows += head_dim) {
    for (int d = 0; d < head_dim; ++d) rows[d] += sign * mean[d];
  }
}

bool Turns(const Geometry& g, const PlaneInfo& info) {
  return info.kind == StreamKind::kK && g.layers[info.layer].rope.style != RopeStyle::kNone;
}

absl::Status FixedCodec::EncodeOne(EncodeJob& job, RopeCache& ropes, Workspace& workspace) const {
  const bool known = job.group >= 0 && static_cast<size_t>(job.group) < groups_.size();
  const size_t limit = known ? MaxTileBytes(job.group, job.tokens, job.source.dtype) : 0;
  if (absl::Status s = CheckEncodeJob(geometry_, groups_, job, limit); !s.ok()) return s;
  const std::vector<Plane>& planes = planes_[job.group];
  std::vector<Rows> rows;
  size_t bytes = kHeaderBytes + planes.size() * kCoderSpecBytes;
  for (const Plane& plane : planes) {
    rows.emplace_back(plane.spec, plane.coder.get(), job.positions);
    bytes += PlaneBytes(plane, rows.back(), job.source.dtype);
  }
  bool coded = bytes < limit;  // rows of one or two elements are shorter raw
  uint8_t* const begin = job.destination.data();
  uint8_t* out = begin + kHeaderBytes;
  std::memset(begin, 0, kHeaderBytes);
  if (coded) {
    for (const Plane& plane : planes) {
      WriteCoderSpec(plane.spec, out);
      out += kCoderSpecBytes;
    }
  }
  const size_t element = DtypeSize(job.source.dtype);
  for (size_t p = 0; p < planes.size(); ++p) {
    const Plane& plane = planes[p];
    const size_t dim = plane.info.head_dim;
    const absl::Span<float> x = Floats(workspace, job.tokens * dim);
    for (int h = 0; h < plane.info.heads; ++h) {
      if (coded) {
        for (int t : rows[p].raw) {
          GatherHead(job.source, static_cast<int>(p), h, t, t + 1, static_cast<int>(dim), out);
          out += dim * element;
        }
      }
      if (plane.coder == nullptr) continue;
      bool finite = true;
      absl::Status s = LoadRows(job, static_cast<int>(p), h, ropes, x, &finite);
      if (!s.ok()) return s;
      coded = coded && finite;
      if (!coded) continue;  // later rows may still hold what must be refused
      const std::vector<int>& tokens = rows[p].coded;
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] != static_cast<int>(i)) {
          std::memcpy(&x[i * dim], &x[tokens[i] * dim], dim * sizeof(float));
        }
      }
      coded = plane.coder->Encode(x.data(), rows[p].coded_count, out);
      out += plane.coder->Bytes(rows[p].coded_count);
    }
  }
  if (coded) {
    begin[0] = kCodedForm;
    job.bytes = bytes;
  } else {
    EncodeRawTile(geometry_, groups_[job.group], job.source, job.tokens, begin + kHeaderBytes);
    job.bytes = limit;
  }
  return absl::OkStatus();
}

absl::Status FixedCodec::LoadRows(const EncodeJob& job, int p, int head, RopeCache& ropes,
                                  absl::Span<float> rows, bool* finite) const {
  const Plane& plane = planes_[job.group][p];
  const int dim = plane.info.head_dim;
  LoadHead(job.source, p, head, 0, job.tokens, dim, rows.data());
  if (plane.spec.unrotated) {
    const Rope& rope = geometry_.layers[plane.info.layer].rope;
    ApplyRope(rope, ropes.Get(rope, job.positions, 0, RopeDirection::kUnrotate), job.tokens, dim,
              rows.data());
  }
  if (plane.spec.minus_mean) {
    AddMean(&plane.mean[static_cast<size_t>(head) * dim], -1, job.tokens, dim, rows.data());
  }
  *finite = MaxMagnitudeBits(rows.data(), rows.size()) < kNonFiniteBits;
  // What came in finite may have overflowed in fp32 on the way here.
  return *finite ? absl::OkStatus() : NotFinite(job, p, head);
}

absl::Status FixedCodec::NotFinite(const EncodeJob& job, int plane, int head) const {
  const PlaneInfo& info = planes_[job.group][plane].info;
  for (int t = 0; t < job.tokens; ++t) {
    for (int d = 0; d < info.head_dim; ++d) {
      const float x = LoadElement(job.source.At(plane, head, t, d), job.source.dtype);
      if (std::isfinite(x)) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          name_, ": layer ", shard_.layer_begin + info.layer, ", ", StreamName(info.kind),
          ", head ", shard_.head_begin + head, ", token ", t, " (position ", job.positions[t],
          "), element ", d, " is ", std::isnan(x) ? "NaN" : x > 0 ? "Inf" : "-Inf",
          "; expected finite numbers"));
    }
  }
  return absl::OkStatus();
}

absl::Status FixedCodec::DecodeOne(DecodeJob& job, RopeCache& ropes, Workspace& workspace) const {
  if (absl::Status s = CheckDecodeJob(geometry_, groups_, job); !s.ok()) return s;
  const absl::Span<const uint8_t> tile = job.tile;
  if (tile.size() < kHeaderBytes) {
    return Corrupt(job, tile.size(), " bytes; expected at least ", kHeaderBytes);
  }
  if (tile[0] > kCodedForm || tile[1] != 0 || tile[2] != 0 || tile[3] != 0) {
    return Corrupt(job, "unknown form at byte 0");
  }
  if (tile[0] == kRawForm) {
    return DecodeRawTile(geometry_, groups_[job.group], tile.subspan(kHeaderBytes), job, workspace);
  }
  const std::vector<Plane>& own = planes_[job.group];
  size_t bytes = kHeaderBytes + own.size() * kCoderSpecBytes;
  if (tile.size() < bytes) return Corrupt(job, tile.size(), " bytes; expected at least ", bytes);
  std::vector<Plane> planes;
  std::vector<Rows> rows;
  for (size_t p = 0; p < own.size(); ++p) {
    const size_t at = kHeaderBytes + p * kCoderSpecBytes;
    absl::StatusOr<CoderSpec> spec = ReadCoderSpec(&tile[at]);
    if (!spec.ok()) return Corrupt(job, "byte ", at, ": ", spec.status().message());
    Plane plane{own[p].info, *spec, {}, own[p].coder};
    if (*spec != own[p].spec) plane.coder = MakePlaneCoder(*spec, plane.info.head_dim);
    if (spec->unrotated && !Turns(geometry_, plane.info)) {
      return Corrupt(job, "byte ", at, ": un-rotated, but without rotation here");
    }
    if (spec->minus_mean) {
      if (own[p].mean.empty()) {
        return Corrupt(job, "byte ", at, ": a mean was taken off that the profile does not have");
      }
      plane.mean = own[p].mean;
    }
    rows.emplace_back(*spec, plane.coder.get(), job.positions);
    bytes += PlaneBytes(plane, rows.back(), job.source_dtype);
    planes.push_back(std::move(plane));
  }
  if (tile.size() != bytes) return Corrupt(job, tile.size(), " bytes; expected ", bytes);
  const uint8_t* body = tile.data() + kHeaderBytes + planes.size() * kCoderSpecBytes;
  int out_plane = 0;
  for (size_t p = 0; p < planes.size(); ++p) {
    const int layer = planes[p].info.layer;
    if (layer >= job.layer_begin && layer < job.layer_end) {
      absl::Status s =
          DecodePlane(job, planes[p], rows[p], body, out_plane++, ropes, workspace);
      if (!s.ok()) return s;
    }
    body += PlaneBytes(planes[p], rows[p], job.source_dtype);
  }
  return absl::OkStatus();
}

absl::Status FixedCodec::DecodePlane(const DecodeJob& job, const Plane& plane, const Rows& rows,
                                     const uint8_t* body, int out_plane, RopeCache& ropes,
                                     Workspace& workspace) const {
  const PlaneInfo& info = plane.info;
  const size_t dim = info.head_dim, element = DtypeSize(job.source_dtype);
  const int wanted = job.token_end - job.token_begin;
  const auto range = [&](const std::vector<int>& tokens) {  // of those wanted
    const auto begin = std::lower_bound(tokens.begin(), tokens.end(), job.token_begin);
    const auto end = std::lower_bound(begin, tokens.end(), job.token_end);
    return std::pair<int, int>(begin - tokens.begin(), end - tokens.begin());
  };
  const auto [coded_begin, coded_end] = range(rows.coded);
  const auto [raw_begin, raw_end] = range(rows.raw);
  const Rope& rope = geometry_.layers[info.layer].rope;
  const bool shifts = Turns(geometry_, info) && job.position_offset != 0;
  const bool copies = !shifts && job.destination.dtype == job.source_dtype;
  const RopeTable* table = nullptr;
  if (plane.spec.unrotated) {
    table = &ropes.Get(rope, job.positions.subspan(job.token_begin, wanted), job.position_offset,
                       RopeDirection::kRotate);
  } else if (shifts) {
    table = &ropes.GetShift(rope, job.position_offset);
  }
  const absl::Span<float> x = Floats(workspace, (wanted + 1) * dim);
  const bool any_coded = coded_begin < coded_end;
  const size_t raw_row = dim * element, raw_bytes = rows.raw.size() * raw_row;
  const size_t coded_bytes = plane.coder == nullptr ? 0 : plane.coder->Bytes(rows.coded_count);
  for (int h = 0; h < info.heads; ++h, body += raw_bytes + coded_bytes) {
    if (any_coded) {
      if (!plane.coder->Decode(body + raw_bytes, rows.coded_count, coded_begin, coded_end,
                               x.data())) {
        return Corrupt(job, StreamName(info.kind), " head ", h, ": a number that no encoder writes");
      }
      // To their places, the last first: they only move towards the end.
      for (int i = coded_end - coded_begin - 1; i >= 0; --i) {
        const int to = rows.coded[coded_begin + i] - job.token_begin;
        if (to != i) std::memmove(&x[to * dim], &x[i * dim], dim * sizeof(float));
      }
      if (plane.spec.minus_mean) {
        AddMean(&plane.mean[h * dim], 1, wanted, info.head_dim, x.data());
      }
      if (table != nullptr) ApplyRope(rope, *table, wanted, info.head_dim, x.data());
      StoreHead(x.data(), job.destination, out_plane, h, 0, wanted, info.head_dim);
    }
    for (int i = raw_begin; i < raw_end; ++i) {
      const uint8_t* row = body + i * raw_row;
      const int to = rows.raw[i] - job.token_begin;
      if (copies) {
        ScatterHead(row, job.destination, out_plane, h, to, to + 1, info.head_dim);
        continue;
      }
      float* const one = &x[wanted * dim];
      LoadRow(row, static_cast<int64_t>(element), job.source_dtype, dim, one);
      if (shifts) {
        ApplyRope(rope, MakeRopeShift(rope, job.position_offset), 1, info.head_dim, one);
      }
      StoreHead(one, job.destination, out_plane, h, to, to + 1, info.head_dim);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Codec>> MakeFixedCodec(CodecId id, const char* name,
                                                      const CodecSpec& spec, ChooseCoder choose) {
  if (absl::Status s = spec.model.Validate(); !s.ok()) return s;
  absl::StatusOr<Geometry> geometry = SliceGeometry(spec.model, spec.shard);
  if (!geometry.ok()) return geometry.status();
  auto means = ReadMeans(spec, *geometry);
  if (!means.ok()) return means.status();
  std::vector<std::vector<Plane>> planes;
  size_t at = 0;
  for (const Group& group : OneGroupPerLayer(*geometry)) {
    planes.emplace_back();
    for (const PlaneInfo& info : ListPlanes(*geometry, group.layer_begin, group.layer_end)) {
      Plane plane{info, choose(spec.shard.layer_begin + info.layer, info), {}, nullptr};
      plane.mean = std::move((*means)[at++]);
      if (absl::Status s = CheckCoderSpec(plane.spec); !s.ok()) return s;
      plane.spec.minus_mean = plane.spec.minus_mean && !plane.mean.empty();
      if (plane.spec.minus_mean) plane.spec.sinks = std::max(plane.spec.sinks, kSinksWithMean);
      plane.spec.unrotated =
          (plane.spec.unrotated || plane.spec.minus_mean) && Turns(*geometry, info);
      plane.coder = MakePlaneCoder(plane.spec, info.head_dim);
      planes.back().push_back(std::move(plane));
    }
  }
  return std::make_unique<FixedCodec>(id, name, *std::move(geometry), spec.shard,
                                      std::move(planes));
}

namespace {

// Rows of a tile that a plane codes.
int CodedRows(const PlaneInfo& plane, const CoderSpec& spec, int tokens, int sink_rows) {
  if (spec.kind == CoderKind::kRaw) return 0;
  return MakePlaneCoder(spec, plane.head_dim)->CodedRows(tokens - sink_rows);
}

}  // namespace

size_t ExactRowBytes(const PlaneInfo& plane, const CoderSpec& spec, int tokens, int sink_rows,
                     Dtype dtype) {
  return size_t(tokens - CodedRows(plane, spec, tokens, sink_rows)) * plane.heads *
         plane.head_dim * DtypeSize(dtype);
}

size_t CodedRowBytes(const PlaneInfo& plane, const CoderSpec& spec, int tokens, int sink_rows) {
  const int rows = CodedRows(plane, spec, tokens, sink_rows);
  if (rows == 0) return 0;
  return MakePlaneCoder(spec, plane.head_dim)->Bytes(rows) * plane.heads;
}

size_t FixedTileBytes(absl::Span<const PlaneInfo> planes, absl::Span<const CoderSpec> specs,
                      int tokens, Dtype dtype) {
  size_t coded = kHeaderBytes + planes.size() * kCoderSpecBytes, raw = kHeaderBytes;
  for (size_t p = 0; p < planes.size(); ++p) {
    coded += ExactRowBytes(planes[p], specs[p], tokens, 0, dtype) +
             CodedRowBytes(planes[p], specs[p], tokens, 0);
    raw += size_t(tokens) * planes[p].heads * planes[p].head_dim * DtypeSize(dtype);
  }
  return std::min(coded, raw);
}

}  // namespace kvcask
