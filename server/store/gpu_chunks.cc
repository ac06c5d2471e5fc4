#include "server/store/gpu_chunks.h"

#include <utility>

namespace kvcask {
namespace {

// To find room: what goes may be leased, or lie in holes, or another takes the room.
constexpr int kTries = 2;

}  // namespace

GpuChunks::GpuChunks(std::unique_ptr<GpuTier> tier, std::function<bool(const StoredChunk&)> wants,
                     std::function<void(const absl::Status&)> lost)
    : tier_(std::move(tier)), wants_(std::move(wants)), tell_lost_(std::move(lost)) {
  usage_.capacity_bytes = tier_->Stats().capacity_bytes;
}

void GpuChunks::Add(const ChunkRef& chunk, bool evict) {
  const uint64_t bytes = chunk->bytes.size();
  if (bytes == 0 || (wants_ != nullptr && !wants_(*chunk))) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (usage_.lost || bytes > usage_.capacity_bytes - (evict ? 0 : usage_.bytes)) return;
    const auto [it, fresh] = copies_.try_emplace(chunk.get());
    if (!fresh) return;  // there, or on its way
    it->second.bytes = bytes;
    if (chunk->gpu == nullptr) {
      const StoredChunk* const key = chunk.get();
      chunk->gpu = std::shared_ptr<void>(this, [this, key](void*) { Forget(key); });
    }
  }
  absl::StatusOr<GpuTier::Id> id = tier_->Put(chunk->bytes);
  for (int i = 0; evict && absl::IsResourceExhausted(id.status()) && i < kTries; ++i) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (MakeRoom(bytes) == 0) break;
    }
    id = tier_->Put(chunk->bytes);
  }
  const bool failed = !id.ok() && !absl::IsResourceExhausted(id.status());
  bool first = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = copies_.find(chunk.get());
    if (it == copies_.end()) {  // lost meanwhile
      if (id.ok()) (void)tier_->Evict(*id);
    } else if (id.ok()) {
      it->second.id = *id;
      it->second.ready = true;
      it->second.place = order_.insert(order_.begin(), chunk.get());
      ++usage_.chunks;
      usage_.bytes += bytes;
    } else {
      copies_.erase(it);
    }
    if (failed) {
      first = !usage_.lost;
      LoseLocked();
    }
  }
  if (first && tell_lost_ != nullptr) tell_lost_(id.status());
}

GpuTier::Lease GpuChunks::Find(const ChunkRef& chunk) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = copies_.find(chunk.get());
  if (it != copies_.end() && it->second.ready) {
    absl::StatusOr<GpuTier::Lease> lease = tier_->Get(it->second.id);
    if (lease.ok()) {
      ++usage_.hits;
      order_.splice(order_.begin(), order_, it->second.place);
      return *std::move(lease);
    }
    Drop(it);
  }
  ++usage_.misses;
  return GpuTier::Lease();
}

GpuTier::Lease GpuChunks::FindOrAdd(const ChunkRef& chunk) {
  if (wants_ != nullptr && !wants_(*chunk)) return GpuTier::Lease();
  GpuTier::Lease lease = Find(chunk);
  if (!lease.bytes().empty()) return lease;
  Add(chunk, /*evict=*/false);
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = copies_.find(chunk.get());
  if (it == copies_.end() || !it->second.ready) return GpuTier::Lease();
  absl::StatusOr<GpuTier::Lease> made = tier_->Get(it->second.id);
  return made.ok() ? *std::move(made) : GpuTier::Lease();
}

bool GpuChunks::Holds(const ChunkRef& chunk) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = copies_.find(chunk.get());
  return it != copies_.end() && it->second.ready;
}

void GpuChunks::Lose() {
  std::lock_guard<std::mutex> lock(mutex_);
  LoseLocked();
}

GpuChunksUsage GpuChunks::Usage() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return usage_;
}

// The chunk ends, so nobody adds or finds it.
void GpuChunks::Forget(const StoredChunk* chunk) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = copies_.find(chunk);
  if (it != copies_.end()) Drop(it);
}

void GpuChunks::Drop(Copies::iterator it) {
  (void)tier_->Evict(it->second.id);
  order_.erase(it->second.place);
  --usage_.chunks;
  usage_.bytes -= it->second.bytes;
  copies_.erase(it);
}

size_t GpuChunks::MakeRoom(uint64_t bytes) {
  size_t gone = 0;
  for (uint64_t freed = 0; freed < bytes && !order_.empty(); ++gone) {
    const auto it = copies_.find(order_.back());
    freed += it->second.bytes;
    Drop(it);
    ++usage_.evicted_chunks;
  }
  return gone;
}

void GpuChunks::LoseLocked() {
  usage_.lost = true;
  usage_.chunks = usage_.bytes = 0;
  order_.clear();
  copies_.clear();
}

}  // namespace kvcask
