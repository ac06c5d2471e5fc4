#include "server/store/session_store.h"

#include <absl/strings/str_cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/store/store_test_util.h"

namespace kvcask {
namespace {

using store_test::BytesOf;
using store_test::Digested;
using store_test::kPage;
using store_test::MakeRun;
using store_test::PrefixIds;
using store_test::Sequence;
using store_test::Tokens;
using store_test::Traits;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Code = absl::StatusCode;

const SessionKey kA{"", "a"}, kB{"", "b"};

class StoreTest : public testing::Test {
 protected:
  // What `request` answers; fails the test when it is refused.
  CommitResult Commit(CommitRequest request) {
    auto result = store.Commit(std::move(request));
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : CommitResult();
  }
  // The refusal of `request`, "CODE: text".
  std::string Refusal(CommitRequest request) {
    return store.Commit(std::move(request)).status().ToString();
  }

  ByteBudget budget{100000};  // outlives the store, as it must
  absl::Time now = absl::FromUnixSeconds(1'000'000);
  SessionStore store{kPage, Options()};

  SessionStoreOptions Options() {
    SessionStoreOptions o;
    o.max_sessions = 1000;
    o.now = [this] { return now; };
    return o;
  }
};

// --- chains

TEST_F(StoreTest, WhatIsCommittedIsReadInOrder) {
  const CommitResult r = Commit(MakeRun(kA, Sequence(0, 10)));
  EXPECT_EQ(r.version, 1u);
  EXPECT_EQ(r.shard_tokens, 10u);
  EXPECT_EQ(r.visible_tokens, 10u);
  EXPECT_EQ(r.raw_bytes, 300u);
  const auto plan = store.OpenRead(kA, 0, 0);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->token_end, 10u);
  ASSERT_EQ(plan->shards.size(), 1u);
  EXPECT_EQ(plan->shards[0].label, "shard 0");
  const CommitRequest again = MakeRun(kA, Sequence(0, 10));
  ASSERT_EQ(plan->shards[0].chunks.size(), 3u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(plan->shards[0].chunks[i]->bytes, again.chunks[i].bytes);
    EXPECT_EQ(plan->shards[0].chunks[i]->token_begin, 4u * i);
  }
}

TEST_F(StoreTest, ARangeOpensOnlyItsPages) {
  Commit(MakeRun(kA, Sequence(0, 20)));
  const auto pages = [&](uint64_t begin, uint64_t end) {
    std::vector<int> found;
    const auto plan = store.OpenRead(kA, begin, end);
    EXPECT_TRUE(plan.ok()) << plan.status();
    for (const auto& c : plan->shards[0].chunks) found.push_back(c->token_begin / kPage);
    return found;
  };
  EXPECT_THAT(pages(0, 1), ElementsAre(0));
  EXPECT_THAT(pages(3, 4), ElementsAre(0));
  EXPECT_THAT(pages(4, 5), ElementsAre(1));
  EXPECT_THAT(pages(3, 9), ElementsAre(0, 1, 2));
  EXPECT_THAT(pages(16, 0), ElementsAre(4));
}

TEST_F(StoreTest, RangesOutsideAreRefusedWithTheCount) {
  Commit(MakeRun(kA, Sequence(0, 10)));
  for (const auto& [begin, end] :
       std::vector<std::pair<uint64_t, uint64_t>>{{0, 11},
                                                  {10, 0},
                                                  {10, 10},
                                                  {5, 4},
                                                  {5, 5},
                                                  {11, 12},
                                                  {0, std::numeric_limits<uint64_t>::max()}}) {
    const auto plan = store.OpenRead(kA, begin, end);
    EXPECT_EQ(plan.status().code(), Code::kOutOfRange) << begin << " " << end;
    EXPECT_THAT(plan.status().message(), HasSubstr("'a' has 10 visible tokens"));
  }
  EXPECT_EQ(store.OpenRead(kB, 0, 0).status().code(), Code::kNotFound);
}

TEST_F(StoreTest, ATailIsReplacedAndItsBytesGo) {
  CommitRequest first = MakeRun(kA, Sequence(0, 6));
  const uint64_t page_bytes = first.chunks[0].bytes.size();
  first.reservation = *budget.Reserve(BytesOf(first), "run");
  Commit(std::move(first));
  const auto snapshot = store.BeginWrite(kA, Traits(), 0);
  ASSERT_TRUE(snapshot.ok());
  EXPECT_EQ(snapshot->tokens, 6u);
  EXPECT_EQ(snapshot->version, 1u);
  ASSERT_NE(snapshot->tail, nullptr);
  EXPECT_EQ(snapshot->tail->tokens, 2u);
  EXPECT_EQ(snapshot->last_prefix_id, PrefixIds(Sequence(0, 4))[0]);

  CommitRequest second = MakeRun(kA, Sequence(0, 8), 6, 1);
  const uint64_t second_bytes = BytesOf(second);
  second.reservation = *budget.Reserve(1000, "run");
  const CommitResult r = Commit(std::move(second));
  EXPECT_EQ(r.raw_bytes, 60u);  // of two tokens, not of the page
  EXPECT_EQ(r.stored_bytes, second_bytes - second_bytes / 2);
  EXPECT_EQ(store.Stat(kA)->raw_bytes, 240u);
  EXPECT_EQ(store.Stat(kA)->stored_bytes, page_bytes + second_bytes);
  EXPECT_EQ(store.Stat(kA)->chunks, 2u);
  // The snapshot still holds the tail; the budget is free of it when that goes.
  EXPECT_GT(budget.used(), page_bytes + second_bytes);
  const_cast<ShardSnapshot&>(*snapshot).tail = nullptr;
  EXPECT_EQ(budget.used(), page_bytes + second_bytes);
}

TEST_F(StoreTest, AWholePageIsNoTail) {
  Commit(MakeRun(kA, Sequence(0, 8)));
  const auto snapshot = store.BeginWrite(kA, Traits(), 0);
  EXPECT_EQ(snapshot->tail, nullptr);
  EXPECT_EQ(snapshot->last_prefix_id, PrefixIds(Sequence(0, 8))[1]);
  Commit(MakeRun(kA, Sequence(0, 9), 8, 1));
  EXPECT_EQ(store.Stat(kA)->chunks, 3u);
}

TEST_F(StoreTest, ASealMayRecodeTheTailWithoutNewTokens) {
  Commit(MakeRun(kA, Sequence(0, 6)));
  CommitRequest seal = MakeRun(kA, Sequence(0, 6), 6, 1);
  ASSERT_EQ(seal.chunks.size(), 1u);
  seal.chunks[0].bytes.resize(3);
  seal.seal = true;
  const CommitResult r = Commit(std::move(seal));
  EXPECT_EQ(r.raw_bytes, 0u);
  EXPECT_EQ(r.stored_bytes, 0u);
  EXPECT_EQ(r.visible_tokens, 6u);
  EXPECT_TRUE(store.Stat(kA)->sealed);
  EXPECT_EQ(store.OpenRead(kA, 4, 6)->shards[0].chunks[0]->bytes.size(), 3u);
}

TEST_F(StoreTest, ACommitOfNothingChangesTtlAndLabelsOnly) {
  Commit(MakeRun(kA, Sequence(0, 6)));
  CommitRequest touch = MakeRun(kA, Sequence(0, 6), 6, 1);
  touch.chunks.clear();
  touch.ttl = absl::Minutes(1);
  touch.labels = {{"k", "v"}};
  EXPECT_EQ(Commit(std::move(touch)).version, 2u);
  const SessionStat stat = *store.Stat(kA);
  EXPECT_EQ(stat.tokens, 6u);
  EXPECT_EQ(stat.chunks, 2u);
  EXPECT_EQ(stat.ttl, absl::Minutes(1));
  EXPECT_THAT(stat.labels, ElementsAre(std::make_pair("k", "v")));
}

TEST_F(StoreTest, MalformedRunsAreRefusedAndLeaveNothing) {
  const auto with = [](auto change) {
    CommitRequest r = MakeRun(kA, Sequence(0, 10));
    change(r);
    return r;
  };
  std::vector<std::string> refusals;
  refusals.push_back(Refusal(with([](auto& r) { r.chunks.pop_back(); })));
  refusals.push_back(Refusal(with([](auto& r) { r.chunks.erase(r.chunks.begin()); })));
  refusals.push_back(Refusal(with([](auto& r) { r.chunks[1].token_begin = 5; })));
  refusals.push_back(Refusal(with([](auto& r) { r.chunks[1].tokens = 3; })));
  refusals.push_back(Refusal(with([](auto& r) { r.chunks.push_back(r.chunks.back()); })));
  refusals.push_back(Refusal(with([](auto& r) { r.tokens = 9; })));
  refusals.push_back(Refusal(with([](auto& r) { r.tokens = 13; })));
  refusals.push_back(Refusal(with([](auto& r) { r.tokens = 0; })));
  refusals.push_back(Refusal(with([](auto& r) { r.chunks.clear(); })));
  refusals.push_back(Refusal(with([](auto& r) { r.chunks[2].prefix_id = Digested("x"); })));
  refusals.push_back(Refusal(with([](auto& r) { r.shard = 1; })));
  refusals.push_back(Refusal(with([](auto& r) { r.traits.shard_count = 0; })));
  refusals.push_back(
      Refusal(with([](auto& r) { r.token_begin = std::numeric_limits<uint64_t>::max() - 3; })));
  refusals.push_back(Refusal(with([](auto& r) {
    r.token_begin = std::numeric_limits<uint64_t>::max() - 3;
    r.tokens = 3;
  })));
  for (const std::string& r : refusals) EXPECT_THAT(r, HasSubstr("INVALID_ARGUMENT")) << r;
  EXPECT_EQ(store.Usage().sessions, 0u);
  EXPECT_EQ(store.Usage().stored_bytes, 0u);
}

TEST_F(StoreTest, GapsAndRepeatsAreRefused) {
  Commit(MakeRun(kA, Sequence(0, 8)));
  EXPECT_THAT(Refusal(MakeRun(kA, Sequence(0, 12), 9, 1)),
              AllOf(HasSubstr("INVALID_ARGUMENT"), HasSubstr("holds 8"), HasSubstr("begins at 9")));
  EXPECT_THAT(Refusal(MakeRun(kA, Sequence(0, 12), 4, 1)),
              AllOf(HasSubstr("ALREADY_EXISTS"), HasSubstr("holds 8"), HasSubstr("begins at 4")));
  EXPECT_THAT(Refusal(MakeRun(kB, Sequence(0, 12), 4, 0)), HasSubstr("INVALID_ARGUMENT"));
  EXPECT_EQ(store.Usage().sessions, 1u);
}

TEST_F(StoreTest, AReservationThatIsTooSmallIsOurFault) {
  CommitRequest r = MakeRun(kA, Sequence(0, 8));
  r.reservation = *budget.Reserve(BytesOf(r) - 1, "run");
  EXPECT_THAT(Refusal(std::move(r)), HasSubstr("INTERNAL"));
  EXPECT_EQ(budget.used(), 0u);
}

// --- writers

TEST_F(StoreTest, OfTwoWritersTheSecondIsAborted) {
  Commit(MakeRun(kA, Sequence(0, 8)));
  Commit(MakeRun(kA, Sequence(0, 12), 8, 1));
  EXPECT_THAT(Refusal(MakeRun(kA, Sequence(0, 16), 8, 1)),
              AllOf(HasSubstr("ABORTED"), HasSubstr("version 2"), HasSubstr("against 1")));
  EXPECT_EQ(store.Stat(kA)->tokens, 12u);
}

TEST_F(StoreTest, AWriterOfADeletedSessionIsAborted) {
  Commit(MakeRun(kA, Sequence(0, 8)));
  const auto snapshot = store.BeginWrite(kA, Traits(), 0);
  ASSERT_TRUE(store.Delete(kA).ok());
  EXPECT_THAT(Refusal(MakeRun(kA, Sequence(0, 12), 8, 1)), HasSubstr("ABORTED"));  // gone
  Commit(MakeRun(kA, Sequence(100, 8)));  // same version, other tokens
  CommitRequest late = MakeRun(kA, Sequence(0, 12), 8, snapshot->version);
  late.incarnation = snapshot->incarnation;
  EXPECT_THAT(Refusal(std::move(late)), AllOf(HasSubstr("ABORTED"), HasSubstr("deleted")));
  EXPECT_EQ(store.Stat(kA)->tokens, 8u);
}

TEST_F(StoreTest, OtherTraitsAreRefusedByNameWithBothValues) {
  Commit(MakeRun(kA, Sequence(0, 8)));
  struct Case {
    std::function<void(SessionTraits&)> change;
    std::vector<std::string> words;
  };
  const Digest d = Digested("d");
  for (const Case& c :
       std::vector<Case>{{[](auto& t) { t.model_id = "other"; }, {"model_id 'model'", "'other'"}},
                         {[](auto& t) { t.extra_key = "lora"; }, {"extra_key ''", "'lora'"}},
                         {[](auto& t) { t.codec = "raw"; }, {"codec 'int8'", "'raw'"}},
                         {[](auto& t) { t.quality = "compact"; }, {"quality ''", "'compact'"}},
                         {[](auto& t) { t.dtype = "f32"; }, {"dtype 'bf16'", "'f32'"}},
                         {[&](auto& t) { t.geometry = d; }, {"geometry"}},
                         {[&](auto& t) { t.profile = d; }, {"profile 'none'"}},
                         {[](auto& t) { t.first_position = 5; }, {"first_position '0'", "'5'"}},
                         {[](auto& t) { t.shard_count = 2; }, {"shard_count '1'", "'2'"}}}) {
    SessionTraits traits = Traits();
    c.change(traits);
    const std::string refusal = Refusal(MakeRun(kA, Sequence(0, 12), 8, 1, traits));
    EXPECT_THAT(refusal, HasSubstr("FAILED_PRECONDITION"));
    for (const auto& word : c.words) EXPECT_THAT(refusal, HasSubstr(word));
    EXPECT_EQ(store.BeginWrite(kA, traits, 0).status().code(), Code::kFailedPrecondition);
  }
  EXPECT_EQ(store.Stat(kA)->tokens, 8u);
}

TEST_F(StoreTest, ARepeatedPutAnswersAsTheFirst) {
  CommitRequest r = MakeRun(kA, Sequence(0, 8));
  r.put_id = "p1";
  const CommitResult first = Commit(std::move(r));
  EXPECT_FALSE(first.replayed);
  CommitRequest again = MakeRun(kA, Sequence(0, 8));
  again.put_id = "p1";
  const CommitResult second = Commit(std::move(again));
  EXPECT_TRUE(second.replayed);
  EXPECT_EQ(second.version, first.version);
  EXPECT_EQ(second.stored_bytes, first.stored_bytes);
  EXPECT_EQ(store.FindPut(kA, 0, "p1")->tokens, 8u);
  EXPECT_FALSE(store.FindPut(kA, 0, "p2"));
  EXPECT_FALSE(store.FindPut(kA, 1, "p1"));
  EXPECT_FALSE(store.FindPut(kB, 0, "p1"));
  EXPECT_FALSE(store.FindPut(kA, 0, ""));

  CommitRequest other = MakeRun(kA, Sequence(0, 12), 8, 1);
  other.put_id = "p1";
  EXPECT_THAT(Refusal(std::move(other)), HasSubstr("ALREADY_EXISTS"));
  EXPECT_EQ(store.Stat(kA)->tokens, 8u);
}

TEST_F(StoreTest, RememberedPutsAreBounded) {
  for (int i = 0; i < kRememberedPuts + 1; ++i) {
    CommitRequest r = MakeRun(kA, Sequence(0, 4 * (i + 1)), 4 * i, i);
    r.put_id = absl::StrCat("p", i);
    Commit(std::move(r));
  }
  EXPECT_FALSE(store.FindPut(kA, 0, "p0"));
  EXPECT_TRUE(store.FindPut(kA, 0, "p1"));
  CommitRequest forgotten = MakeRun(kA, Sequence(0, 4));
  forgotten.put_id = "p0";
  EXPECT_THAT(Refusal(std::move(forgotten)), HasSubstr("ABORTED"));
}

TEST_F(StoreTest, ASealedSessionTakesNoMore) {
  CommitRequest r = MakeRun(kA, Sequence(0, 8));
  r.seal = true;
  r.put_id = "p";
  Commit(std::move(r));
  EXPECT_TRUE(store.Stat(kA)->sealed);
  EXPECT_THAT(Refusal(MakeRun(kA, Sequence(0, 12), 8, 1)),
              AllOf(HasSubstr("FAILED_PRECONDITION"), HasSubstr("sealed at 8")));
  EXPECT_EQ(store.BeginWrite(kA, Traits(), 0).status().code(), Code::kFailedPrecondition);
  CommitRequest again = MakeRun(kA, Sequence(0, 8));
  again.put_id = "p";
  EXPECT_TRUE(Commit(std::move(again)).replayed);
}

// --- shards

TEST_F(StoreTest, ARunIsVisibleWhenAllShardsHaveCommitted) {
  const SessionTraits two = Traits("int8", 2);
  EXPECT_EQ(Commit(MakeRun(kA, Sequence(0, 8), 0, 0, two, 1)).visible_tokens, 0u);
  EXPECT_EQ(store.OpenRead(kA, 0, 0).status().code(), Code::kOutOfRange);
  EXPECT_THAT(store.Lookup("", PrefixIds(Sequence(0, 8))), IsEmpty());
  EXPECT_EQ(Commit(MakeRun(kA, Sequence(0, 6), 0, 0, two, 0)).visible_tokens, 6u);
  const auto plan = store.OpenRead(kA, 0, 0);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->token_end, 6u);
  ASSERT_EQ(plan->shards.size(), 2u);
  EXPECT_EQ(plan->shards[0].shard, 0u);
  EXPECT_EQ(plan->shards[1].chunks.size(), 2u);
  ASSERT_EQ(store.Lookup("", PrefixIds(Sequence(0, 8))).size(), 1u);
  EXPECT_EQ(store.Lookup("", PrefixIds(Sequence(0, 8)))[0].tokens, 4u);
  Commit(MakeRun(kA, Sequence(0, 8), 6, 1, two, 0));
  EXPECT_EQ(store.Lookup("", PrefixIds(Sequence(0, 8)))[0].tokens, 8u);
  const SessionStat stat = *store.Stat(kA);
  ASSERT_EQ(stat.shards.size(), 2u);
  EXPECT_EQ(stat.shards[0].version, 2u);
  EXPECT_EQ(stat.shards[1].version, 1u);
  EXPECT_DOUBLE_EQ(stat.predicted_kld, 0.25 + 0.5);  // means over tokens, summed over shards
}

