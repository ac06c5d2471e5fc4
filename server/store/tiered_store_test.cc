// The store above a tier: what is saved, what a crash at any moment leaves, what damage and a
// full disk do. Then every sequence of steps up to a length, against a model.
#include <absl/strings/escaping.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "server/store/fake_tier.h"
#include "server/store/session_store.h"
#include "server/store/store_test_util.h"

namespace kvcask {
namespace {

using store_test::kPage;
using store_test::MakeRun;
using store_test::PrefixIds;
using store_test::Sequence;
using store_test::Tokens;
using store_test::Traits;
using ::testing::HasSubstr;
using Code = absl::StatusCode;

const SessionKey kA{"", "a"}, kB{"", "b"}, kC{"n", "c"};
const absl::Time kNow = absl::FromUnixSeconds(1'000'000);

// A store over a fake tier; Restart crashes it: what was not saved is gone.
struct Tiered {
  explicit Tiered(uint64_t budget_bytes = 1 << 20, SessionStoreOptions o = {})
      : budget(budget_bytes), options(std::move(o)) {
    Open(FakeTier::Contents());
  }
  void Open(FakeTier::Contents contents) {
    store.reset();
    tier = std::make_unique<FakeTier>(std::move(contents));
    options.tier = tier.get();
    options.budget = &budget;
    options.now = [this] { return clock; };
    store = std::make_unique<SessionStore>(kPage, options);
    auto r = store->Restore();
    ASSERT_TRUE(r.ok()) << r.status();
    report = *r;
  }
  void Restart() { Open(tier->contents()); }
  absl::StatusOr<CommitResult> Put(const SessionKey& key, const Tokens& all, uint64_t begin = 0) {
    const auto before = store->BeginWrite(key, Traits(), 0);
    if (!before.ok()) return before.status();
    CommitRequest r = MakeRun(key, all, begin, before->version);
    r.incarnation = before->incarnation;
    auto reservation = budget.Reserve(store_test::BytesOf(r), "run");
    if (!reservation.ok()) return reservation.status();
    r.reservation = *std::move(reservation);
    return store->Commit(std::move(r));
  }
  // Whether it holds `all` as far as `tokens`; the text says why not.
  std::string Check(const SessionKey& key, const Tokens& all, uint64_t tokens) {
    const auto plan = store->OpenRead(key, 0, 0);
    if (!plan.ok()) return plan.status().ToString();
    if (plan->token_end != tokens) return absl::StrCat("it has ", plan->token_end, " tokens");
    const auto expected = store_test::Chunks(all, 0, Traits(), 0, true);
    for (size_t i = 0; i < plan->shards[0].chunks.size(); ++i) {
      if (plan->shards[0].chunks[i]->bytes != expected[i].bytes) return "wrong bytes";
    }
    return "";
  }

