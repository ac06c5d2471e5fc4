// Clients and daemons that stand still, and what runs out: descriptors, ports.
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

constexpr char kHalfPut[] = "tests/e2e/half_put";

std::string FileText(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(StallsTest, AStalledReaderHoldsUpNobodyAndGetsItsBytesLater) {
  Daemon daemon;
  Client client = daemon.Connect(), other = daemon.Connect();
  ASSERT_TRUE(PutExample(client, OpenOf("s", "raw")).ok());
  auto stalled = client.OpenGet(RequestOf("s"));
  ASSERT_TRUE(stalled.ok()) << Describe(stalled.status());
  // It reads its header and no more, while others, on this connection too, go on.
  for (int i = 0; i < 20; ++i) {
    const auto got = Fetch(i % 2 ? client : other, RequestOf("s"));
    ASSERT_TRUE(got.ok()) << Describe(got.status());
    ASSERT_EQ(DifferenceFromExample(*got), "");
  }
  ASSERT_TRUE(client.DeleteSession(Ref("s"), false).ok());  // under its hands
  uint64_t bytes = 0;
  for (;;) {
    auto piece = stalled->Next();
    ASSERT_TRUE(piece.ok()) << Describe(piece.status());
    if (!piece->has_value()) break;
    std::vector<uint8_t> payload;
    for (ConstBytes p : (*piece)->payload()) payload.insert(payload.end(), p.begin(), p.end());
    ASSERT_EQ(payload, ExampleBytes((*piece)->rectangle()));
    bytes += payload.size();
  }
  EXPECT_EQ(bytes, 5898240u);
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
}

TEST(StallsTest, ManyStalledReadersAreBoundedAndTheRestIsToldToWait) {
  // 64 MiB may be decoded ahead of readers; a session of 23.6 MB is more than transports
  // take in, so that each stalled reader keeps its window of 16 MiB.
  Daemon daemon({"--memory-budget", "64MiB", "--get-window", "16MiB"});
  Client client = daemon.Connect();
  for (int part = 0; part < 4; ++part) {
    v1::PutOpen open = OpenOf("s", "raw");
    open.clear_token_ids();
    open.set_token_begin(256 * part);
    const auto put = client.PutRun(open, ExampleRun().source(), Seal(part == 3));
    ASSERT_TRUE(put.ok()) << Describe(put.status());
  }
  std::vector<GetStream> stalled;
  absl::Status refused;
  while (stalled.size() < 16 && refused.ok()) {
    auto stream = client.OpenGet(RequestOf("s"));
    if (stream.ok()) {
      stalled.push_back(*std::move(stream));
    } else {
      refused = stream.status();
    }
  }
  EXPECT_EQ(stalled.size(), 4u);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_TRUE(DetailsOf(refused).retry_after.has_value()) << Describe(refused);
  stalled.clear();  // cancelled: their room comes back
  EXPECT_TRUE(Eventually([&] { return Fetch(client, RequestOf("s")).ok(); }));
  ASSERT_TRUE(client.DeleteSession(Ref("s"), false).ok());
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
}

TEST(StallsTest, AStoppedClientIsDroppedAndLearnsItWhenItGoesOn) {
  Daemon daemon({"--idle-put-timeout", "200ms"});
  Client client = daemon.Connect();
  Process half({kHalfPut, daemon.unix_address(), "s"}, daemon.folder().File("half-log"));
  ASSERT_EQ(half.ReadLine(kPatience), "half");
  half.Signal(SIGSTOP);
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
  EXPECT_TRUE(Eventually([&] { return absl::StrContains(daemon.Log(), "DEADLINE_EXCEEDED"); }));
  half.Signal(SIGCONT);
  EXPECT_EQ(client.StatSession(Ref("s")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(PutExample(client, OpenOf("s", "raw")).ok());
}

TEST(StallsTest, AStoppedDaemonIsADeadlineForItsClientsAndGoesOnWhereItWas) {
  Daemon daemon;
  Client client = daemon.Connect();
  ASSERT_TRUE(PutExample(client, OpenOf("held", "raw")).ok());
  auto patient = client.OpenPut(OpenOf("patient", "raw"));
  ASSERT_TRUE(patient.ok());
  const v1::Rectangle first = MakeRectangle(0, 30, 0, 128), second = MakeRectangle(0, 30, 128, 128);
  ASSERT_TRUE(patient->Write(first, ExampleBytes(first)).ok());

  daemon.process().Signal(SIGSTOP);
  CallOptions brief;
  brief.timeout = absl::Milliseconds(300);
  EXPECT_EQ(client.StatSession(Ref("held"), brief).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(client.OpenPut(OpenOf("late", "raw"), brief).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  daemon.process().Signal(SIGCONT);

  ASSERT_TRUE(patient->Write(second, ExampleBytes(second)).ok());
  const auto committed = patient->Commit(Seal());
  ASSERT_TRUE(committed.ok()) << Describe(committed.status());
  for (const char* session : {"held", "patient"}) {
    const auto got = Fetch(client, RequestOf(session));
    ASSERT_TRUE(got.ok()) << Describe(got.status());
    EXPECT_EQ(DifferenceFromExample(*got), "");
  }
  EXPECT_EQ(client.StatSession(Ref("late")).status().code(), absl::StatusCode::kNotFound);
}

TEST(StallsTest, ADaemonKilledInMidStreamIsUnavailableAndItsSocketIsTakenOver) {
  auto daemon = std::make_unique<Daemon>();
  Client client = daemon->Connect();
  auto put = client.OpenPut(OpenOf("s", "raw"));
  ASSERT_TRUE(put.ok());
  const v1::Rectangle r = MakeRectangle(0, 30, 0, 128);
  ASSERT_TRUE(put->Write(r, ExampleBytes(r)).ok());
  daemon->process().Signal(SIGKILL);
  EXPECT_EQ(daemon->process().Wait(kPatience), 128 + SIGKILL);
  EXPECT_EQ(put->Commit(Seal()).status().code(), absl::StatusCode::kUnavailable);
  // The dead one's socket and lock files are no obstacle.
  Process again({"server/kvcaskd", "--listen", daemon->unix_address(), "--metrics", "off"},
                daemon->folder().File("again-log"));
  std::optional<std::string> line;
  do {
    line = again.ReadLine(kPatience);
    ASSERT_TRUE(line) << FileText(daemon->folder().File("again-log"));
  } while (!absl::StartsWith(*line, "listening "));
  auto fresh = Client::Connect(daemon->unix_address());
  ASSERT_TRUE(fresh.ok()) << fresh.status();
  EXPECT_TRUE(HoldsNothing(*fresh));
}

TEST(StallsTest, ACancelledGetGivesBackWhatItHeld) {
  Daemon daemon;
  Client client = daemon.Connect();
  ASSERT_TRUE(PutExample(client, OpenOf("s", "int8")).ok());
  for (int i = 0; i < 20; ++i) {
    auto stream = client.OpenGet(RequestOf("s"));
    ASSERT_TRUE(stream.ok()) << Describe(stream.status());
    if (i % 2) {
      ASSERT_TRUE(stream->Next().ok());
    }
  }  // destroyed: cancelled
  ASSERT_TRUE(client.DeleteSession(Ref("s"), false).ok());
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
}

TEST(StallsTest, DescriptorsThatRunOutHurtNewConnectionsOnlyAndNotForLong) {
  Daemon daemon;
  Client client = daemon.Connect();
  ASSERT_TRUE(PutExample(client, OpenOf("s", "raw")).ok());
  int used = 0;
  DIR* fds = opendir(absl::StrCat("/proc/", daemon.process().pid(), "/fd").c_str());
  ASSERT_NE(fds, nullptr);
  while (readdir(fds) != nullptr) ++used;
  closedir(fds);
  const rlimit limit = {static_cast<rlim_t>(used + 8), static_cast<rlim_t>(used + 8)};
  ASSERT_EQ(prlimit(daemon.process().pid(), RLIMIT_NOFILE, &limit, nullptr), 0);

  const std::string path = daemon.unix_address().substr(5);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path.c_str());
  std::vector<int> crowd;
  for (int i = 0; i < 64; ++i) {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    ASSERT_GE(fd, 0);
    (void)connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address));
    crowd.push_back(fd);
  }
  // Who is connected is served as before.
  for (int i = 0; i < 5; ++i) {
    const auto got = Fetch(client, RequestOf("s"));
    ASSERT_TRUE(got.ok()) << Describe(got.status());
    ASSERT_EQ(DifferenceFromExample(*got), "");
  }
  for (const int fd : crowd) close(fd);
  EXPECT_TRUE(Eventually([&] {
    auto late = Client::Connect(daemon.unix_address());
    return late.ok() && Fetch(*late, RequestOf("s")).ok();
  }));
}

TEST(StallsTest, AMetricsPortThatIsTakenEndsTheStartWithItsAddress) {
  Daemon daemon;
  ASSERT_NE(daemon.metrics_address(), "");
  const std::string log = daemon.folder().File("second-log");
  Process second({"server/kvcaskd", "--listen", "unix:" + daemon.folder().File("t"), "--metrics",
                  daemon.metrics_address()},
                 log);
  EXPECT_EQ(second.Wait(kPatience), 1);
  EXPECT_TRUE(absl::StrContains(FileText(log), daemon.metrics_address())) << FileText(log);
  EXPECT_TRUE(absl::StrContains(FileText(log), "taken")) << FileText(log);
}

}  // namespace
}  // namespace kvcask