TEST_F(StoreTest, ShardsSealAtOneLength) {
  const SessionTraits two = Traits("int8", 2);
  Commit(MakeRun(kA, Sequence(0, 12), 0, 0, two, 1));
  CommitRequest early = MakeRun(kA, Sequence(0, 8), 0, 0, two, 0);
  early.seal = true;
  EXPECT_THAT(Refusal(std::move(early)),
              AllOf(HasSubstr("FAILED_PRECONDITION"), HasSubstr("holds 12")));
  CommitRequest seal = MakeRun(kA, Sequence(0, 16), 0, 0, two, 0);
  seal.seal = true;
  Commit(std::move(seal));
  EXPECT_FALSE(store.Stat(kA)->sealed);  // the other one still has to come
  EXPECT_THAT(Refusal(MakeRun(kA, Sequence(0, 20), 12, 1, two, 1)), HasSubstr("at 16 tokens"));
  CommitRequest short_seal = MakeRun(kA, Sequence(0, 13), 12, 1, two, 1);
  short_seal.seal = true;
  EXPECT_THAT(Refusal(std::move(short_seal)), HasSubstr("FAILED_PRECONDITION"));
  CommitRequest rest = MakeRun(kA, Sequence(0, 16), 12, 1, two, 1);
  rest.seal = true;
  Commit(std::move(rest));
  EXPECT_TRUE(store.Stat(kA)->sealed);
}

TEST_F(StoreTest, ShardsMustBeGivenTheSameTokenIds) {
  const SessionTraits two = Traits("int8", 2);
  Commit(MakeRun(kA, Sequence(0, 8), 0, 0, two, 0));
  EXPECT_THAT(Refusal(MakeRun(kA, Sequence(1, 8), 0, 0, two, 1)),
              AllOf(HasSubstr("FAILED_PRECONDITION"), HasSubstr("other token ids than shard 0")));
  Commit(MakeRun(kA, Sequence(0, 8), 0, 0, two, 1));
}

// --- sharing

TEST_F(StoreTest, EqualPrefixesAreStoredOnceInANamespace) {
  Tokens a = Sequence(0, 12), b = Sequence(0, 12);
  b[9] = 77;
  const auto put = [&](const SessionKey& key, const Tokens& tokens) {
    CommitRequest r = MakeRun(key, tokens);
    r.reservation = *budget.Reserve(10000, "run");
    return Commit(std::move(r));
  };
  put(kA, a);
  const uint64_t alone = store.Usage().stored_bytes;
  EXPECT_EQ(budget.used(), alone);
  EXPECT_EQ(store.Stat(kA)->unique_bytes, alone);
  put(kB, b);
  const uint64_t both = store.Usage().stored_bytes;
  EXPECT_EQ(store.Usage().chunks, 4u);  // two shared, one each
  EXPECT_EQ(budget.used(), both);
  const SessionStat sa = *store.Stat(kA), sb = *store.Stat(kB);
  EXPECT_EQ(sa.stored_bytes, alone);
  EXPECT_EQ(sa.unique_bytes + sb.unique_bytes + sb.stored_bytes - sb.unique_bytes, both);
  EXPECT_LT(sa.unique_bytes, sa.stored_bytes);
  // The same chunk, not an equal one.
  EXPECT_EQ(store.OpenRead(kA, 0, 4)->shards[0].chunks[0],
            store.OpenRead(kB, 0, 4)->shards[0].chunks[0]);
  // In another namespace nothing is shared.
  put({"other", "a"}, a);
  EXPECT_EQ(store.Usage().chunks, 7u);
  EXPECT_EQ(*store.Delete(kA), sa.unique_bytes);
  EXPECT_EQ(store.Stat(kB)->unique_bytes, store.Stat(kB)->stored_bytes);
  EXPECT_EQ(*store.Delete(kB), sb.stored_bytes);
  EXPECT_EQ(*store.Delete({"other", "a"}), alone);
  EXPECT_EQ(store.Usage().stored_bytes, 0u);
  EXPECT_EQ(budget.used(), 0u);
}