  absl::Time clock = kNow;
  ByteBudget budget;
  SessionStoreOptions options;
  std::unique_ptr<FakeTier> tier;
  std::unique_ptr<SessionStore> store;
  RestoreReport report;
};

absl::Status Durable(SessionStore& store, const SessionKey& key) {
  absl::Status out = absl::UnknownError("not called");
  store.WhenDurable(key, [&](absl::Status s) { out = std::move(s); });
  store.Save();
  return out;
}

TEST(TieredStore, WhatWasSavedComesBackWhole) {
  Tiered t;
  CommitRequest r = MakeRun(kA, Sequence(0, 10));
  r.put_id = "p";
  r.labels = {{"k", "v"}};
  r.ttl = absl::Hours(1);
  r.traits.descriptor = "geometry";
  const auto first = t.store->Commit(std::move(r));
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(t.store->Fork(kA, kB, 6, absl::ZeroDuration(), {}).ok());
  ASSERT_TRUE(t.Put(kC, Sequence(0, 8)).ok());
  ASSERT_TRUE(t.store->Update(kC, {true, std::nullopt, std::nullopt}).ok());
  EXPECT_FALSE(t.store->Stat(kA)->durable);
  EXPECT_TRUE(t.store->Save());
  EXPECT_FALSE(t.store->Save());  // nothing more
  EXPECT_TRUE(t.store->Stat(kA)->durable);
  const StoreUsage before = t.store->Usage();
  EXPECT_EQ(before.disk_bytes, before.stored_bytes);
  t.Restart();
  EXPECT_EQ(t.report.sessions, 3u);
  EXPECT_EQ(t.report.chunks, before.chunks);
  EXPECT_EQ(t.store->Usage().stored_bytes, before.stored_bytes);
  EXPECT_EQ(t.store->Usage().host_bytes, 0u);
  EXPECT_EQ(t.Check(kA, Sequence(0, 10), 10), "");
  EXPECT_EQ(t.Check(kB, Sequence(0, 10), 6), "");
  EXPECT_EQ(t.Check(kC, Sequence(0, 8), 8), "");
  EXPECT_TRUE(t.store->Stat(kC)->pinned);
  const SessionStat stat = *t.store->Stat(kA);
  EXPECT_EQ(stat.labels.at("k"), "v");
  EXPECT_EQ(stat.ttl, absl::Hours(1));
  EXPECT_EQ(stat.traits.descriptor, "geometry");
  EXPECT_EQ(stat.raw_bytes, 300u);
  const auto replay = t.store->FindPut(kA, 0, "p");
  ASSERT_TRUE(replay);
  EXPECT_EQ(replay->version, first->version);
  EXPECT_EQ(t.store->Lookup("", PrefixIds(Sequence(0, 12)))[0].tokens, 8u);
  ASSERT_TRUE(t.Put(kA, Sequence(0, 13), 10).ok());  // and it goes on
  EXPECT_EQ(t.Check(kA, Sequence(0, 13), 13), "");
}

// Records as the first version wrote them (no forks and rewinds in sessions), made by hand from the
// description in records.h: folders of then open.
TEST(TieredStore, RecordsOfVersionOneAreStillRead) {
  const std::pair<const char*, const char*> golden[] = {
      {"660000000000000002",
       "0100000000050000006d6f64656c0000000004000000696e7438000000000400000062663136080"
       "0000067656f6d657472790000000000000000000000000000000000000000000000000000000000"
       "0000000000000000000000000000000000000000000000000000000000000000000000000000000"
       "000000001000000740e899e"},
      {"6e0000000000000004",
       "0100000000000000000200000000000000000000000700000073686172642030040078000000000"
       "000002400000000000000000000000000f03f01000102030405060708090a0b0c0d0e0f10111213"
       "1415161718191a1b1c1d1e1f5191292f"},
      {"6e0000000000000005",
       "010400000000000000020000000000000000000000070000007368617264203002003c000000000"
       "000003e000000000000000000000000000000003e7aa416"},
      {"732f6f6c64",
       "0100000000030000006f6c6402000000000000000010a5d4e800000000f19adae800000000a493d"
       "60000000001000000010000006b0100000076000700000000000000010000000000000007000000"
       "7368617264203005000000000000000600000000000000010000000000000000010000000500000"
       "07075742d31010000000000000006000000000000000600000000000000b4000000000000006200"
       "00000000000000000000000000000600000000000000000000000000d03f0d2ae5d3"},
  };
  FakeTier::Contents old;
  for (const auto& [key, value] : golden) {
    old.records[absl::HexStringToBytes(key)] = absl::HexStringToBytes(value);
  }
  const auto chunks = store_test::Chunks(Sequence(0, 6), 0, Traits(), 0, false);
  for (uint64_t i = 0; i < 2; ++i) {
    old.chunks[4 + i].assign(chunks[i].bytes.begin(), chunks[i].bytes.end());
  }
  Tiered t;
  t.clock = absl::FromUnixSeconds(1'000'200);
  t.Open(old);
  EXPECT_EQ(t.report.sessions, 1u);
  EXPECT_EQ(t.report.chunks, 2u);
  EXPECT_THAT(t.report.problems, testing::IsEmpty());
  const SessionKey key{"", "old"};
  EXPECT_EQ(t.Check(key, Sequence(0, 6), 6), "");
  const auto stat = t.store->Stat(key);
  ASSERT_TRUE(stat.ok()) << stat.status();
  EXPECT_EQ(stat->labels.at("k"), "v");
  EXPECT_EQ(stat->ttl, absl::Hours(1));
  EXPECT_EQ(stat->created, absl::FromUnixSeconds(1'000'000));
  EXPECT_EQ(stat->evicted_tokens, 7u);
  EXPECT_EQ(stat->traits.descriptor, "geometry");
  EXPECT_EQ(stat->raw_bytes, 180u);
  const auto replay = t.store->FindPut(key, 0, "put-1");
  ASSERT_TRUE(replay);
  EXPECT_EQ(replay->tokens, 6u);
  // Written again they are of today's version.
  ASSERT_TRUE(t.Put(key, Sequence(0, 9), 6).ok());
  t.store->Save();
  EXPECT_EQ(t.tier->contents().records.at("s/old")[0], 2);
  t.Restart();
  EXPECT_EQ(t.Check(key, Sequence(0, 9), 9), "");
}

TEST(TieredStore, WhatIsDeletedStaysDeletedAndItsBytesGo) {
  Tiered t;
  ASSERT_TRUE(t.Put(kA, Sequence(0, 10)).ok());
  ASSERT_TRUE(t.Put(kB, Sequence(0, 6)).ok());
  t.store->Save();
  ASSERT_TRUE(t.store->Delete(kA).ok());
  t.store->Save();
  EXPECT_EQ(t.tier->contents().chunks.size(), 2u);  // the shared page and B's tail
  t.Restart();
  EXPECT_EQ(t.store->Stat(kA).status().code(), Code::kNotFound);
  EXPECT_EQ(t.Check(kB, Sequence(0, 6), 6), "");
  ASSERT_TRUE(t.store->Delete(kB).ok());
  t.store->Save();
  EXPECT_TRUE(t.tier->contents().chunks.empty());
  EXPECT_EQ(t.tier->contents().records.size(), 1u);  // the form's, which the next start drops
  t.Restart();
  EXPECT_TRUE(t.tier->contents().records.empty());
}

TEST(TieredStore, DemotedChunksAreReadBackAndKept) {
  Tiered t(600);
  ASSERT_TRUE(t.Put(kA, Sequence(0, 16)).ok());
  EXPECT_EQ(t.store->MakeRoom(600), 0u);  // not saved yet: nothing may go
  t.store->Save();
  EXPECT_GT(t.store->MakeRoom(600), 0u);
  EXPECT_EQ(t.budget.used(), 0u);
  EXPECT_EQ(t.store->Usage().host_bytes, 0u);
  const auto held = t.store->Lookup("", PrefixIds(Sequence(0, 16)));
  EXPECT_EQ(held[0].host_bytes, 0u);
  EXPECT_GT(held[0].stored_bytes, 0u);
  EXPECT_EQ(t.Check(kA, Sequence(0, 16), 16), "");
  EXPECT_EQ(t.store->Usage().promoted_chunks, 4u);
  EXPECT_EQ(t.store->Stat(kA)->host_bytes, t.store->Stat(kA)->stored_bytes);
  EXPECT_EQ(t.budget.used(), t.store->Usage().host_bytes);
  // More than fits at a time goes through all the same, as long as one read fits.
  for (int i = 0; i < 6; ++i) {
    const SessionKey key{"", absl::StrCat("s", i)};
    while (!t.Put(key, Sequence(100 * i, 16)).ok()) {
      t.store->Save();
      ASSERT_GT(t.store->MakeRoom(400), 0u);
    }
  }
  t.store->Save();
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(t.Check({"", absl::StrCat("s", i)}, Sequence(100 * i, 16), 16), "");
  }
}

TEST(TieredStore, ACorruptChunkLosesItsTokensAndNoOthers) {
  Tiered t;
  ASSERT_TRUE(t.Put(kA, Sequence(0, 16)).ok());
  ASSERT_TRUE(t.Put(kB, Sequence(0, 4)).ok());
  t.store->Save();
  t.Restart();
  t.tier->Damage(std::next(t.tier->contents().chunks.begin())->first);  // of the second page
  const auto plan = t.store->OpenRead(kA, 0, 0);
  EXPECT_EQ(plan.status().code(), Code::kDataLoss);
  EXPECT_THAT(plan.status().message(), HasSubstr("tokens 4 to 8 of session 'a' are lost"));
  EXPECT_TRUE(t.store->OpenRead(kA, 0, 4).ok());
  EXPECT_TRUE(t.store->OpenRead(kA, 8, 16).ok());
  EXPECT_EQ(t.store->Stat(kA)->lost,
            (std::vector<std::pair<uint64_t, uint64_t>>{{4, 8}}));
  EXPECT_TRUE(t.store->Stat(kB)->lost.empty());
  EXPECT_EQ(t.store->Usage().lost_chunks, 1u);
  // A prefix ends before it, and putting the tokens again makes the page anew.
  EXPECT_EQ(t.store->Lookup("", PrefixIds(Sequence(0, 16)))[0].tokens, 4u);
  ASSERT_TRUE(t.Put({"", "again"}, Sequence(0, 16)).ok());
  EXPECT_EQ(t.Check({"", "again"}, Sequence(0, 16), 16), "");
  // The pages that lead through the lost one are in nobody's way.
  EXPECT_EQ(t.store->Lookup("", PrefixIds(Sequence(0, 16)))[0].tokens, 16u);
  const auto lease = t.store->LeasePrefix("", PrefixIds(Sequence(0, 16)), absl::Seconds(9));
  ASSERT_TRUE(lease.ok());
  EXPECT_EQ(lease->tokens, 16u);
  EXPECT_EQ(t.store->OpenPrefix("", PrefixIds(Sequence(0, 16)), 0, 0)->token_end, 16u);
  ASSERT_TRUE(t.store->Rewind({"", "again"}, 12, 0).ok());
  ASSERT_TRUE(t.store->ReleaseLease(lease->id));
  EXPECT_EQ(t.store->Lookup("", PrefixIds(Sequence(0, 16)))[0].tokens, 12u);
  ASSERT_TRUE(t.store->Delete({"", "again"}).ok());
  EXPECT_EQ(t.store->Lookup("", PrefixIds(Sequence(0, 16)))[0].tokens, 4u);
  ASSERT_TRUE(t.store->Rewind(kA, 4, 0).ok());
  ASSERT_TRUE(t.Put(kA, Sequence(0, 16), 4).ok());
  EXPECT_EQ(t.Check(kA, Sequence(0, 16), 16), "");
}

TEST(TieredStore, TheScrubberFindsDamageAndRepairsWhatHostMemoryHas) {
  Tiered t;
  ASSERT_TRUE(t.Put(kA, Sequence(0, 16)).ok());
  t.store->Save();
  t.tier->DamageAll();
  uint64_t checked = 0, corrupt = 0;
  for (int i = 0; i < 4; ++i) {
    const auto [n, bad] = t.store->Scrub(1);
    checked += n;
    corrupt += bad;
  }
  EXPECT_EQ(checked, 4u);
  EXPECT_EQ(corrupt, 4u);
  EXPECT_EQ(t.store->Usage().lost_chunks, 0u);
  t.store->MakeRoom(1 << 20);
  EXPECT_EQ(t.Check(kA, Sequence(0, 16), 16), "");  // was written again
  t.store->MakeRoom(1 << 20);
  t.tier->DamageAll();
  EXPECT_EQ(t.store->Scrub(1 << 20), (std::pair<uint64_t, uint64_t>(4, 4)));
  EXPECT_EQ(t.store->Usage().lost_chunks, 4u);
  EXPECT_EQ(t.store->OpenRead(kA, 0, 0).status().code(), Code::kDataLoss);
}

TEST(TieredStore, WhatIsLostIsStillKnownToBeLostAfterARestart) {
  Tiered t;
  ASSERT_TRUE(t.Put(kA, Sequence(0, 16)).ok());
  ASSERT_TRUE(t.Put(kB, Sequence(100, 8)).ok());
  t.store->Save();
  t.Restart();
  t.tier->Damage(std::next(t.tier->contents().chunks.begin())->first);
  EXPECT_EQ(t.store->Scrub(1 << 20), (std::pair<uint64_t, uint64_t>(6, 1)));
  // The disk fails once: the mark is not forgotten.
  t.tier->OnWrite([](int) { return absl::UnavailableError("failing"); });
  EXPECT_FALSE(t.store->Save());
  t.tier->OnWrite(nullptr);
  EXPECT_TRUE(t.store->Save());
  EXPECT_FALSE(t.store->Save());
  t.Restart();  // the damage is gone from the fake: only the mark tells
  EXPECT_EQ(t.store->Usage().lost_chunks, 1u);
  EXPECT_EQ(t.store->Stat(kA)->lost, (std::vector<std::pair<uint64_t, uint64_t>>{{4, 8}}));
  EXPECT_TRUE(t.store->Stat(kB)->lost.empty());
  EXPECT_THAT(t.store->OpenRead(kA, 0, 0).status().message(),
              HasSubstr("tokens 4 to 8 of session 'a' are lost"));
  EXPECT_TRUE(t.store->OpenRead(kA, 8, 16).ok());
  EXPECT_EQ(t.store->Scrub(1 << 20), (std::pair<uint64_t, uint64_t>(5, 0)));  // not read again
  // Rewound, the session is whole, and so it stays.
  ASSERT_TRUE(t.store->Rewind(kA, 4, 0).ok());
  t.store->Save();
  t.Restart();
  EXPECT_EQ(t.store->Usage().lost_chunks, 0u);
  EXPECT_EQ(t.Check(kA, Sequence(0, 16), 4), "");
}

TEST(TieredStore, ALostChunkWhoseSessionGoesLeavesNothing) {
  Tiered t;
  ASSERT_TRUE(t.Put(kA, Sequence(0, 16)).ok());
  t.store->Save();
  t.store->MakeRoom(1 << 20);
  t.tier->DamageAll();
  t.store->Scrub(1 << 20);
  EXPECT_EQ(t.store->Usage().lost_chunks, 4u);
  ASSERT_TRUE(t.store->Delete(kA).ok());
  while (t.store->Save()) {
  }
  EXPECT_EQ(t.store->Usage().chunks, 0u);
  EXPECT_TRUE(t.tier->contents().chunks.empty());
  t.Restart();
  EXPECT_EQ(t.store->Usage().chunks, 0u);
  EXPECT_EQ(t.report.dropped_chunks, 0u);
}

TEST(TieredStore, ForksAndRewindsAreRememberedAcrossARestart) {
  Tiered t;
  ASSERT_TRUE(t.Put(kA, Sequence(0, 12)).ok());
  ASSERT_TRUE(t.store->Fork(kA, kB, 8, absl::ZeroDuration(), {}, "f").ok());
  ASSERT_TRUE(t.store->Rewind(kA, 5, 0, "r").ok());
  t.store->Save();
  t.Restart();
  const auto fork = t.store->Fork(kA, kB, 8, absl::ZeroDuration(), {}, "f");
  ASSERT_TRUE(fork.ok()) << fork.status();  // kA has not 8 any more
  EXPECT_TRUE(fork->replayed);
  const auto rewind = t.store->Rewind(kA, 5, 0, "r");
  ASSERT_TRUE(rewind.ok()) << rewind.status();
  EXPECT_TRUE(rewind->replayed);
}

// The wall clock may be anywhere after a restart: put back or a year on.
TEST(TieredStore, AClockThatJumpsBetweenStartsExpiresNothingThatIsForEver) {
  for (const absl::Duration jump : {-absl::Hours(24 * 365), absl::Hours(24 * 365)}) {
    Tiered t;
    ASSERT_TRUE(t.Put(kA, Sequence(0, 8)).ok());
    ASSERT_TRUE(t.Put(kB, Sequence(100, 8)).ok());
    ASSERT_TRUE(t.Put({"", "pinned"}, Sequence(200, 8)).ok());
    ASSERT_TRUE(t.store->Update(kB, {std::nullopt, absl::Hours(1), std::nullopt}).ok());
    ASSERT_TRUE(t.store->Update({"", "pinned"}, {true, absl::Hours(1), std::nullopt}).ok());
    t.store->Save();
    t.clock = kNow + jump;
    t.Restart();
    // What may expire does so a whole ttl after a clock that was put back, not a year later.
    EXPECT_EQ(t.store->Expire(t.clock), jump > absl::ZeroDuration() ? 1 : 0);
    EXPECT_EQ(t.store->Expire(t.clock + absl::Hours(2)), jump > absl::ZeroDuration() ? 0 : 1);
    EXPECT_EQ(t.Check(kA, Sequence(0, 8), 8), "");
    EXPECT_EQ(t.Check({"", "pinned"}, Sequence(200, 8), 8), "");
  }
}

TEST(TieredStore, AFailingDiskIsToldToWhoWaitsAndTriedAgain) {
  Tiered t;
  bool full = true;
  t.tier->OnWrite([&](int) {
    return full ? absl::ResourceExhaustedError("no space left") : absl::OkStatus();
  });
  ASSERT_TRUE(t.Put(kA, Sequence(0, 10)).ok());
  EXPECT_THAT(Durable(*t.store, kA).ToString(), HasSubstr("no space left"));
  EXPECT_FALSE(t.store->Stat(kA)->durable);
  EXPECT_EQ(t.store->Usage().tier_errors, 1u);
  EXPECT_EQ(t.store->Usage().unsaved_sessions, 1u);
  EXPECT_EQ(t.Check(kA, Sequence(0, 10), 10), "");  // memory still has it
  ASSERT_TRUE(t.store->Delete(kA).ok());
  ASSERT_TRUE(t.Put(kA, Sequence(50, 10)).ok());
  full = false;
  EXPECT_TRUE(Durable(*t.store, kA).ok());
  EXPECT_EQ(t.tier->synced().records, t.tier->contents().records);
  t.Restart();
  EXPECT_EQ(t.Check(kA, Sequence(50, 10), 10), "");
  EXPECT_EQ(t.tier->contents().chunks.size(), 3u);  // nothing of the failed round is left
}

TEST(TieredStore, OverTheDiskBudgetEndsOfSessionsGo) {
  SessionStoreOptions o;
  o.tier_bytes = 200;
  Tiered t(1 << 20, o);
  ASSERT_TRUE(t.Put(kA, Sequence(0, 16)).ok());
  ASSERT_TRUE(t.Put(kB, Sequence(100, 16)).ok());
  EXPECT_TRUE(Durable(*t.store, kB).ok());
  EXPECT_LE(t.store->Usage().disk_bytes, 200u);
  EXPECT_GT(t.store->Usage().evicted_chunks, 0u);
  const StoreUsage before = t.store->Usage();
  t.Restart();
  EXPECT_EQ(t.store->Usage().chunks, before.chunks);
  EXPECT_EQ(t.report.dropped_sessions, 0u);
  // Nothing may go: the saver says so and keeps on.
  for (const auto& s : t.store->List("", "", 10)) {
    ASSERT_TRUE(t.store->Update(s.key, {true, std::nullopt, std::nullopt}).ok());
  }
  ASSERT_TRUE(t.Put(kC, Sequence(200, 40)).ok());
  ASSERT_TRUE(t.store->Update(kC, {true, std::nullopt, std::nullopt}).ok());
  EXPECT_THAT(Durable(*t.store, kC).ToString(), HasSubstr("disk budget of 200 bytes is full"));
}

TEST(TieredStore, WithoutATierDurabilityIsUnimplemented) {
  SessionStore store(kPage);
  EXPECT_EQ(Durable(store, kA).code(), Code::kUnimplemented);
}

TEST(TieredStore, TheIntervalPolicyAnswersAfterTheSync) {
  SessionStoreOptions o;
  o.sync = SyncPolicy::kInterval;
  Tiered t(1 << 20, o);
  ASSERT_TRUE(t.Put(kA, Sequence(0, 10)).ok());
  ASSERT_TRUE(Durable(*t.store, kA).ok());
  EXPECT_EQ(t.tier->synced().records, t.tier->contents().records);
}

TEST(TieredStore, TheThreadSavesByItselfAndAtTheEnd) {
  Tiered t;
  t.store->Start();
  std::mutex m;
  std::condition_variable cv;
  int answered = 0;
  for (int i = 0; i < 20; ++i) {
    const SessionKey key{"", absl::StrCat("s", i)};
    ASSERT_TRUE(t.Put(key, Sequence(i, 10)).ok());
    t.store->WhenDurable(key, [&](absl::Status s) {
      EXPECT_TRUE(s.ok()) << s;
      std::lock_guard<std::mutex> lock(m);
      ++answered;
      cv.notify_one();
    });
  }
  std::unique_lock<std::mutex> lock(m);
  cv.wait(lock, [&] { return answered == 20; });
  lock.unlock();
  ASSERT_TRUE(t.Put(kB, Sequence(0, 5)).ok());
  t.store->Stop();
  t.Restart();
  EXPECT_EQ(t.report.sessions, 21u);
}

// --- damage to records: nothing is half read

TEST(TieredStore, UnreadableRecordsDropTheirSessionsAndSayWhich) {
  Tiered t;
  ASSERT_TRUE(t.Put(kA, Sequence(0, 10)).ok());
  ASSERT_TRUE(t.Put(kB, Sequence(100, 10)).ok());
  t.store->Save();
  const FakeTier::Contents good = t.tier->contents();
  for (const auto& [key, value] : good.records) {
    for (size_t at = 0; at < value.size(); at += 3) {
      FakeTier::Contents bad = good;
      bad.records[key][at] = static_cast<char>(bad.records[key][at] ^ 0x40);
      t.Open(bad);
      EXPECT_GE(t.report.dropped_sessions, key[0] == 'p' ? 0u : 1u);
      EXPECT_FALSE(t.report.problems.empty());
      for (const auto& [k, first] : {std::pair{kA, 0}, std::pair{kB, 100}}) {
        const std::string what = t.Check(k, Sequence(first, 10), 10);
        EXPECT_TRUE(what.empty() || absl::StrContains(what, "NOT_FOUND")) << what;
      }
    }
  }
}

// --- a crash at every write of a script

TEST(TieredStore, ACrashAtAnyWriteKeepsWhatWasAcknowledged) {
  // Durable after each step: what was acknowledged is exactly known.
  const auto run = [](Tiered& t, int stop_at, std::map<std::string, std::pair<Tokens, uint64_t>>* acked) {
    bool crashed = false;
    t.tier->OnWrite([&](int write) {
      if (write >= stop_at) crashed = true;
      return crashed ? absl::UnavailableError("crashed") : absl::OkStatus();
    });
    const auto ack = [&](const SessionKey& key, const Tokens& all, uint64_t tokens) {
      if (Durable(*t.store, key).ok()) (*acked)[key.id] = {all, tokens};
      return !crashed;
    };
    if (!t.Put(kA, Sequence(0, 10)).ok() || !ack(kA, Sequence(0, 10), 10)) return;
    if (!t.Put(kA, Sequence(0, 21), 10).ok() || !ack(kA, Sequence(0, 21), 21)) return;
    if (!t.store->Fork(kA, kB, 14, absl::ZeroDuration(), {}).ok()) return;
    if (!ack(kB, Sequence(0, 21), 14)) return;
    if (!t.store->Rewind(kA, 7, 0).ok() || !ack(kA, Sequence(0, 21), 7)) return;
    Tokens other = Sequence(0, 12);
    other[8] = 88;
    if (!t.Put(kA, other, 7).ok() || !ack(kA, other, 12)) return;
    if (!t.store->Delete(kA).ok()) return;
    if (Durable(*t.store, kA).ok()) acked->erase("a");
  };
  int writes = 0;
  {
    Tiered t;
    std::map<std::string, std::pair<Tokens, uint64_t>> acked;
    run(t, 1 << 30, &acked);
    writes = t.tier->writes();
    EXPECT_EQ(acked.size(), 1u);
  }
  ASSERT_GT(writes, 15);
  for (int stop = 0; stop < writes; ++stop) {
    SCOPED_TRACE(absl::StrCat("crash before write ", stop));
    Tiered t;
    std::map<std::string, std::pair<Tokens, uint64_t>> acked;
    run(t, stop, &acked);
    t.Restart();
    EXPECT_EQ(t.report.dropped_sessions, 0u);
    for (const auto& [id, held] : acked) {
      EXPECT_EQ(t.Check({"", id}, held.first, held.second), "") << id;
    }
    // Nothing half-visible: whatever is there reads well, and no chunk is without an owner.
    for (const auto& s : t.store->List("", "", 10)) {
      EXPECT_TRUE(s.tokens == 0 || t.store->OpenRead(s.key, 0, 0).ok()) << s.key.id;
    }
    t.store->Save();
    EXPECT_EQ(t.tier->contents().chunks.size(), t.store->Usage().chunks);
  }
}

// --- every sequence of steps

// What a session is, by its tokens.
using Plain = std::map<std::string, Tokens>;

class Machine {
 public:
  static constexpr int kSteps = 9;
  Machine() : t(1 << 20) {}

