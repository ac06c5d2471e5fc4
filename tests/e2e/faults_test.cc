// Clients that die, budgets that are too small, a daemon that is told to stop.
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

constexpr char kHalfPut[] = "tests/e2e/half_put";

// Bytes that the daemon counts as used.
uint64_t UsedBytes(Client& client) {
  const auto info = client.GetServerInfo();
  EXPECT_TRUE(info.ok()) << Describe(info.status());
  return info.ok() ? info->usage().used_bytes() : 0;
}

TEST(FaultsTest, AClientKilledInMidStreamLeavesNothing) {
  Daemon daemon;
  Client client = daemon.Connect();
  for (const std::string& address : {daemon.unix_address(), daemon.tcp_address()}) {
    Process half({kHalfPut, address, "s"}, daemon.folder().File("half-log"));
    ASSERT_EQ(half.ReadLine(kPatience), "half");
    EXPECT_TRUE(Eventually([&] { return UsedBytes(client) > 0; }));  // it is under way
    EXPECT_EQ(client.StatSession(Ref("s")).status().code(), absl::StatusCode::kNotFound);
    half.Signal(SIGKILL);
    EXPECT_EQ(half.Wait(kPatience), 128 + SIGKILL);
    EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
    EXPECT_EQ(client.StatSession(Ref("s")).status().code(), absl::StatusCode::kNotFound);
  }
  const auto put = PutExample(client, OpenOf("s", "raw"));
  EXPECT_TRUE(put.ok()) << Describe(put.status());
}

TEST(FaultsTest, ACancelledPutLeavesNothing) {
  Daemon daemon;
  Client client = daemon.Connect();
  {
    auto put = client.OpenPut(OpenOf("s", "int8"));
    ASSERT_TRUE(put.ok());
    const v1::Rectangle r = MakeRectangle(0, 30, 0, 128);
    ASSERT_TRUE(put->Write(r, ExampleBytes(r)).ok());
  }  // destroyed: cancelled
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
  EXPECT_EQ(client.StatSession(Ref("s")).status().code(), absl::StatusCode::kNotFound);
}

TEST(FaultsTest, APutPastItsDeadlineLeavesNothing) {
  Daemon daemon;
  Client client = daemon.Connect();
  CallOptions call;
  call.timeout = absl::Seconds(1);
  auto put = client.OpenPut(OpenOf("s", "raw"), call);
  absl::Status status = put.status();
  if (put.ok()) {
    const v1::Rectangle r = MakeRectangle(0, 30, 0, 128);
    status = put->Write(r, ExampleBytes(r));
    EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));  // the deadline came
    status = put->Commit(Seal()).status();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_EQ(client.StatSession(Ref("s")).status().code(), absl::StatusCode::kNotFound);
}

