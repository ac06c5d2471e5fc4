// A tier in a device's memory: chunks come back as they were put while others come, go and move.
//
// Prints its seed; KVCASK_SEED repeats a run. Runs on a GPU, and on the CPU (device/emulation).
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <map>
#include <random>
#include <vector>

#include "server/store/cuda_tier_memory.h"

namespace kvcask {
namespace {

TEST(TierGpuTest, MovesWhoseEndsOverlapKeepTheBytes) {
  auto memory = MakeCudaTierMemory(20 << 20);
  ASSERT_TRUE(memory.ok()) << memory.status();
  std::vector<uint8_t> bytes(18 << 20), back(bytes.size());
  std::mt19937 rng(3);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(rng());
  for (uint64_t gap : {uint64_t{64}, uint64_t{65536}, uint64_t{1} << 20}) {
    ASSERT_TRUE((*memory)->Write(gap, bytes).ok());
    ASSERT_TRUE((*memory)->MoveDown(0, gap, bytes.size()).ok());
    ASSERT_TRUE((*memory)->Read(0, absl::MakeSpan(back)).ok());
    ASSERT_EQ(back == bytes, true) << gap;
  }
}

TEST(TierGpuTest, ChunksComeBackAsTheyWerePut) {
  const char* given = std::getenv("KVCASK_SEED");
  const uint32_t seed =
      given != nullptr ? static_cast<uint32_t>(std::atoll(given)) : std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937 rng(seed);
  auto memory = MakeCudaTierMemory(4 << 20);
  ASSERT_TRUE(memory.ok()) << memory.status();
  GpuTier tier(*std::move(memory), {});
  std::map<GpuTier::Id, std::vector<uint8_t>> held;
  for (int i = 0; i < 2000; ++i) {
    std::vector<uint8_t> chunk(1 + rng() % 60000);
    for (uint8_t& b : chunk) b = static_cast<uint8_t>(rng());
    auto id = tier.Put(chunk);
    while (!id.ok()) {
      ASSERT_EQ(id.status().code(), absl::StatusCode::kResourceExhausted) << id.status();
      ASSERT_FALSE(held.empty());
      auto gone = std::next(held.begin(), rng() % held.size());
      ASSERT_TRUE(tier.Evict(gone->first).ok());
      held.erase(gone);
      id = tier.Put(chunk);
    }
    held[*id] = std::move(chunk);
  }
  EXPECT_GT(tier.Stats().moves, 0u);
  for (const auto& [id, chunk] : held) {
    std::vector<uint8_t> back(chunk.size());
    ASSERT_TRUE(tier.Read(id, absl::MakeSpan(back)).ok());
    ASSERT_EQ(back, chunk);
  }
}

}  // namespace
}  // namespace kvcask
