#include "codec/profile/means.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <cmath>
#include <cstring>
#include <string>

#include "codec/base/dtype.h"
#include "codec/profile/profile.h"

namespace kvcask {
namespace {

constexpr char kMeansCodec[] = "int8", kGroupsCodec[] = "fklt";

template <typename... Args>
absl::Status Bad(const Profile& profile, const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("profile ", profile.name(), ": ", what...));
}

absl::Status CheckFinite(const Profile& profile, const std::string& name,
                         absl::Span<const float> numbers) {
  for (float v : numbers) {
    if (!std::isfinite(v)) return Bad(profile, name, " has a number ", v);
  }
  return absl::OkStatus();
}

// mean.LL.k and mean.LL.v: F32 [heads of the model, head_dim].
absl::Status ReadTensors(const CodecSpec& spec, absl::Span<const PlaneInfo> planes,
                         std::vector<std::vector<float>>* means) {
  const Profile& profile = *spec.profile;
  for (size_t p = 0; p < planes.size(); ++p) {
    const PlaneInfo& plane = planes[p];
    if (plane.kind == StreamKind::kLatent) continue;
    const bool is_key = plane.kind == StreamKind::kK;
    const int layer = spec.shard.layer_begin + plane.layer;
    const std::string name = absl::StrFormat("mean.%02d.%s", layer, is_key ? "k" : "v");
    const Profile::Tensor* tensor = profile.Find(name);
    if (tensor == nullptr) continue;
    const int heads = spec.model.layers[layer].streams[is_key ? 0 : 1].heads;
    if (tensor->dtype != "F32" || tensor->shape != std::vector<int64_t>{heads, plane.head_dim}) {
      return Bad(profile, name, " is not F32 [", heads, ", ", plane.head_dim, "]");
    }
    std::vector<float>& mean = (*means)[p];
    mean.resize(static_cast<size_t>(plane.heads) * plane.head_dim);
    const size_t first = static_cast<size_t>(spec.shard.head_begin) * plane.head_dim;
    std::memcpy(mean.data(), tensor->bytes.data() + first * sizeof(float),
                mean.size() * sizeof(float));
    if (absl::Status s = CheckFinite(profile, name, mean); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ReadIntegers(const Profile& profile, const std::string& name) {
  const Profile::Tensor* tensor = profile.Find(name);
  if (tensor == nullptr || tensor->dtype != "I32") return Bad(profile, name, " is not there as I32");
  std::vector<int32_t> out(tensor->bytes.size() / 4);
  std::memcpy(out.data(), tensor->bytes.data(), out.size() * 4);
  return out;
}

// group.N.mu, the means of group.N.members one after the other: (layer, stream, head) of the
// model.
absl::Status ReadGroup(const CodecSpec& spec, const std::string& prefix,
                       absl::Span<const PlaneInfo> planes,
                       std::vector<std::vector<float>>* means) {
  const Profile& profile = *spec.profile;
  auto members = ReadIntegers(profile, prefix + "members");
  if (!members.ok()) return members.status();
  const Profile::Tensor* mu = profile.Find(prefix + "mu");
  if (mu == nullptr || (mu->dtype != "F32" && mu->dtype != "F16")) {
    return Bad(profile, prefix, "mu is not there as F32 or F16");
  }
  const Dtype dtype = mu->dtype == "F32" ? Dtype::kF32 : Dtype::kF16;
  std::vector<float> numbers(mu->bytes.size() / DtypeSize(dtype));
  LoadRow(mu->bytes.data(), static_cast<int64_t>(DtypeSize(dtype)), dtype, numbers.size(),
          numbers.data());
  if (absl::Status s = CheckFinite(profile, prefix + "mu", numbers); !s.ok()) return s;
  size_t at = 0;
  for (size_t i = 0; i + 3 <= members->size(); i += 3) {
    const int layer = (*members)[i], stream = (*members)[i + 1], head = (*members)[i + 2];
    if (layer < 0 || layer >= static_cast<int>(spec.model.layers.size())) {
      return Bad(profile, prefix, "members names layer ", layer);
    }
    size_t dim = 0;
    for (const StreamGeometry& s : spec.model.layers[layer].streams) {
      if (static_cast<int>(s.kind) == stream && head >= 0 && head < s.heads) dim = s.head_dim;
    }
    if (dim == 0 || numbers.size() - at < dim) {
      return Bad(profile, prefix, "members and mu do not fit the geometry at layer ", layer,
                 " stream ", stream, " head ", head);
    }
    for (size_t p = 0; p < planes.size(); ++p) {
      const PlaneInfo& plane = planes[p];
      const int own_head = head - spec.shard.head_begin;
      if (plane.layer + spec.shard.layer_begin != layer ||
          static_cast<int>(plane.kind) != stream || own_head < 0 || own_head >= plane.heads) {
        continue;
      }
      std::vector<float>& mean = (*means)[p];
      mean.resize(static_cast<size_t>(plane.heads) * dim);
      std::memcpy(&mean[own_head * dim], &numbers[at], dim * sizeof(float));
    }
    at += dim;
  }
  return absl::OkStatus();
}

absl::Status ReadGroups(const CodecSpec& spec, absl::Span<const PlaneInfo> planes,
                        std::vector<std::vector<float>>* means) {
  auto count = ReadIntegers(*spec.profile, "fklt.groups");
  if (!count.ok()) return count.status();
  if (count->size() != 1) return Bad(*spec.profile, "fklt.groups is not one number");
  for (int n = 0; n < (*count)[0]; ++n) {
    absl::Status s = ReadGroup(spec, absl::StrCat("group.", n, "."), planes, means);
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace

bool ProfileHasMeans(absl::string_view codec) {
  return codec == kMeansCodec || codec == kGroupsCodec;
}

absl::StatusOr<std::vector<std::vector<float>>> ReadMeans(const CodecSpec& spec,
                                                          const Geometry& shard_geometry) {
  const std::vector<PlaneInfo> planes =
      ListPlanes(shard_geometry, 0, static_cast<int>(shard_geometry.layers.size()));
  std::vector<std::vector<float>> means(planes.size());
  if (spec.profile == nullptr) return means;
  const Profile& profile = *spec.profile;
  if (!ProfileHasMeans(profile.codec())) {
    return absl::FailedPreconditionError(
        absl::StrCat("profile ", profile.name(), " is for codec ", profile.codec(), "; expected ",
                     kMeansCodec, " or ", kGroupsCodec));
  }
  const std::string difference =
      DescribeGeometryDifference(profile.geometry(), spec.model, "the profile", "the data");
  if (!difference.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "profile ", profile.name(), " is for another geometry: ", difference));
  }
  absl::Status s = profile.codec() == kMeansCodec ? ReadTensors(spec, planes, &means)
                                                  : ReadGroups(spec, planes, &means);
  if (!s.ok()) return s;
  return means;
}

}  // namespace kvcask
