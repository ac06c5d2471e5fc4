// Sessions over their life: fork, rewind, pin, lease, quota, eviction.
#include <absl/strings/str_cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "server/store/session_store.h"
#include "server/store/store_test_util.h"

namespace kvcask {
namespace {

using store_test::BytesOf;
using store_test::kPage;
using store_test::MakeRun;
using store_test::PrefixIds;
using store_test::Sequence;
using store_test::Tokens;
using store_test::Traits;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Code = absl::StatusCode;

const SessionKey kA{"", "a"}, kB{"", "b"}, kC{"", "c"};

class LifeTest : public testing::Test {
 protected:
  SessionStoreOptions Options() {
    SessionStoreOptions o;
    o.now = [this] { return now; };
    o.quota = [this](const std::string& ns) { return ns == "small" ? quota : NamespaceQuota{}; };
    return o;
  }
  CommitResult Put(const SessionKey& key, const Tokens& all, uint64_t begin = 0,
                   const SessionTraits& traits = Traits(), uint32_t shard = 0) {
    const auto before = store.BeginWrite(key, traits, shard);
    EXPECT_TRUE(before.ok()) << before.status();
    const auto result =
        store.Commit(MakeRun(key, all, begin, before->version, traits, shard));
    EXPECT_TRUE(result.ok()) << result.status();
    return result.value_or(CommitResult());
  }
  absl::StatusOr<SessionStat> Fork(const SessionKey& from, const SessionKey& to, uint64_t at) {
    return store.Fork(from, to, at, absl::ZeroDuration(), {});
  }
  // All of it is there, byte for byte: the chunks of `all`, seen as far as `tokens`.
  void ExpectHolds(const SessionKey& key, const Tokens& all, uint64_t tokens,
                   const SessionTraits& traits = Traits()) {
    const auto plan = store.OpenRead(key, 0, 0);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ASSERT_EQ(plan->token_end, tokens);
    for (const auto& shard : plan->shards) {
      const auto expected = store_test::Chunks(all, 0, traits, shard.shard, true);
      ASSERT_EQ(shard.chunks.size(), (tokens + kPage - 1) / kPage);
      for (size_t i = 0; i < shard.chunks.size(); ++i) {
        EXPECT_EQ(shard.chunks[i]->bytes, expected[i].bytes) << i;
      }
    }
  }

