// Sessions over their life through a real daemon: fork, rewind, pin, leases, quotas, the disk
// tier across kill -9.
#include <absl/strings/str_cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>

#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

using testing::HasSubstr;

v1::PutCommit DurableSeal(bool seal) {
  v1::PutCommit commit = Seal(seal);
  commit.set_durability(v1::DURABILITY_DISK);
  return commit;
}

absl::StatusOr<v1::PutCommitted> PutDurable(Client& client, const v1::PutOpen& open, bool seal) {
  const ExampleRun run(open.token_begin());
  return client.PutRun(open, run.source(), DurableSeal(seal));
}

// What is there is the example's first `tokens` tokens, byte for byte.
void ExpectExample(Client& client, const std::string& session, uint64_t tokens) {
  const auto got = Fetch(client, RequestOf(session));
  ASSERT_TRUE(got.ok()) << session << ": " << Describe(got.status());
  EXPECT_EQ(got->tokens(), tokens);
  EXPECT_EQ(DifferenceFromExample(*got), "");
}

v1::ForkSessionRequest ForkOf(const std::string& from, const std::string& to, uint64_t tokens) {
  v1::ForkSessionRequest r;
  *r.mutable_from() = Ref(from);
  r.set_session_id(to);
  r.set_tokens(tokens);
  return r;
}

v1::LookupRequest LookupOf(uint64_t tokens, uint64_t lease_seconds) {
  v1::LookupRequest r;
  const CacheInfo& info = Example().info();
  r.mutable_prefix()->mutable_identity()->set_model_id(info.metadata.model);
  r.mutable_prefix()->mutable_token_ids()->Add(info.token_ids.begin(),
                                               info.token_ids.begin() + tokens);
  r.set_lease_seconds(lease_seconds);
  return r;
}

