// A whole cache through a Kakeya codec, as the published drop-in cache does it: blocks of 512
// tokens are sealed once they are old enough, the newest tokens stay as they are. Used by the
// command and the audits; the service codes pages (kakeya.h).
//
// Bytes are counted as they would be stored: sections, and two bytes for every element that is
// kept as it was received, boundary layers and tails included.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <string>
#include <vector>

#include "codec/kakeya/plane.h"

namespace kvcask::kakeya {

struct Sealing {
  int block_tokens = 512;
  int residual_tokens = 0;  // 256 in the published preset: the newest that are never sealed
};

// Tokens sealed at a length: floor((length - residual) / block) blocks.
int64_t SealedTokens(int64_t length, const Sealing& sealing);

// Bytes of a stream's v1.0 block by the published formula: a skeleton of (rank * dim + dim +
// clusters * rank) numbers, and for each row an id, t, and `kept` values and indices, all of
// `width` bytes.
double PublishedBlockBytes(int rank, int dim, int clusters, int kept, int rows, int width);

// Signal and noise of a reconstruction. snr is in powers about the mean, so that where the error
// is uncorrelated with what was reconstructed, snr = 1 / (1 - correlation^2).
struct Fidelity {
  double mse = 0, snr = 0, correlation = 0, relative_l2 = 0;
};
Fidelity Compare(absl::Span<const float> original, absl::Span<const float> decoded);

struct Stage {
  std::string name;         // "pca", "centres", "rotated", "coded": see StageTrace
  std::vector<float> rows;  // [heads][sealed tokens][dim], as the plane's
};

struct PlaneResult {
  std::vector<float> rows;  // [heads][tokens][dim] decoded, K after RoPE, not yet rounded
  bool coded = false;       // false: a boundary layer, another stream, or nothing sealed
  int64_t sealed_tokens = 0;
  uint64_t section_bytes = 0, skeleton_bytes = 0;
  uint64_t raw_bytes = 0;     // 2 an element
  uint64_t stored_bytes = 0;  // the section, and 2 an element of what is not in it
  std::vector<int> ranks;     // of the blocks
  // Where asked for:
  std::vector<Stage> stages;
  std::vector<float> quantiser_input;  // coordinates as they enter the quantiser
  double quantiser_variance = 0;       // of them
};

// `rows` is [heads][tokens][dim], finite, K after RoPE at first_position on. `weights`: of each
// token in the PCA, or none. Where a number is beyond its dtype the plane is kept raw.
absl::StatusOr<PlaneResult> RoundTripPlane(const Calibration& calibration, const PlaneShape& shape,
                                           const Sealing& sealing, uint32_t first_position,
                                           absl::Span<const float> rows,
                                           absl::Span<const double> weights, bool stages);

}  // namespace kvcask::kakeya