  NamespaceQuota quota;
  absl::Time now = absl::FromUnixSeconds(1'000'000);
  SessionStore store{kPage, Options()};
};

TEST_F(LifeTest, AForkSharesEverythingAndGoesItsOwnWay) {
  Put(kA, Sequence(0, 10));
  const StoreUsage before = store.Usage();
  const auto fork = Fork(kA, kB, 8);
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->tokens, 8u);
  EXPECT_FALSE(fork->sealed);
  EXPECT_EQ(fork->unique_bytes, 0u);
  EXPECT_EQ(store.Usage().stored_bytes, before.stored_bytes);  // nothing was copied
  EXPECT_EQ(store.Usage().chunks, before.chunks);
  Tokens other = Sequence(0, 14);
  for (size_t i = 8; i < other.size(); ++i) other[i] += 50;
  Put(kB, other, 8);
  ExpectHolds(kA, Sequence(0, 10), 10);
  ExpectHolds(kB, other, 14);
  EXPECT_EQ(*store.Delete(kA), store_test::Chunks(Sequence(0, 10), 8, Traits(), 0, true)[0].bytes.size());
  ExpectHolds(kB, other, 14);
}

TEST_F(LifeTest, AForkWithinAPageSeesItsBeginningOnly) {
  Put(kA, Sequence(0, 12));
  ASSERT_TRUE(Fork(kA, kB, 6).ok());
  EXPECT_EQ(store.Stat(kB)->tokens, 6u);
  EXPECT_EQ(store.Stat(kB)->raw_bytes, 180u);  // of six tokens
  EXPECT_EQ(store.OpenRead(kB, 0, 7).status().code(), Code::kOutOfRange);
  ExpectHolds(kB, Sequence(0, 12), 6);
  const auto snapshot = store.BeginWrite(kB, Traits(), 0);
  ASSERT_TRUE(snapshot.ok());
  EXPECT_EQ(snapshot->tokens, 6u);
  EXPECT_EQ(snapshot->tail_tokens, 2u);
  ASSERT_NE(snapshot->tail, nullptr);
  EXPECT_EQ(snapshot->tail->tokens, 4u);
  EXPECT_EQ(snapshot->last_prefix_id, PrefixIds(Sequence(0, 4))[0]);
  Tokens other = Sequence(0, 9);
  other[7] = 99;
  EXPECT_EQ(Put(kB, other, 6).raw_bytes, 90u);
  ExpectHolds(kB, other, 9);
  ExpectHolds(kA, Sequence(0, 12), 12);
}

TEST_F(LifeTest, ForksOfShardsAndOfNothing) {
  const SessionTraits two = Traits("int8", 2);
  Put(kA, Sequence(0, 12), 0, two, 0);
  Put(kA, Sequence(0, 8), 0, two, 1);
  EXPECT_EQ(Fork(kA, kB, 9).status().code(), Code::kOutOfRange);  // 8 are visible
  ASSERT_TRUE(Fork(kA, kB, 7).ok());
  ExpectHolds(kB, Sequence(0, 12), 7, two);
  ASSERT_TRUE(Fork(kA, kC, 0).ok());
  EXPECT_EQ(store.Stat(kC)->tokens, 0u);
  EXPECT_EQ(store.Stat(kC)->traits.shard_count, 2u);
  EXPECT_EQ(Fork(kA, kB, 1).status().code(), Code::kAlreadyExists);
  EXPECT_EQ(Fork({"", "x"}, {"", "y"}, 0).status().code(), Code::kNotFound);
  EXPECT_EQ(Fork(kA, {"other", "y"}, 0).status().code(), Code::kInvalidArgument);
}

TEST_F(LifeTest, ManyForksOfOneLongPrefixEndAsOne) {
  const Tokens base = Sequence(0, 400);
  Put(kA, base);
  const StoreUsage before = store.Usage();
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(Fork(kA, {"", absl::StrCat("f", i)}, 1 + i * 2).ok());
  }
  EXPECT_EQ(store.Usage().stored_bytes, before.stored_bytes);
  for (int i = 0; i < 200; i += 7) ExpectHolds({"", absl::StrCat("f", i)}, base, 1 + i * 2);
  ASSERT_TRUE(store.Delete(kA).ok());
  for (int i = 199; i >= 0; --i) {
    ExpectHolds({"", absl::StrCat("f", i)}, base, 1 + i * 2);
    ASSERT_TRUE(store.Delete({"", absl::StrCat("f", i)}).ok());
  }
  EXPECT_EQ(store.Usage().stored_bytes, 0u);
}

TEST_F(LifeTest, RewindCutsUnsealsAndAbortsWriters) {
  CommitRequest r = MakeRun(kA, Sequence(0, 11));
  r.seal = true;
  ASSERT_TRUE(store.Commit(std::move(r)).ok());
  EXPECT_EQ(store.Rewind(kA, 12, 0).status().code(), Code::kOutOfRange);
  EXPECT_EQ(store.Rewind(kA, 4, 9).status().code(), Code::kAborted);
  const auto cut = store.Rewind(kA, 6, 1);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(cut->tokens, 6u);
  EXPECT_FALSE(cut->sealed);
  EXPECT_EQ(cut->shards[0].version, 2u);
  EXPECT_EQ(store.Commit(MakeRun(kA, Sequence(0, 12), 6, 1)).status().code(), Code::kAborted);
  Tokens other = Sequence(0, 12);
  other[6] = 77;
  Put(kA, other, 6);
  ExpectHolds(kA, other, 12);
  ASSERT_TRUE(store.Rewind(kA, 0, 0).ok());
  EXPECT_EQ(store.Usage().stored_bytes, 0u);
  Put(kA, Sequence(0, 4));
}

TEST_F(LifeTest, ARepeatedForkAnswersAndForksNothing) {
  Put(kA, Sequence(0, 12));
  const auto fork = [&](const SessionKey& from, uint64_t tokens, const std::string& id) {
    return store.Fork(from, kB, tokens, absl::ZeroDuration(), {}, id);
  };
  const auto first = fork(kA, kAllTokens, "f");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(first->replayed);
  EXPECT_EQ(first->tokens, 12u);
  // The source has grown; the fork went its own way; the source has gone.
  Put(kA, Sequence(0, 16), 12);
  for (int i = 0; i < 2; ++i) {
    const auto again = fork(kA, kAllTokens, "f");
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_TRUE(again->replayed);
    EXPECT_EQ(again->tokens, 12u);
    EXPECT_EQ(again->shards[0].version, first->shards[0].version);
    (void)store.Delete(kA);
  }
  EXPECT_EQ(store.Usage().sessions, 1u);
  ExpectHolds(kB, Sequence(0, 12), 12);
  // Another call under the same name is another call.
  Put(kA, Sequence(0, 12));
  EXPECT_EQ(fork(kA, kAllTokens, "g").status().code(), Code::kAlreadyExists);
  EXPECT_EQ(fork(kA, kAllTokens, "").status().code(), Code::kAlreadyExists);
  EXPECT_EQ(fork(kA, 8, "f").status().code(), Code::kAlreadyExists);
  // With the session goes the memory of how it was made.
  ASSERT_TRUE(store.Delete(kB).ok());
  EXPECT_FALSE(fork(kA, 8, "f")->replayed);
}

