#include "codec/scalar/int8.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "codec/api/jobs.h"
#include "codec/base/row_kernels.h"
#include "codec/base/strided.h"
#include "codec/profile/means.h"
#include "codec/quant/half.h"
#include "codec/raw/raw_tile.h"
#include "codec/transform/rope_cache.h"

namespace kvcask {
namespace {

// Frozen in the file format.
constexpr size_t kHeaderBytes = 4;
constexpr uint8_t kRawForm = 0;
constexpr uint8_t kInt8Form = 1;
constexpr float kLargestCode = 127;

struct Plane {
  PlaneInfo info;
  std::vector<float> mean;  // [heads][head_dim], or none
  bool unrotated = false;   // coded so: keys with a mean
};

// Sizes of a tile in int8 form.
struct Int8Layout {
  size_t codes = 0;  // offset; scales stand before
  size_t bytes = 0;
};
Int8Layout LayoutOf(absl::Span<const Plane> planes, int tokens) {
  Int8Layout layout;
  size_t rows = 0, elements = 0;
  for (const Plane& p : planes) {
    rows += static_cast<size_t>(p.info.heads) * tokens;
    elements += static_cast<size_t>(p.info.heads) * tokens * p.info.head_dim;
  }
  layout.codes = kHeaderBytes + rows * 2;
  layout.bytes = layout.codes + elements;
  return layout;
}

class Int8Codec : public Codec {
 public:
  Int8Codec(Geometry geometry, ShardRange shard, std::vector<std::vector<Plane>> planes)
      : geometry_(std::move(geometry)),
        shard_(shard),
        groups_(OneGroupPerLayer(geometry_)),
        planes_(std::move(planes)) {}

  CodecId id() const override { return CodecId::kInt8; }
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
  // False when a magnitude is beyond what a half's scale can carry.
  absl::StatusOr<bool> EncodeInt8(EncodeJob& job, const Int8Layout& layout, RopeCache& ropes,
                                  Workspace& workspace) const;
  absl::Status DecodeOne(DecodeJob& job, RopeCache& ropes, Workspace& workspace) const;
  void DecodeHead(const DecodeJob& job, const Plane& plane, const uint8_t* scales,
                  const uint8_t* codes, int head, int out_plane, const RopeTable* table,
                  absl::Span<float> rows) const;
  absl::Status NotFinite(const EncodeJob& job, int plane, int head, int token) const;

