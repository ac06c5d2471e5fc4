#include "codec/raw/raw.h"

#include <absl/strings/str_cat.h>

#include <utility>
#include <vector>

#include "codec/api/jobs.h"
#include "codec/raw/raw_tile.h"

namespace kvcask {
namespace {

class RawCodec : public Codec {
 public:
  explicit RawCodec(Geometry geometry)
      : geometry_(std::move(geometry)), groups_(OneGroupPerLayer(geometry_)) {}

  CodecId id() const override { return CodecId::kRaw; }
  const Geometry& geometry() const override { return geometry_; }
  absl::Span<const Group> groups() const override { return groups_; }
  size_t MaxTileBytes(int group, int tokens, Dtype dtype) const override {
    return RawTileBytes(geometry_, groups_[group], tokens, dtype);
  }
  bool tile_is_source() const override { return true; }

  absl::Status Encode(absl::Span<EncodeJob> jobs, Workspace&) const override {
    for (EncodeJob& job : jobs) {
      job.status = EncodeOne(job);
      if (!job.status.ok()) job.bytes = 0;
    }
    return absl::OkStatus();
  }

  absl::Status Decode(absl::Span<DecodeJob> jobs, Workspace& workspace) const override {
    for (DecodeJob& job : jobs) {
      job.status = CheckDecodeJob(geometry_, groups_, job);
      if (job.status.ok()) {
        job.status = DecodeRawTile(geometry_, groups_[job.group], job.tile, job, workspace);
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status EncodeOne(EncodeJob& job) const {
    const bool sizable = job.group >= 0 && static_cast<size_t>(job.group) < groups_.size();
    const size_t bytes =
        sizable ? RawTileBytes(geometry_, groups_[job.group], job.tokens, job.source.dtype) : 0;
    if (absl::Status s = CheckEncodeJob(geometry_, groups_, job, bytes); !s.ok()) return s;
    EncodeRawTile(geometry_, groups_[job.group], job.source, job.tokens, job.destination.data());
    job.bytes = bytes;
    job.certificate.predicted_kld = 0;
    return absl::OkStatus();
  }

  const Geometry geometry_;
  const std::vector<Group> groups_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Codec>> MakeRawCodec(const CodecSpec& spec) {
  if (spec.profile != nullptr) {
    return absl::InvalidArgumentError("codec raw takes no profile");
  }
  absl::StatusOr<Geometry> geometry = SliceGeometry(spec.model, spec.shard);
  if (!geometry.ok()) return geometry.status();
  if (absl::Status s = geometry->Validate(); !s.ok()) return s;
  return std::make_unique<RawCodec>(*std::move(geometry));
}

}  // namespace kvcask