TEST_F(LifeTest, ARepeatedRewindAnswersAndCutsNothing) {
  Put(kA, Sequence(0, 12));
  const auto first = store.Rewind(kA, 5, 1, "r");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(first->replayed);
  Put(kA, Sequence(0, 9), 5);
  const auto again = store.Rewind(kA, 5, 1, "r");  // its version is long past
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->replayed);
  EXPECT_EQ(again->tokens, 9u);
  ExpectHolds(kA, Sequence(0, 9), 9);
  const auto other = store.Rewind(kA, 6, 0, "r");
  EXPECT_EQ(other.status().code(), Code::kAlreadyExists);
  for (int i = 0; i < kRememberedRewinds; ++i) {
    ASSERT_FALSE(store.Rewind(kA, 7, 0, absl::StrCat("r", i))->replayed);
  }
  EXPECT_FALSE(store.Rewind(kA, 5, 0, "r")->replayed);  // forgotten: it is done
  EXPECT_EQ(store.Stat(kA)->tokens, 5u);
}

// Sinks are in the first page: of any session that is left, it is there, whatever the order of
// use and however often.
TEST_F(LifeTest, TheFirstPageGoesAfterTheRestOfItsSession) {
  constexpr int kSessions = 8;
  for (int s = 0; s < kSessions; ++s) {
    Put({"", absl::StrCat("s", s)}, Sequence(1000 * s, 40));
  }
  // Ends are read often, beginnings never again.
  for (int i = 0; i < 50; ++i) {
    for (int s = 0; s < kSessions; s += 2) {
      ASSERT_TRUE(store.OpenRead({"", absl::StrCat("s", s)}, 36, 40).ok());
    }
  }
  int evictions = 0;
  while (store.MakeRoom(1) > 0) {
    ++evictions;
    uint64_t chunks = 0;
    for (int s = 0; s < kSessions; ++s) {
      const SessionKey key{"", absl::StrCat("s", s)};
      const auto stat = store.Stat(key);
      if (!stat.ok()) continue;
      EXPECT_GT(stat->tokens, 0u);
      ExpectHolds(key, Sequence(1000 * s, 40), stat->tokens);  // from the first page on
      chunks += stat->chunks;
    }
    EXPECT_EQ(store.Usage().chunks, chunks);
  }
  EXPECT_EQ(evictions, kSessions * 10);
}

TEST_F(LifeTest, ALeaseOutlivesItsSessionUntilItEnds) {
  Put(kA, Sequence(0, 10));
  const auto ids = PrefixIds(Sequence(0, 20));
  const auto lease = store.LeasePrefix("", ids, absl::Seconds(30));
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->tokens, 8u);
  EXPECT_EQ(lease->id.size(), 32u);
  ASSERT_TRUE(store.Delete(kA).ok());
  ASSERT_EQ(store.Lookup("", ids).size(), 0u);  // its namespace has no session any more
  EXPECT_EQ(store.Usage().chunks, 2u);
  now += absl::Seconds(20);
  ASSERT_TRUE(store.RenewLease(lease->id, absl::Seconds(30)).ok());
  store.Expire(now + absl::Seconds(29));
  EXPECT_EQ(store.Usage().chunks, 2u);
  store.Expire(now + absl::Seconds(30));
  EXPECT_EQ(store.Usage().chunks, 0u);
  EXPECT_EQ(store.RenewLease(lease->id, absl::Seconds(1)).status().code(), Code::kNotFound);
  EXPECT_FALSE(store.ReleaseLease(lease->id));
}

