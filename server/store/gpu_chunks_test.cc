// Prints its seed; KVCASK_SEED repeats a run.
#include "server/store/gpu_chunks.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "server/store/session_store.h"
#include "server/store/store_test_util.h"

namespace kvcask {
namespace {

using store_test::Tokens;

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

ChunkRef Chunk(size_t bytes, uint8_t first) {
  auto chunk = std::make_shared<StoredChunk>();
  chunk->bytes.resize(bytes);
  for (size_t i = 0; i < bytes; ++i) chunk->bytes[i] = static_cast<uint8_t>(first + i);
  return chunk;
}

bool Same(const GpuTier::Lease& lease, const ChunkRef& chunk) {
  return lease.bytes() == absl::MakeConstSpan(chunk->bytes);
}

std::unique_ptr<GpuTier> HostTier(uint64_t bytes) {
  return std::make_unique<GpuTier>(*MakeHostTierMemory(bytes));
}

// Host memory whose writes fail when told to.
class FailingMemory : public TierMemory {
 public:
  explicit FailingMemory(uint64_t bytes) : memory_(*MakeHostTierMemory(bytes)) {}
  uint64_t size() const override { return memory_->size(); }
  uint8_t* data() override { return memory_->data(); }
  absl::Status Write(uint64_t at, absl::Span<const uint8_t> from) override {
    return fails ? absl::InternalError("the device is gone") : memory_->Write(at, from);
  }
  absl::Status Read(uint64_t at, absl::Span<uint8_t> to) override { return memory_->Read(at, to); }
  absl::Status MoveDown(uint64_t to, uint64_t from, uint64_t bytes) override {
    return memory_->MoveDown(to, from, bytes);
  }
  bool fails = false;

 private:
  std::unique_ptr<TierMemory> memory_;
};

TEST(GpuChunksTest, FindsWhatWasAddedAndNothingElse) {
  GpuChunks gpu(HostTier(1 << 20));
  const ChunkRef a = Chunk(1000, 1), b = Chunk(1000, 2);
  gpu.Add(a);
  gpu.Add(a);
  EXPECT_TRUE(Same(gpu.Find(a), a));
  EXPECT_TRUE(gpu.Holds(a));
  EXPECT_TRUE(gpu.Find(b).bytes().empty());
  EXPECT_FALSE(gpu.Holds(b));
  EXPECT_TRUE(Same(gpu.FindOrAdd(b), b));
  const GpuChunksUsage u = gpu.Usage();
  EXPECT_EQ(u.chunks, 2u);
  EXPECT_EQ(u.bytes, 2000u);
  EXPECT_EQ(u.hits, 1u);
  EXPECT_EQ(u.misses, 2u);
  EXPECT_EQ(u.capacity_bytes, 1u << 20);
}

TEST(GpuChunksTest, AChunkTakesItsCopyAlong) {
  GpuChunks gpu(HostTier(1 << 20));
  ChunkRef a = Chunk(1000, 1);
  gpu.Add(a);
  a.reset();
  EXPECT_EQ(gpu.Usage().chunks, 0u);
  // Whatever is made at its address is another.
  for (int i = 0; i < 100; ++i) {
    const ChunkRef b = Chunk(1000, static_cast<uint8_t>(i));
    ASSERT_FALSE(gpu.Holds(b));
    ASSERT_TRUE(gpu.Find(b).bytes().empty());
    ASSERT_TRUE(Same(gpu.FindOrAdd(b), b));
  }
  EXPECT_EQ(gpu.Usage().bytes, 0u);
}

TEST(GpuChunksTest, WhatWasUsedLongestAgoGoesForRoom) {
  GpuChunks gpu(HostTier(64 << 10));
  std::vector<ChunkRef> chunks;
  for (uint8_t i = 0; i < 3; ++i) chunks.push_back(Chunk(20 << 10, i));
  for (const ChunkRef& c : chunks) gpu.Add(c);
  EXPECT_TRUE(Same(gpu.Find(chunks[0]), chunks[0]));
  chunks.push_back(Chunk(20 << 10, 9));
  gpu.Add(chunks[3]);
  EXPECT_TRUE(gpu.Holds(chunks[0]));
  EXPECT_FALSE(gpu.Holds(chunks[1]));
  EXPECT_TRUE(gpu.Holds(chunks[2]));
  EXPECT_TRUE(Same(gpu.Find(chunks[3]), chunks[3]));
  EXPECT_EQ(gpu.Usage().evicted_chunks, 1u);
  EXPECT_TRUE(gpu.FindOrAdd(chunks[1]).bytes().empty()) << "a read pushes nothing out";
  EXPECT_EQ(gpu.Usage().evicted_chunks, 1u);
  gpu.Add(Chunk(65 << 10, 1));  // larger than all of it: nobody goes for it
  EXPECT_EQ(gpu.Usage().chunks, 3u);
}

TEST(GpuChunksTest, ALeasedCopyStaysInPlaceWhenItIsEvicted) {
  GpuChunks gpu(HostTier(64 << 10));
  const ChunkRef a = Chunk(40 << 10, 1), b = Chunk(40 << 10, 2);
  gpu.Add(a);
  {
    const GpuTier::Lease lease = gpu.Find(a);
    gpu.Add(b);  // no room while somebody reads
    EXPECT_FALSE(gpu.Holds(b));
    EXPECT_TRUE(Same(lease, a));
  }
  gpu.Add(b);
  EXPECT_TRUE(Same(gpu.Find(b), b));
}

TEST(GpuChunksTest, UnwantedChunksAreNotCopied) {
  GpuChunks gpu(HostTier(1 << 20), [](const StoredChunk& c) { return c.bytes[0] == 1; });
  const ChunkRef a = Chunk(10, 1), b = Chunk(10, 2);
  gpu.Add(a);
  gpu.Add(b);
  EXPECT_TRUE(gpu.Holds(a));
  EXPECT_FALSE(gpu.Holds(b));
  EXPECT_TRUE(gpu.FindOrAdd(b).bytes().empty());
  EXPECT_EQ(gpu.Usage().misses, 0u);
}

TEST(GpuChunksTest, MemoryThatFailsIsReportedOnceAndForgotten) {
  auto memory = std::make_unique<FailingMemory>(1 << 20);
  FailingMemory* const handle = memory.get();
  std::vector<absl::Status> told;
  GpuChunks gpu(std::make_unique<GpuTier>(std::move(memory)), nullptr,
                [&](const absl::Status& s) { told.push_back(s); });
  const ChunkRef a = Chunk(1000, 1), b = Chunk(1000, 2);
  gpu.Add(a);
  handle->fails = true;
  gpu.Add(b);
  gpu.Add(b);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].message(), "the device is gone");
  EXPECT_FALSE(gpu.Holds(a));
  EXPECT_TRUE(gpu.FindOrAdd(a).bytes().empty());
  EXPECT_TRUE(gpu.Usage().lost);
  EXPECT_EQ(gpu.Usage().bytes, 0u);
}

