#include "codec/kakeya/calibration.h"

#include <absl/strings/str_cat.h>

#include <cmath>
#include <cstring>

#include "codec/profile/profile.h"

namespace kvcask::kakeya {
namespace {

template <typename... Args>
absl::Status Bad(const Profile& profile, const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("profile ", profile.name(), ": ", what...));
}

// An F32 tensor of that shape, finite; empty where there is none.
absl::StatusOr<std::vector<float>> ReadTensor(const Profile& profile, const std::string& name,
                                              const std::vector<int64_t>& shape) {
  const Profile::Tensor* tensor = profile.Find(name);
  if (tensor == nullptr) return std::vector<float>();
  if (tensor->dtype != "F32" || tensor->shape != shape) {
    std::string want;
    for (int64_t n : shape) absl::StrAppend(&want, want.empty() ? "" : ", ", n);
    return Bad(profile, name, " is not F32 [", want, "]");
  }
  std::vector<float> numbers(tensor->bytes.size() / 4);
  std::memcpy(numbers.data(), tensor->bytes.data(), tensor->bytes.size());
  for (float x : numbers) {
    if (!std::isfinite(x)) return Bad(profile, name, " has a number ", x);
  }
  return numbers;
}

absl::Status ReadWhitening(const Profile& profile, int layer, int heads, int dim,
                           Calibration* calibration) {
  const std::string name = absl::StrCat("layer_", layer, "_chol");
  absl::StatusOr<std::vector<float>> all = ReadTensor(profile, name, {heads, dim, dim});
  if (!all.ok()) return all.status();
  if (all->empty()) return Bad(profile, "no ", name, ", which whiten_keys needs");
  const size_t size = static_cast<size_t>(dim) * dim;
  for (int h = 0; h < heads; ++h) {
    Whitening w;
    w.factor.assign(all->begin() + h * size, all->begin() + (h + 1) * size);
    for (int i = 0; i < dim; ++i) {
      for (int j = i; j < dim; ++j) {
        const float x = w.factor[static_cast<size_t>(i) * dim + j];
        if (i == j ? !(x > 0) : x != 0) {
          return Bad(profile, name, " of head ", h, " has ", x, " at [", i, ", ", j,
                     "]; expected a lower triangle with a positive diagonal");
        }
      }
    }
    w.inverse = InvertLower(w.factor, dim);
    for (float x : w.inverse) {
      if (!std::isfinite(x)) return Bad(profile, name, " of head ", h, " has no finite inverse");
    }
    calibration->whitening.emplace(std::make_pair(layer, h), std::move(w));
  }
  return absl::OkStatus();
}

absl::Status ReadTables(const Profile& profile, const std::string& stream,
                        const StreamParams& params, int hot_bits,
                        std::vector<std::vector<float>>* tables) {
  for (int bits = 1; bits <= 4; ++bits) {
    const std::string name = absl::StrCat("centroids_", stream, "_b", bits);
    absl::StatusOr<std::vector<float>> table = ReadTensor(profile, name, {1 << bits});
    if (!table.ok()) return table.status();
    for (size_t i = 1; i < table->size(); ++i) {
      if (!((*table)[i - 1] < (*table)[i])) {
        return Bad(profile, name, " has ", (*table)[i], " after ", (*table)[i - 1],
                   "; expected ascending levels");
      }
    }
    const bool used = params.bits == bits || (hot_bits == bits);
    if (params.calibrated_centroids && params.coded && used && table->empty()) {
      return Bad(profile, "no ", name, ", which calibrated_centroids needs");
    }
    (*tables)[bits - 1] = *std::move(table);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Calibration> CalibrationOf(const Params& params, int layers) {
  if (absl::Status s = CheckParams(params); !s.ok()) return s;
  if (params.whiten_keys || params.k.calibrated_centroids || params.v.calibrated_centroids) {
    return absl::FailedPreconditionError(
        "kakeya: whitening and calibrated centroids need a profile");
  }
  Calibration c;
  c.params = params;
  if (absl::Status s = ResolveLayers(layers, &c.params); !s.ok()) return s;
  return c;
}

absl::StatusOr<Params> ParamsOfProfile(const Profile& profile, const std::string& name) {
  if (profile.codec() != name) {
    return absl::FailedPreconditionError(absl::StrCat("profile ", profile.name(), " is for codec ",
                                                      profile.codec(), "; expected ", name));
  }
  const auto json = profile.metadata().find("kakeya");
  absl::StatusOr<Params> params =
      json == profile.metadata().end() ? PresetParams(name) : ParamsFromJson(json->second);
  if (!params.ok()) return Bad(profile, params.status().message());
  return params;
}

absl::StatusOr<Calibration> ReadCalibration(const Profile& profile, const Geometry& model,
                                            const std::string& name,
                                            std::optional<Params> instead) {
  absl::StatusOr<Params> params = ParamsOfProfile(profile, name);
  if (!params.ok()) return params.status();
  const std::string difference =
      DescribeGeometryDifference(profile.geometry(), model, "the profile", "the data");
  if (!difference.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("profile ", profile.name(), " is for another geometry: ", difference));
  }
  Calibration c;
  c.params = instead ? *std::move(instead) : *std::move(params);
  absl::Status in_model = ResolveLayers(static_cast<int>(model.layers.size()), &c.params);
  if (!in_model.ok()) return Bad(profile, in_model.message());
  for (int layer = 0; layer < static_cast<int>(model.layers.size()) && c.params.whiten_keys;
       ++layer) {
    for (const StreamGeometry& s : model.layers[layer].streams) {
      if (s.kind != StreamKind::kK) continue;
      absl::Status ok = ReadWhitening(profile, layer, s.heads, s.head_dim, &c);
      if (!ok.ok()) return ok;
    }
  }
  const int hot_bits = c.params.hot_layers.empty() ? 0 : c.params.hot_bits;
  absl::Status s = ReadTables(profile, "k", c.params.k, hot_bits, &c.k_centroids);
  if (s.ok()) s = ReadTables(profile, "v", c.params.v, 0, &c.v_centroids);
  if (!s.ok()) return s;
  return c;
}

void MultiplyRow(const float* row, absl::Span<const float> matrix, int dim, float* out) {
  std::vector<double> sums(dim);
  for (int i = 0; i < dim; ++i) {
    const float* line = &matrix[static_cast<size_t>(i) * dim];
    for (int j = 0; j < dim; ++j) sums[j] += static_cast<double>(row[i]) * line[j];
  }
  for (int j = 0; j < dim; ++j) out[j] = static_cast<float>(sums[j]);
}

std::vector<float> InvertLower(absl::Span<const float> factor, int dim) {
  const auto at = [dim](int i, int j) { return static_cast<size_t>(i) * dim + j; };
  std::vector<double> inverse(factor.size());
  for (int j = 0; j < dim; ++j) {
    for (int i = j; i < dim; ++i) {
      double sum = i == j ? 1 : 0;
      for (int k = j; k < i; ++k) sum -= factor[at(i, k)] * inverse[at(k, j)];
      inverse[at(i, j)] = sum / factor[at(i, i)];
    }
  }
  return std::vector<float>(inverse.begin(), inverse.end());
}

}  // namespace kvcask::kakeya