TEST_F(LifeTest, EvictionTakesEndsFirstAndNothingThatIsHeld) {
  Put(kA, Sequence(0, 16));
  Put(kB, Sequence(100, 16));
  Put(kC, Sequence(200, 16));
  ASSERT_TRUE(store.Update(kB, {true, std::nullopt, std::nullopt}).ok());
  const auto lease = store.LeaseSession(kC, absl::Hours(1));
  ASSERT_TRUE(lease.ok());
  const auto reading = store.OpenRead(kA, 12, 16);
  EXPECT_EQ(store.MakeRoom(1), 0u);  // its last page is being read, the others are not ends
  const_cast<ReadPlan&>(*reading).shards.clear();
  EXPECT_GT(store.MakeRoom(1), 0u);
  const auto stat = store.Stat(kA);
  ASSERT_TRUE(stat.ok());
  EXPECT_EQ(stat->tokens, 12u);
  EXPECT_EQ(stat->evicted_tokens, 4u);
  EXPECT_EQ(stat->shards[0].version, 2u);  // a writer under way is told
  ExpectHolds(kA, Sequence(0, 16), 12);
  store.MakeRoom(1'000'000);
  EXPECT_EQ(store.Stat(kA).status().code(), Code::kNotFound);  // the first page went last
  ExpectHolds(kB, Sequence(100, 16), 16);
  ExpectHolds(kC, Sequence(200, 16), 16);
  EXPECT_EQ(store.Expire(absl::InfiniteFuture() - absl::Seconds(1)), 0);
  ASSERT_TRUE(store.Update(kB, {false, std::nullopt, std::nullopt}).ok());
  store.MakeRoom(1'000'000);
  EXPECT_EQ(store.Stat(kB).status().code(), Code::kNotFound);
  EXPECT_EQ(store.Usage().sessions, 0u);
}

// The first tokens of a session, which attention falls back on, are in its first page: as long as
// it has any other, that page stays. Sessions of one and two shards, shards of different lengths,
// forks, uses, in any order.
TEST_F(LifeTest, AttentionSinksAreEvictedAfterTheRestOfTheirSession) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 rng(seed);
  int whole_sessions = 0, evictions = 0;
  for (int round = 0; round < 40; ++round) {
    std::vector<SessionKey> keys;
    const auto new_key = [&] {
      keys.push_back({"", absl::StrCat(round, "-", keys.size())});
      return keys.back();
    };
    for (int i = 0; i < 6; ++i) {
      const int shards = 1 + i % 2;
      const SessionKey key = new_key();
      const Tokens all = Sequence(static_cast<int>(rng() % 2) * 1000, 4 + rng() % 40);
      for (int s = 0; s < shards; ++s) {
        // The second may be far behind, still being put.
        const Tokens part(all.begin(), s == 0 ? all.end() : all.begin() + 1 + rng() % all.size());
        Put(key, part, 0, Traits("int8", shards), s);
      }
      const auto stat = store.Stat(key);
      ASSERT_TRUE(stat.ok());
      if (stat->tokens > 0 && rng() % 2) {
        ASSERT_TRUE(Fork(key, new_key(), 1 + rng() % stat->tokens).ok());
      }
      if (stat->tokens > 0 && rng() % 2) (void)store.OpenRead(keys[rng() % keys.size()], 0, 1);
    }
    while (true) {
      std::vector<uint64_t> longest;  // pages of each session's longest shard; 0: it is gone
      for (const SessionKey& key : keys) {
        const auto stat = store.Stat(key);
        uint64_t tokens = 0;
        if (stat.ok()) {
          for (const auto& shard : stat->shards) tokens = std::max(tokens, shard.tokens);
        }
        longest.push_back((tokens + kPage - 1) / kPage);
      }
      if (store.MakeRoom(1) == 0) break;  // one page went
      ++evictions;
      for (size_t i = 0; i < keys.size(); ++i) {
        if (longest[i] == 0 || store.Stat(keys[i]).ok()) continue;
        EXPECT_EQ(longest[i], 1u) << keys[i].id << " lost its first page before its others";
        ++whole_sessions;
      }
    }
    EXPECT_EQ(store.Usage().sessions, 0u);
  }
  EXPECT_GE(whole_sessions, 240);
  EXPECT_GT(evictions, whole_sessions);
}