  const Geometry geometry_;
  const ShardRange shard_;
  const std::vector<Group> groups_;
  const std::vector<std::vector<Plane>> planes_;  // of each group
};

absl::Span<float> Floats(Workspace& workspace, int tokens, int head_dim) {
  const size_t n = static_cast<size_t>(tokens) * head_dim;
  return {reinterpret_cast<float*>(workspace.Get(n * sizeof(float)).data()), n};
}

void AddMean(const float* mean, float sign, int tokens, int head_dim, float* rows) {
  for (int t = 0; t < tokens; ++t, rows += head_dim) {
    for (int d = 0; d < head_dim; ++d) rows[d] += sign * mean[d];
  }
}

absl::Status Int8Codec::EncodeOne(EncodeJob& job, RopeCache& ropes, Workspace& workspace) const {
  const bool known = job.group >= 0 && static_cast<size_t>(job.group) < groups_.size();
  const size_t limit = known ? MaxTileBytes(job.group, job.tokens, job.source.dtype) : 0;
  if (absl::Status s = CheckEncodeJob(geometry_, groups_, job, limit); !s.ok()) return s;
  const Int8Layout layout = LayoutOf(planes_[job.group], job.tokens);
  uint8_t* out = job.destination.data();
  std::memset(out, 0, kHeaderBytes);
  // Rows of one or two elements are shorter as they are; they are coded all the same to find
  // what is not finite, where there is room to.
  absl::StatusOr<bool> coded = false;
  if (layout.bytes < limit) {
    coded = EncodeInt8(job, layout, ropes, workspace);
  } else {
    std::vector<uint8_t> room(layout.bytes);
    EncodeJob trial = job;
    trial.destination = absl::MakeSpan(room);
    const absl::StatusOr<bool> finite = EncodeInt8(trial, layout, ropes, workspace);
    if (!finite.ok()) coded = finite.status();
  }
  if (!coded.ok()) return coded.status();
  if (*coded) {
    out[0] = kInt8Form;
    job.bytes = layout.bytes;
  } else {
    out[0] = kRawForm;
    EncodeRawTile(geometry_, groups_[job.group], job.source, job.tokens, out + kHeaderBytes);
    job.bytes = limit;
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> Int8Codec::EncodeInt8(EncodeJob& job, const Int8Layout& layout,
                                           RopeCache& ropes, Workspace& workspace) const {
  uint8_t* scales = job.destination.data() + kHeaderBytes;
  int8_t* codes = reinterpret_cast<int8_t*>(job.destination.data() + layout.codes);
  const std::vector<Plane>& planes = planes_[job.group];
  bool fits = true;
  for (size_t p = 0; p < planes.size(); ++p) {
    const Plane& plane = planes[p];
    const int head_dim = plane.info.head_dim;
    const Rope& rope = geometry_.layers[plane.info.layer].rope;
    const RopeTable* table =
        plane.unrotated ? &ropes.Get(rope, job.positions, 0, RopeDirection::kUnrotate) : nullptr;
    const absl::Span<float> rows = Floats(workspace, job.tokens, head_dim);
    for (int h = 0; h < plane.info.heads; ++h) {
      LoadHead(job.source, static_cast<int>(p), h, 0, job.tokens, head_dim, rows.data());
      if (table != nullptr) ApplyRope(rope, *table, job.tokens, head_dim, rows.data());
      if (!plane.mean.empty()) {
        AddMean(&plane.mean[static_cast<size_t>(h) * head_dim], -1, job.tokens, head_dim,
                rows.data());
      }
      const float* x = rows.data();
      for (int t = 0; t < job.tokens; ++t, x += head_dim, codes += head_dim, scales += 2) {
        const uint32_t largest_bits = MaxMagnitudeBits(x, head_dim);
        if (largest_bits >= kNonFiniteBits) {
          // What came in finite may have overflowed in fp32 on the way here.
          absl::Status s = NotFinite(job, static_cast<int>(p), h, t);
          if (!s.ok()) return s;
          fits = false;
          continue;
        }
        float largest;
        std::memcpy(&largest, &largest_bits, 4);
        const uint16_t half = HalfAtLeast(largest / kLargestCode);
        if (half >= kInfiniteHalf) {
          fits = false;
          continue;  // later rows may still hold what must be refused
        }
        std::memcpy(scales, &half, 2);
        const float scale = F16ToFloat(half);
        QuantiseInt8(x, head_dim, scale > 0 ? 1 / scale : 0, codes);
      }
    }
  }
  return fits;
}

absl::Status Int8Codec::NotFinite(const EncodeJob& job, int plane, int head, int token) const {
  const PlaneInfo& info = planes_[job.group][plane].info;
  for (int d = 0; d < info.head_dim; ++d) {
    const float x = LoadElement(job.source.At(plane, head, token, d), job.source.dtype);
    if (std::isfinite(x)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("int8: layer ", shard_.layer_begin + info.layer, ", ", StreamName(info.kind),
                     ", head ", shard_.head_begin + head, ", token ", token, " (position ",
                     job.positions[token], "), element ", d, " is ",
                     std::isnan(x) ? "NaN"
                     : x > 0       ? "Inf"
                                   : "-Inf",
                     "; expected finite numbers"));
  }
  return absl::OkStatus();
}

absl::Status Int8Codec::DecodeOne(DecodeJob& job, RopeCache& ropes, Workspace& workspace) const {
  if (absl::Status s = CheckDecodeJob(geometry_, groups_, job); !s.ok()) return s;
  const auto corrupt = [&](const auto&... what) {
    return absl::DataLossError(absl::StrCat("int8 tile of group ", job.group, ": ", what...));
  };
  const absl::Span<const uint8_t> tile = job.tile;
  if (tile.size() < kHeaderBytes) {
    return corrupt(tile.size(), " bytes; expected at least ", kHeaderBytes);
  }
  if (tile[0] > kInt8Form || tile[1] != 0 || tile[2] != 0 || tile[3] != 0) {
    return corrupt("unknown form at byte 0");
  }
  if (tile[0] == kRawForm) {
    return DecodeRawTile(geometry_, groups_[job.group], tile.subspan(kHeaderBytes), job, workspace);
  }
  const std::vector<Plane>& planes = planes_[job.group];
  const Int8Layout layout = LayoutOf(planes, job.tokens);
  if (tile.size() != layout.bytes) {
    return corrupt(tile.size(), " bytes; expected ", layout.bytes);
  }
  for (size_t at = kHeaderBytes; at < layout.codes; at += 2) {
    uint16_t half;
    std::memcpy(&half, &tile[at], 2);
    if (half >= kInfiniteHalf) return corrupt("scale at byte ", at, " is not a finite number");
  }
  const int wanted = job.token_end - job.token_begin;
  const uint8_t* scales = tile.data() + kHeaderBytes;
  const uint8_t* codes = tile.data() + layout.codes;
  int out_plane = 0;
  for (const Plane& plane : planes) {
    const PlaneInfo& info = plane.info;
    const size_t rows = static_cast<size_t>(info.heads) * job.tokens;
    if (info.layer >= job.layer_begin && info.layer < job.layer_end) {
      const Rope& rope = geometry_.layers[info.layer].rope;
      const RopeTable* table = nullptr;
      if (plane.unrotated) {
        table = &ropes.Get(rope, job.positions.subspan(job.token_begin, wanted),
                           job.position_offset, RopeDirection::kRotate);
      } else if (info.kind == StreamKind::kK && job.position_offset != 0 &&
                 rope.style != RopeStyle::kNone) {
        table = &ropes.GetShift(rope, job.position_offset);
      }
      const absl::Span<float> floats = Floats(workspace, wanted, info.head_dim);
      for (int h = 0; h < info.heads; ++h) {
        const size_t row = static_cast<size_t>(h) * job.tokens + job.token_begin;
        DecodeHead(job, plane, scales + 2 * row, codes + row * info.head_dim, h, out_plane, table,
                   floats);
      }
      ++out_plane;
    }
    scales += 2 * rows;
    codes += rows * info.head_dim;
  }
  return absl::OkStatus();
}

void Int8Codec::DecodeHead(const DecodeJob& job, const Plane& plane, const uint8_t* scales,
                           const uint8_t* codes, int head, int out_plane, const RopeTable* table,
                           absl::Span<float> rows) const {
  const int wanted = job.token_end - job.token_begin;
  const int head_dim = plane.info.head_dim;
  for (int t = 0; t < wanted; ++t) {
    uint16_t half;
    std::memcpy(&half, scales + 2 * t, 2);
    const size_t at = static_cast<size_t>(t) * head_dim;
    DequantiseInt8(reinterpret_cast<const int8_t*>(codes + at), head_dim, F16ToFloat(half),
                   &rows[at]);
  }
  if (!plane.mean.empty()) {
    AddMean(&plane.mean[static_cast<size_t>(head) * head_dim], 1, wanted, head_dim, rows.data());
  }
  if (table != nullptr) {
    ApplyRope(geometry_.layers[plane.info.layer].rope, *table, wanted, head_dim, rows.data());
  }
  StoreHead(rows.data(), job.destination, out_plane, head, 0, wanted, head_dim);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Codec>> MakeInt8Codec(const CodecSpec& spec) {
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
      Plane plane{info, std::move((*means)[at++]), false};
      plane.unrotated = !plane.mean.empty() && info.kind == StreamKind::kK &&
                        geometry->layers[info.layer].rope.style != RopeStyle::kNone;
      planes.back().push_back(std::move(plane));
    }
  }
  return std::make_unique<Int8Codec>(*std::move(geometry), spec.shard, std::move(planes));
}

}  // namespace kvcask
