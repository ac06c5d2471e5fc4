#include "codec/profile/mean_profile.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/base/strided.h"
#include "codec/transform/rope_cache.h"

namespace kvcask {
namespace {

constexpr int64_t kSinkPositions = 4;

}  // namespace

MeanProfileMaker::MeanProfileMaker(Geometry g)
    : geometry_(std::move(g)),
      planes_(ListPlanes(geometry_, 0, static_cast<int>(geometry_.layers.size()))) {
  for (const PlaneInfo& plane : planes_) {
    sums_.emplace_back(static_cast<size_t>(plane.heads) * plane.head_dim);
  }
}

absl::Status MeanProfileMaker::Add(const ConstKvView& cache, int64_t tokens,
                                   int64_t first_position) {
  if (cache.planes.size() != planes_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("means: ", cache.planes.size(), " planes; expected ", planes_.size()));
  }
  if (tokens < 1 || first_position < 0 || tokens > (int64_t{1} << 32) - first_position) {
    return absl::InvalidArgumentError(absl::StrCat("means: ", tokens, " tokens from position ",
                                                   first_position, "; positions end at 2^32"));
  }
  const int64_t skipped = std::clamp<int64_t>(kSinkPositions - first_position, 0, tokens);
  std::vector<std::vector<double>> sums = sums_;
  RopeCache ropes;
  std::vector<float> rows;
  std::vector<uint32_t> positions;
  for (int64_t begin = skipped; begin < tokens; begin += kPageTokens) {
    const int count = static_cast<int>(std::min<int64_t>(kPageTokens, tokens - begin));
    positions.resize(count);
    for (int t = 0; t < count; ++t) {
      positions[t] = static_cast<uint32_t>(first_position + begin + t);
    }
    for (size_t p = 0; p < planes_.size(); ++p) {
      const PlaneInfo& plane = planes_[p];
      if (plane.kind == StreamKind::kLatent) continue;
      const Rope& rope = geometry_.layers[plane.layer].rope;
      const bool turned = plane.kind == StreamKind::kK && rope.style != RopeStyle::kNone;
      rows.resize(static_cast<size_t>(count) * plane.head_dim);
      for (int h = 0; h < plane.heads; ++h) {
        LoadHead(cache, static_cast<int>(p), h, static_cast<int>(begin),
                 static_cast<int>(begin) + count, plane.head_dim, rows.data());
        if (turned) {
          ApplyRope(rope, ropes.Get(rope, positions, 0, RopeDirection::kUnrotate), count,
                    plane.head_dim, rows.data());
        }
        double* sum = &sums[p][static_cast<size_t>(h) * plane.head_dim];
        for (int t = 0; t < count; ++t) {
          for (int d = 0; d < plane.head_dim; ++d) {
            const float x = rows[static_cast<size_t>(t) * plane.head_dim + d];
            if (!std::isfinite(x)) {
              return absl::InvalidArgumentError(absl::StrCat(
                  "means: layer ", plane.layer, " ", StreamName(plane.kind), " head ", h,
                  " token ", begin + t, " has a number ", x));
            }
            sum[d] += x;
          }
        }
      }
    }
  }
  sums_ = std::move(sums);
  tokens_ += tokens - skipped;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint8_t>> MeanProfileMaker::Build(absl::string_view name,
                                                             absl::string_view model) const {
  if (tokens_ == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("means: no token beyond position ", kSinkPositions - 1));
  }
  std::vector<uint8_t> file;
  SafetensorsWriter writer([&](absl::Span<const uint8_t> b) {
    file.insert(file.end(), b.begin(), b.end());
    return absl::OkStatus();
  });
  writer.SetMetadata("kvcask.profile", "1");
  writer.SetMetadata("codec", "int8");
  writer.SetMetadata("name", name);
  writer.SetMetadata("model", model);
  writer.SetMetadata("means.tokens", absl::StrCat(tokens_));
  writer.SetMetadata("geometry", GeometryToJson(geometry_));
  std::vector<float> means;
  for (size_t p = 0; p < planes_.size(); ++p) {
    const PlaneInfo& plane = planes_[p];
    if (plane.kind == StreamKind::kLatent) continue;
    const char* stream = plane.kind == StreamKind::kK ? "k" : "v";
    if (absl::Status s = writer.Declare(absl::StrFormat("mean.%02d.%s", plane.layer, stream), "F32",
                                        {plane.heads, plane.head_dim});
        !s.ok()) {
      return s;
    }
    for (double sum : sums_[p]) {
      means.push_back(static_cast<float>(sum / static_cast<double>(tokens_)));
    }
  }
  if (means.empty()) return absl::FailedPreconditionError("means: the model has no K and no V");
  if (absl::Status s = writer.Begin(); !s.ok()) return s;
  const auto* bytes = reinterpret_cast<const uint8_t*>(means.data());
  if (absl::Status s = writer.Write({bytes, means.size() * sizeof(float)}); !s.ok()) return s;
  if (absl::Status s = writer.Finish(); !s.ok()) return s;
  return file;
}

}  // namespace kvcask
