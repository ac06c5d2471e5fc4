// How much two cache files differ: what a lossy codec did to a cache.
//
// Thread-safe: values and pure functions.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <map>
#include <string>

#include "client/cli/cache_file.h"

namespace kvcask {

struct StreamDifference {
  uint64_t elements = 0;
  double max_abs_error = 0;
  double squared_error = 0;  // sum over elements, fp64
  double squared_value = 0;  // of the first file
  // sqrt(squared_error / squared_value): 0 when both are 0.
  double RelativeRms() const;
};

struct CacheDifference {
  uint64_t tokens = 0;       // compared
  uint64_t token_begin = 0;  // of the first file
  int layers = 0;
  int layer_begin = 0;  // of the first file
  bool exact = true;    // every byte of every plane the same, token ids too
  bool token_ids_differ = false;
  std::map<std::string, StreamDifference> streams;  // by "K", "V", "latent"
};

// Compares `b` with that part of `a` that it covers: the same layers of the same geometry,
// the same positions. NaN where the other has another value counts as an infinite error.
// INVALID_ARGUMENT: b is not part of a (which number differs).
absl::StatusOr<CacheDifference> CompareCaches(const CacheFile& a, const CacheFile& b);

}  // namespace kvcask