TEST(GpuChunksTest, ThreadsReadWhatTheyAskedForWhileOthersEvict) {
  GpuChunks gpu(HostTier(256 << 10));
  std::vector<ChunkRef> chunks;
  std::mt19937 rng(Seed());
  for (int i = 0; i < 64; ++i) {
    chunks.push_back(Chunk(1 + rng() % (16 << 10), static_cast<uint8_t>(i)));
  }
  std::atomic<int> found{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, seed = rng()] {
      std::mt19937 mine(seed);
      for (int i = 0; i < 2000; ++i) {
        const ChunkRef& c = chunks[mine() % chunks.size()];
        if (mine() % 4 == 0) gpu.Add(c);
        const GpuTier::Lease lease = gpu.FindOrAdd(c);
        if (lease.bytes().empty()) continue;
        ++found;
        if (!Same(lease, c)) ++wrong;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(found, 0);
  EXPECT_GT(gpu.Usage().evicted_chunks, 0u);
  chunks.clear();
  EXPECT_EQ(gpu.Usage().bytes, 0u);
}

// --- below a session store

CommitRequest RunOf(const std::string& id, const Tokens& tokens, bool ids = true) {
  CommitRequest r;
  r.session = {"", id};
  r.traits = store_test::Traits();
  r.tokens = tokens.size();
  r.put_id = id;
  r.chunks = store_test::Chunks(tokens, 0, r.traits, 0, ids);
  return r;
}

TEST(GpuChunksTest, ACommitIsCopiedAndADeletedSessionTakesItsCopiesAlong) {
  GpuChunks gpu(HostTier(1 << 20));
  SessionStoreOptions options;
  options.gpu = &gpu;
  SessionStore store(store_test::kPage, options);
  const Tokens tokens(3 * store_test::kPage, 7);
  ASSERT_TRUE(store.Commit(RunOf("a", tokens)).ok());
  EXPECT_EQ(gpu.Usage().chunks, 3u);
  auto stat = store.Stat({"", "a"});
  ASSERT_TRUE(stat.ok());
  EXPECT_EQ(stat->gpu_bytes, stat->stored_bytes);
  EXPECT_EQ(gpu.Usage().bytes, stat->stored_bytes);

  // The same tokens again share chunks, and copies; a replay makes none either.
  ASSERT_TRUE(store.Commit(RunOf("b", tokens)).ok());
  ASSERT_TRUE(store.Commit(RunOf("a", tokens))->replayed);
  EXPECT_EQ(gpu.Usage().chunks, 3u);
  EXPECT_EQ(store.Stat({"", "b"})->gpu_bytes, stat->stored_bytes);

  ASSERT_TRUE(store.Delete({"", "a"}).ok());
  EXPECT_EQ(gpu.Usage().chunks, 3u);
  ASSERT_TRUE(store.Delete({"", "b"}).ok());
  EXPECT_EQ(gpu.Usage().bytes, 0u);
}

}  // namespace
}  // namespace kvcask
