// The store, without transport and codecs, beside what else could keep the same blocks: a file
// each, and Redis. Then how long a restart takes.
//
//   bazel run --config=opt //bench/store:store_benchmark
//     [-- --blocks=4096 --block-bytes=65536 --restart-chunks=100000 --folder=DIR]
//
// put: all blocks, MB/s; a row that says fsync has them on disk when it returns. get: all
// blocks, in an order of its own, each compared with what was put. lookup: is this block (for
// the store: the prefix that ends with it) here, p50 and p99. Redis is asked over a Unix
// socket, one request at a time as the others are: what its own process and socket cost is in
// its row, and in no other. Files and the store's disk are read through the page cache.
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/string_view.h>
#include <absl/strings/strip.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "server/admission/byte_budget.h"
#include "server/store/disk_tier.h"
#include "server/store/session_store.h"
#include "tests/e2e/process.h"

namespace kvcask {
namespace {

constexpr uint64_t kPage = 128;
constexpr uint64_t kPagesASession = 16;
constexpr char kRedisServer[] = "/usr/bin/redis-server";

struct Flags {
  uint64_t blocks = 4096;
  uint64_t block_bytes = 64 << 10;
  uint64_t restart_chunks = 100'000;
  std::string folder;
} flags;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "store_benchmark: %s\n", why.c_str());
  std::exit(1);
}
void Check(const absl::Status& s) {
  if (!s.ok()) Die(s.ToString());
}

