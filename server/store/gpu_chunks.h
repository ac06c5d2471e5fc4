// Copies of chunks in a GPU's memory, above host memory: decoding reads tiles there instead of
// sending them again.
//
// A cache. The chunk in host memory stays the one that counts: nothing is lost with the device or
// by eviction, and a chunk that leaves host memory, or is deleted, takes its copy along. What is
// put goes before what was used longest ago; what is read is copied where there is room: a read of
// more than the tier holds would push out everything and find nothing.
//
// Thread-safe; copies are made beside the lock. Calls nothing of the store. Must outlive the chunks
// that it was given.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "server/store/gpu_tier.h"
#include "server/store/stored_chunk.h"

namespace kvcask {

struct GpuChunksUsage {
  uint64_t capacity_bytes = 0;
  uint64_t chunks = 0, bytes = 0;
  // Since the start.
  uint64_t hits = 0, misses = 0;  // of Find
  uint64_t evicted_chunks = 0;    // for room
  bool lost = false;
};

class GpuChunks {
 public:
  // `wants`: which chunks are worth a copy; null: all. `lost` is called once, when the tier's
  // memory fails; null: nobody is told.
  explicit GpuChunks(std::unique_ptr<GpuTier> tier,
                     std::function<bool(const StoredChunk&)> wants = nullptr,
                     std::function<void(const absl::Status&)> lost = nullptr);

  // Makes a copy, if there is none yet; others go for it where `evict` says so.
  void Add(const ChunkRef& chunk, bool evict = true);
  // The copy, in place while the lease lives. Empty: there is none.
  GpuTier::Lease Find(const ChunkRef& chunk);
  // The same; where there is none, one is made first, if there is room.
  GpuTier::Lease FindOrAdd(const ChunkRef& chunk);
  bool Holds(const ChunkRef& chunk) const;
  // The memory is gone: no copy is found from now on, and none made.
  void Lose();

  GpuChunksUsage Usage() const;

 private:
  using Order = std::list<const StoredChunk*>;
  struct Copy {
    GpuTier::Id id = 0;
    uint64_t bytes = 0;
    Order::iterator place;  // in order_, once it is ready
    bool ready = false;
  };
  using Copies = std::unordered_map<const StoredChunk*, Copy>;

  void Forget(const StoredChunk* chunk);
  void Drop(Copies::iterator it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Drops copies of at least so many bytes, if there are; their number.
  size_t MakeRoom(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LoseLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::unique_ptr<GpuTier> tier_;
  const std::function<bool(const StoredChunk&)> wants_;
  const std::function<void(const absl::Status&)> tell_lost_;
  // Not absl::Mutex: ThreadSanitizer does not see through the system's Abseil.
  mutable std::mutex mutex_;
  Copies copies_ ABSL_GUARDED_BY(mutex_);
  Order order_ ABSL_GUARDED_BY(mutex_);  // the last used first
  GpuChunksUsage usage_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvcask
