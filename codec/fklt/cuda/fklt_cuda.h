// `fklt` on a GPU: the same tiles as the CPU's (FORMAT.md), many of them in one sequence of
// launches. Transform by cuBLAS with fp16 operands and fp32 sums; entropy coding by a warp a segment.
// Nothing is allocated once the largest batch was seen.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <memory>
#include <utility>
#include <vector>

#include "codec/cuda/engine.h"
#include "codec/fklt/fklt_profile.h"
#include "codec/fklt/group_coder.h"

namespace kvcask::fklt {

// Left to the CPU, in encoding: sinks, finer steps for what is over its certificate's bound, raw
// tiles, and NaN and infinity.
class FkltCuda : public CudaEngine {
 public:
  // Copies profile and matrices to the current device. `coders` are those of the shard's groups,
  // `shard` its geometry; all must outlive this. `step_limit_shift`, 0 to 2: tiles are written with
  // lanes of at most 512 >> this steps, so that one tile takes less time, in more bytes.
  // UNAVAILABLE: no device, or no cuBLAS.
  static absl::StatusOr<std::unique_ptr<FkltCuda>> Make(std::shared_ptr<const FkltProfile> profile,
                                                        absl::Span<const GroupCoder* const> coders,
                                                        const Geometry& shard,
                                                        int step_limit_shift = 0);

  // From now on calls take the times of their parts, and a little longer.
  virtual void TimeParts(bool wanted) = 0;
  // Milliseconds of the parts of the last call, between events on the stream; empty without
  // TimeParts.
  virtual std::vector<std::pair<const char*, float>> LastParts() const = 0;
};

// With coders of its own. `spec` is one that MakeFkltCodec took.
absl::StatusOr<std::unique_ptr<CudaEngine>> MakeFkltEngine(const CodecSpec& spec);

}  // namespace kvcask::fklt