  void Step(int step) {
    switch (step) {
      case 0:
        return Append("a", 5, 0);
      case 1:
        return Append("b", 3, 0);
      case 2:
        return Append("a", 4, 100);  // goes another way than b
      case 3: {
        const bool can = now.count("a") && !now.count("b");
        const uint64_t at = can ? now["a"].size() * 2 / 3 : 0;
        const auto fork = t.store->Fork({"", "a"}, {"", "b"}, at, absl::ZeroDuration(), {});
        EXPECT_EQ(fork.ok(), can) << fork.status();
        if (can) now["b"] = Tokens(now["a"].begin(), now["a"].begin() + at);
        return;
      }
      case 4: {
        const auto cut = t.store->Rewind({"", "a"}, now.count("a") ? now["a"].size() / 2 : 0, 0);
        EXPECT_EQ(cut.ok(), now.count("a") == 1) << cut.status();
        if (cut.ok()) now["a"].resize(now["a"].size() / 2);
        return;
      }
      case 5:
        EXPECT_EQ(t.store->Delete({"", "a"}).ok(), now.erase("a") == 1);
        return;
      case 6: {
        t.store->MakeRoom(1);
        return;
      }
      case 7:
        t.store->Save();
        saved = now;
        return;
      default:
        t.Restart();
        EXPECT_EQ(t.report.dropped_sessions, 0u);
        now = saved;
    }
  }