TEST_F(LifeTest, WhatManyUseStaysWhenOneSessionGoes) {
  Tokens long_one = Sequence(0, 40);
  Put(kA, Sequence(0, 8));
  Put(kB, long_one);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(store.OpenRead(kA, 0, 0).ok());
  // B's own pages go one by one, then what both have.
  for (uint64_t tokens = 36; tokens >= 8; tokens -= 4) {
    ASSERT_GT(store.MakeRoom(1), 0u);
    EXPECT_EQ(store.Stat(kB)->tokens, tokens);
    EXPECT_EQ(store.Stat(kA)->tokens, 8u);
  }
  ASSERT_GT(store.MakeRoom(1), 0u);
  EXPECT_EQ(store.Stat(kA)->tokens, 4u);
  EXPECT_EQ(store.Stat(kB)->tokens, 4u);
}

TEST_F(LifeTest, APinnedSessionDoesNotExpire) {
  CommitRequest r = MakeRun(kA, Sequence(0, 4));
  r.ttl = absl::Seconds(10);
  ASSERT_TRUE(store.Commit(std::move(r)).ok());
  ASSERT_TRUE(store.Update(kA, {true, std::nullopt, {{{"k", "v"}}}}).ok());
  EXPECT_EQ(store.Stat(kA)->labels.at("k"), "v");
  EXPECT_TRUE(store.Stat(kA)->pinned);
  now += absl::Hours(1);
  EXPECT_EQ(store.Expire(now), 0);
  Put(kA, Sequence(0, 9), 4);
  EXPECT_EQ(store.Expire(now + absl::Hours(1)), 0);
  ASSERT_TRUE(store.Update(kA, {false, std::nullopt, std::nullopt}).ok());
  EXPECT_EQ(store.Expire(now + absl::Seconds(10)), 1);
}

TEST_F(LifeTest, QuotasNameTheLimitThatWasMet) {
  quota.max_sessions = 2;
  const SessionKey a{"small", "a"}, b{"small", "b"}, c{"small", "c"};
  Put(a, Sequence(0, 8));
  Put(b, Sequence(0, 8));
  EXPECT_THAT(store.Commit(MakeRun(c, Sequence(0, 8))).status().ToString(),
              AllOf(HasSubstr("RESOURCE_EXHAUSTED"), HasSubstr("'small'"), HasSubstr("2 sessions")));
  EXPECT_EQ(Fork(a, c, 4).status().code(), Code::kResourceExhausted);
  quota = {};
  quota.max_bytes = store.Usage().stored_bytes + 10;
  Put(c, Sequence(0, 8));  // shared: not a byte more
  EXPECT_THAT(store.Commit(MakeRun({"small", "d"}, Sequence(5, 8))).status().ToString(),
              AllOf(HasSubstr("RESOURCE_EXHAUSTED"), HasSubstr("quota of"), HasSubstr("bytes")));
  EXPECT_EQ(store.CheckQuota("small", 11).code(), Code::kResourceExhausted);
  EXPECT_TRUE(store.CheckQuota("small", 10).ok());
  EXPECT_TRUE(store.CheckQuota("other", 1 << 30).ok());
  Put(kA, Sequence(5, 8));  // other namespaces are none of its business
}

// 64 clients fork one prefix, append, read back, delete; one looks it up meanwhile.
TEST_F(LifeTest, ManyClientsForkAndReadOnePrefix) {
  const Tokens base = Sequence(0, 64);
  Put(kA, base);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 64; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        const SessionKey mine{"", absl::StrCat("t", t, "-", i)};
        const uint64_t at = 1 + (t * 7 + i * 13) % 64;
        if (!Fork(kA, mine, at).ok()) ++wrong;
        Tokens all(base.begin(), base.begin() + at);
        for (int k = 0; k < 6; ++k) all.push_back(1000 * (t + 1) + i);
        if (!store.Commit(MakeRun(mine, all, at, 1)).ok()) ++wrong;
        const auto plan = store.OpenRead(mine, 0, 0);
        if (!plan.ok() || plan->token_end != all.size()) {
          ++wrong;
          continue;
        }
        const auto expected = store_test::Chunks(all, 0, Traits(), 0, true);
        for (size_t c = 0; c < expected.size(); ++c) {
          if (plan->shards[0].chunks[c]->bytes != expected[c].bytes) ++wrong;
        }
        const auto lease = store.LeasePrefix("", PrefixIds(base), absl::Seconds(1));
        if (!lease.ok() || !store.ReleaseLease(lease->id)) ++wrong;
        if (!store.Delete(mine).ok()) ++wrong;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(store.Usage().sessions, 1u);
  ExpectHolds(kA, base, 64);
  ASSERT_TRUE(store.Delete(kA).ok());
  EXPECT_EQ(store.Usage().chunks, 0u);
}

}  // namespace
}  // namespace kvcask
