// Many at once: clients, sessions, streams on a budget; and that nothing of it stays.
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <thread>

#include "client/cc/convert.h"
#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

// f(i) for i in [0, count) on `threads` threads.
template <typename F>
void OnThreads(int threads, int count, F f) {
  std::atomic<int> next{0};
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t) {
    running.emplace_back([&] {
      for (int i; (i = next.fetch_add(1)) < count;) f(i);
    });
  }
  for (std::thread& t : running) t.join();
}

TEST(CrowdTest, SixtyFourClientsAtOnce) {
  Daemon daemon;
  std::vector<std::string> failures(64);
  std::vector<std::thread> threads;
  for (int i = 0; i < 64; ++i) {
    threads.emplace_back([&, i] {
      auto client = Client::Connect(i % 2 ? daemon.unix_address() : daemon.tcp_address());
      if (!client.ok()) {
        failures[i] = Describe(client.status());
        return;
      }
      const std::string session = absl::StrCat("client-", i);
      const auto put = PutExample(*client, OpenOf(session, "raw", 0, 40 + i));
      const auto got =
          put.ok() ? Fetch(*client, RequestOf(session)) : absl::StatusOr<Fetched>(put.status());
      failures[i] = got.ok() ? DifferenceFromExample(*got) : Describe(got.status());
      const auto removed = client->DeleteSession(Ref(session), false);
      if (!removed.ok()) failures[i] += Describe(removed.status());
    });
  }
  for (std::thread& t : threads) t.join();
  for (int i = 0; i < 64; ++i) EXPECT_EQ(failures[i], "") << "client " << i;
  Client client = daemon.Connect();
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
}

// A search tree over one prompt: every client forks it, reads it, goes on by itself, rewinds.
TEST(CrowdTest, SixtyFourClientsForkAndReadOnePrefix) {
  Daemon daemon;
  Client client = daemon.Connect();
  ASSERT_TRUE(PutExample(client, OpenOf("prompt", "raw", 0, 200), false).ok());
  const uint64_t before = client.GetServerInfo()->usage().stored_bytes();
  std::vector<std::string> failures(64);
  const auto run = [&](int i) -> std::string {
    auto mine = Client::Connect(i % 2 ? daemon.unix_address() : daemon.tcp_address());
    if (!mine.ok()) return Describe(mine.status());
    const std::string name = absl::StrCat("branch-", i);
    const uint64_t at = 128 + i;  // within a page, but for one
    v1::ForkSessionRequest fork;
    *fork.mutable_from() = Ref("prompt");
    fork.set_session_id(name);
    fork.set_tokens(at);
    for (const uint64_t end : {at, uint64_t{256}, at}) {  // as forked, gone on, gone back
      absl::Status done;
      if (end == 256) {
        done = PutExample(*mine, OpenOf(name, "raw", at, end), false).status();
      } else if (!mine->StatSession(Ref(name)).ok()) {
        done = mine->ForkSession(fork).status();
      } else {
        v1::RewindSessionRequest rewind;
        *rewind.mutable_session() = Ref(name);
        rewind.set_tokens(end);
        done = mine->RewindSession(rewind).status();
      }
      if (!done.ok()) return Describe(done);
      for (const std::string& id : {name, std::string("prompt")}) {
        const auto got = Fetch(*mine, RequestOf(id));
        if (!got.ok()) return Describe(got.status());
        const uint64_t expected = id == name ? end : 200;
        if (got->tokens() != expected) return absl::StrCat(id, " has ", got->tokens());
        if (auto wrong = DifferenceFromExample(*got); !wrong.empty()) return wrong;
      }
    }
    return "";
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 64; ++i) {
    threads.emplace_back([&, i] { failures[i] = run(i); });
  }
  for (std::thread& t : threads) t.join();
  for (int i = 0; i < 64; ++i) EXPECT_EQ(failures[i], "") << "client " << i;
  // The first page is there once, for all of them.
  for (int i = 0; i < 64; ++i) {
    ASSERT_TRUE(client.DeleteSession(Ref(absl::StrCat("branch-", i)), false).ok());
  }
  EXPECT_TRUE(Eventually(
      [&] { return client.GetServerInfo()->usage().stored_bytes() == before; }));
}