double Seconds(const std::function<void()>& step) {
  const auto begin = std::chrono::steady_clock::now();
  step();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

using Bytes = ChunkBytes;

Bytes Block(uint64_t i, uint64_t bytes) {
  Bytes b(bytes, 0);
  std::mt19937_64 rng(i);
  for (size_t at = 0; at + 8 <= b.size(); at += 8) {
    const uint64_t v = rng();
    std::copy_n(reinterpret_cast<const uint8_t*>(&v), 8, b.begin() + at);
  }
  return b;
}

Digest Id(uint64_t block) {
  Digest d{};
  std::mt19937_64 rng(~block);
  for (size_t i = 0; i < d.size(); i += 8) {
    const uint64_t v = rng();
    std::copy_n(reinterpret_cast<const uint8_t*>(&v), 8, d.begin() + i);
  }
  return d;
}

// One way of keeping blocks.
class Keeper {
 public:
  virtual ~Keeper() = default;
  // All of them, ended: what the row's name promises holds.
  virtual void Put(const std::vector<Bytes>& blocks) = 0;
  // To be compared by the caller; the first byte missing is an error of the keeper.
  virtual void Get(uint64_t block, const std::function<void(absl::Span<const uint8_t>)>& take) = 0;
  virtual bool Has(uint64_t block) = 0;
};

SessionKey Session(uint64_t i) { return {"", absl::StrCat("session-", i)}; }

CommitRequest Run(uint64_t session, uint64_t pages, const std::function<Bytes(uint64_t)>& bytes) {
  CommitRequest r;
  r.session = Session(session);
  r.traits.model_id = "model";
  r.traits.codec = "raw";
  r.tokens = pages * kPage;
  for (uint64_t p = 0; p < pages; ++p) {
    const uint64_t block = session * kPagesASession + p;
    NewChunk c;
    c.token_begin = p * kPage;
    c.tokens = kPage;
    c.bytes = bytes(block);
    c.raw_bytes = c.bytes.size();
    c.prefix_id = Id(block);
    r.chunks.push_back(std::move(c));
  }
  return r;
}

class StoreKeeper : public Keeper {
 public:
  // An empty folder keeps in memory only.
  explicit StoreKeeper(const std::string& folder) : folder_(folder) { Open(); }

  void Put(const std::vector<Bytes>& blocks) override {
    for (uint64_t s = 0; s * kPagesASession < blocks.size(); ++s) {
      const uint64_t pages = std::min(kPagesASession, blocks.size() - s * kPagesASession);
      CommitRequest r = Run(s, pages, [&](uint64_t b) { return blocks[b]; });
      auto reserved = budget_.Reserve(pages * flags.block_bytes, "a run");
      Check(reserved.status());
      r.reservation = *std::move(reserved);
      Check(store_->Commit(std::move(r)).status());
      if (tier_ == nullptr) continue;
      absl::Status durable = absl::UnknownError("not called");
      store_->WhenDurable(Session(s), [&](absl::Status status) { durable = std::move(status); });
      store_->Save();
      Check(durable);
    }
  }
  void Get(uint64_t block, const std::function<void(absl::Span<const uint8_t>)>& take) override {
    const uint64_t page = block % kPagesASession;
    const auto plan =
        store_->OpenRead(Session(block / kPagesASession), page * kPage, (page + 1) * kPage);
    Check(plan.status());
    take(plan->shards[0].chunks[0]->bytes);
  }
  bool Has(uint64_t block) override {
    std::vector<Digest> ids;
    for (uint64_t b = block - block % kPagesASession; b <= block; ++b) ids.push_back(Id(b));
    const auto held = store_->Lookup("", ids);
    return held.size() == 1 && held[0].tokens == ids.size() * kPage;
  }
  // What was in memory is gone, and comes back from disk.
  void Restart() {
    store_.reset();
    tier_.reset();
    Open();
  }

 private:
  void Open() {
    SessionStoreOptions options;
    if (!folder_.empty()) {
      auto tier = OpenDiskTier({folder_});
      Check(tier.status());
      tier_ = *std::move(tier);
      options.tier = tier_.get();
      options.budget = &budget_;
    }
    store_ = std::make_unique<SessionStore>(kPage, options);
    if (tier_) Check(store_->Restore().status());
  }
  const std::string folder_;
  ByteBudget budget_{uint64_t{64} << 30};
  std::unique_ptr<Tier> tier_;
  std::unique_ptr<SessionStore> store_;
};

class FileKeeper : public Keeper {
 public:
  explicit FileKeeper(std::string folder) : folder_(std::move(folder)) {
    std::filesystem::create_directories(folder_);
  }
  void Put(const std::vector<Bytes>& blocks) override {
    for (uint64_t b = 0; b < blocks.size(); ++b) {
      const int fd = open(Path(b).c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
      if (fd < 0 ||
          write(fd, blocks[b].data(), blocks[b].size()) != static_cast<ssize_t>(blocks[b].size())) {
        Die("a file cannot be written");
      }
      // As the store does: an fsync for each session's run, not for each block.
      fds_.push_back(fd);
      if (fds_.size() == kPagesASession || b + 1 == blocks.size()) Sync();
    }
  }
  void Get(uint64_t block, const std::function<void(absl::Span<const uint8_t>)>& take) override {
    Bytes b(flags.block_bytes);
    const int fd = open(Path(block).c_str(), O_RDONLY);
    if (fd < 0 || read(fd, b.data(), b.size()) != static_cast<ssize_t>(b.size())) {
      Die("a file cannot be read");
    }
    close(fd);
    take(b);
  }
  bool Has(uint64_t block) override {
    struct stat s;
    return stat(Path(block).c_str(), &s) == 0;
  }

 private:
  std::string Path(uint64_t block) const {
    std::string name;
    for (const uint8_t byte : Id(block)) absl::StrAppendFormat(&name, "%02x", byte);
    return absl::StrCat(folder_, "/", name);
  }
  void Sync() {
    for (const int fd : fds_) {
      if (fsync(fd) != 0) Die("fsync failed");
      close(fd);
    }
    fds_.clear();
  }
  const std::string folder_;
  std::vector<int> fds_;
};

class RedisKeeper : public Keeper {
 public:
  RedisKeeper(const std::string& folder, bool fsync) {
    std::filesystem::create_directories(folder);
    const std::string socket = absl::StrCat(folder, "/s");
    process_ = std::make_unique<Process>(
        std::vector<std::string>{kRedisServer, "--port", "0", "--unixsocket", socket, "--save", "",
                                 "--appendonly", fsync ? "yes" : "no", "--appendfsync", "always",
                                 "--dir", folder},
        absl::StrCat(folder, "/log"));
    std::string said;
    for (;;) {
      const auto line = process_->ReadLine(absl::Seconds(30));
      if (!line) Die(absl::StrCat("redis-server does not start:\n", said));
      absl::StrAppend(&said, *line, "\n");
      if (absl::StrContains(*line, "at " + socket)) break;
    }
    context_ = redisConnectUnix(socket.c_str());
    if (context_ == nullptr || context_->err != 0) Die("no connection to redis-server");
  }
  ~RedisKeeper() override { redisFree(context_); }

  void Put(const std::vector<Bytes>& blocks) override {
    for (uint64_t b = 0; b < blocks.size(); ++b) {
      const Digest id = Id(b);
      redisAppendCommand(context_, "SET %b %b", id.data(), id.size(), blocks[b].data(),
                         blocks[b].size());
      // A session's run is sent ahead of its answers.
      const uint64_t sent = b % kPagesASession + 1;
      if (sent < kPagesASession && b + 1 < blocks.size()) continue;
      for (uint64_t i = 0; i < sent; ++i) {
        Answer([](const redisReply& r) { return r.type == REDIS_REPLY_STATUS; });
      }
    }
  }
  void Get(uint64_t block, const std::function<void(absl::Span<const uint8_t>)>& take) override {
    const Digest id = Id(block);
    redisAppendCommand(context_, "GET %b", id.data(), id.size());
    Answer([&](const redisReply& r) {
      if (r.type != REDIS_REPLY_STRING) return false;
      take({reinterpret_cast<const uint8_t*>(r.str), r.len});
      return true;
    });
  }
  bool Has(uint64_t block) override {
    const Digest id = Id(block);
    bool has = false;
    redisAppendCommand(context_, "EXISTS %b", id.data(), id.size());
    Answer([&](const redisReply& r) {
      has = r.integer == 1;
      return r.type == REDIS_REPLY_INTEGER;
    });
    return has;
  }

 private:
  void Answer(const std::function<bool(const redisReply&)>& take) {
    void* reply = nullptr;
    if (redisGetReply(context_, &reply) != REDIS_OK) Die("redis: no answer");
    if (!take(*static_cast<redisReply*>(reply))) Die("redis: another answer");
    freeReplyObject(reply);
  }
  std::unique_ptr<Process> process_;
  redisContext* context_ = nullptr;
};

void Row(const char* name, Keeper& keeper, const std::vector<Bytes>& blocks,
         const std::function<void()>& between = nullptr) {
  const double mb = static_cast<double>(blocks.size() * flags.block_bytes) / 1e6;
  const double put = Seconds([&] { keeper.Put(blocks); });
  if (between) between();
  std::vector<uint64_t> order(blocks.size());
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(1));
  uint64_t wrong = 0;
  const double get = Seconds([&] {
    for (const uint64_t b : order) {
      keeper.Get(b, [&](absl::Span<const uint8_t> bytes) {
        wrong += !std::equal(bytes.begin(), bytes.end(), blocks[b].begin(), blocks[b].end());
      });
    }
  });
  std::vector<double> us;
  for (const uint64_t b : order) {
    bool has = false;
    us.push_back(1e6 * Seconds([&] { has = keeper.Has(b); }));
    wrong += !has;
  }
  if (keeper.Has(blocks.size() + kPagesASession)) ++wrong;
  std::sort(us.begin(), us.end());
  std::printf("| %-28s | %8.0f | %8.0f | %8.1f | %8.1f | %5llu |\n", name, mb / put, mb / get,
              us[us.size() / 2], us[us.size() * 99 / 100], static_cast<unsigned long long>(wrong));
  std::fflush(stdout);
  if (wrong > 0) Die("wrong answers");
}

void Restart(const std::string& folder) {
  const uint64_t sessions = flags.restart_chunks / kPagesASession;
  constexpr uint64_t kChunk = 4096;
  ByteBudget budget(uint64_t{64} << 30);
  const auto options = [&](Tier* tier) {
    SessionStoreOptions o;
    o.tier = tier;
    o.budget = &budget;
    return o;
  };
  {
    auto tier = OpenDiskTier({folder});
    Check(tier.status());
    SessionStore store(kPage, options(tier->get()));
    Check(store.Restore().status());
    for (uint64_t s = 0; s < sessions; ++s) {
      Check(store.Commit(Run(s, kPagesASession, [](uint64_t b) { return Block(b, kChunk); }))
                .status());
      if (s % 512 == 511) store.Save();
    }
    while (store.Save()) {
    }
  }
  std::unique_ptr<Tier> tier;
  const double open = Seconds([&] {
    auto opened = OpenDiskTier({folder});
    Check(opened.status());
    tier = *std::move(opened);
  });
  SessionStore store(kPage, options(tier.get()));
  RestoreReport report;
  const double restore = Seconds([&] {
    auto r = store.Restore();
    Check(r.status());
    report = *std::move(r);
  });
  if (report.sessions != sessions || report.chunks != sessions * kPagesASession) {
    Die("a restart did not bring everything back");
  }
  std::mt19937_64 rng(2);
  const double first = Seconds([&] {
    for (int i = 0; i < 100; ++i) {
      const uint64_t s = rng() % sessions;
      const auto plan = store.OpenRead(Session(s), 0, 0);
      Check(plan.status());
      for (uint64_t p = 0; p < kPagesASession; ++p) {
        if (plan->shards[0].chunks[p]->bytes != Block(s * kPagesASession + p, kChunk)) {
          Die("a restart brought other bytes back");
        }
      }
    }
  });
  std::printf(
      "\nrestart: %llu chunks of %llu sessions: %.2f s to open the tier, %.2f s to restore; "
      "then %.2f ms a session of %llu chunks read and compared\n",
      static_cast<unsigned long long>(report.chunks),
      static_cast<unsigned long long>(report.sessions), open, restore, first * 10,
      static_cast<unsigned long long>(kPagesASession));
}

int Main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    absl::string_view a = argv[i];
    const bool known =
        (absl::ConsumePrefix(&a, "--blocks=") && absl::SimpleAtoi(a, &flags.blocks)) ||
        (absl::ConsumePrefix(&a, "--block-bytes=") && absl::SimpleAtoi(a, &flags.block_bytes)) ||
        (absl::ConsumePrefix(&a, "--restart-chunks=") &&
         absl::SimpleAtoi(a, &flags.restart_chunks)) ||
        (absl::ConsumePrefix(&a, "--folder=") && (flags.folder = std::string(a), true));
    if (!known) Die(absl::StrCat("unknown: ", argv[i], "; the head of this program lists what is"));
  }
  if (flags.blocks < kPagesASession || flags.restart_chunks < kPagesASession) Die("too few");
  // Not a test's own folder: a socket's path is short.
  std::string folder = absl::StrCat(flags.folder.empty() ? "/tmp" : flags.folder, "/kvcask-XXXXXX");
  if (mkdtemp(folder.data()) == nullptr) Die("no folder for what is kept");
  std::vector<Bytes> blocks;
  for (uint64_t b = 0; b < flags.blocks; ++b) blocks.push_back(Block(b, flags.block_bytes));

  std::printf("%llu blocks of %llu bytes, %llu to a session\n\n",
              static_cast<unsigned long long>(flags.blocks),
              static_cast<unsigned long long>(flags.block_bytes),
              static_cast<unsigned long long>(kPagesASession));
  std::printf("| kept by | put MB/s | get MB/s | lookup p50 us | p99 us | wrong |\n");
  std::printf("|---|---|---|---|---|---|\n");
  {
    StoreKeeper k("");
    Row("store, memory", k, blocks);
  }
  {
    StoreKeeper k(folder + "/store");
    Row("store, fsync; read after restart", k, blocks, [&] { k.Restart(); });
  }
  {
    FileKeeper k(folder + "/files");
    Row("files, fsync", k, blocks);
  }
  if (access(kRedisServer, X_OK) == 0) {
    {
      RedisKeeper k(folder + "/r", false);
      Row("redis, memory", k, blocks);
    }
    RedisKeeper k(folder + "/rf", true);
    Row("redis, fsync", k, blocks);
  } else {
    std::printf("(no redis-server here)\n");
  }
  Restart(folder + "/restart");
  std::filesystem::remove_all(folder);
  return 0;
}

}  // namespace
}  // namespace kvcask

int main(int argc, char** argv) { return kvcask::Main(argc, argv); }
