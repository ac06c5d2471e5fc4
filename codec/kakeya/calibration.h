// What a Kakeya codec knows of a model: its parameters, and, from a profile, the Cholesky
// factors of its queries' second moments and centroid tables. FORMAT.md lists the tensors.
//
// Thread-safe: immutable values.
#pragma once

#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "codec/api/codec.h"
#include "codec/kakeya/params.h"

namespace kvcask::kakeya {

// E[q q^T] = L L^T of the queries of one KV head before RoPE. Keys are coded as k L (rows), so
// that squared error there is expected squared error of a score; and come back through L^-1.
struct Whitening {
  std::vector<float> factor;   // [dim][dim], lower triangular
  std::vector<float> inverse;  // [dim][dim], computed from it in double
};

struct Calibration {
  Params params;
  // By (layer, head) of the model.
  std::map<std::pair<int, int>, Whitening> whitening;
  // [bits - 1]: 2^bits levels, ascending; empty where the profile has none.
  std::vector<std::vector<float>> k_centroids{4}, v_centroids{4};
};

// Of a codec made without a profile, for a model of so many layers: the parameters alone.
// FAILED_PRECONDITION where they ask for what only a profile has; INVALID_ARGUMENT as CheckParams
// and ResolveLayers.
absl::StatusOr<Calibration> CalibrationOf(const Params& params, int layers);

// The parameters that a profile made for the codec `name` carries, else the preset's. Errors as
// ReadCalibration's.
absl::StatusOr<Params> ParamsOfProfile(const Profile& profile, const std::string& name);

// Reads a profile made for the codec `name`. FAILED_PRECONDITION: for another codec or
// geometry; INVALID_ARGUMENT: a tensor that is missing, misshapen, not finite, not ascending
// (tables), not lower triangular with a positive diagonal (factors). `params`: instead of the
// profile's.
absl::StatusOr<Calibration> ReadCalibration(const Profile& profile, const Geometry& model,
                                            const std::string& name,
                                            std::optional<Params> params = std::nullopt);

// row [dim] times matrix [dim][dim]; `out` is another row.
void MultiplyRow(const float* row, absl::Span<const float> matrix, int dim, float* out);

// The inverse of a lower triangular [dim][dim].
std::vector<float> InvertLower(absl::Span<const float> factor, int dim);

}  // namespace kvcask::kakeya
