// The store over a real disk tier whose writes are held up: who waits for the disk waits, nobody
// else does, nothing is lost and memory stays within its budget.
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <condition_variable>
#include <filesystem>
#include <future>
#include <mutex>

#include "server/store/disk_tier.h"
#include "server/store/filtered_files.h"
#include "server/store/session_store.h"
#include "server/store/store_test_util.h"

namespace kvcask {
namespace {

using store_test::Chunks;
using store_test::kPage;
using store_test::MakeRun;
using store_test::PrefixIds;
using store_test::Sequence;
using store_test::Tokens;
using store_test::Traits;

// A disk that stops: writes wait from Stop to Go, or fail.
class Disk {
 public:
  std::shared_ptr<rocksdb::FileSystem> files() {
    return FilterWrites(
        rocksdb::FileSystem::Default(),
        [this](const std::string&, const std::function<rocksdb::IOStatus()>& write) {
          std::unique_lock<std::mutex> lock(mutex_);
          ++waiting_;
          changed_.notify_all();
          changed_.wait(lock, [this] { return !stopped_; });
          --waiting_;
          if (failing_) {
            ++failed_;
            changed_.notify_all();
            return rocksdb::IOStatus::IOError("planted");
          }
          lock.unlock();
          return write();
        });
  }
  void Stop() { Set(&stopped_, true); }
  void Go() { Set(&stopped_, false); }
  void Fail(bool failing) { Set(&failing_, failing); }
  void AwaitWrite() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return stopped_ && waiting_ > 0; });
  }
  void AwaitFailures(int count) {
    std::unique_lock<std::mutex> lock(mutex_);
    const int until = failed_ + count;
    changed_.wait(lock, [&] { return failed_ >= until; });
  }

 private:
  void Set(bool* what, bool value) {
    std::lock_guard<std::mutex> lock(mutex_);
    *what = value;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false, failing_ = false;
  int waiting_ = 0, failed_ = 0;
};

class SlowDiskTest : public testing::Test {
 protected:
  static constexpr uint64_t kBudget = 20'000;

  SlowDiskTest() {
    std::string name = testing::TempDir() + "/slow.XXXXXX";
    path_ = mkdtemp(name.data());
    Open();
  }
  ~SlowDiskTest() override {
    disk_.Go();
    store_.reset();
    tier_.reset();
    std::filesystem::remove_all(path_);
  }
  void Open() {
    store_.reset();
    tier_.reset();
    DiskTierOptions disk;
    disk.path = path_ + "/t";
    disk.files = disk_.files();
    auto tier = OpenDiskTier(disk);
    ASSERT_TRUE(tier.ok()) << tier.status();
    tier_ = *std::move(tier);
    SessionStoreOptions options;
    options.tier = tier_.get();
    options.budget = &budget_;
    store_ = std::make_unique<SessionStore>(kPage, options);
    const auto restored = store_->Restore();
    ASSERT_TRUE(restored.ok()) << restored.status();
    store_->Start();
  }
  static SessionKey Key(int i) { return {"", absl::StrCat("s", i)}; }
  static Tokens TokensOf(int i) { return Sequence(1000 * i, 16); }
  absl::Status Put(int i) {
    CommitRequest r = MakeRun(Key(i), TokensOf(i));
    const uint64_t bytes = store_test::BytesOf(r);
    auto reservation = budget_.Reserve(bytes, "run");
    if (!reservation.ok()) {
      store_->MakeRoom(bytes);
      reservation = budget_.Reserve(bytes, "run");
    }
    if (!reservation.ok()) return reservation.status();
    r.reservation = *std::move(reservation);
    return store_->Commit(std::move(r)).status();
  }
  std::future<absl::Status> Durable(int i) {
    auto answer = std::make_shared<std::promise<absl::Status>>();
    store_->WhenDurable(Key(i), [answer](absl::Status s) { answer->set_value(std::move(s)); });
    return answer->get_future();
  }
  static bool Answered(const std::future<absl::Status>& f) {
    return f.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }
  void ExpectWhole(int i) {
    const auto plan = store_->OpenRead(Key(i), 0, 0);
    ASSERT_TRUE(plan.ok()) << i << ": " << plan.status();
    const auto expected = Chunks(TokensOf(i), 0, Traits(), 0, true);
    ASSERT_EQ(plan->shards[0].chunks.size(), expected.size());
    for (size_t c = 0; c < expected.size(); ++c) {
      EXPECT_EQ(plan->shards[0].chunks[c]->bytes, expected[c].bytes) << i << " chunk " << c;
    }
  }

  std::string path_;
  Disk disk_;
  ByteBudget budget_{kBudget};
  std::unique_ptr<Tier> tier_;
  std::unique_ptr<SessionStore> store_;
};

TEST_F(SlowDiskTest, OthersGoOnAndWhoWaitsLosesNothing) {
  ASSERT_TRUE(Put(0).ok());
  ASSERT_TRUE(Durable(0).get().ok());
  store_->Save();  // the saver's round has let go of its chunks when this has had its turn
  store_->MakeRoom(kBudget);
  ASSERT_EQ(store_->Usage().host_bytes, 0u) << "s0 is on disk only";

  disk_.Stop();
  ASSERT_TRUE(Put(1).ok());
  auto one = Durable(1);
  disk_.AwaitWrite();  // the saver is in it
  // Of other sessions everything goes on: reads of memory and of the disk, puts, forks, leases.
  ExpectWhole(0);
  ExpectWhole(1);
  ASSERT_TRUE(Put(2).ok());
  auto two = Durable(2);
  ExpectWhole(2);
  EXPECT_TRUE(store_->Fork(Key(1), {"", "fork"}, 6, absl::ZeroDuration(), {}).ok());
  EXPECT_EQ(store_->Lookup("", PrefixIds(TokensOf(1)))[0].tokens, 16u);
  EXPECT_TRUE(store_->LeaseSession(Key(2), absl::Seconds(10)).ok());
  EXPECT_TRUE(store_->Rewind({"", "fork"}, 3, 0).ok());
  EXPECT_TRUE(store_->Delete({"", "fork"}).ok());

  // Memory is bounded: what is not on disk stays, so puts are refused in the end.
  int last = 2;
  absl::Status refused;
  while (refused.ok() && last < 10'000) {
    refused = Put(++last);
    ASSERT_LE(budget_.used(), kBudget);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_GT(last, 10);
  for (int i = 1; i < last; ++i) ExpectWhole(i);
  EXPECT_FALSE(Answered(one));
  EXPECT_FALSE(Answered(two));

  disk_.Go();
  EXPECT_TRUE(one.get().ok());
  EXPECT_TRUE(two.get().ok());
  auto rest = Durable(last - 1);
  EXPECT_TRUE(rest.get().ok());
  EXPECT_TRUE(Put(last).ok()) << "there is room again";
  ASSERT_TRUE(Durable(last).get().ok());
  Open();
  for (int i = 0; i <= last; ++i) ExpectWhole(i);
}

TEST_F(SlowDiskTest, AnErrorThatPassesIsToldAndThenSavingGoesOn) {
  ASSERT_TRUE(Put(0).ok());
  ASSERT_TRUE(Durable(0).get().ok());
  disk_.Fail(true);
  ASSERT_TRUE(Put(1).ok());
  const absl::Status told = Durable(1).get();
  EXPECT_TRUE(absl::IsUnavailable(told)) << told;
  disk_.AwaitFailures(1);  // the saver tries again by itself
  ExpectWhole(0);
  ExpectWhole(1);
  EXPECT_GT(store_->Usage().tier_errors, 0u);
  EXPECT_FALSE(store_->Stat(Key(1))->durable);
  disk_.Fail(false);
  ASSERT_TRUE(Put(2).ok());
  EXPECT_TRUE(Durable(1).get().ok());
  EXPECT_TRUE(Durable(2).get().ok());
  Open();
  for (int i = 0; i < 3; ++i) ExpectWhole(i);
}

}  // namespace
}  // namespace kvcask
