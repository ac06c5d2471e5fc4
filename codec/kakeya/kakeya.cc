#include "codec/kakeya/kakeya.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "codec/api/jobs.h"
#include "codec/base/strided.h"
#include "codec/kakeya/plane.h"
#include "codec/profile/profile.h"
#include "codec/raw/raw_tile.h"
#include "codec/transform/rope.h"

namespace kvcask {
namespace {

using kakeya::Calibration;
using kakeya::PlaneForm;
using kakeya::PlaneShape;

// Frozen in the file format.
constexpr size_t kHeaderBytes = 4;
constexpr size_t kPlaneHeaderBytes = 8;
constexpr uint8_t kRawForm = 0;
constexpr uint8_t kPlanesForm = 1;
constexpr uint8_t kRawPlane = 0;
constexpr uint8_t kPerHeadPlane = 1;
constexpr uint8_t kPooledPlane = 2;
constexpr uint8_t kUnrotatedFlag = 1;
constexpr uint8_t kWhitenedFlag = 2;

class KakeyaCodec : public Codec {
 public:
  KakeyaCodec(CodecId id, Geometry geometry, const ShardRange& shard, Calibration calibration)
      : id_(id),
        geometry_(std::move(geometry)),
        shard_(shard),
        groups_(OneGroupPerLayer(geometry_)),
        calibration_(std::move(calibration)) {}

  CodecId id() const override { return id_; }
  const Geometry& geometry() const override { return geometry_; }
  absl::Span<const Group> groups() const override { return groups_; }
  size_t MaxTileBytes(int group, int tokens, Dtype dtype) const override {
    const Group& g = groups_[group];
    return kHeaderBytes + kPlaneHeaderBytes * geometry_.layers[g.layer_begin].streams.size() +
           RawTileBytes(geometry_, g, tokens, dtype);
  }
  absl::Status Encode(absl::Span<EncodeJob> jobs, Workspace&) const override {
    for (EncodeJob& job : jobs) {
      job.status = EncodeOne(job);
      job.certificate = Certificate();
      if (!job.status.ok()) job.bytes = 0;
    }
    return absl::OkStatus();
  }
  absl::Status Decode(absl::Span<DecodeJob> jobs, Workspace& workspace) const override {
    for (DecodeJob& job : jobs) job.status = DecodeOne(job, workspace);
    return absl::OkStatus();
  }

 private:
  absl::Status EncodeOne(EncodeJob& job) const;
  // Appends one plane to the tile.
  absl::Status EncodeOnePlane(const EncodeJob& job, const PlaneInfo& info, int plane,
                              std::vector<uint8_t>* tile) const;
  absl::Status NotFinite(const EncodeJob& job, const PlaneInfo& info, int plane, int head,
                         int token) const;
  absl::Status DecodeOne(DecodeJob& job, Workspace& workspace) const;
  // `body`: all after the plane's header.
  absl::Status DecodeOnePlane(const DecodeJob& job, const PlaneInfo& info, int out_plane,
                              uint8_t kind, uint8_t flags, size_t section_bytes, uint32_t sinks,
                              absl::Span<const uint8_t> body) const;
  PlaneShape ShapeOf(const PlaneInfo& info) const {
    return {info.kind,     shard_.layer_begin + info.layer,   shard_.head_begin, info.heads,
            info.head_dim, &geometry_.layers[info.layer].rope};
  }

