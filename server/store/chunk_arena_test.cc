// Prints its seed; KVCASK_SEED repeats a run.
#include "server/store/chunk_arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <unordered_map>
#include <vector>

namespace kvcask {
namespace {

uint32_t Seed() {
  static const uint32_t seed = [] {
    const char* given = std::getenv("KVCASK_SEED");
    const uint32_t s =
        given != nullptr ? static_cast<uint32_t>(std::atoll(given)) : std::random_device{}();
    std::printf("seed %u\n", s);
    return s;
  }();
  return seed;
}

TEST(ChunkArenaTest, HolesAreJoinedAndTheBestIsTaken) {
  ChunkArena arena(10 * kArenaAlignment + 5);
  EXPECT_EQ(arena.capacity(), 10 * kArenaAlignment);
  std::vector<uint64_t> at;
  for (uint64_t i = 0; i < 10; ++i) at.push_back(*arena.Allocate(1 + i, i));
  EXPECT_FALSE(arena.Allocate(1, 10).has_value());
  EXPECT_TRUE(arena.Free(at[1]));
  EXPECT_TRUE(arena.Free(at[2]));
  EXPECT_TRUE(arena.Free(at[3]));
  EXPECT_TRUE(arena.Free(at[7]));
  EXPECT_EQ(arena.holes(), 2u);
  EXPECT_EQ(arena.largest_hole(), 3 * kArenaAlignment);
  EXPECT_EQ(*arena.Allocate(kArenaAlignment, 11), at[7]);  // not the larger hole's
  EXPECT_EQ(*arena.Allocate(3 * kArenaAlignment, 12), at[1]);
  EXPECT_TRUE(arena.Consistent());
}

TEST(ChunkArenaTest, AFreedOrUnknownOffsetIsRefused) {
  ChunkArena arena(1024);
  const uint64_t a = *arena.Allocate(100, 1);
  EXPECT_FALSE(arena.Free(a + kArenaAlignment));
  EXPECT_TRUE(arena.Free(a));
  EXPECT_FALSE(arena.Free(a));
  EXPECT_FALSE(arena.Free(UINT64_MAX));
  EXPECT_EQ(arena.free_bytes(), 1024u);
}

TEST(ChunkArenaTest, SizesThatWouldOverflowAreRefused) {
  ChunkArena arena(1024);
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1025}, UINT64_MAX, UINT64_MAX - 62}) {
    EXPECT_FALSE(arena.Allocate(bytes, 1).has_value()) << bytes;
  }
  EXPECT_FALSE(arena.Compact(UINT64_MAX, UINT64_MAX).has_value());
  EXPECT_FALSE(ChunkArena(0).Allocate(1, 1).has_value());
  EXPECT_TRUE(arena.Consistent());
}

TEST(ChunkArenaTest, CompactionKeepsPinnedBlocksAndTheLimit) {
  constexpr uint64_t kUnit = kArenaAlignment;
  ChunkArena arena(8 * kUnit);
  std::vector<uint64_t> at;
  for (uint64_t i = 0; i < 8; ++i) at.push_back(*arena.Allocate(kUnit, i));
  for (const int i : {0, 2, 4, 6}) arena.Free(at[i]);
  for (const int i : {1, 3, 5, 7}) arena.Unpin(at[i]);
  arena.Pin(at[3]);
  EXPECT_FALSE(arena.Compact(2 * kUnit, kUnit - 1).has_value());   // a move is dearer
  EXPECT_FALSE(arena.Compact(3 * kUnit, UINT64_MAX).has_value());  // not on one side of at[3]
  const auto moves = arena.Compact(2 * kUnit, kUnit);
  ASSERT_TRUE(moves.has_value());
  ASSERT_EQ(moves->size(), 1u);
  EXPECT_TRUE(arena.Consistent());
  EXPECT_TRUE(arena.Allocate(2 * kUnit, 9).has_value());
  EXPECT_EQ(moves->front().from - moves->front().to, kUnit);
  EXPECT_NE(moves->front().owner, 3u);
}

// Bytes of one page's chunk as a kind of model and codec makes them, about log-normal.
struct Load {
  const char* name;
  double median, spread;
};
constexpr Load kLoads[] = {
    {"fklt, 1.5B model, 28 layers", 230e3, .25},
    {"fklt, one layer of it", 8.2e3, .25},
    {"fklt, presets mixed", 120e3, .7},
    {"int8, 1.5B model", 1.84e6, .02},
    {"small model's fklt", 12e3, .4},
};

struct Outcome {
  double lost;   // at a refusal: what is not chunks' own bytes, most
  double moved;  // bytes for each byte put
};

