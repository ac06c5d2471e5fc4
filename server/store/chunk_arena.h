// Where chunks lie in one piece of memory: book-keeping of offsets alone, so that it can be
// tested without the memory.
//
// Best fit by size, neighbours joined at once. Where the room is there but in pieces, Compact
// says which blocks to move together: chunks are read by offset and may lie anywhere. (Best fit
// alone loses 5 to 17 % to holes under random eviction, and more where sizes differ widely;
// chunk_arena_test.cc measures both.) Blocks that are pinned stay where they are.
//
// One thread at a time. Allocate and Free cost O(log blocks).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace kvcask {

// Offsets and sizes of blocks are multiples of it: a kernel's vector loads and the sectors of a
// GPU's memory begin on one.
inline constexpr uint64_t kArenaAlignment = 64;

class ChunkArena {
 public:
  struct Move {
    uint64_t owner, from, to, bytes;  // to < from; they may overlap
  };

  explicit ChunkArena(uint64_t bytes);  // rounded down to the alignment

  // The offset of `bytes`, pinned once, with the owner's number; none where there is no hole so
  // large. bytes >= 1.
  std::optional<uint64_t> Allocate(uint64_t bytes, uint64_t owner);
  // The block at `offset`, which Allocate gave or a Move led to, whatever its pins. False, and
  // nothing changed: there is no such block.
  bool Free(uint64_t offset);
  void Pin(uint64_t offset);
  void Unpin(uint64_t offset);

  // Moves, in the order in which they are to be carried out, after which Allocate(bytes)
  // succeeds; the arena counts them as done. None: the room isn't there, or not for
  // `most_moved` bytes of moves. Looks through some thousands of blocks for the cheapest run,
  // from where it stopped last; where none is cheap enough, through some more.
  std::optional<std::vector<Move>> Compact(uint64_t bytes, uint64_t most_moved);

  uint64_t capacity() const { return capacity_; }
  uint64_t free_bytes() const { return free_; }
  uint64_t largest_hole() const { return holes_.empty() ? 0 : holes_.rbegin()->first; }
  uint64_t holes() const { return holes_.size(); }
  // What a block of `bytes` takes; none: more than the arena.
  std::optional<uint64_t> Rounded(uint64_t bytes) const;

  // For tests: blocks cover the arena without gaps, no two holes touch, and all sums agree.
  bool Consistent() const;

 private:
  struct Block {
    uint64_t bytes = 0;
    uint64_t owner = 0;
    uint32_t pins = 0;
    bool used = false;
  };
  using Blocks = std::map<uint64_t, Block>;       // by offset
  void AddHole(uint64_t offset, uint64_t bytes);  // joins neighbours

  const uint64_t capacity_;
  uint64_t free_ = 0;
  Blocks blocks_;
  std::set<std::pair<uint64_t, uint64_t>> holes_;  // size, offset
  uint64_t cursor_ = 0;
};

}  // namespace kvcask