  void Check() {
    EXPECT_EQ(t.store->Usage().sessions, now.size());
    for (const auto& [id, tokens] : now) {
      const auto stat = t.store->Stat({"", id});
      ASSERT_TRUE(stat.ok()) << stat.status();
      ASSERT_EQ(stat->tokens, tokens.size());
      EXPECT_TRUE(stat->lost.empty());
      EXPECT_LE(stat->unique_bytes, stat->stored_bytes);
      EXPECT_LE(stat->host_bytes, stat->stored_bytes);
      if (!tokens.empty()) CheckBytes(id, tokens);
    }
    EXPECT_EQ(t.budget.used(), t.store->Usage().host_bytes);
  }

  Tiered t;
  Plain now, saved;

 private:
  void Append(const std::string& id, int count, int shift) {
    Tokens all = now[id];
    const uint64_t begin = all.size();
    for (int i = 0; i < count; ++i) all.push_back(static_cast<int>(begin) + i + shift);
    const auto put = t.Put({"", id}, all, begin);
    ASSERT_TRUE(put.ok()) << put.status();
    now[id] = all;
  }
  // Whole pages, as the tokens say; the last one begins so. (A page that was forked or cut
  // within is a longer chunk, whose first tokens are the session's.)
  void CheckBytes(const std::string& id, const Tokens& tokens) {
    const auto plan = t.store->OpenRead({"", id}, 0, 0);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const auto expected = store_test::Chunks(tokens, 0, Traits(), 0, true);
    ASSERT_EQ(plan->shards[0].chunks.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      const StoredChunk& chunk = *plan->shards[0].chunks[i];
      if (chunk.tokens == expected[i].tokens) {
        EXPECT_EQ(chunk.bytes, expected[i].bytes);
        continue;
      }
      ASSERT_EQ(i + 1, expected.size());
      ASSERT_GT(chunk.tokens, expected[i].tokens);
      std::string text = "int80/1:";
      for (size_t k = i * kPage; k < tokens.size(); ++k) absl::StrAppend(&text, tokens[k], ",");
      EXPECT_EQ(std::string(chunk.bytes.begin(), chunk.bytes.begin() + text.size()), text);
    }
  }
};

TEST(TieredStore, EverySequenceOfStepsAgreesWithTheModel) {
  constexpr int kLength = 4;  // 6,561 sequences, each also with a restart at its end
  int sequences = 0;
  std::vector<int> steps(kLength, 0);
  while (!testing::Test::HasFailure()) {
    std::string name;
    for (int s : steps) absl::StrAppend(&name, s, " ");
    SCOPED_TRACE(absl::StrCat("steps ", name));
    Machine m;
    m.Step(0);  // something is there
    for (int s : steps) {
      m.Step(s);
      m.Check();
    }
    m.Step(8);
    m.Check();
    ++sequences;
    int i = 0;
    while (i < kLength && ++steps[i] == Machine::kSteps) steps[i++] = 0;
    if (i == kLength) break;
  }
  EXPECT_EQ(sequences, 6561);
}

}  // namespace
}  // namespace kvcask