// A geometry of one small layer: sessions of 16 bytes.
v1::PutOpen SmallOpen(const std::string& session) {
  v1::PutOpen open = OpenOf(session, "raw", 0, 1);
  open.clear_geometry();
  v1::Layer* layer = open.mutable_geometry()->add_layers();
  layer->set_kind(v1::Layer::KIND_FULL);
  for (const v1::StreamKind kind : {v1::STREAM_KIND_K, v1::STREAM_KIND_V}) {
    v1::Stream* stream = layer->add_streams();
    stream->set_kind(kind);
    stream->set_heads(1);
    stream->set_head_dim(4);
  }
  return open;
}

TEST(CrowdTest, TenThousandSmallSessions) {
  constexpr int kSessions = 10000, kClients = 4;
  Daemon daemon({"--log-level", "warning"});
  std::vector<Client> clients;
  for (int c = 0; c < kClients; ++c) clients.push_back(daemon.Connect());
  const auto name = [](int i) { return absl::StrCat("small-", i); };
  // 8 elements of each session, told from all others'.
  const auto bytes = [](int i) {
    std::vector<uint8_t> b(16);
    for (int k = 0; k < 4; ++k) std::memcpy(&b[4 * k], &i, 4);
    return b;
  };
  std::atomic<int> failed{0};
  std::atomic<int> turn{0};
  const auto each = [&](auto f) {
    turn = 0;
    OnThreads(kClients, kClients, [&](int c) {
      for (int i; (i = turn.fetch_add(1)) < kSessions;) {
        if (!f(clients[c], i)) failed.fetch_add(1);
      }
    });
  };
  each([&](Client& client, int i) {
    auto put = client.OpenPut(SmallOpen(name(i)));
    return put.ok() && put->Write(MakeRectangle(0, 1, 0, 1), bytes(i)).ok() &&
           put->Commit(Seal()).ok();
  });
  ASSERT_EQ(failed, 0);
  const auto all = clients[0].ListSessions("");
  ASSERT_TRUE(all.ok()) << Describe(all.status());
  ASSERT_EQ(all->size(), size_t{kSessions});
  each([&](Client& client, int i) {
    if (i % 10) return true;  // a tenth is read back
    auto stream = client.OpenGet(RequestOf(name(i)));
    if (!stream.ok()) return false;
    auto piece = stream->Next();
    if (!piece.ok() || !piece->has_value()) return false;
    std::vector<uint8_t> got;
    for (ConstBytes p : (*piece)->payload()) got.insert(got.end(), p.begin(), p.end());
    return got == bytes(i);
  });
  EXPECT_EQ(failed, 0);
  each([&](Client& client, int i) { return client.DeleteSession(Ref(name(i)), false).ok(); });
  EXPECT_EQ(failed, 0);
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(clients[0]); }));
}

