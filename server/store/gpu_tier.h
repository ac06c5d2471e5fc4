// Chunks in a GPU's memory: one arena, packed, from which kernels decode in place.
//
// The tier sees opaque bytes. It never evicts by itself: who owns it decides what goes. A chunk
// may be moved while nobody holds a lease of it, and only then.
//
// Thread-safe. One mutex; bytes are copied in and out beside it, by leases. Moves are carried out
// under it: rare, some times a chunk's size, at the memory's own bandwidth.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "server/store/chunk_arena.h"

namespace kvcask {

// The memory of a tier: a GPU's (cuda_tier_memory.h), or the host's. Calls on parts that do not
// overlap may come from several threads; each returns when its copy is done.
class TierMemory {
 public:
  virtual ~TierMemory() = default;
  virtual uint64_t size() const = 0;
  // Of byte 0, aligned to kArenaAlignment. Where the host cannot reach it, for kernels only.
  virtual uint8_t* data() = 0;
  // Into [at, at + from.size()). `from` is host memory or memory that this one copies from.
  virtual absl::Status Write(uint64_t at, absl::Span<const uint8_t> from) = 0;
  // From [at, at + to.size()), to host memory or such as Write's.
  virtual absl::Status Read(uint64_t at, absl::Span<uint8_t> to) = 0;
  // to < from; the ranges may overlap.
  virtual absl::Status MoveDown(uint64_t to, uint64_t from, uint64_t bytes) = 0;
};

// RESOURCE_EXHAUSTED: there is not that much.
absl::StatusOr<std::unique_ptr<TierMemory>> MakeHostTierMemory(uint64_t bytes);

struct GpuTierOptions {
  // Bytes that a Put moves to join holes, most, for each byte of its chunk. With a part f of the
  // memory free, in holes, it takes about 1 / f: 48 keeps what is lost to holes near 2 %. 0: holes
  // are not joined but by eviction.
  uint64_t most_moved_for_a_byte = 48;
};

struct GpuTierStats {
  uint64_t capacity_bytes = 0;
  uint64_t chunk_bytes = 0;    // of chunks, as they were put
  uint64_t padding_bytes = 0;  // that alignment adds to them
  uint64_t free_bytes = 0;     // capacity = chunk + padding + free
  uint64_t largest_hole_bytes = 0;
  uint64_t holes = 0;
  uint64_t chunks = 0;  // those evicted but still leased among them
  uint64_t leases = 0;
  // Since it was made.
  uint64_t puts = 0, refused_puts = 0, gets = 0, evictions = 0;
  uint64_t moves = 0, moved_bytes = 0;
};

class GpuTier {
 public:
  // Of one chunk; numbers are never used again.
  using Id = uint64_t;

  // A chunk held in place: its bytes neither move nor change while this lives, evicted or not.
  // Movable. The tier must outlive it.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&& other) noexcept;
    ~Lease();
    // Empty where this was moved from. On the device where the tier's memory is.
    absl::Span<const uint8_t> bytes() const { return bytes_; }

   private:
    friend class GpuTier;
    GpuTier* tier_ = nullptr;
    Id id_ = 0;
    absl::Span<const uint8_t> bytes_;
  };

  explicit GpuTier(std::unique_ptr<TierMemory> memory, GpuTierOptions options = {});
  GpuTier(const GpuTier&) = delete;
  GpuTier& operator=(const GpuTier&) = delete;
  ~GpuTier();

  // Copies a chunk in. INVALID_ARGUMENT: it is empty. RESOURCE_EXHAUSTED says what is free, and
  // whether eviction can help. What the memory answers, with nothing kept; after a move that
  // failed, chunks are lost and every call answers that status.
  absl::StatusOr<Id> Put(absl::Span<const uint8_t> chunk);
  // NOT_FOUND: never put, or evicted.
  absl::StatusOr<Lease> Get(Id id);
  // Copies the chunk out; `to` is exactly of its size, INVALID_ARGUMENT if not.
  absl::Status Read(Id id, absl::Span<uint8_t> to);
  // The id is gone at once, the bytes are free when the last lease is. NOT_FOUND as Get.
  absl::Status Evict(Id id);

  GpuTierStats Stats() const;

 private:
  struct Chunk {
    uint64_t offset = 0;
    uint64_t bytes = 0;
    uint32_t leases = 0;
    bool ready = false;  // its bytes are there
    bool evicted = false;
  };
  using Chunks = std::unordered_map<Id, Chunk>;

  absl::StatusOr<uint64_t> Place(uint64_t bytes, Id id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Chunks::iterator> Find(Id id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Drop(Chunks::iterator it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Return(Id id);

  const std::unique_ptr<TierMemory> memory_;
  const GpuTierOptions options_;
  // Not absl::Mutex: ThreadSanitizer does not see through the system's Abseil.
  mutable std::mutex mutex_;
  ChunkArena arena_ ABSL_GUARDED_BY(mutex_);
  Chunks chunks_ ABSL_GUARDED_BY(mutex_);
  Id next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);
  GpuTierStats stats_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvcask
