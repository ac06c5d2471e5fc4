#include "codec/fklt/fklt.h"

#include <absl/strings/str_cat.h>

#include <string>
#include <utility>
#include <vector>

#include "codec/api/jobs.h"
#include "codec/fklt/fklt_profile.h"
#include "codec/fklt/group_coder.h"
#include "codec/fklt/tile_codec.h"
#include "codec/fklt/tile_layout.h"

namespace kvcask {
namespace {

using fklt::FkltProfile;
using fklt::GroupCoder;
using fklt::GroupModel;
using fklt::Member;

// The first number in which the geometries differ.
std::string Difference(const Geometry& a, const Geometry& b) {
  if (a.layers.size() != b.layers.size()) {
    return absl::StrCat(a.layers.size(), " layers; the profile has ", b.layers.size());
  }
  for (size_t l = 0; l < a.layers.size(); ++l) {
    const LayerGeometry& x = a.layers[l];
    const LayerGeometry& y = b.layers[l];
    const std::string layer = absl::StrCat("layer ", l, ": ");
    auto differ = [&](const char* what, double p, double q) {
      return absl::StrCat(layer, what, " ", p, "; the profile has ", q);
    };
    if (x.kind != y.kind) {
      return differ("kind", static_cast<int>(x.kind), static_cast<int>(y.kind));
    }
    if (x.window != y.window) return differ("window", x.window, y.window);
    if (x.streams.size() != y.streams.size()) {
      return differ("streams", x.streams.size(), y.streams.size());
    }
    for (size_t s = 0; s < x.streams.size(); ++s) {
      if (x.streams[s].heads != y.streams[s].heads) {
        return differ("heads", x.streams[s].heads, y.streams[s].heads);
      }
      if (x.streams[s].head_dim != y.streams[s].head_dim) {
        return differ("head_dim", x.streams[s].head_dim, y.streams[s].head_dim);
      }
    }
    if (x.rope.style != y.rope.style || x.rope.dims != y.rope.dims) {
      return differ("rotary dims", x.rope.dims, y.rope.dims);
    }
    for (size_t i = 0; i < x.rope.inv_freq.size() && i < y.rope.inv_freq.size(); ++i) {
      if (x.rope.inv_freq[i] != y.rope.inv_freq[i]) {
        return differ(absl::StrCat("inverse frequency ", i, " is").c_str(), x.rope.inv_freq[i],
                      y.rope.inv_freq[i]);
      }
    }
    if (x.rope.attention_scale != y.rope.attention_scale) {
      return differ("attention scale", x.rope.attention_scale, y.rope.attention_scale);
    }
  }
  return "something that has no number";
}

bool InShard(const Member& m, const ShardRange& s) {
  return m.layer >= s.layer_begin && m.layer < s.layer_end && m.head >= s.head_begin &&
         m.head < s.head_end;
}

class FkltCodec : public Codec {
 public:
  FkltCodec(Geometry geometry, std::shared_ptr<const FkltProfile> profile,
            const FkltOptions& options)
      : geometry_(std::move(geometry)), profile_(std::move(profile)), options_(options) {}

  absl::Status AddGroups(const ShardRange& range) {
    for (size_t g = 0; g < profile_->groups.size(); ++g) {
      const GroupModel& model = profile_->groups[g];
      size_t inside = 0;
      for (const Member& m : model.members) inside += InShard(m, range);
      if (inside == 0) continue;
      if (inside != model.members.size()) {
        return absl::FailedPreconditionError(
            absl::StrCat("fklt profile: group ", g, " has ", inside, " of its ",
                         model.members.size(), " sub-vectors in shard ", range.index, " of ",
                         range.count, "; calibrate with groups that don't cross shards"));
      }
      auto coder = GroupCoder::Make(model, geometry_, range);
      if (!coder.ok()) return coder.status();
      groups_.push_back((*coder)->group());
      coders_.push_back(*std::move(coder));
    }
    return absl::OkStatus();
  }