// Each stream holds half of its groups and waits; together they want far more than there is.
// Room is taken for whole runs before their first byte, so those let in can always end.
TEST(CrowdTest, StreamsThatHoldHalfAGroupOnASmallBudgetDoNotDeadlock) {
  constexpr int kStreams = 24;
  Daemon daemon({"--memory-budget", "32MiB"});
  Client client = daemon.Connect();
  const v1::Rectangle half = [] {  // K of all layers: half of every group
    v1::Rectangle r = MakeRectangle(0, 30, 0, 256);
    r.add_streams(v1::STREAM_KIND_K);
    return r;
  }();
  v1::Rectangle rest = half;
  rest.set_streams(0, v1::STREAM_KIND_V);
  const auto open_of = [](int i) {
    v1::PutOpen open = OpenOf(absl::StrCat("s", i), "raw");
    open.clear_token_ids();  // unshared: each needs its own room
    return open;
  };
  std::vector<std::pair<int, PutStream>> holding;
  std::vector<int> refused;
  for (int i = 0; i < kStreams; ++i) {
    auto put = client.OpenPut(open_of(i));
    if (!put.ok()) {
      EXPECT_EQ(put.status().code(), absl::StatusCode::kResourceExhausted) << put.status();
      EXPECT_TRUE(DetailsOf(put.status()).retry_after.has_value()) << Describe(put.status());
      refused.push_back(i);
      continue;
    }
    ASSERT_TRUE(put->Write(half, ExampleBytes(half)).ok());
    holding.emplace_back(i, *std::move(put));
  }
  EXPECT_GE(holding.size(), 2u);
  EXPECT_GE(refused.size(), 8u);
  const auto finish = [&](int i, PutStream& put) {
    ASSERT_TRUE(put.Write(rest, ExampleBytes(rest)).ok()) << i;
    const auto committed = put.Commit(Seal());
    ASSERT_TRUE(committed.ok()) << i << ": " << Describe(committed.status());
    const auto got = Fetch(client, RequestOf(absl::StrCat("s", i)));
    ASSERT_TRUE(got.ok()) << Describe(got.status());
    ASSERT_EQ(DifferenceFromExample(*got), "");
    ASSERT_TRUE(client.DeleteSession(Ref(absl::StrCat("s", i)), false).ok());
  };
  for (auto& [i, put] : holding) finish(i, put);
  holding.clear();
  for (const int i : refused) {  // later they succeed
    absl::StatusOr<PutStream> put = absl::UnknownError("not tried");
    ASSERT_TRUE(Eventually([&] {
      put = client.OpenPut(open_of(i));
      return put.ok();
    })) << Describe(put.status());
    ASSERT_TRUE(put->Write(half, ExampleBytes(half)).ok());
    finish(i, *put);
  }
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
}

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kMemoryIsTheProgramsOwn = false;  // freed memory waits in a quarantine
#else
constexpr bool kMemoryIsTheProgramsOwn = true;
#endif

uint64_t ResidentBytes(pid_t pid) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/statm"));
  uint64_t size = 0, resident = 0;
  in >> size >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// What the suites do, over and over: good puts and gets, half puts, bad input, many clients.
void Round(Daemon& daemon, int round) {
  OnThreads(8, 16, [&](int i) {
    Client client = daemon.Connect();
    const std::string session = absl::StrCat("s", round, "-", i);
    const auto put =
        PutExample(client, OpenOf(session, i % 2 ? "raw" : "int8", 0, 16 * (i + 1)), i % 3 == 0);
    EXPECT_TRUE(put.ok()) << Describe(put.status());
    EXPECT_TRUE(Fetch(client, RequestOf(session)).ok());
    {
      auto half = client.OpenPut(OpenOf("half" + session, "int8"));
      const v1::Rectangle r = MakeRectangle(0, 30, 0, 128);
      if (half.ok()) (void)half->Write(r, ExampleBytes(r));
    }
    auto cancelled = client.OpenGet(RequestOf(session));
    v1::PutOpen bad = OpenOf("bad" + session, "raw");
    bad.mutable_geometry()->mutable_layers(i % 30)->mutable_streams(0)->set_heads(0);
    EXPECT_FALSE(client.OpenPut(bad).ok());
    EXPECT_TRUE(client.DeleteSession(Ref(session), false).ok());
  });
  Client client = daemon.Connect();
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
}

// Five rounds add no more than 5 %. The allocator's arenas fill up as threads happen to meet, so it
// gets four goes at that; what leaks grows in each.
TEST(CrowdTest, MemoryAfterTheSuiteIsWithinFivePercentOfBefore) {
  if (!kMemoryIsTheProgramsOwn) GTEST_SKIP() << "under the address sanitizer";
  Daemon daemon({"--log-level", "warning"});
  int round = 0;
  for (; round < 3; ++round) Round(daemon, round);  // what is kept for good is there then
  uint64_t before = 0, after = ResidentBytes(daemon.process().pid());
  for (int go = 0; go < 4 && (go == 0 || after > before + before / 20); ++go) {
    before = after;
    for (const int end = round + 5; round < end; ++round) Round(daemon, round);
    after = ResidentBytes(daemon.process().pid());
  }
  RecordProperty("before_bytes", static_cast<int>(before));
  RecordProperty("after_bytes", static_cast<int>(after));
  EXPECT_LE(after, before + before / 20) << "of " << before << " in round " << round;
}

}  // namespace
}  // namespace kvcask