TEST_F(StoreTest, OneNameForDifferentThingsIsNotShared) {
  Commit(MakeRun(kA, Sequence(0, 4)));
  CommitRequest partial = MakeRun(kB, Sequence(0, 4));
  partial.chunks[0].raw_bytes -= 10;  // sliding layers left tokens out
  partial.chunks[0].bytes.resize(5);
  Commit(std::move(partial));
  EXPECT_EQ(store.Usage().chunks, 2u);
  EXPECT_EQ(store.OpenRead(kB, 0, 0)->shards[0].chunks[0]->bytes.size(), 5u);
  // The unlisted one goes without taking the listed one's place along.
  ASSERT_TRUE(store.Delete(kB).ok());
  Commit(MakeRun(kB, Sequence(0, 4)));
  EXPECT_EQ(store.Usage().chunks, 1u);
}

TEST_F(StoreTest, AttachmentsLiveAsLongAsWhatNeedsThem) {
  auto attachment = std::make_shared<int>(1);
  CommitRequest r = MakeRun(kA, Sequence(0, 8));
  r.traits.attachment = attachment;
  Commit(std::move(r));
  EXPECT_EQ(attachment.use_count(), 2);
  auto plan = store.OpenRead(kA, 0, 4);
  ASSERT_TRUE(store.Delete(kA).ok());
  EXPECT_EQ(attachment.use_count(), 2);  // the plan's
  plan->stat.traits.attachment = nullptr;
  EXPECT_EQ(attachment.use_count(), 1);
}

// --- lookup

TEST_F(StoreTest, LookupFindsTheLongestOfEachForm) {
  Tokens other = Sequence(0, 16);
  other[13] = 99;
  Commit(MakeRun(kA, Sequence(0, 8)));
  Commit(MakeRun(kB, Sequence(0, 19), 0, 0, Traits("raw")));
  Commit(MakeRun({"", "c"}, other));
  const auto held = store.Lookup("", PrefixIds(Sequence(0, 40)));
  ASSERT_EQ(held.size(), 2u);
  EXPECT_EQ(held[0].codec, "raw");
  EXPECT_EQ(held[0].tokens, 16u);  // whole pages only
  EXPECT_EQ(held[1].codec, "int8");
  EXPECT_EQ(held[1].tokens, 12u);
  uint64_t bytes = 0;
  const auto plan = store.OpenRead(kB, 0, 16);
  for (const auto& c : plan->shards[0].chunks) bytes += c->bytes.size();
  EXPECT_EQ(held[0].stored_bytes, bytes);

  EXPECT_THAT(store.Lookup("other", PrefixIds(Sequence(0, 40))), IsEmpty());
  EXPECT_THAT(store.Lookup("", PrefixIds(Sequence(1, 40))), IsEmpty());
  EXPECT_THAT(store.Lookup("", {}), IsEmpty());
}

TEST_F(StoreTest, SessionsWithoutTokenIdsAreNotFound) {
  Commit(MakeRun(kA, Sequence(0, 8), 0, 0, Traits(), 0, /*ids=*/false));
  // Later pages with ids do not help: what is before them is unknown.
  Commit(MakeRun(kA, Sequence(0, 12), 8, 1));
  EXPECT_THAT(store.Lookup("", PrefixIds(Sequence(0, 12))), IsEmpty());
  EXPECT_EQ(store.OpenPrefix("", PrefixIds(Sequence(0, 12)), 0, 0).status().code(),
            Code::kNotFound);
}

TEST_F(StoreTest, OpenPrefixReadsNoFurtherThanThePrefix) {
  Commit(MakeRun(kA, Sequence(0, 20)));
  Tokens query = Sequence(0, 16);
  query[11] = 99;
  const auto ids = PrefixIds(query);
  auto plan = store.OpenPrefix("", ids, 0, 0);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->token_end, 8u);
  EXPECT_EQ(plan->shards[0].chunks.size(), 2u);
  plan = store.OpenPrefix("", ids, 5, 8);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->shards[0].chunks.size(), 1u);
  EXPECT_EQ(store.OpenPrefix("", ids, 0, 9).status().code(), Code::kOutOfRange);
}

TEST_F(StoreTest, APrefixOutlivesOneOfItsHolders) {
  for (int i = 0; i < 5; ++i) Commit(MakeRun({"", absl::StrCat("s", i)}, Sequence(0, 4 * (i + 1))));
  // The middle of the list, its head, its end.
  for (const char* id : {"s2", "s4", "s0", "s1"}) {
    ASSERT_TRUE(store.Delete({"", id}).ok());
    const auto plan = store.OpenPrefix("", PrefixIds(Sequence(0, 8)), 0, 0);
    ASSERT_TRUE(plan.ok()) << id;
    EXPECT_EQ(plan->token_end, 8u);
  }
  ASSERT_TRUE(store.Delete({"", "s3"}).ok());
  EXPECT_THAT(store.Lookup("", PrefixIds(Sequence(0, 8))), IsEmpty());
}

// --- sessions

TEST_F(StoreTest, CreateReservesANameAndMayFixTraits) {
  const SessionTraits traits = Traits("raw");
  ASSERT_TRUE(store.Create(kA, &traits, absl::Hours(1), {{"k", "v"}}).ok());
  EXPECT_EQ(store.Create(kA, nullptr, absl::ZeroDuration(), {}).code(), Code::kAlreadyExists);
  EXPECT_EQ(store.Stat(kA)->traits.codec, "raw");
  EXPECT_EQ(store.Stat(kA)->tokens, 0u);
  EXPECT_THAT(Refusal(MakeRun(kA, Sequence(0, 4))), HasSubstr("FAILED_PRECONDITION"));
  Commit(MakeRun(kA, Sequence(0, 4), 0, 0, traits));
  EXPECT_EQ(store.Stat(kA)->ttl, absl::Hours(1));
  ASSERT_TRUE(store.Create(kB, nullptr, absl::ZeroDuration(), {}).ok());
  EXPECT_EQ(store.Stat(kB)->traits.model_id, "");
  Commit(MakeRun(kB, Sequence(0, 4)));
}

TEST_F(StoreTest, SessionsAreBounded) {
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(store.Create({"", absl::StrCat(i)}, nullptr, absl::ZeroDuration(), {}).ok());
  }
  EXPECT_EQ(store.Create(kA, nullptr, absl::ZeroDuration(), {}).code(), Code::kResourceExhausted);
  EXPECT_THAT(Refusal(MakeRun(kA, Sequence(0, 4))), HasSubstr("RESOURCE_EXHAUSTED"));
  EXPECT_EQ(store.Usage().stored_bytes, 0u);
  ASSERT_TRUE(store.Delete({"", "7"}).ok());
  Commit(MakeRun(kA, Sequence(0, 4)));
}

