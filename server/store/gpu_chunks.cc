#include "server/store/gpu_chunks.h"

#include <algorithm>
#include <utility>

namespace kvcask {
namespace {

constexpr size_t kSwept = 8;  // dead copies that an Add looks for
constexpr int kTries = 4;     // to find room: what was evicted may be leased, or lie in holes

}  // namespace

GpuChunks::GpuChunks(std::unique_ptr<GpuTier> tier, std::function<bool(const StoredChunk&)> wants,
                     std::function<void(const absl::Status&)> lost)
    : tier_(std::move(tier)), wants_(std::move(wants)), tell_lost_(std::move(lost)) {
  usage_.capacity_bytes = tier_->Stats().capacity_bytes;
}

void GpuChunks::Add(const ChunkRef& chunk) {
  const uint64_t bytes = chunk->bytes.size();
  if (bytes == 0 || (wants_ != nullptr && !wants_(*chunk))) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (usage_.lost || bytes > usage_.capacity_bytes) return;
    (void)DropDead(kSwept);
    if (Live(chunk) != copies_.end()) return;  // there, or on its way
    Copy& copy = copies_[chunk.get()];
    copy.of = chunk;
    copy.bytes = bytes;
  }
  absl::StatusOr<GpuTier::Id> id = tier_->Put(chunk->bytes);
  for (int tries = 0; absl::IsResourceExhausted(id.status()) && tries < kTries; ++tries) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (MakeRoom(bytes << tries) == 0) break;
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
  const auto it = Live(chunk);
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
  Add(chunk);
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = Live(chunk);
  if (it == copies_.end() || !it->second.ready) return GpuTier::Lease();
  absl::StatusOr<GpuTier::Lease> made = tier_->Get(it->second.id);
  return made.ok() ? *std::move(made) : GpuTier::Lease();
}

bool GpuChunks::Holds(const ChunkRef& chunk) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = copies_.find(chunk.get());
  return it != copies_.end() && it->second.ready && it->second.of.lock() == chunk;
}

void GpuChunks::Lose() {
  std::lock_guard<std::mutex> lock(mutex_);
  LoseLocked();
}

GpuChunksUsage GpuChunks::Usage() {
  std::lock_guard<std::mutex> lock(mutex_);
  (void)DropDead(order_.size());
  return usage_;
}

GpuChunks::Copies::iterator GpuChunks::Live(const ChunkRef& chunk) {
  const auto it = copies_.find(chunk.get());
  if (it == copies_.end() || it->second.of.lock() == chunk) return it;
  Drop(it);  // of one that was at this address before
  return copies_.end();
}

void GpuChunks::Drop(Copies::iterator it) {
  (void)tier_->Evict(it->second.id);
  order_.erase(it->second.place);
  --usage_.chunks;
  usage_.bytes -= it->second.bytes;
  copies_.erase(it);
}

size_t GpuChunks::DropDead(size_t most) {
  size_t gone = 0;
  auto at = order_.end();
  for (size_t i = 0; i < most && at != order_.begin(); ++i) {
    const auto it = copies_.find(*--at);
    if (!it->second.of.expired()) continue;
    ++at;  // Drop takes what is before it
    Drop(it);
    ++gone;
  }
  return gone;
}

size_t GpuChunks::MakeRoom(uint64_t bytes) {
  size_t gone = DropDead(order_.size());
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