TEST(SessionLife, AForkAtAnyTokenIsExactAndGoesOn) {
  Daemon daemon;
  Client client = daemon.Connect();
  ASSERT_TRUE(PutExample(client, OpenOf("base", "raw")).ok());
  const uint64_t stored = client.GetServerInfo()->usage().stored_bytes();
  for (uint64_t at : {1, 100, 127, 128, 129, 200, 256}) {
    const std::string name = absl::StrCat("fork-", at);
    const auto fork = client.ForkSession(ForkOf("base", name, at));
    ASSERT_TRUE(fork.ok()) << Describe(fork.status());
    EXPECT_EQ(fork->tokens(), at);
    EXPECT_FALSE(fork->sealed());
    ExpectExample(client, name, at);
  }
  EXPECT_EQ(client.GetServerInfo()->usage().stored_bytes(), stored);  // nothing was copied
  // Appending after a fork within a page, with a codec that is exact.
  for (uint64_t at : {100, 128, 200}) {
    const std::string name = absl::StrCat("fork-", at);
    const auto put = PutExample(client, OpenOf(name, "raw", at, 256));
    ASSERT_TRUE(put.ok()) << Describe(put.status());
    ExpectExample(client, name, 256);
  }
  ExpectExample(client, "base", 256);
  EXPECT_EQ(client.ForkSession(ForkOf("base", "fork-1", 1)).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(client.ForkSession(ForkOf("base", "x", 257)).status().code(),
            absl::StatusCode::kOutOfRange);
}

TEST(SessionLife, ALossyForkWithinAPageGoesOn) {
  Daemon daemon;
  Client client = daemon.Connect();
  ASSERT_TRUE(PutExample(client, OpenOf("base", "int8")).ok());
  ASSERT_TRUE(client.ForkSession(ForkOf("base", "f", 200)).ok());
  const auto put = PutExample(client, OpenOf("f", "int8", 200, 256));
  ASSERT_TRUE(put.ok()) << Describe(put.status());
  const auto got = Fetch(client, RequestOf("f"));
  ASSERT_TRUE(got.ok());
  EXPECT_EQ(got->tokens(), 256u);
  EXPECT_EQ(got->header.token_ids_size(), 256);
}

TEST(SessionLife, RewindPinAndLabels) {
  Daemon daemon;
  Client client = daemon.Connect();
  ASSERT_TRUE(PutExample(client, OpenOf("s", "raw")).ok());
  v1::RewindSessionRequest rewind;
  *rewind.mutable_session() = Ref("s");
  rewind.set_tokens(150);
  rewind.set_expected_version(9);
  EXPECT_EQ(client.RewindSession(rewind).status().code(), absl::StatusCode::kAborted);
  rewind.set_expected_version(1);
  const auto cut = client.RewindSession(rewind);
  ASSERT_TRUE(cut.ok()) << Describe(cut.status());
  EXPECT_EQ(cut->tokens(), 150u);
  ExpectExample(client, "s", 150);
  ASSERT_TRUE(PutExample(client, OpenOf("s", "raw", 150, 256)).ok());
  ExpectExample(client, "s", 256);
  v1::UpdateSessionRequest update;
  *update.mutable_session() = Ref("s");
  update.set_pinned(true);
  update.set_replace_labels(true);
  (*update.mutable_labels())["k"] = "v";
  const auto updated = client.UpdateSession(update);
  ASSERT_TRUE(updated.ok()) << Describe(updated.status());
  EXPECT_TRUE(updated->pinned());
  EXPECT_EQ(updated->labels().at("k"), "v");
}

TEST(SessionLife, RepeatedForksAndRewindsDoNothingTwice) {
  Daemon daemon;
  Client client = daemon.Connect();
  ASSERT_TRUE(PutExample(client, OpenOf("s", "raw")).ok());
  v1::ForkSessionRequest fork = ForkOf("s", "f", 0);
  fork.set_all(true);
  fork.set_fork_id("fork-1");
  EXPECT_FALSE(client.ForkSession(fork)->replayed());
  v1::RewindSessionRequest rewind;
  *rewind.mutable_session() = Ref("s");
  rewind.set_tokens(150);
  rewind.set_rewind_id("rewind-1");
  EXPECT_FALSE(client.RewindSession(rewind)->replayed());
  ASSERT_TRUE(PutExample(client, OpenOf("s", "raw", 150, 200)).ok());
  const auto again = client.RewindSession(rewind);
  ASSERT_TRUE(again.ok()) << Describe(again.status());
  EXPECT_TRUE(again->replayed());
  ExpectExample(client, "s", 200);
  const auto forked = client.ForkSession(fork);  // 256 tokens of 200, were it done again
  ASSERT_TRUE(forked.ok()) << Describe(forked.status());
  EXPECT_TRUE(forked->replayed());
  EXPECT_EQ(forked->tokens(), 256u);
  rewind.set_tokens(100);
  EXPECT_EQ(client.RewindSession(rewind).status().code(), absl::StatusCode::kAlreadyExists);
  fork.set_fork_id(std::string(129, 'x'));
  EXPECT_EQ(client.ForkSession(fork).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SessionLife, ALookupsLeaseKeepsWhatItFound) {
  Daemon daemon;
  Client client = daemon.Connect();
  ASSERT_TRUE(PutExample(client, OpenOf("s", "int8")).ok());
  ASSERT_TRUE(Fetch(client, RequestOf("s")).ok());
  const auto found = client.Lookup(LookupOf(256, 60));
  ASSERT_TRUE(found.ok()) << Describe(found.status());
  EXPECT_EQ(found->tokens(), 256u);
  ASSERT_EQ(found->held_size(), 1);
  EXPECT_EQ(found->held(0).disk_bytes(), 0u);
  EXPECT_GT(found->held(0).decode_ms(), 0);
  EXPECT_EQ(found->lease_id().size(), 32u);
  EXPECT_EQ(client.GetServerInfo()->usage().leases(), 1u);
  ASSERT_TRUE(client.DeleteSession(Ref("s"), false).ok());
  EXPECT_EQ(client.GetServerInfo()->usage().chunks(), 2u);
  ASSERT_TRUE(client.RenewLease(found->lease_id(), absl::Seconds(100)).ok());
  EXPECT_TRUE(*client.ReleaseLease(found->lease_id()));
  EXPECT_FALSE(*client.ReleaseLease(found->lease_id()));
  EXPECT_EQ(client.GetServerInfo()->usage().chunks(), 0u);
  EXPECT_EQ(client.AcquireLease(Ref("s"), absl::Seconds(5)).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(client.AcquireLease(Ref("s"), absl::Hours(2)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// Nobody may keep memory for longer than the operator allows, by whichever call grants it.
TEST(SessionLife, NoLeaseIsLongerThanTheDaemonsLimit) {
  Daemon daemon({"--max-lease", "1s"});
  Client client = daemon.Connect();
  EXPECT_EQ(client.GetServerInfo()->limits().max_lease_seconds(), 1u);
  ASSERT_TRUE(PutExample(client, OpenOf("s", "int8")).ok());
  const auto lease = client.AcquireLease(Ref("s"), absl::Seconds(1));
  ASSERT_TRUE(lease.ok()) << Describe(lease.status());
  const auto refused = [](const absl::Status& s, const char* what) {
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << Describe(s);
    EXPECT_THAT(Describe(s), HasSubstr(what));
    EXPECT_EQ(DetailsOf(s).reason, "FIELD");
  };
  refused(client.AcquireLease(Ref("s"), absl::Seconds(2)).status(),
          "seconds: found 2, expected 1 to 1");
  refused(client.RenewLease(lease->lease_id(), absl::Seconds(2)).status(),
          "seconds: found 2, expected 1 to 1");
  refused(client.Lookup(LookupOf(256, 2)).status(), "lease_seconds: found 2, expected 0 to 1");
  refused(client.Lookup(LookupOf(256, ~uint64_t{0})).status(),
          "lease_seconds: found 18446744073709551615, expected 0 to 1");
  ASSERT_TRUE(client.DeleteSession(Ref("s"), false).ok());
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
  EXPECT_EQ(client.GetServerInfo()->usage().leases(), 0u);
}

TEST(SessionLife, QuotasAreNamed) {
  Daemon daemon({"--quota", "a=,1", "--quota", "*=1MiB"});
  Client client = daemon.Connect();
  v1::PutOpen open = OpenOf("one", "int8");
  open.mutable_session()->set_namespace_("a");
  ASSERT_TRUE(PutExample(client, open).ok());
  open.mutable_session()->set_session_id("two");
  const auto second = PutExample(client, open);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Describe(second.status()), HasSubstr("1 sessions"));
  EXPECT_EQ(DetailsOf(second.status()).reason, "QUOTA");
  open.mutable_session()->set_namespace_("b");
  const auto large = PutExample(client, open);
  EXPECT_EQ(DetailsOf(large.status()).reason, "QUOTA");
  EXPECT_THAT(Describe(large.status()), HasSubstr("1048576 bytes"));
}

TEST(SessionLife, MemoryThatIsFullMakesRoomFromTheEndsOfSessions) {
  Daemon daemon({"--memory-budget", "24MiB"});  // a session of the example takes 5.9 MB
  Client client = daemon.Connect();
  for (int i = 0; i < 8; ++i) {
    v1::PutOpen open = OpenOf(absl::StrCat("s", i), "raw");
    open.mutable_identity()->set_extra_key(absl::StrCat(i));  // not shared
    const auto put = PutExample(client, open);
    ASSERT_TRUE(put.ok()) << i << ": " << Describe(put.status());
  }
  ExpectExample(client, "s7", 256);
  const auto all = client.ListSessions("");
  ASSERT_TRUE(all.ok());
  EXPECT_LT(all->size(), 8u);
  for (const auto& s : *all) ExpectExample(client, s.ref().session_id(), s.tokens());
}

TEST(SessionLife, WithoutADiskDurabilityIsUnimplemented) {
  Daemon daemon;
  Client client = daemon.Connect();
  EXPECT_EQ(PutDurable(client, OpenOf("s", "raw"), true).status().code(),
            absl::StatusCode::kUnimplemented);
}

TEST(SessionLife, DurableSessionsSurviveAKill) {
  ScratchFolder disk;
  const std::vector<std::string> flags = {"--disk-path", disk.File("tier")};
  v1::PutCommitted committed;
  {
    Daemon daemon(flags);
    Client client = daemon.Connect();
    v1::PutOpen open = OpenOf("s", "raw", 0, 200);
    open.set_put_id("first");
    const auto put = PutDurable(client, open, false);
    ASSERT_TRUE(put.ok()) << Describe(put.status());
    committed = *put;
    ASSERT_TRUE(client.ForkSession(ForkOf("s", "fork", 100)).ok());
    ASSERT_TRUE(PutDurable(client, OpenOf("fork", "raw", 100, 256), true).ok());
    EXPECT_TRUE(client.StatSession(Ref("s"))->durable());
    daemon.process().Signal(SIGKILL);
    ASSERT_TRUE(daemon.process().Wait(kPatience));
  }
  {
    Daemon daemon(flags);
    Client client = daemon.Connect();
    ExpectExample(client, "s", 200);
    ExpectExample(client, "fork", 256);
    EXPECT_TRUE(client.StatSession(Ref("fork"))->sealed());
    const auto found = client.Lookup(LookupOf(256, 0));
    EXPECT_EQ(found->tokens(), 256u);  // by the same hashes
    v1::PutOpen again = OpenOf("s", "raw", 0, 200);
    again.set_put_id("first");
    const auto replay = PutDurable(client, again, false);
    ASSERT_TRUE(replay.ok()) << Describe(replay.status());
    EXPECT_TRUE(replay->replayed());
    EXPECT_EQ(replay->version(), committed.version());
    ASSERT_TRUE(PutDurable(client, OpenOf("s", "raw", 200, 256), true).ok());
    ASSERT_TRUE(client.DeleteSession(Ref("fork"), false).ok());
    daemon.process().Signal(SIGTERM);
    ASSERT_EQ(daemon.process().Wait(kPatience), 0);
  }
  Daemon daemon(flags);
  Client client = daemon.Connect();
  ExpectExample(client, "s", 256);
  EXPECT_EQ(client.StatSession(Ref("fork")).status().code(), absl::StatusCode::kNotFound);
}

TEST(SessionLife, MoreThanMemoryHoldsIsReadBackFromDisk) {
  ScratchFolder disk;
  Daemon daemon({"--disk-path", disk.File("tier"), "--memory-budget", "24MiB"});
  Client client = daemon.Connect();
  for (int i = 0; i < 8; ++i) {
    v1::PutOpen open = OpenOf(absl::StrCat("s", i), "raw");
    open.mutable_identity()->set_extra_key(absl::StrCat(i));
    const auto put = PutDurable(client, open, true);
    ASSERT_TRUE(put.ok()) << i << ": " << Describe(put.status());
  }
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 8; ++i) ExpectExample(client, absl::StrCat("s", i), 256);
  }
  const auto usage = client.GetServerInfo()->usage();
  EXPECT_EQ(usage.sessions(), 8u);
  EXPECT_LE(usage.host_bytes(), uint64_t{24} << 20);
  EXPECT_EQ(usage.disk_bytes(), usage.stored_bytes());
}

TEST(SessionLife, ASecondDaemonOnOneFolderIsRefused) {
  ScratchFolder disk;
  Daemon daemon({"--disk-path", disk.File("tier")});
  Process second({"server/kvcaskd", "--listen", "unix:" + disk.File("s"), "--metrics", "off",
                  "--disk-path", disk.File("tier")},
                 disk.File("log"));
  EXPECT_EQ(second.Wait(kPatience), 1);
}

}  // namespace
}  // namespace kvcask