  CodecId id() const override { return CodecId::kFklt; }
  const Geometry& geometry() const override { return geometry_; }
  absl::Span<const Group> groups() const override { return groups_; }

  size_t MaxTileBytes(int group, int tokens, Dtype dtype) const override {
    return fklt::kRawHeaderBytes +
           static_cast<size_t>(coders_[group]->dimensions()) * tokens * DtypeSize(dtype);
  }

  absl::Status Encode(absl::Span<EncodeJob> jobs, Workspace& workspace) const override {
    fklt::RopeCache ropes;
    for (EncodeJob& job : jobs) {
      job.bytes = 0;
      job.certificate = {};
      const bool sizable =
          job.group >= 0 && static_cast<size_t>(job.group) < groups_.size() && job.tokens >= 0;
      const size_t most = sizable ? MaxTileBytes(job.group, job.tokens, job.source.dtype) : 0;
      job.status = CheckEncodeJob(geometry_, groups_, job, most);
      if (!job.status.ok()) continue;
      job.status = fklt::EncodeTile(*profile_, *coders_[job.group], options_.path,
                                    options_.step_limit_shift, &ropes, workspace, &job);
      if (!job.status.ok()) job.bytes = 0;
    }
    return absl::OkStatus();
  }

  absl::Status Decode(absl::Span<DecodeJob> jobs, Workspace& workspace) const override {
    fklt::RopeCache ropes;
    for (DecodeJob& job : jobs) {
      job.status = CheckDecodeJob(geometry_, groups_, job);
      if (!job.status.ok()) continue;
      job.status =
          fklt::DecodeTile(*profile_, *coders_[job.group], options_.path, &ropes, workspace, job);
    }
    return absl::OkStatus();
  }

  double MeasureKld(const EncodeJob& job, const ConstKvView& decoded) const override {
    return fklt::MeasureTile(*profile_, *coders_[job.group], job, decoded);
  }

 private:
  const Geometry geometry_;  // of the shard; coders point into it
  const std::shared_ptr<const FkltProfile> profile_;
  const FkltOptions options_;
  std::vector<Group> groups_;
  std::vector<std::unique_ptr<GroupCoder>> coders_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Codec>> MakeFkltCodec(const CodecSpec& spec) {
  FkltOptions options;
  if (spec.short_segments) options.step_limit_shift = fklt::kMaxStepLimitShift;
  return MakeFkltCodecWith(spec, options);
}

absl::StatusOr<std::unique_ptr<Codec>> MakeFkltCodecWith(const CodecSpec& spec,
                                                         const FkltOptions& options) {
  if (options.step_limit_shift < 0 || options.step_limit_shift > fklt::kMaxStepLimitShift) {
    return absl::InvalidArgumentError(absl::StrCat("codec fklt: step limit 512 >> ",
                                                   options.step_limit_shift,
                                                   "; expected a shift of 0 to 2"));
  }
  if (spec.profile == nullptr) {
    return absl::InvalidArgumentError("codec fklt needs a profile; calibrate the model first");
  }
  if (spec.profile->geometry().ComputeFingerprint() != spec.model.ComputeFingerprint()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "fklt profile ", spec.profile->name(), " is for another geometry: the cache's ",
        Difference(spec.model, spec.profile->geometry())));
  }
  absl::StatusOr<Geometry> shard = SliceGeometry(spec.model, spec.shard);
  if (!shard.ok()) return shard.status();
  if (absl::Status s = shard->Validate(); !s.ok()) return s;
  absl::StatusOr<std::shared_ptr<const FkltProfile>> profile = FkltProfile::Read(spec.profile);
  if (!profile.ok()) return profile.status();
  fklt::UseOneBlasThread();
  auto codec = std::make_unique<FkltCodec>(*std::move(shard), *std::move(profile), options);
  if (absl::Status s = codec->AddGroups(spec.shard); !s.ok()) return s;
  return codec;
}

}  // namespace kvcask
