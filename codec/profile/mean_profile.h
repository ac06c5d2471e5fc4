// Makes a profile of means (codec `int8`, tensors mean.LL.k and mean.LL.v: codec/scalar/FORMAT.md)
// from KV caches of a model: the sums of un-rotated keys and of values over all tokens but the
// first four positions, which are unlike the others and are kept raw where means are used.
//
// What a mean has to catch is a bias of the model's own, which every text has: a few thousand
// tokens of any text do. Latent streams have no means.
//
// Not thread-safe.
#pragma once

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <vector>

#include "codec/api/jobs.h"
#include "codec/base/geometry.h"
#include "codec/base/views.h"

namespace kvcask {

class MeanProfileMaker {
 public:
  // `g` is valid.
  explicit MeanProfileMaker(Geometry g);

  // A cache of `tokens` tokens, positions consecutive from first_position. INVALID_ARGUMENT:
  // planes that are not the geometry's, positions beyond 2^32, a NaN or infinity (says where);
  // nothing of it is counted then.
  absl::Status Add(const ConstKvView& cache, int64_t tokens, int64_t first_position);

  // Tokens counted so far.
  int64_t tokens() const { return tokens_; }

  // The profile file. FAILED_PRECONDITION: no token was counted, or the model has no K or V.
  absl::StatusOr<std::vector<uint8_t>> Build(absl::string_view name, absl::string_view model) const;

 private:
  const Geometry geometry_;
  const std::vector<PlaneInfo> planes_;
  std::vector<std::vector<double>> sums_;  // of each plane, [heads][head_dim]
  int64_t tokens_ = 0;
};

}  // namespace kvcask
