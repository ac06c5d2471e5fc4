// A chunk as the store keeps it.
#pragma once

#include <cstdint>
#include <memory>

#include "codec/base/unset_bytes.h"
#include "server/admission/byte_budget.h"

namespace kvcask {

using ChunkBytes = UnsetBytes;

// A chunk in host memory. Immutable.
struct StoredChunk {
  uint64_t token_begin = 0;
  uint32_t tokens = 0;
  ChunkBytes bytes;
  Reservation reservation;
  // GpuChunks' alone: how it learns that the chunk goes. Its owner outlives the chunk.
  mutable std::shared_ptr<void> gpu;
};
using ChunkRef = std::shared_ptr<const StoredChunk>;

}  // namespace kvcask