TEST(FaultsTest, AHalfSentPutIsDroppedWhenNothingMoreComes) {
  Daemon daemon({"--idle-put-timeout", "200ms"});
  Client client = daemon.Connect();
  auto put = client.OpenPut(OpenOf("s", "raw"));
  ASSERT_TRUE(put.ok());
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
  const v1::Rectangle r = MakeRectangle(0, 30, 0, 128);
  absl::Status status = put->Write(r, ExampleBytes(r));
  if (status.ok()) status = put->Commit(Seal()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_EQ(DetailsOf(status).reason, "IDLE");
}

TEST(FaultsTest, ABudgetThatIsTooSmallRefusesAndSaysWhenToTryAgain) {
  Daemon daemon({"--memory-budget", "4MiB", "--eviction", "off"});
  Client client = daemon.Connect();
  const auto put = PutExample(client, OpenOf("s", "raw"));
  EXPECT_EQ(put.status().code(), absl::StatusCode::kResourceExhausted) << put.status();
  EXPECT_EQ(DetailsOf(put.status()).domain, "kvcask");
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
  EXPECT_EQ(client.StatSession(Ref("s")).status().code(), absl::StatusCode::kNotFound);

  const auto small = PutExample(client, OpenOf("s", "int8", 0, 64));
  ASSERT_TRUE(small.ok()) << Describe(small.status());
  // Full for the time being: what is there may go, so a hint is given.
  absl::Status full;
  for (int i = 0; i < 16 && full.ok(); ++i) {
    v1::PutOpen open = OpenOf(absl::StrCat("more-", i), "raw", 0, 64);
    open.clear_token_ids();  // unshared
    full = PutExample(client, open).status();
  }
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  EXPECT_TRUE(DetailsOf(full).retry_after.has_value()) << Describe(full);
  EXPECT_TRUE(Fetch(client, RequestOf("s")).ok());  // what is there stays readable
}

TEST(FaultsTest, SigtermLetsAPutUnderWayEnd) {
  Daemon daemon;
  Client client = daemon.Connect();
  auto put = client.OpenPut(OpenOf("s", "raw"));
  ASSERT_TRUE(put.ok());
  const v1::Rectangle first = MakeRectangle(0, 30, 0, 128), second = MakeRectangle(0, 30, 128, 128);
  ASSERT_TRUE(put->Write(first, ExampleBytes(first)).ok());
  daemon.process().Signal(SIGTERM);
  // New work is refused from now on, on other connections and on this one...
  absl::Status refused;
  EXPECT_TRUE(Eventually([&] {
    refused = client.OpenPut(OpenOf("late", "raw")).status();
    return !refused.ok();
  }));
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << refused;
  EXPECT_EQ(DetailsOf(refused).reason, "DRAINING") << Describe(refused);
  EXPECT_TRUE(DetailsOf(refused).retry_after.has_value());
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(DetailsOf(client.OpenPut(OpenOf("late", "raw")).status()).reason, "DRAINING");
  }
  const auto other = Client::Connect(daemon.tcp_address());
  EXPECT_TRUE(other.ok()) << other.status();
  // ... and what was begun ends well.
  const absl::Status written = put->Write(second, ExampleBytes(second));
  ASSERT_TRUE(written.ok()) << Describe(written);
  const auto committed = put->Commit(Seal());
  ASSERT_TRUE(committed.ok()) << Describe(committed.status());
  EXPECT_EQ(committed->visible_tokens(), 256u);
  EXPECT_EQ(daemon.process().Wait(kPatience), 0);
}

TEST(FaultsTest, SigtermWaitsForAStuckClientNoLongerThanTheDeadline) {
  Daemon daemon({"--drain-timeout", "500ms"});
  Client client = daemon.Connect();
  auto put = client.OpenPut(OpenOf("s", "raw"));
  ASSERT_TRUE(put.ok());
  const v1::Rectangle r = MakeRectangle(0, 30, 0, 128);
  ASSERT_TRUE(put->Write(r, ExampleBytes(r)).ok());
  daemon.process().Signal(SIGTERM);
  EXPECT_EQ(daemon.process().Wait(kPatience), 0);
  const auto committed = put->Commit(Seal());
  EXPECT_FALSE(committed.ok());
}

TEST(FaultsTest, ASecondDaemonOnTheSameSocketIsRefused) {
  Daemon daemon;
  Process second({"server/kvcaskd", "--listen", daemon.unix_address(), "--metrics", "off"},
                 daemon.folder().File("second-log"));
  EXPECT_EQ(second.Wait(kPatience), 1);
  Client client = daemon.Connect();
  EXPECT_TRUE(client.GetServerInfo().ok());
}

TEST(FaultsTest, ConnectingToNobodyFailsAtOnceAndSaysWhere) {
  const ScratchFolder folder;
  const auto client = Client::Connect("unix:" + folder.File("nobody"));
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(absl::StrContains(client.status().message(), "nobody")) << client.status();
}

}  // namespace
}  // namespace kvcask
