// `fklt` on a GPU: the same tiles as the CPU's (FORMAT.md), many of them in one sequence of
// launches. Transform by cuBLAS with fp16 operands and fp32 sums; entropy coding by a warp a segment.
//
// Tiles and descriptions come from host memory; what jobs point to as source or destination is
// device memory, or page-locked host memory that the device can reach.
//
// One thread and one batch at a time; makes its own stream (job.device_stream is not used). Nothing is allocated once the largest batch was
// seen.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>
#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "codec/api/codec.h"
#include "codec/fklt/fklt_profile.h"
#include "codec/fklt/group_coder.h"

namespace kvcask::fklt {

class FkltCuda {
 public:
  // Copies profile and matrices to the current device. `coders` are those of the shard's groups,
  // `shard` its geometry; all must outlive this. UNAVAILABLE: no device, or no cuBLAS.
  static absl::StatusOr<std::unique_ptr<FkltCuda>> Make(
      std::shared_ptr<const FkltProfile> profile, absl::Span<const GroupCoder* const> coders,
      const Geometry& shard);
  virtual ~FkltCuda() = default;

  // Enqueues the decoding of every job; `device_tiles[i]`, where given, is the i-th job's tile on
  // the device already. What was refused before launching is in job.status. The same jobs go to
  // Finish.
  virtual absl::Status StartDecode(absl::Span<DecodeJob> jobs,
                                   absl::Span<const uint8_t* const> device_tiles) = 0;
  // Waits, and sets the statuses: DATA_LOSS where a tile is not one.
  virtual absl::Status FinishDecode(absl::Span<DecodeJob> jobs) = 0;

  absl::Status Decode(absl::Span<DecodeJob> jobs,
                      absl::Span<const uint8_t* const> device_tiles = {}) {
    absl::Status status = StartDecode(jobs, device_tiles);
    if (!status.ok()) cudaStreamSynchronize(stream());  // what was enqueued reads the jobs' memory
    return status.ok() ? FinishDecode(jobs) : status;
  }

  // Encodes on the device: job i's tile goes to device_out[i], memory of MaxTileBytes there (even
  // address). Sets bytes and certificate. bytes 0 with an OK status: left to the CPU, which codes
  // sinks, finer steps for what is over its bound, and raw tiles; NaN and infinity are among
  // these, so that the CPU's message names the element.
  virtual absl::Status Encode(absl::Span<EncodeJob> jobs,
                              absl::Span<uint8_t* const> device_out) = 0;

  // Milliseconds of the parts of the last call, between events on the stream.
  virtual std::vector<std::pair<const char*, float>> LastParts() const = 0;
  virtual cudaStream_t stream() const = 0;
};

}  // namespace kvcask::fklt
