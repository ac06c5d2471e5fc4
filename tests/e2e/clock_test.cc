// A wall clock that jumps a year on or back under a running daemon: nothing that lasts ends, what
// ends is not late, calls go on.
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <gtest/gtest.h>
#include <fcntl.h>
#include <unistd.h>

#include "client/cc/convert.h"
#include "client/cli/top_view.h"
#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

// The wall clock of a daemon that tests/e2e/clock_shim.cc is preloaded into.
class WallClock {
 public:
  WallClock() { Set(absl::ZeroDuration()); }
  void Set(absl::Duration offset) {
    const int64_t nanos = absl::ToInt64Nanoseconds(offset);
    const int fd = open(path().c_str(), O_WRONLY | O_CREAT, 0600);
    EXPECT_EQ(pwrite(fd, &nanos, sizeof nanos, 0), static_cast<ssize_t>(sizeof nanos));
    close(fd);
  }
  std::vector<std::string> environment() const {
    // The shim comes before a sanitizer's runtime, which it does not need.
    return {"LD_PRELOAD=tests/e2e/libclock_shim.so", "KVCASK_TEST_CLOCK=" + path(),
            "ASAN_OPTIONS=verify_asan_link_order=0"};
  }

 private:
  std::string path() const { return folder_.File("clock"); }
  ScratchFolder folder_;
};

// A series' value; -1: it is not there.
double Value(const Daemon& daemon, const std::string& series) {
  const auto text = FetchMetrics(daemon.metrics_address(), kPatience);
  EXPECT_TRUE(text.ok()) << text.status();
  if (!text.ok()) return -1;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    double value = 0;
    if (line.substr(0, series.size() + 1) == series + " " &&
        absl::SimpleAtod(line.substr(series.size() + 1), &value)) {
      return value;
    }
  }
  return -1;
}

class ClockTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Jumps, ClockTest, testing::Values(-365, 365), [](const auto& info) {
  return info.param > 0 ? "AYearOn" : "AYearBack";
});

TEST_P(ClockTest, EndsNothingThatLastsAndDelaysNothingThatEnds) {
  WallClock clock;
  Daemon daemon({}, clock.environment());
  Client client = daemon.Connect();
  const auto put = [&](const std::string& id, uint64_t ttl_seconds) {
    v1::PutOpen open = OpenOf(id, "int8");
    open.set_ttl_seconds(ttl_seconds);
    const auto done = PutExample(client, open);
    ASSERT_TRUE(done.ok()) << Describe(done.status());
  };
  put("for-ever", 0);
  put("an-hour", 3600);
  put("moments-before", 2);
  const auto lease = client.AcquireLease(Ref("an-hour"), absl::Minutes(30));
  ASSERT_TRUE(lease.ok()) << Describe(lease.status());
  auto half = client.OpenPut(OpenOf("half", "raw"));
  ASSERT_TRUE(half.ok());
  const v1::Rectangle first = MakeRectangle(0, 30, 0, 128), second = MakeRectangle(0, 30, 128, 128);
  ASSERT_TRUE(half->Write(first, ExampleBytes(first)).ok());
  EXPECT_EQ(client.StatSession(Ref("half")).status().code(), absl::StatusCode::kNotFound);

  clock.Set(absl::Hours(24 * GetParam()));
  put("moments-after", 1);
  for (const char* id : {"moments-before", "moments-after"}) {
    EXPECT_TRUE(Eventually([&] {
      return client.StatSession(Ref(id)).status().code() == absl::StatusCode::kNotFound;
    })) << id;
  }
  // The daemon has looked at what has expired since: these have not.
  for (const char* id : {"for-ever", "an-hour"}) {
    EXPECT_TRUE(client.StatSession(Ref(id)).ok()) << id;
    EXPECT_TRUE(Fetch(client, RequestOf(id)).ok()) << id;
  }
  EXPECT_TRUE(client.RenewLease(lease->lease_id(), absl::Minutes(30)).ok());
  // A put is as idle as it is.
  ASSERT_TRUE(half->Write(second, ExampleBytes(second)).ok());
  const auto committed = half->Commit(Seal());
  ASSERT_TRUE(committed.ok()) << Describe(committed.status());
  const auto got = Fetch(client, RequestOf("half"));
  ASSERT_TRUE(got.ok()) << Describe(got.status());
  EXPECT_EQ(DifferenceFromExample(*got), "");
  // Nor did any call take a year, or less than nothing.
  for (const char* method : {"Put", "Get", "StatSession"}) {
    const double seconds =
        Value(daemon, absl::StrCat("kvcask_request_seconds_sum{method=\"", method, "\"}"));
    EXPECT_GE(seconds, 0) << method;
    EXPECT_LT(seconds, 1000) << method;
  }
  for (const char* what : {"encode", "decode"}) {
    const double seconds =
        Value(daemon, absl::StrCat("kvcask_", what, "_seconds_sum{codec=\"int8\"}"));
    EXPECT_GE(seconds, 0) << what;
    EXPECT_LT(seconds, 1000) << what;
  }
}

// That the shim is felt at all: the daemon says when it was started.
TEST(ClockShimTest, TheDaemonSeesTheClock) {
  WallClock clock;
  clock.Set(-absl::Hours(24 * 365));
  Daemon daemon({}, clock.environment());
  const auto info = daemon.Connect().GetServerInfo();
  ASSERT_TRUE(info.ok());
  EXPECT_LT(absl::FromUnixSeconds(info->started().seconds()), absl::Now() - absl::Hours(24 * 300));
}

}  // namespace
}  // namespace kvcask
