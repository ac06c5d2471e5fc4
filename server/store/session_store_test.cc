#include "server/store/session_store.h"

#include <gtest/gtest.h>

namespace kvcask {
namespace {

NewChunk MakeChunk(uint64_t begin, uint32_t tokens, size_t bytes) {
  NewChunk chunk;
  chunk.token_begin = begin;
  chunk.tokens = tokens;
  chunk.bytes.assign(bytes, 7);
  chunk.raw_bytes = tokens * 10;
  return chunk;
}

TEST(SessionStore, WhatIsCommittedIsReadAndDeleted) {
  SessionStore store(128);
  CommitRequest request;
  request.session = {"", "a"};
  request.traits.model_id = "m";
  request.tokens = 200;
  request.chunks.push_back(MakeChunk(0, 128, 100));
  request.chunks.push_back(MakeChunk(128, 72, 50));
  auto result = store.Commit(std::move(request));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->version, 1u);
  EXPECT_EQ(result->visible_tokens, 200u);
  auto plan = store.OpenRead({"", "a"}, 130, 0);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->shards.size(), 1u);
  ASSERT_EQ(plan->shards[0].chunks.size(), 1u);
  EXPECT_EQ(plan->shards[0].chunks[0]->token_begin, 128u);
  EXPECT_EQ(*store.Delete({"", "a"}), 150u);
  EXPECT_EQ(store.Usage().chunks, 0u);
  EXPECT_EQ(plan->shards[0].chunks[0]->bytes.size(), 50u);  // a read goes on
}

}  // namespace
}  // namespace kvcask
