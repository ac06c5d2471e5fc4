// Prints its seed; KVCASK_SEED repeats a run.
#include "server/store/gpu_tier.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

namespace kvcask {
namespace {

using Bytes = std::vector<uint8_t>;

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

Bytes RandomChunk(std::mt19937& rng, size_t bytes) {
  Bytes chunk(bytes);
  for (uint8_t& b : chunk) b = static_cast<uint8_t>(rng());
  return chunk;
}

std::unique_ptr<GpuTier> HostTier(uint64_t bytes, GpuTierOptions options = {}) {
  return std::make_unique<GpuTier>(*MakeHostTierMemory(bytes), options);
}

Bytes ReadAll(GpuTier& tier, GpuTier::Id id, size_t bytes) {
  Bytes out(bytes);
  const absl::Status s = tier.Read(id, absl::MakeSpan(out));
  EXPECT_TRUE(s.ok()) << s;
  return out;
}

void ExpectSums(const GpuTierStats& s) {
  EXPECT_EQ(s.chunk_bytes + s.padding_bytes + s.free_bytes, s.capacity_bytes);
}

// Host memory that fails when told to.
class FailingMemory : public TierMemory {
 public:
  explicit FailingMemory(uint64_t bytes) : memory_(*MakeHostTierMemory(bytes)) {}
  uint64_t size() const override { return memory_->size(); }
  uint8_t* data() override { return memory_->data(); }
  absl::Status Write(uint64_t at, absl::Span<const uint8_t> from) override {
    return fail_writes ? absl::InternalError("write") : memory_->Write(at, from);
  }
  absl::Status Read(uint64_t at, absl::Span<uint8_t> to) override { return memory_->Read(at, to); }
  absl::Status MoveDown(uint64_t to, uint64_t from, uint64_t bytes) override {
    return fail_moves ? absl::InternalError("move") : memory_->MoveDown(to, from, bytes);
  }
  bool fail_writes = false, fail_moves = false;

