// A codec's kernels on one stream: what the CUDA codecs have in common. Sources and destinations
// of jobs are device memory, or page-locked host memory that the device can reach; tiles and
// descriptions are host memory.
//
// One thread and one batch at a time; job.device_stream is not used: an engine has its own.
#pragma once

#include <absl/status/status.h>
#include <absl/types/span.h>
#include <cuda_runtime.h>

#include <vector>

#include "codec/api/codec.h"

namespace kvcask {

// One head of one plane.
struct EngineRow {
  int layer = 0;  // of the shard
  int plane = 0;  // from the first plane of the group's layers
  int head = 0;
  int head_dim = 0;
};

class CudaEngine {
 public:
  virtual ~CudaEngine() = default;

  // What a group's tiles hold, by plane and head; nothing else of its layers is read or written.
  virtual std::vector<EngineRow> Rows(int group) const = 0;

  // Enqueues the decoding of every job; `device_tiles[i]`, where given and not null, is the i-th
  // job's tile on the device already: kernels read it there, headers are read in job.tile. What was
  // refused before launching is in job.status. The same jobs go to FinishDecode.
  virtual absl::Status StartDecode(absl::Span<DecodeJob> jobs,
                                   absl::Span<const uint8_t* const> device_tiles) = 0;
  static const uint8_t* TileOnDevice(absl::Span<const uint8_t* const> device_tiles, size_t i) {
    return device_tiles.empty() ? nullptr : device_tiles[i];
  }
  // Waits, and sets the statuses: DATA_LOSS where a tile is not one, UNIMPLEMENTED where the job is
  // left to the CPU.
  virtual absl::Status FinishDecode(absl::Span<DecodeJob> jobs) = 0;

  absl::Status Decode(absl::Span<DecodeJob> jobs,
                      absl::Span<const uint8_t* const> device_tiles = {}) {
    absl::Status status = StartDecode(jobs, device_tiles);
    if (!status.ok()) cudaStreamSynchronize(stream());  // what was enqueued reads the jobs' memory
    return status.ok() ? FinishDecode(jobs) : status;
  }

  // Encodes: job i's tile goes to device_out[i], memory of MaxTileBytes that the device can reach
  // (even address); job.destination is not used. Sets bytes, certificate and status. bytes 0 with
  // an OK status: left to the CPU, whose message names what is wrong with the input, if anything.
  virtual absl::Status Encode(absl::Span<EncodeJob> jobs,
                              absl::Span<uint8_t* const> device_out) = 0;

  virtual cudaStream_t stream() const = 0;
  // What the last batch took on the device, copies of descriptions and verdicts included, the
  // host's planning not. Negative: unknown.
  virtual double LastSeconds() const = 0;
};

}  // namespace kvcask
