// Tiles to the reader's elements: see CudaEngine. One thread and one batch at a time.
#pragma once

#include <absl/status/status.h>
#include <absl/types/span.h>

#include <vector>

#include "codec/api/codec.h"
#include "codec/fklt/cuda/batch_parts.h"

namespace kvcask::fklt {

class Decoder {
 public:
  explicit Decoder(const EngineParts& parts)
      : model_(parts.model),
        cublas_(parts.cublas),
        stream_(parts.stream),
        shard_(*parts.shard),
        out_groups_(parts.groups),
        times_(parts.times),
        memory_(parts.memory) {}
  absl::Status StartDecode(absl::Span<DecodeJob> jobs,
                           absl::Span<const uint8_t* const> device_tiles);
  absl::Status FinishDecode(absl::Span<DecodeJob> jobs);

 private:
  // Checks one job and fills its description and segments; pointers are set later.
  absl::Status Plan(const DecodeJob& job, size_t index, DecodeTileDesc* tile);

  DeviceModel* const model_;
  Cublas* const cublas_;
  const cudaStream_t stream_;
  const Geometry& shard_;
  const absl::Span<const Group> out_groups_;
  PartTimes* const times_;
  BatchMemory* const memory_;

  // Of the batch under way.
  std::vector<DecodeTileDesc> tiles_;
  std::vector<size_t> job_of_;  // of a tile
  std::vector<int> set_of_;     // table set of a tile
  std::vector<SegmentDesc> segments_;
};

}  // namespace kvcask::fklt
