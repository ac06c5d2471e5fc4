// A client verifies every byte that it was promised, while the daemon is killed, its disk runs
// full and its files are damaged.
//
// KVCASK_TORTURE_ROUNDS (200) and KVCASK_TORTURE_SECONDS (75, for all rounds together: a slow
// machine does fewer, and says so) set the kill test's length; KVCASK_TEST_SEED repeats one.
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <random>
#include <thread>

#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

namespace fs = std::filesystem;
using Code = absl::StatusCode;

int Setting(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

unsigned Seed() {
  const unsigned seed = static_cast<unsigned>(
      Setting("KVCASK_TEST_SEED", static_cast<int>(std::random_device()() & 0x7fffffff)));
  std::cout << "seed " << seed << std::endl;
  return seed;
}

// What a client knows of one session: the first so many tokens of the example.
struct Promise {
  uint64_t tokens = 0;                // acknowledged
  std::optional<uint64_t> or_tokens;  // asked for and not answered; 0: its removal
  bool maybe_gone = false;            // its first put was not answered
};

class TortureClient {
 public:
  explicit TortureClient(unsigned seed) : rng_(seed) {}

  // Writes until the daemon is gone, or `steps` are done.
  void Write(Client& client, int steps) {
    for (int i = 0; i < steps; ++i) {
      if (!Step(client)) return;
    }
  }

  // Everything that was promised is there; what was in flight is there whole or not at all.
  void Verify(Client& client) {
    for (auto it = promises_.begin(); it != promises_.end();) {
      auto& [id, p] = *it;
      SCOPED_TRACE(absl::StrCat(id, " with ", p.tokens, " tokens"));
      const auto stat = client.StatSession(Ref(id));
      if (stat.status().code() == Code::kNotFound) {
        EXPECT_TRUE(p.maybe_gone || p.or_tokens == 0u) << "it is lost";
        it = promises_.erase(it);
        continue;
      }
      ASSERT_TRUE(stat.ok()) << Describe(stat.status());
      EXPECT_TRUE(stat->tokens() == p.tokens || (p.or_tokens && stat->tokens() == *p.or_tokens))
          << "it has " << stat->tokens();
      const auto got = Fetch(client, RequestOf(id));
      ASSERT_TRUE(got.ok()) << Describe(got.status());
      EXPECT_EQ(got->tokens(), stat->tokens());
      EXPECT_EQ(DifferenceFromExample(*got), "");
      bytes_ += got->header.payload_bytes();
      p = {stat->tokens(), std::nullopt, false};
      ++it;
    }
    const auto all = client.ListSessions("");
    ASSERT_TRUE(all.ok());
    EXPECT_EQ(all->size(), promises_.size());  // nothing half-visible, nothing come back
  }
  uint64_t verified_bytes() const { return bytes_; }
  size_t sessions() const { return promises_.size(); }
  int acknowledged() const { return acknowledged_; }

 private:
  int Pick(int n) { return static_cast<int>(rng_() % n); }

  bool Step(Client& client) {
    const int what = Pick(10);
    if (promises_.empty() || (what < 4 && promises_.size() < 12)) return Put(client, NewName(), 0);
    auto it = std::next(promises_.begin(), Pick(static_cast<int>(promises_.size())));
    if (what < 8 && it->second.tokens < 200) return Put(client, it->first, it->second.tokens);
    if (what == 8) return Fork(client, it->first, it->second.tokens);
    it->second.or_tokens = 0;
    if (!client.DeleteSession(Ref(it->first), true).ok()) return false;
    promises_.erase(it);
    return true;
  }

  std::string NewName() { return absl::StrCat("s", ++names_); }

  bool Put(Client& client, const std::string& id, uint64_t begin) {
    const uint64_t end = begin + 1 + Pick(50);
    v1::PutOpen open = OpenOf(id, "raw", begin, end);
    open.set_put_id(absl::StrCat(id, "-", end, "-", rng_()));
    v1::PutCommit commit;
    commit.set_durability(v1::DURABILITY_DISK);
    const ExampleRun run(begin);
    Promise& p = promises_[id];
    if (begin == 0) {
      p.maybe_gone = true;
      p.tokens = end;
    } else {
      p.or_tokens = end;
    }
    PutRunOptions options;
    options.timeout = absl::Seconds(30);
    const auto put = client.PutRun(open, run.source(), commit, options);
    if (!put.ok()) return false;
    p = {end, std::nullopt, false};
    ++acknowledged_;
    return true;
  }

  bool Fork(Client& client, const std::string& from, uint64_t tokens) {
    const std::string id = NewName();
    const uint64_t at = 1 + Pick(static_cast<int>(tokens));
    v1::ForkSessionRequest request;
    *request.mutable_from() = Ref(from);
    request.set_session_id(id);
    request.set_tokens(at);
    promises_[id] = {at, std::nullopt, true};  // a fork is not durable by itself
    if (!client.ForkSession(request).ok()) return false;
    return Put(client, id, at);
  }

  std::mt19937 rng_;
  std::map<std::string, Promise> promises_;
  int names_ = 0, acknowledged_ = 0;
  uint64_t bytes_ = 0;
};

std::vector<std::string> Flags(const std::string& tier) {
  return {"--disk-path", tier, "--memory-budget", "64MiB", "--log-level", "error"};
}

TEST(Torture, KilledInALoopNothingPromisedIsLost) {
  const unsigned seed = Seed();
  std::mt19937 rng(seed);
  const int rounds = Setting("KVCASK_TORTURE_ROUNDS", 200);
  const absl::Time end = absl::Now() + absl::Seconds(Setting("KVCASK_TORTURE_SECONDS", 75));
  ScratchFolder disk;
  TortureClient writer(seed);
  int kills = 0;
  constexpr int kLeast = 24;  // however slow the machine is
  while (kills < rounds && (kills < kLeast || absl::Now() < end) && !testing::Test::HasFailure()) {
    SCOPED_TRACE(absl::StrCat("seed ", seed, " kill ", kills));
    Daemon daemon(Flags(disk.File("tier")));
    Client client = daemon.Connect();
    writer.Verify(client);
    // In every fourth round something new is durable before the kill.
    const auto before = writer.acknowledged();
    while (kills % 4 == 0 && writer.acknowledged() == before && !testing::Test::HasFailure()) {
      writer.Write(client, 1);
    }
    // The moment of the kill is the machine's to choose: that is the point of it.
    std::atomic<bool> stop{false};
    std::thread killer([&, after = rng() % 300] {
      std::this_thread::sleep_for(std::chrono::milliseconds(after));
      daemon.process().Signal(SIGKILL);
      stop = true;
    });
    while (!stop) writer.Write(client, 1);
    killer.join();
    ++kills;
    ASSERT_TRUE(daemon.process().Wait(kPatience));
  }
  Daemon daemon(Flags(disk.File("tier")));
  Client client = daemon.Connect();
  writer.Verify(client);
  std::cout << kills << " of " << rounds << " kills, " << writer.acknowledged() << " durable puts, "
            << writer.verified_bytes() / 1'000'000 << " MB verified, " << writer.sessions()
            << " sessions at the end" << std::endl;
  EXPECT_GE(kills, std::min(rounds, kLeast));
  EXPECT_GE(writer.acknowledged(), std::min(rounds, kLeast) / 4);
}

// A limit on the size of files (2 MB) stands for a full disk: writes are short, then fail, and
// pages that are larger find no room in any file.
TEST(Torture, AFullDiskRefusesDurablePutsAndKeepsWhatItHas) {
  const unsigned seed = Seed();
  ScratchFolder disk;
  TortureClient writer(seed);
  {
    Process daemon(
        {"/bin/sh", "-c",
         absl::StrCat("ulimit -f 4000; exec server/kvcaskd --listen unix:", disk.File("s"),
                      " --metrics off --log-level error --disk-path ", disk.File("tier"))},
        disk.File("log"));
    std::optional<std::string> line;
    do {
      line = daemon.ReadLine(kPatience);
      ASSERT_TRUE(line);
    } while (line->rfind("listening ", 0) != 0);
    auto client = Client::Connect("unix:" + disk.File("s"));
    ASSERT_TRUE(client.ok());
    writer.Write(*client, 1000);  // until one is refused
    EXPECT_GT(writer.acknowledged(), 0);
    EXPECT_TRUE(client->GetServerInfo().ok());  // it lives, and says no
    daemon.Signal(SIGKILL);
    ASSERT_TRUE(daemon.Wait(kPatience));
  }
  Daemon daemon(Flags(disk.File("tier")));
  Client client = daemon.Connect();
  writer.Verify(client);
  writer.Write(client, 5);
  writer.Verify(client);
  std::cout << writer.acknowledged() << " durable puts" << std::endl;
}

// Bits flipped on disk while the daemon is down: what it gives is right, or it says that it is
// lost.
TEST(Torture, FlippedBitsAreReportedAndNeverServed) {
  const unsigned seed = Seed();
  std::mt19937 rng(seed);
  int served = 0, lost = 0, gone = 0, refused = 0;
  for (int round = 0; round < 6; ++round) {
    SCOPED_TRACE(absl::StrCat("seed ", seed, " round ", round));
    ScratchFolder disk;
    {
      Daemon daemon(Flags(disk.File("tier")));
      Client client = daemon.Connect();
      for (int i = 0; i < 4; ++i) {
        v1::PutOpen open = OpenOf(absl::StrCat("s", i), "raw");
        open.mutable_identity()->set_extra_key(absl::StrCat(i));
        const ExampleRun run;
        v1::PutCommit commit = Seal();
        commit.set_durability(v1::DURABILITY_DISK);
        ASSERT_TRUE(client.PutRun(open, run.source(), commit).ok());
      }
      daemon.process().Signal(round % 2 ? SIGKILL : SIGTERM);
      ASSERT_TRUE(daemon.process().Wait(kPatience));
    }
    std::vector<fs::path> files;
    for (const auto& f : fs::recursive_directory_iterator(disk.File("tier"))) {
      if (f.is_regular_file() && f.file_size() > 10000) files.push_back(f.path());
    }
    ASSERT_FALSE(files.empty());
    for (int flip = 0; flip < 3; ++flip) {
      const fs::path& victim = files[rng() % files.size()];
      const auto at = static_cast<std::streamoff>(rng() % fs::file_size(victim));
      std::fstream f(victim, std::ios::in | std::ios::out | std::ios::binary);
      f.seekg(at);
      const char c = static_cast<char>(f.get() ^ (1 << rng() % 8));
      f.seekp(at);
      f.put(c);
    }
    Process probe({"server/kvcaskd", "--listen", "unix:" + disk.File("s"), "--metrics", "off",
                   "--disk-path", disk.File("tier")},
                  disk.File("log"));
    std::optional<std::string> line;
    do {
      line = probe.ReadLine(kPatience);
    } while (line && line->rfind("listening ", 0) != 0);
    if (!line) {
      ++refused;  // it says that what is there cannot be opened
      continue;
    }
    auto client = Client::Connect("unix:" + disk.File("s"));
    ASSERT_TRUE(client.ok());
    for (int i = 0; i < 4; ++i) {
      const auto got = Fetch(*client, RequestOf(absl::StrCat("s", i)));
      if (got.ok()) {
        EXPECT_EQ(DifferenceFromExample(*got), "");
        ++served;
      } else if (got.status().code() == Code::kDataLoss) {
        ++lost;
      } else {
        EXPECT_EQ(got.status().code(), Code::kNotFound) << Describe(got.status());
        ++gone;
      }
    }
  }
  std::cout << served << " sessions served whole, " << lost << " reported lost, " << gone
            << " gone with a damaged log, " << refused << " folders refused" << std::endl;
  EXPECT_GT(lost + gone + refused, 0);
}

}  // namespace
}  // namespace kvcask
