#include "server/store/chunk_arena.h"

#include <algorithm>
#include <iterator>

namespace kvcask {
namespace {

// Blocks that Compact weighs before it takes the cheapest run found.
constexpr size_t kWeighed = 4096;
// And at most, where no run is cheap enough: a full arena must not cost a walk through all.
constexpr size_t kMostWeighed = 4 * kWeighed;

}  // namespace

ChunkArena::ChunkArena(uint64_t bytes) : capacity_(bytes / kArenaAlignment * kArenaAlignment) {
  if (capacity_ > 0) {
    AddHole(0, capacity_);
    free_ = capacity_;
  }
}

std::optional<uint64_t> ChunkArena::Rounded(uint64_t bytes) const {
  if (bytes > capacity_) return std::nullopt;  // before rounding, which would overflow
  return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

void ChunkArena::AddHole(uint64_t offset, uint64_t bytes) {
  auto next = blocks_.lower_bound(offset);
  if (next != blocks_.end() && !next->second.used) {
    holes_.erase({next->second.bytes, next->first});
    bytes += next->second.bytes;
    next = blocks_.erase(next);
  }
  if (next != blocks_.begin()) {
    auto previous = std::prev(next);
    if (!previous->second.used) {
      holes_.erase({previous->second.bytes, previous->first});
      previous->second.bytes += bytes;
      holes_.insert({previous->second.bytes, previous->first});
      return;
    }
  }
  Block hole;
  hole.bytes = bytes;
  blocks_.emplace_hint(next, offset, hole);
  holes_.insert({bytes, offset});
}

std::optional<uint64_t> ChunkArena::Allocate(uint64_t bytes, uint64_t owner) {
  const std::optional<uint64_t> rounded = Rounded(bytes);
  if (!rounded.has_value() || *rounded == 0) return std::nullopt;
  const auto hole = holes_.lower_bound({*rounded, 0});
  if (hole == holes_.end()) return std::nullopt;
  const auto [size, offset] = *hole;
  holes_.erase(hole);
  Block& block = blocks_[offset];
  block = {*rounded, owner, 1, true};
  if (size > *rounded) AddHole(offset + *rounded, size - *rounded);
  free_ -= *rounded;
  return offset;
}

bool ChunkArena::Free(uint64_t offset) {
  const auto it = blocks_.find(offset);
  if (it == blocks_.end() || !it->second.used) return false;
  const uint64_t bytes = it->second.bytes;
  blocks_.erase(it);
  AddHole(offset, bytes);
  free_ += bytes;
  return true;
}

void ChunkArena::Pin(uint64_t offset) { ++blocks_.at(offset).pins; }

void ChunkArena::Unpin(uint64_t offset) { --blocks_.at(offset).pins; }

std::optional<std::vector<ChunkArena::Move>> ChunkArena::Compact(uint64_t bytes,
                                                                 uint64_t most_moved) {
  const std::optional<uint64_t> wanted = Rounded(bytes);
  if (!wanted.has_value() || *wanted > free_) return std::nullopt;
  if (largest_hole() >= *wanted) return std::vector<Move>();
  most_moved = std::min(most_moved, capacity_);
  // A window over blocks by address, from one hole to another: its holes hold what is wanted and
  // its used bytes are what a move costs. It never crosses a pinned block or the arena's end.
  auto first = blocks_.lower_bound(cursor_);
  if (first == blocks_.end()) first = blocks_.begin();
  auto last = first;  // the window is [first, last)
  uint64_t room = 0, used = 0, best_used = UINT64_MAX, best_begin = 0, best_end = 0;
  size_t weighed = 0;
  // Once round, and over the start again for a window that the cursor stood in.
  const size_t most = blocks_.size() + std::min(blocks_.size(), kWeighed);
  while (weighed < std::min(most, kMostWeighed) && (weighed < kWeighed || best_used > most_moved)) {
    if (last == blocks_.end()) {
      first = last = blocks_.begin();
      room = used = 0;
    }
    const Block& b = last->second;
    ++weighed;
    if (b.used && b.pins > 0) {
      first = ++last;
      room = used = 0;
      continue;
    }
    (b.used ? used : room) += b.bytes;
    ++last;
    while (first != last && (first->second.used || room - first->second.bytes >= *wanted)) {
      (first->second.used ? used : room) -= first->second.bytes;
      ++first;
    }
    if (room >= *wanted && used < best_used) {
      best_used = used;
      best_begin = first->first;
      best_end = std::prev(last)->first + std::prev(last)->second.bytes;
    }
  }
  cursor_ = last == blocks_.end() ? 0 : last->first;
  if (best_used > most_moved) return std::nullopt;

  std::vector<Move> moves;
  std::vector<Block> kept;
  for (auto it = blocks_.find(best_begin); it != blocks_.end() && it->first < best_end;) {
    if (it->second.used) {
      moves.push_back({it->second.owner, it->first, 0, it->second.bytes});
      kept.push_back(it->second);
    } else {
      holes_.erase({it->second.bytes, it->first});
    }
    it = blocks_.erase(it);
  }
  uint64_t to = best_begin;
  for (size_t i = 0; i < moves.size(); ++i) {
    moves[i].to = to;
    blocks_.emplace(to, kept[i]);
    to += moves[i].bytes;
  }
  AddHole(to, best_end - to);
  return moves;
}

bool ChunkArena::Consistent() const {
  uint64_t at = 0, room = 0;
  size_t holes = 0;
  bool after_hole = false;
  for (const auto& [offset, block] : blocks_) {
    if (offset != at || block.bytes == 0 || block.bytes % kArenaAlignment != 0) return false;
    at += block.bytes;
    if (!block.used) {
      if (after_hole || holes_.count({block.bytes, offset}) == 0) return false;
      room += block.bytes;
      ++holes;
    }
    after_hole = !block.used;
  }
  return at == capacity_ && room == free_ && holes == holes_.size();
}

}  // namespace kvcask
