// The writer's elements to tiles: see CudaEngine. One thread and one batch at a time.
#pragma once

#include <absl/status/status.h>
#include <absl/types/span.h>

#include "codec/api/codec.h"
#include "codec/fklt/cuda/batch_parts.h"

namespace kvcask::fklt {

class Encoder {
 public:
  // `step_limit_shift`: see FkltOptions.
  Encoder(const EngineParts& parts, int step_limit_shift)
      : step_limit_shift_(step_limit_shift),
        model_(parts.model),
        cublas_(parts.cublas),
        stream_(parts.stream),
        shard_(*parts.shard),
        out_groups_(parts.groups),
        times_(parts.times),
        memory_(parts.memory) {}
  absl::Status Encode(absl::Span<EncodeJob> jobs, absl::Span<uint8_t* const> device_out);

 private:
  const int step_limit_shift_;
  DeviceModel* const model_;
  Cublas* const cublas_;
  const cudaStream_t stream_;
  const Geometry& shard_;
  const absl::Span<const Group> out_groups_;
  PartTimes* const times_;
  BatchMemory* const memory_;
};

}  // namespace kvcask::fklt