TEST_F(StoreTest, ListGoesPageByPageInOrder) {
  for (const char* id : {"c", "a", "b", "ab"}) Commit(MakeRun({"n", id}, Sequence(0, 4)));
  Commit(MakeRun({"m", "z"}, Sequence(0, 4)));
  const auto ids = [&](const std::string& after, int limit) {
    std::vector<std::string> found;
    for (const auto& s : store.List("n", after, limit)) found.push_back(s.key.id);
    return found;
  };
  EXPECT_THAT(ids("", 2), ElementsAre("a", "ab"));
  EXPECT_THAT(ids("ab", 2), ElementsAre("b", "c"));
  EXPECT_THAT(ids("aa", 10), ElementsAre("ab", "b", "c"));
  EXPECT_THAT(ids("c", 10), IsEmpty());
  EXPECT_THAT(ids("", 0), IsEmpty());
  EXPECT_THAT(store.List("nowhere", "", 10), IsEmpty());
}

TEST_F(StoreTest, DeleteFreesAndForgets) {
  Commit(MakeRun(kA, Sequence(0, 10)));
  const auto plan = store.OpenRead(kA, 0, 0);
  EXPECT_EQ(*store.Delete(kA), plan->stat.stored_bytes);
  EXPECT_EQ(store.Stat(kA).status().code(), Code::kNotFound);
  EXPECT_THAT(store.Delete(kA).status().message(), HasSubstr("'a'"));
  EXPECT_THAT(store.Lookup("", PrefixIds(Sequence(0, 10))), IsEmpty());
  EXPECT_EQ(plan->shards[0].chunks.size(), 3u);  // a read under way goes on
  EXPECT_EQ(plan->shards[0].chunks[0]->bytes, MakeRun(kA, Sequence(0, 10)).chunks[0].bytes);
}

TEST_F(StoreTest, SessionsExpireAfterTheirLastCommit) {
  const auto put = [&](const char* id, absl::Duration ttl) {
    CommitRequest r = MakeRun({"", id}, Sequence(0, 4));
    r.ttl = ttl;
    Commit(std::move(r));
  };
  put("short", absl::Seconds(10));
  put("long", absl::Seconds(100));
  put("for ever", absl::ZeroDuration());
  EXPECT_EQ(store.Expire(now + absl::Seconds(9)), 0);
  now += absl::Seconds(9);
  Commit(MakeRun({"", "short"}, Sequence(0, 8), 4, 1));  // keeps its ttl, starts it again
  EXPECT_EQ(store.Expire(now + absl::Seconds(9)), 0);
  EXPECT_EQ(store.Expire(now + absl::Seconds(10)), 1);
  EXPECT_EQ(store.Stat({"", "short"}).status().code(), Code::kNotFound);
  EXPECT_EQ(store.Expire(absl::InfiniteFuture() - absl::Seconds(1)), 1);
  EXPECT_EQ(store.Usage().sessions, 1u);
}

TEST_F(StoreTest, ManySessionsExpireAtOnce) {
  for (int i = 0; i < 500; ++i) {
    ASSERT_TRUE(store.Create({"", absl::StrCat(i)}, nullptr, absl::Seconds(1 + i % 2), {}).ok());
  }
  EXPECT_EQ(store.Expire(now + absl::Seconds(1)), 250);
  EXPECT_EQ(store.Expire(now + absl::Seconds(2)), 250);
}

TEST_F(StoreTest, ATtlThatEndsTimeIsForEver) {
  ASSERT_TRUE(store.Create(kA, nullptr, absl::InfiniteDuration(), {}).ok());
  EXPECT_EQ(store.Expire(now + absl::Hours(1e6)), 0);
  ASSERT_TRUE(store.Delete(kA).ok());
}

TEST_F(StoreTest, OddNamesInErrorsAreEscaped) {
  EXPECT_THAT(store.Stat({"", "x\n\x01"}).status().message(), HasSubstr("'x\\n\\x01'"));
}

}  // namespace
}  // namespace kvcask