  const CodecId id_;
  const Geometry geometry_;
  const ShardRange shard_;
  const std::vector<Group> groups_;
  const Calibration calibration_;
};

void AppendPlaneHeader(uint8_t kind, uint8_t flags, size_t bytes, std::vector<uint8_t>* tile) {
  const uint8_t header[kPlaneHeaderBytes] = {kind,
                                             flags,
                                             0,
                                             0,
                                             static_cast<uint8_t>(bytes),
                                             static_cast<uint8_t>(bytes >> 8),
                                             static_cast<uint8_t>(bytes >> 16),
                                             static_cast<uint8_t>(bytes >> 24)};
  tile->insert(tile->end(), header, header + kPlaneHeaderBytes);
}

std::vector<int> SinkTokens(absl::Span<const uint32_t> positions, uint32_t sinks, bool want) {
  std::vector<int> tokens;
  for (size_t t = 0; t < positions.size(); ++t) {
    if ((positions[t] < sinks) == want) tokens.push_back(static_cast<int>(t));
  }
  return tokens;
}

absl::Status KakeyaCodec::EncodeOne(EncodeJob& job) const {
  const bool known = job.group >= 0 && static_cast<size_t>(job.group) < groups_.size();
  const size_t limit =
      known ? MaxTileBytes(job.group, std::max(job.tokens, 0), job.source.dtype) : 0;
  if (absl::Status s = CheckEncodeJob(geometry_, groups_, job, limit); !s.ok()) return s;
  const Group& group = groups_[job.group];
  const std::vector<PlaneInfo> planes = ListPlanes(geometry_, group.layer_begin, group.layer_end);
  std::vector<uint8_t> tile = {kPlanesForm, static_cast<uint8_t>(calibration_.params.sink_tokens),
                               0, 0};
  for (size_t p = 0; p < planes.size(); ++p) {
    absl::Status s = EncodeOnePlane(job, planes[p], static_cast<int>(p), &tile);
    if (!s.ok()) return s;
  }
  const size_t raw = kHeaderBytes + RawTileBytes(geometry_, group, job.tokens, job.source.dtype);
  if (tile.size() < raw) {
    std::copy(tile.begin(), tile.end(), job.destination.begin());
    job.bytes = tile.size();
    return absl::OkStatus();
  }
  std::memset(job.destination.data(), 0, kHeaderBytes);
  EncodeRawTile(geometry_, group, job.source, job.tokens, job.destination.data() + kHeaderBytes);
  job.bytes = raw;
  return absl::OkStatus();
}

absl::Status KakeyaCodec::EncodeOnePlane(const EncodeJob& job, const PlaneInfo& info, int plane,
                                         std::vector<uint8_t>* tile) const {
  const size_t dim = info.head_dim;
  const auto coded = SinkTokens(job.positions, calibration_.params.sink_tokens, false);
  const auto sinks = SinkTokens(job.positions, calibration_.params.sink_tokens, true);
  std::vector<float> head(job.tokens * dim), rows;
  for (int h = 0; h < info.heads; ++h) {
    LoadHead(job.source, plane, h, 0, job.tokens, info.head_dim, head.data());
    for (size_t i = 0; i < head.size(); ++i) {
      if (!std::isfinite(head[i])) {
        return NotFinite(job, info, plane, h, static_cast<int>(i / dim));
      }
    }
    for (int t : coded) rows.insert(rows.end(), &head[t * dim], &head[t * dim] + dim);
  }
  std::vector<uint32_t> positions;
  for (int t : coded) positions.push_back(job.positions[t]);

  const PlaneShape shape = ShapeOf(info);
  const size_t element = DtypeSize(job.source.dtype);
  const size_t raw_bytes = info.heads * job.tokens * dim * element;
  const size_t sink_bytes = info.heads * sinks.size() * dim * element;
  std::vector<uint8_t> section;
  absl::Status s = absl::OutOfRangeError("not coded");
  if (IsCoded(calibration_, shape) && !coded.empty()) {
    s = EncodePlane(calibration_, shape, positions, {}, absl::MakeSpan(rows), nullptr, &section);
  }
  if (!s.ok() && !absl::IsOutOfRange(s)) return s;
  if (!s.ok() || section.size() + sink_bytes >= raw_bytes) {
    AppendPlaneHeader(kRawPlane, 0, raw_bytes, tile);
    const size_t at = tile->size();
    tile->resize(at + raw_bytes);
    for (int h = 0; h < info.heads; ++h) {
      GatherHead(job.source, plane, h, 0, job.tokens, info.head_dim,
                 &(*tile)[at + h * (raw_bytes / info.heads)]);
    }
    return absl::OkStatus();
  }
  const PlaneForm form = FormOf(calibration_, shape);
  AppendPlaneHeader(form.pooled ? kPooledPlane : kPerHeadPlane,
                    (form.unrotated ? kUnrotatedFlag : 0) | (form.whitened ? kWhitenedFlag : 0),
                    section.size(), tile);
  tile->insert(tile->end(), section.begin(), section.end());
  for (int h = 0; h < info.heads; ++h) {
    for (int t : sinks) {
      const size_t at = tile->size();
      tile->resize(at + dim * element);
      GatherHead(job.source, plane, h, t, t + 1, info.head_dim, &(*tile)[at]);
    }
  }
  return absl::OkStatus();
}

absl::Status KakeyaCodec::NotFinite(const EncodeJob& job, const PlaneInfo& info, int plane,
                                    int head, int token) const {
  int d = 0;
  float x = 0;
  for (; d < info.head_dim; ++d) {
    x = LoadElement(job.source.At(plane, head, token, d), job.source.dtype);
    if (!std::isfinite(x)) break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("kakeya: layer ", shard_.layer_begin + info.layer, ", ", StreamName(info.kind),
                   ", head ", shard_.head_begin + head, ", token ", token, " (position ",
                   job.positions[token], "), element ", d, " is ",
                   std::isnan(x) ? "NaN"
                   : x > 0       ? "Inf"
                                 : "-Inf",
                   "; expected finite numbers"));
}

absl::Status KakeyaCodec::DecodeOne(DecodeJob& job, Workspace& workspace) const {
  if (absl::Status s = CheckDecodeJob(geometry_, groups_, job); !s.ok()) return s;
  const auto corrupt = [&](const auto&... what) {
    return absl::DataLossError(absl::StrCat("kakeya tile of group ", job.group, ": ", what...));
  };
  absl::Span<const uint8_t> tile = job.tile;
  if (tile.size() < kHeaderBytes) {
    return corrupt(tile.size(), " bytes; expected at least ", kHeaderBytes);
  }
  if (tile[0] > kPlanesForm || tile[2] != 0 || tile[3] != 0 ||
      (tile[0] == kRawForm && tile[1] != 0)) {
    return corrupt("unknown form at byte 0");
  }
  const Group& group = groups_[job.group];
  if (tile[0] == kRawForm) {
    return DecodeRawTile(geometry_, group, tile.subspan(kHeaderBytes), job, workspace);
  }
  const uint32_t sinks = tile[1];
  const uint64_t sink_tokens = SinkTokens(job.positions, sinks, true).size();
  tile.remove_prefix(kHeaderBytes);
  int out_plane = 0;
  for (const PlaneInfo& info : ListPlanes(geometry_, group.layer_begin, group.layer_end)) {
    if (tile.size() < kPlaneHeaderBytes) return corrupt("ends before a plane's header");
    const uint8_t kind = tile[0], flags = tile[1];
    uint32_t bytes;
    std::memcpy(&bytes, &tile[4], 4);
    if (kind > kPooledPlane || flags > 3 || (kind == kRawPlane && flags != 0) || tile[2] != 0 ||
        tile[3] != 0) {
      return corrupt("a plane of kind ", kind, ", flags ", flags);
    }
    const uint64_t row_bytes =
        uint64_t{static_cast<unsigned>(info.heads)} * info.head_dim * DtypeSize(job.source_dtype);
    const uint64_t kept = kind == kRawPlane ? 0 : row_bytes * sink_tokens;
    tile.remove_prefix(kPlaneHeaderBytes);
    if (bytes + kept > tile.size() || (kind == kRawPlane && bytes != row_bytes * job.tokens)) {
      return corrupt("a plane of ", bytes, " bytes and ", kept, " of sinks; ", tile.size(),
                     " are left");
    }
    if (info.layer >= job.layer_begin && info.layer < job.layer_end) {
      absl::Status s = DecodeOnePlane(job, info, out_plane++, kind, flags, bytes, sinks, tile);
      if (!s.ok()) return s;
    }
    tile.remove_prefix(bytes + kept);
  }
  if (!tile.empty()) return corrupt(tile.size(), " bytes after the last plane");
  return absl::OkStatus();
}

absl::Status KakeyaCodec::DecodeOnePlane(const DecodeJob& job, const PlaneInfo& info, int out_plane,
                                         uint8_t kind, uint8_t flags, size_t section_bytes,
                                         uint32_t sinks, absl::Span<const uint8_t> body) const {
  const PlaneShape shape = ShapeOf(info);
  const size_t dim = info.head_dim, element = DtypeSize(job.source_dtype);
  const int wanted = job.token_end - job.token_begin;
  // Tokens of the tile by how they are kept, and the wanted ones among them.
  const auto kept = SinkTokens(job.positions, kind == kRawPlane ? ~0u : sinks, true);
  const auto coded = SinkTokens(job.positions, kind == kRawPlane ? ~0u : sinks, false);
  const auto from = [&](const std::vector<int>& v, int token) {
    return static_cast<int>(std::lower_bound(v.begin(), v.end(), token) - v.begin());
  };
  const int begin = from(coded, job.token_begin), end = from(coded, job.token_end);
  std::vector<uint32_t> positions;
  for (int t : coded) positions.push_back(job.positions[t]);
  std::vector<float> decoded(static_cast<size_t>(info.heads) * (end - begin) * dim);
  if (end > begin) {
    PlaneForm form;
    form.pooled = kind == kPooledPlane;
    form.unrotated = flags & kUnrotatedFlag;
    form.whitened = flags & kWhitenedFlag;
    absl::Status s = DecodePlane(calibration_, shape, form, body.first(section_bytes), positions,
                                 begin, end, job.position_offset, decoded.data());
    if (!s.ok()) return s;
  }
  const uint8_t* received = body.data() + (kind == kRawPlane ? 0 : section_bytes);
  const bool turn = info.kind == StreamKind::kK && job.position_offset != 0 &&
                    shape.rope->style != RopeStyle::kNone;
  RopeTable shift;
  if (turn) shift = MakeRopeShift(*shape.rope, job.position_offset);
  std::vector<float> head(static_cast<size_t>(wanted) * dim);
  for (int h = 0; h < info.heads; ++h) {
    for (int i = begin; i < end; ++i) {
      std::copy_n(&decoded[(static_cast<size_t>(h) * (end - begin) + i - begin) * dim], dim,
                  &head[(coded[i] - job.token_begin) * dim]);
    }
    for (int i = from(kept, job.token_begin); i < from(kept, job.token_end); ++i) {
      float* row = &head[(kept[i] - job.token_begin) * dim];
      LoadRow(received + (h * kept.size() + i) * dim * element, static_cast<int64_t>(element),
              job.source_dtype, dim, row);
      if (turn) ApplyRope(*shape.rope, shift, 1, info.head_dim, row);
    }
    StoreHead(head.data(), job.destination, out_plane, h, 0, wanted, info.head_dim);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Codec>> Make(CodecId id, const char* name, bool takes_profile,
                                            const CodecSpec& spec) {
  if (absl::Status s = spec.model.Validate(); !s.ok()) return s;
  absl::StatusOr<Geometry> geometry = SliceGeometry(spec.model, spec.shard);
  if (!geometry.ok()) return geometry.status();
  if (spec.profile == nullptr && takes_profile) {
    return absl::FailedPreconditionError(
        absl::StrCat("codec ", name, " needs a profile, and none was named"));
  }
  absl::StatusOr<kakeya::Params> params = kakeya::PresetParams(name);
  if (spec.profile != nullptr) params = kakeya::ParamsOfProfile(*spec.profile, name);
  if (params.ok()) params = kakeya::ApplySetting(spec.setting, *params);
  if (!params.ok()) return params.status();
  absl::StatusOr<Calibration> calibration =
      spec.profile != nullptr
          ? kakeya::ReadCalibration(*spec.profile, spec.model, name, *params)
          : kakeya::CalibrationOf(*params, static_cast<int>(spec.model.layers.size()));
  if (!calibration.ok()) return calibration.status();
  return std::make_unique<KakeyaCodec>(id, *std::move(geometry), spec.shard,
                                       *std::move(calibration));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Codec>> MakeKakeya10Codec(const CodecSpec& spec) {
  return Make(CodecId::kKakeya10, "kakeya-1.0", false, spec);
}
absl::StatusOr<std::unique_ptr<Codec>> MakeKakeya12Codec(const CodecSpec& spec) {
  return Make(CodecId::kKakeya12, "kakeya-1.2", false, spec);
}
absl::StatusOr<std::unique_ptr<Codec>> MakeKakeya13Codec(const CodecSpec& spec) {
  return Make(CodecId::kKakeya13, "kakeya-1.3", false, spec);
}
absl::StatusOr<std::unique_ptr<Codec>> MakeKakeya13PplCodec(const CodecSpec& spec) {
  return Make(CodecId::kKakeya13Ppl, "kakeya-1.3-ppl", true, spec);
}

absl::StatusOr<std::string> CanonicalKakeyaSetting(absl::string_view setting) {
  return kakeya::CanonicalSetting(setting);
}

}  // namespace kvcask