// Puts until there is no room, evicts at random until there is, `puts` times.
Outcome Churn(const Load& load, uint64_t capacity, int puts, uint64_t moved_for_a_byte,
              std::mt19937& rng) {
  ChunkArena arena(capacity);
  std::lognormal_distribution<double> sizes(std::log(load.median), load.spread);
  struct Kept {
    uint64_t id, bytes;
  };
  std::vector<Kept> kept;
  std::unordered_map<uint64_t, uint64_t> offset_of;
  uint64_t bytes_kept = 0, bytes_put = 0, moved = 0;
  double lost = 0;
  for (int i = 0; i < puts; ++i) {
    const uint64_t id = static_cast<uint64_t>(i);
    const uint64_t bytes = std::max<uint64_t>(64, static_cast<uint64_t>(sizes(rng)));
    for (;;) {
      std::optional<uint64_t> offset = arena.Allocate(bytes, id);
      if (!offset.has_value() && moved_for_a_byte > 0) {
        const auto moves = arena.Compact(bytes, bytes * moved_for_a_byte);
        if (moves.has_value()) {
          for (const ChunkArena::Move& m : *moves) {
            EXPECT_LT(m.to, m.from);
            EXPECT_EQ(offset_of.at(m.owner), m.from);
            offset_of[m.owner] = m.to;
            moved += m.bytes;
          }
          offset = arena.Allocate(bytes, id);
          EXPECT_TRUE(offset.has_value());
        }
      }
      if (offset.has_value()) {
        arena.Unpin(*offset);
        offset_of[id] = *offset;
        kept.push_back({id, bytes});
        bytes_kept += bytes;
        bytes_put += bytes;
        break;
      }
      lost = std::max(lost, 1 - static_cast<double>(bytes_kept) / static_cast<double>(capacity));
      const size_t victim = rng() % kept.size();
      EXPECT_TRUE(arena.Free(offset_of.at(kept[victim].id)));
      offset_of.erase(kept[victim].id);
      bytes_kept -= kept[victim].bytes;
      kept[victim] = kept.back();
      kept.pop_back();
    }
    if (i % 1000 == 0) {
      EXPECT_TRUE(arena.Consistent());
    }
  }
  EXPECT_TRUE(arena.Consistent());
  return {lost, static_cast<double>(moved) / static_cast<double>(bytes_put)};
}

TEST(ChunkArenaTest, UnderThreePercentAreLostWhereverAPutIsRefused) {
  std::mt19937 rng(Seed());
  for (const Load& load : kLoads) {
    // Room for some 800 chunks, of which one that just did not fit is nothing.
    const uint64_t capacity = static_cast<uint64_t>(load.median * 800);
    const Outcome fit_alone = Churn(load, capacity, 6'000, 0, rng);
    const Outcome joined = Churn(load, capacity, 6'000, 48, rng);
    std::printf(
        "%-28s lost at most %.2f %%, %.2f bytes moved for each put; by best fit alone %.2f %%\n",
        load.name, 100 * joined.lost, joined.moved, 100 * fit_alone.lost);
    EXPECT_LT(joined.lost, .03) << load.name;
  }
}

TEST(ChunkArenaTest, RandomCallsKeepItConsistentAndBlocksApart) {
  std::mt19937 rng(Seed() + 1);
  ChunkArena arena(1 << 16);
  struct Kept {
    uint64_t at, bytes;
    int pins;
  };
  std::unordered_map<uint64_t, Kept> kept;
  for (uint64_t i = 0; i < 10'000; ++i) {
    const uint64_t bytes = 1 + rng() % 3000;
    const auto any = kept.empty() ? kept.end() : std::next(kept.begin(), rng() % kept.size());
    switch (rng() % 5) {
      case 0:
        if (any != kept.end()) {
          ASSERT_TRUE(arena.Free(any->second.at));
          kept.erase(any);
        }
        break;
      case 1:
        if (any != kept.end() && any->second.pins > 0) {
          arena.Unpin(any->second.at);
          --any->second.pins;
        } else if (any != kept.end()) {
          arena.Pin(any->second.at);
          ++any->second.pins;
        }
        break;
      case 2:
        if (const auto moves = arena.Compact(bytes, 1 + rng() % 20'000)) {
          for (const ChunkArena::Move& m : *moves) {
            Kept& k = kept.at(m.owner);
            ASSERT_EQ(k.at, m.from);
            ASSERT_EQ(k.pins, 0);
            k.at = m.to;
          }
          ASSERT_GE(arena.largest_hole(), bytes);
        }
        break;
      default:
        if (const auto at = arena.Allocate(bytes, i)) kept[i] = {*at, bytes, 1};
    }
    ASSERT_TRUE(arena.Consistent()) << "call " << i;
    if (i % 64 == 0) {
      std::vector<std::pair<uint64_t, uint64_t>> ranges;
      for (const auto& [id, k] : kept) ranges.push_back({k.at, k.at + k.bytes});
      std::sort(ranges.begin(), ranges.end());
      for (size_t r = 1; r < ranges.size(); ++r) ASSERT_LE(ranges[r - 1].second, ranges[r].first);
    }
  }
}

}  // namespace
}  // namespace kvcask
