#include "server/store/disk_tier.h"

#include <absl/strings/str_cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <csignal>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <random>

#include "server/store/filtered_files.h"

namespace kvcask {
namespace {

using Bytes = UnsetBytes;
namespace fs = std::filesystem;

class DiskTierTest : public testing::Test {
 protected:
  DiskTierTest() {
    std::string name = testing::TempDir() + "/tier.XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~DiskTierTest() override {
    tier_.reset();
    fs::remove_all(path_);
  }
  void Open() {
    tier_.reset();
    auto tier = OpenDiskTier({path_ + "/t"});
    ASSERT_TRUE(tier.ok()) << tier.status();
    tier_ = *std::move(tier);
  }
  static Bytes Chunk(int seed, size_t size = 100'000) {
    std::mt19937 rng(seed);
    Bytes b(size);
    for (auto& x : b) x = static_cast<uint8_t>(rng());
    return b;
  }
  std::map<std::string, std::string> Records(const std::string& prefix) {
    std::map<std::string, std::string> out;
    EXPECT_TRUE(tier_->ForEach(prefix, [&](absl::string_view k, absl::string_view v) {
      out[std::string(k)] = std::string(v);
      return absl::OkStatus();
    }).ok());
    return out;
  }
  std::string path_;
  std::unique_ptr<Tier> tier_;
};

TEST_F(DiskTierTest, WhatWasWrittenIsThereAfterOpeningAgain) {
  Open();
  for (int i = 1; i <= 20; ++i) ASSERT_TRUE(tier_->WriteChunk(i, Chunk(i, i * 997)).ok());
  Tier::Records r;
  r.puts = {{"na", "1"}, {"nb", "2"}, {"s", "3"}};
  ASSERT_TRUE(tier_->Apply(r, true).ok());
  Tier::Records second;
  second.deletes = {"na"};
  second.chunk_deletes = {7};
  ASSERT_TRUE(tier_->Apply(second, false).ok());
  Open();
  for (int i = 1; i <= 20; ++i) {
    const auto chunk = tier_->ReadChunk(i);
    if (i == 7) {
      EXPECT_TRUE(absl::IsDataLoss(chunk.status()));
      continue;
    }
    ASSERT_TRUE(chunk.ok()) << chunk.status();
    EXPECT_EQ(*chunk, Chunk(i, i * 997));
  }
  EXPECT_EQ(Records("n"), (std::map<std::string, std::string>{{"nb", "2"}}));
  EXPECT_EQ(Records("").size(), 2u);
}

TEST_F(DiskTierTest, OneProcessAtATime) {
  Open();
  const auto second = OpenDiskTier({path_ + "/t"});
  EXPECT_TRUE(absl::IsUnavailable(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), testing::HasSubstr(path_));
}

TEST_F(DiskTierTest, AFolderThatCannotBeMadeIsNamed) {
  std::ofstream(path_ + "/file") << "x";
  const auto tier = OpenDiskTier({path_ + "/file/t"});
  EXPECT_TRUE(absl::IsUnavailable(tier.status()));
  EXPECT_THAT(std::string(tier.status().message()), testing::HasSubstr("/file/t"));
}

// A limit on the size of files: the write that passes it is cut short, those after it fail, as on
// a full disk. What was acknowledged stays, what was not is not there, and when there is room
// again, opening the folder goes on.
TEST_F(DiskTierTest, AShortWriteLosesNothingThatWasAcknowledged) {
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  // Files of another megabyte would be taken: then it goes on in a new one.
  for (const rlim_t room : {300'000, 777'777, 1'000'001}) {
    SCOPED_TRACE(absl::StrCat(room, " bytes"));
    fs::remove_all(path_ + "/t");
    Open();
    const rlimit limit{room, before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    int written = 0, refused = 0;
    std::vector<bool> is_there;
    for (int i = 0; i < 40; ++i) {
      const absl::Status s = tier_->WriteChunk(i, Chunk(i));
      is_there.push_back(s.ok());
      ++(s.ok() ? written : refused);
    }
    Tier::Records r;
    r.puts = {{"n", std::string(100'000, 'x')}};
    EXPECT_FALSE(tier_->Apply(r, true).ok());
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_GT(written, 0);
    EXPECT_GT(refused, 0);
    for (const bool again : {false, true}) {
      if (again) Open();
      for (int i = 0; i < 40; ++i) {
        const auto chunk = tier_->ReadChunk(i);
        ASSERT_TRUE(chunk.ok() || !is_there[i]) << i << ": " << chunk.status();
        if (chunk.ok()) {
          EXPECT_EQ(*chunk, Chunk(i)) << i;
        }
      }
      EXPECT_TRUE(Records("n").empty());
    }
    EXPECT_TRUE(tier_->WriteChunk(99, Chunk(99)).ok());
    EXPECT_TRUE(tier_->Apply(r, true).ok());
  }
  std::signal(SIGXFSZ, handler);
}

// Errors of the disk that pass: while they last writes are refused, what was acknowledged is
// read; then it goes on, without being opened again.
class PassingErrorTest : public DiskTierTest, public testing::WithParamInterface<bool> {};
INSTANTIATE_TEST_SUITE_P(All, PassingErrorTest, testing::Bool(), [](const auto& info) {
  return info.param ? "NoSpace" : "IoError";
});

TEST_P(PassingErrorTest, IsOverWhenItHasPassed) {
  const absl::StatusCode code =
      GetParam() ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kUnavailable;
  std::atomic<bool> failing{false};
  std::atomic<int> failed{0};
  DiskTierOptions options;
  options.path = path_ + "/t";
  options.files = FilterWrites(
      rocksdb::FileSystem::Default(),
      [&](const std::string&, const std::function<rocksdb::IOStatus()>& write) {
        if (!failing) return write();
        ++failed;
        return GetParam() ? rocksdb::IOStatus::NoSpace("planted")
                          : rocksdb::IOStatus::IOError("planted");
      });
  auto opened = OpenDiskTier(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  tier_ = *std::move(opened);
  // Also of the first write of all, when the engine's memory is empty.
  failing = true;
  EXPECT_EQ(tier_->WriteChunk(1000, Chunk(1000)).code(), code);
  EXPECT_FALSE(tier_->Sync().ok()) << "what was written before cannot be vouched for";
  failing = false;
  int next = 1;
  std::vector<int> there;
  for (int round = 0; round < 5; ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round));
    for (int i = 0; i < 5; ++i) {
      const absl::Status s = tier_->WriteChunk(next, Chunk(next));
      ASSERT_TRUE(s.ok()) << s;
      there.push_back(next++);
    }
    Tier::Records r;
    r.puts = {{"n", std::to_string(round)}};
    ASSERT_TRUE(tier_->Apply(r, round % 2 == 0).ok());
    failing = true;
    const int before = failed;
    for (int i = 0; i < 3; ++i) {
      const absl::Status s = tier_->WriteChunk(next, Chunk(next));
      EXPECT_EQ(s.code(), code) << s;
      EXPECT_THAT(std::string(s.message()), testing::HasSubstr("planted"));
      ++next;
      r.puts = {{"n", "refused"}};
      EXPECT_EQ(tier_->Apply(r, i % 2 == 0).code(), code);
    }
    EXPECT_GT(failed, before);
    for (int id : there) {
      const auto chunk = tier_->ReadChunk(id);
      ASSERT_TRUE(chunk.ok()) << chunk.status();
      EXPECT_EQ(*chunk, Chunk(id)) << id;
    }
    EXPECT_EQ(Records("n").at("n"), std::to_string(round));
    failing = false;
  }
  const absl::Status last = tier_->WriteChunk(next, Chunk(next));
  ASSERT_TRUE(last.ok()) << last;
  there.push_back(next);
  Open();  // with the machine's own files
  for (int id : there) {
    const auto chunk = tier_->ReadChunk(id);
    ASSERT_TRUE(chunk.ok()) << id << ": " << chunk.status();
    EXPECT_EQ(*chunk, Chunk(id)) << id;
  }
  EXPECT_EQ(Records("n").at("n"), "4");
}

// One failing write of each in turn, in all of its life: nothing acknowledged is lost, and the
// writes after it are taken.
TEST_F(DiskTierTest, AnySingleWriteMayFail) {
  std::atomic<int> writes{0}, fail_at{-1};
  const auto files = FilterWrites(
      rocksdb::FileSystem::Default(),
      [&](const std::string&, const std::function<rocksdb::IOStatus()>& write) {
        if (writes++ == fail_at) return rocksdb::IOStatus::IOError("planted");
        return write();
      });
  int refused = 0, tried = 0;
  for (int at = 0;; ++at) {
    SCOPED_TRACE(absl::StrCat("write ", at, " fails"));
    tier_.reset();
    fs::remove_all(path_ + "/t");
    DiskTierOptions options;
    options.path = path_ + "/t";
    options.files = files;
    fail_at = -1;
    auto opened = OpenDiskTier(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    tier_ = *std::move(opened);
    writes = 0;
    fail_at = at;
    std::map<std::string, std::string> records;
    std::vector<int> there;
    for (int i = 1; i <= 6; ++i) {
      if (tier_->WriteChunk(i, Chunk(i, 3000)).ok()) there.push_back(i);
      Tier::Records r;
      const std::string key = absl::StrCat("n", i);
      r.puts = {{key, "x"}};
      const absl::Status s = tier_->Apply(r, true);
      if (s.ok()) records[key] = "x";
      refused += !s.ok();
    }
    tried = at;
    const bool reached = writes > at;
    EXPECT_GE(there.size() + records.size(), 11u) << "one is refused at most";
    fail_at = -1;
    Open();
    for (int id : there) {
      const auto chunk = tier_->ReadChunk(id);
      ASSERT_TRUE(chunk.ok()) << id << ": " << chunk.status();
      EXPECT_EQ(*chunk, Chunk(id, 3000));
    }
    const auto now = Records("n");
    for (const auto& [key, value] : records) EXPECT_EQ(now.count(key), 1u) << key;
    if (!reached || HasFailure()) break;
  }
  EXPECT_GT(tried, 12);
  std::cout << tried << " writes failed in turn, " << refused << " commits refused" << std::endl;
}

// Bits flipped in the files of an engine that is closed: a chunk reads as it was written or
// not at all.
TEST_F(DiskTierTest, FlippedBitsAreNeverGivenBack) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 rng(seed);
  int lost = 0, refused = 0;
  for (int round = 0; round < 12; ++round) {
    fs::remove_all(path_ + "/t");
    Open();
    for (int i = 1; i <= 6; ++i) ASSERT_TRUE(tier_->WriteChunk(i, Chunk(i, 20'000)).ok());
    tier_.reset();
    std::vector<fs::path> files;
    for (const auto& f : fs::recursive_directory_iterator(path_ + "/t")) {
      if (f.is_regular_file() && f.file_size() > 1000) files.push_back(f.path());
    }
    ASSERT_FALSE(files.empty());
    const fs::path& victim = files[rng() % files.size()];
    const auto at = static_cast<std::streamoff>(rng() % fs::file_size(victim));
    {
      std::fstream f(victim, std::ios::in | std::ios::out | std::ios::binary);
      f.seekg(at);
      const char c = static_cast<char>(f.get() ^ (1 << rng() % 8));
      f.seekp(at);
      f.put(c);
    }
    auto tier = OpenDiskTier({path_ + "/t"});
    if (!tier.ok()) {
      ++refused;
      continue;
    }
    for (int i = 1; i <= 6; ++i) {
      const auto chunk = (*tier)->ReadChunk(i);
      if (chunk.ok()) {
        EXPECT_EQ(*chunk, Chunk(i, 20'000)) << "chunk " << i << " of " << victim << " at " << at;
      } else {
        ++lost;
      }
    }
    tier->reset();
  }
  EXPECT_GT(lost + refused, 0);  // the flips were felt
  std::cout << lost << " chunks lost, " << refused << " times not opened" << std::endl;
}

}  // namespace
}  // namespace kvcask
