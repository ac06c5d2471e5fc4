#include "server/store/gpu_tier.h"

#include <absl/strings/str_cat.h>

#include <cstring>
#include <limits>
#include <new>
#include <utility>

namespace kvcask {
namespace {

class HostTierMemory : public TierMemory {
 public:
  HostTierMemory(std::unique_ptr<uint8_t[]> memory, uint64_t bytes)
      : memory_(std::move(memory)), size_(bytes) {
    const uint64_t past = reinterpret_cast<uintptr_t>(memory_.get()) % kArenaAlignment;
    data_ = memory_.get() + (past == 0 ? 0 : kArenaAlignment - past);
  }

  uint64_t size() const override { return size_; }
  uint8_t* data() override { return data_; }
  absl::Status Write(uint64_t at, absl::Span<const uint8_t> from) override {
    std::memcpy(data_ + at, from.data(), from.size());
    return absl::OkStatus();
  }
  absl::Status Read(uint64_t at, absl::Span<uint8_t> to) override {
    std::memcpy(to.data(), data_ + at, to.size());
    return absl::OkStatus();
  }
  absl::Status MoveDown(uint64_t to, uint64_t from, uint64_t bytes) override {
    std::memmove(data_ + to, data_ + from, bytes);
    return absl::OkStatus();
  }

 private:
  const std::unique_ptr<uint8_t[]> memory_;
  uint8_t* data_;
  const uint64_t size_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TierMemory>> MakeHostTierMemory(uint64_t bytes) {
  std::unique_ptr<uint8_t[]> memory;
  if (bytes <= std::numeric_limits<uint64_t>::max() / 2) {
    memory.reset(new (std::nothrow) uint8_t[bytes + kArenaAlignment]);
  }
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no ", bytes, " bytes of host memory"));
  }
  return std::make_unique<HostTierMemory>(std::move(memory), bytes);
}

GpuTier::Lease::Lease(Lease&& other) noexcept
    : tier_(std::exchange(other.tier_, nullptr)),
      id_(other.id_),
      bytes_(std::exchange(other.bytes_, {})) {}

GpuTier::Lease& GpuTier::Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    if (tier_ != nullptr) tier_->Return(id_);
    tier_ = std::exchange(other.tier_, nullptr);
    id_ = other.id_;
    bytes_ = std::exchange(other.bytes_, {});
  }
  return *this;
}

GpuTier::Lease::~Lease() {
  if (tier_ != nullptr) tier_->Return(id_);
}

GpuTier::GpuTier(std::unique_ptr<TierMemory> memory, GpuTierOptions options)
    : memory_(std::move(memory)), options_(options), arena_(memory_->size()) {}

GpuTier::~GpuTier() = default;

absl::StatusOr<uint64_t> GpuTier::Place(uint64_t bytes, Id id) {
  std::optional<uint64_t> offset = arena_.Allocate(bytes, id);
  if (!offset.has_value() && bytes <= arena_.capacity()) {
    const uint64_t most_moved = bytes * options_.most_moved_for_a_byte;
    const auto moves = arena_.Compact(bytes, most_moved);
    if (moves.has_value()) {
      for (const ChunkArena::Move& m : *moves) {
        if (absl::Status s = memory_->MoveDown(m.to, m.from, m.bytes); !s.ok()) {
          lost_ = s;  // chunks are where nobody can say
          return s;
        }
        chunks_.at(m.owner).offset = m.to;
        ++stats_.moves;
        stats_.moved_bytes += m.bytes;
      }
      offset = arena_.Allocate(bytes, id);
    }
  }
  if (!offset.has_value()) {
    const bool ever = arena_.Rounded(bytes).has_value();
    return absl::ResourceExhaustedError(
        absl::StrCat("gpu tier: a chunk of ", bytes, " bytes; ", arena_.free_bytes(), " of ",
                     arena_.capacity(), " bytes are free, ", arena_.largest_hole(), " in one piece",
                     ever ? "" : "; it is larger than the tier"));
  }
  return *offset;
}

absl::StatusOr<GpuTier::Id> GpuTier::Put(absl::Span<const uint8_t> chunk) {
  if (chunk.empty()) return absl::InvalidArgumentError("gpu tier: a chunk of no bytes");
  Id id;
  uint64_t offset;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!lost_.ok()) return lost_;
    id = next_id_++;
    absl::StatusOr<uint64_t> placed = Place(chunk.size(), id);
    if (!placed.ok()) {
      ++stats_.refused_puts;
      return placed.status();
    }
    offset = *placed;
    chunks_[id] = {offset, chunk.size(), 0, false, false};
  }
  // The block was born pinned: nothing moves it meanwhile.
  const absl::Status written = memory_->Write(offset, chunk);
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = chunks_.find(id);
  if (!written.ok()) {
    arena_.Free(offset);
    chunks_.erase(it);
    return written;
  }
  arena_.Unpin(offset);
  it->second.ready = true;
  ++stats_.puts;
  stats_.chunk_bytes += chunk.size();
  return id;
}

absl::StatusOr<GpuTier::Chunks::iterator> GpuTier::Find(Id id) {
  if (!lost_.ok()) return lost_;
  const auto it = chunks_.find(id);
  if (it == chunks_.end() || !it->second.ready || it->second.evicted) {
    return absl::NotFoundError(absl::StrCat("gpu tier: no chunk ", id));
  }
  return it;
}

absl::StatusOr<GpuTier::Lease> GpuTier::Get(Id id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const absl::StatusOr<Chunks::iterator> it = Find(id);
  if (!it.ok()) return it.status();
  Chunk& chunk = (*it)->second;
  arena_.Pin(chunk.offset);
  ++chunk.leases;
  ++stats_.leases;
  ++stats_.gets;
  Lease lease;
  lease.tier_ = this;
  lease.id_ = id;
  lease.bytes_ = {memory_->data() + chunk.offset, chunk.bytes};
  return lease;
}

absl::Status GpuTier::Read(Id id, absl::Span<uint8_t> to) {
  const absl::StatusOr<Lease> lease = Get(id);
  if (!lease.ok()) return lease.status();
  if (to.size() != lease->bytes().size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gpu tier: chunk ", id, " has ", lease->bytes().size(), " bytes; room for ", to.size()));
  }
  return memory_->Read(static_cast<uint64_t>(lease->bytes().data() - memory_->data()), to);
}

void GpuTier::Drop(Chunks::iterator it) {
  arena_.Free(it->second.offset);
  stats_.chunk_bytes -= it->second.bytes;
  chunks_.erase(it);
}

absl::Status GpuTier::Evict(Id id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const absl::StatusOr<Chunks::iterator> it = Find(id);
  if (!it.ok()) return it.status();
  ++stats_.evictions;
  (*it)->second.evicted = true;
  if ((*it)->second.leases == 0) Drop(*it);
  return absl::OkStatus();
}

void GpuTier::Return(Id id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = chunks_.find(id);
  arena_.Unpin(it->second.offset);
  --stats_.leases;
  if (--it->second.leases == 0 && it->second.evicted) Drop(it);
}

GpuTierStats GpuTier::Stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  GpuTierStats s = stats_;
  s.capacity_bytes = arena_.capacity();
  s.free_bytes = arena_.free_bytes();
  s.largest_hole_bytes = arena_.largest_hole();
  s.holes = arena_.holes();
  s.chunks = chunks_.size();
  // Chunks still being written count as padding until their bytes are there.
  s.padding_bytes = s.capacity_bytes - s.free_bytes - s.chunk_bytes;
  return s;
}

}  // namespace kvcask