 private:
  std::unique_ptr<TierMemory> memory_;
};

TEST(GpuTierTest, AChunkComesBackUntilItIsEvicted) {
  std::mt19937 rng(Seed());
  auto tier = HostTier(4096);
  const Bytes a = RandomChunk(rng, 1000), b = RandomChunk(rng, 1);
  const GpuTier::Id ia = *tier->Put(a), ib = *tier->Put(b);
  EXPECT_EQ(ReadAll(*tier, ia, 1000), a);
  EXPECT_EQ(ReadAll(*tier, ib, 1), b);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tier->Get(ib)->bytes().data()) % kArenaAlignment, 0u);
  const GpuTierStats s = tier->Stats();
  EXPECT_EQ(s.chunk_bytes, 1001u);
  EXPECT_EQ(s.padding_bytes, 1024u + 64 - 1001);
  EXPECT_EQ(s.chunks, 2u);
  EXPECT_EQ(s.puts, 2u);
  EXPECT_EQ(s.gets, 3u);
  ExpectSums(s);
  EXPECT_TRUE(tier->Evict(ia).ok());
  EXPECT_EQ(tier->Evict(ia).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(tier->Get(ia).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(tier->Get(12345).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(tier->Stats().chunk_bytes, 1u);
  EXPECT_EQ(ReadAll(*tier, ib, 1), b);
}

TEST(GpuTierTest, SizesAreChecked) {
  auto tier = HostTier(256);
  EXPECT_EQ(tier->Put({}).status().code(), absl::StatusCode::kInvalidArgument);
  const uint8_t byte = 0;
  // Only the size is looked at: nothing of such a chunk is read.
  for (const size_t n : {size_t{257}, SIZE_MAX, SIZE_MAX - 62}) {
    const absl::Status s = tier->Put(absl::MakeConstSpan(&byte, n)).status();
    EXPECT_EQ(s.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_NE(s.message().find("larger than the tier"), absl::string_view::npos) << s;
  }
  const Bytes chunk(256, 7);
  const GpuTier::Id id = *tier->Put(chunk);
  Bytes small(255);
  EXPECT_EQ(tier->Read(id, absl::MakeSpan(small)).code(), absl::StatusCode::kInvalidArgument);
  const absl::Status full = tier->Put(small).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(full.message().find("larger than the tier"), absl::string_view::npos) << full;
  EXPECT_EQ(tier->Stats().refused_puts, 4u);
  EXPECT_FALSE(MakeHostTierMemory(UINT64_MAX).ok());
}

TEST(GpuTierTest, ALeaseOutlivesEvictionAndHoldsItsBytesInPlace) {
  std::mt19937 rng(Seed() + 1);
  auto tier = HostTier(4 * 64);
  std::vector<Bytes> chunks;
  std::vector<GpuTier::Id> ids;
  for (int i = 0; i < 4; ++i) {
    chunks.push_back(RandomChunk(rng, 64));
    ids.push_back(*tier->Put(chunks.back()));
  }
  GpuTier::Lease lease = *std::move(tier->Get(ids[1]));
  const uint8_t* const at = lease.bytes().data();
  EXPECT_TRUE(tier->Evict(ids[1]).ok());
  EXPECT_EQ(tier->Evict(ids[1]).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(tier->Get(ids[1]).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(tier->Stats().free_bytes, 0u);  // still held
  EXPECT_TRUE(tier->Evict(ids[0]).ok());
  EXPECT_TRUE(tier->Evict(ids[3]).ok());
  // Room for two, but not in one piece, and the leased chunk stands between.
  const GpuTier::Id other = *tier->Put(chunks[3]);
  EXPECT_EQ(lease.bytes().data(), at);
  EXPECT_EQ(Bytes(lease.bytes().begin(), lease.bytes().end()), chunks[1]);
  lease = GpuTier::Lease();
  EXPECT_EQ(tier->Stats().leases, 0u);
  const Bytes large = RandomChunk(rng, 128);
  const GpuTier::Id id = *tier->Put(large);
  EXPECT_EQ(ReadAll(*tier, id, 128), large);
  EXPECT_EQ(ReadAll(*tier, other, 64), chunks[3]);
  EXPECT_EQ(ReadAll(*tier, ids[2], 64), chunks[2]);
}

TEST(GpuTierTest, MovesThatAreForbiddenAreNotMade) {
  GpuTierOptions options;
  options.most_moved_for_a_byte = 0;
  auto tier = HostTier(3 * 64, options);
  const Bytes chunk(64, 1), large(128, 2);
  std::vector<GpuTier::Id> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(*tier->Put(chunk));
  ASSERT_TRUE(tier->Evict(ids[0]).ok());
  ASSERT_TRUE(tier->Evict(ids[2]).ok());
  EXPECT_EQ(tier->Put(large).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(tier->Stats().moves, 0u);
}

TEST(GpuTierTest, AWriteThatFailsLeavesNothingAndAMoveThatFailsLosesTheTier) {
  auto owned = std::make_unique<FailingMemory>(3 * 64);
  FailingMemory* memory = owned.get();
  GpuTier tier(std::move(owned));
  const Bytes chunk(64, 1), large(128, 2);
  memory->fail_writes = true;
  EXPECT_EQ(tier.Put(chunk).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(tier.Stats().free_bytes, 3u * 64);
  EXPECT_EQ(tier.Stats().chunks, 0u);
  memory->fail_writes = false;
  std::vector<GpuTier::Id> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(*tier.Put(chunk));
  ASSERT_TRUE(tier.Evict(ids[0]).ok());
  ASSERT_TRUE(tier.Evict(ids[2]).ok());
  memory->fail_moves = true;
  EXPECT_EQ(tier.Put(large).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(tier.Get(ids[1]).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(tier.Put(chunk).status().code(), absl::StatusCode::kInternal);
}

TEST(GpuTierTest, ChunksKeepTheirBytesThroughLongChurnAndLittleIsLost) {
  std::mt19937 rng(Seed() + 2);
  constexpr uint64_t kCapacity = 8 << 20;
  auto tier = HostTier(kCapacity);
  struct Kept {
    GpuTier::Id id;
    size_t bytes;
    uint8_t first;
  };
  // A chunk's bytes follow from its first.
  const auto make = [](size_t bytes, uint8_t first) {
    Bytes chunk(bytes);
    std::iota(chunk.begin(), chunk.end(), first);
    return chunk;
  };
  std::vector<Kept> kept;
  double lost = 0;
  for (int i = 0; i < 8000; ++i) {
    const size_t bytes = 2000 + rng() % 12'000;
    const uint8_t first = static_cast<uint8_t>(rng());
    absl::StatusOr<GpuTier::Id> id = tier->Put(make(bytes, first));
    for (; !id.ok(); id = tier->Put(make(bytes, first))) {
      ASSERT_EQ(id.status().code(), absl::StatusCode::kResourceExhausted);
      const GpuTierStats s = tier->Stats();
      lost = std::max(lost, 1 - static_cast<double>(s.chunk_bytes) / kCapacity);
      const size_t victim = rng() % kept.size();
      ASSERT_TRUE(tier->Evict(kept[victim].id).ok());
      kept[victim] = kept.back();
      kept.pop_back();
    }
    kept.push_back({*id, bytes, first});
    const Kept& any = kept[rng() % kept.size()];
    ASSERT_EQ(ReadAll(*tier, any.id, any.bytes), make(any.bytes, any.first));
  }
  for (const Kept& k : kept) ASSERT_EQ(ReadAll(*tier, k.id, k.bytes), make(k.bytes, k.first));
  const GpuTierStats s = tier->Stats();
  ExpectSums(s);
  EXPECT_GT(s.moves, 0u);
  EXPECT_LT(lost, .03);
  std::printf("lost at most %.2f %%; %llu chunks, %llu moves\n", 100 * lost,
              static_cast<unsigned long long>(s.chunks), static_cast<unsigned long long>(s.moves));
}

TEST(GpuTierTest, ThreadsPutReadAndEvictAtOnce) {
  auto tier = HostTier(1 << 20);
  std::vector<std::thread> threads;
  const uint32_t seed = Seed() + 3;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&tier, seed, t] {
      std::mt19937 rng(seed + t);
      std::map<GpuTier::Id, Bytes> own;
      for (int i = 0; i < 1500; ++i) {
        const Bytes chunk(1 + rng() % 9000, static_cast<uint8_t>(rng()));
        const absl::StatusOr<GpuTier::Id> id = tier->Put(chunk);
        if (id.ok()) own[*id] = chunk;
        if (own.empty()) continue;
        const auto any = std::next(own.begin(), rng() % own.size());
        const absl::StatusOr<GpuTier::Lease> lease = tier->Get(any->first);
        ASSERT_TRUE(lease.ok()) << lease.status();
        ASSERT_EQ(Bytes(lease->bytes().begin(), lease->bytes().end()), any->second);
        if (!id.ok() || rng() % 3 == 0) {
          ASSERT_TRUE(tier->Evict(any->first).ok());
          own.erase(any);
        }
      }
      for (const auto& [id, chunk] : own) {
        ASSERT_EQ(ReadAll(*tier, id, chunk.size()), chunk);
        ASSERT_TRUE(tier->Evict(id).ok());
      }
    });
  }
  for (std::thread& t : threads) t.join();
  const GpuTierStats s = tier->Stats();
  EXPECT_EQ(s.free_bytes, s.capacity_bytes);
  EXPECT_EQ(s.holes, 1u);
  EXPECT_EQ(s.leases, 0u);
}

}  // namespace
}  // namespace kvcask
