// What a codec on a device does when jobs are bad and the device is, with a device that is fake.
#include "server/exec/device_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <future>
#include <mutex>
#include <thread>
#include <vector>

#include "codec/builtin_codecs.h"
#include "codec/testing/test_cache.h"

namespace kvcask {
namespace {

// Codes by the CPU's codec, and does as a test says before.
class FakeDevice : public DeviceBackend {
 public:
  std::string name() const override { return "fake"; }
  std::string detail() const override { return "fake"; }
  bool Codes(CodecId id) const override { return id == CodecId::kInt8; }
  absl::StatusOr<std::unique_ptr<TierMemory>> MakeTierMemory(uint64_t bytes) override {
    return MakeHostTierMemory(bytes);
  }
  absl::StatusOr<std::unique_ptr<DeviceCoder>> MakeCoder(const CodecEntry& entry, const CodecSpec&,
                                                         const Codec& cpu) override {
    if (!make.ok()) return make;
    if (!Codes(entry.id)) return std::unique_ptr<DeviceCoder>();
    ++made;
    return std::unique_ptr<DeviceCoder>(new Coder(this, cpu));
  }

  absl::Status make;
  std::function<absl::Status()> on_call = [] { return absl::OkStatus(); };
  std::function<bool(const EncodeJob&)> leaves = [](const EncodeJob&) { return false; };
  bool leaves_decodes = false;
  int made = 0;
  std::atomic<int> calls{0};

 private:
  class Coder : public DeviceCoder {
   public:
    Coder(FakeDevice* device, const Codec& cpu) : device_(device), cpu_(cpu) {}
    absl::Status Encode(absl::Span<EncodeJob> jobs) override {
      ++device_->calls;
      if (absl::Status s = device_->on_call(); !s.ok()) return s;
      for (EncodeJob& job : jobs) {
        if (device_->leaves(job)) {
          job.bytes = 0;
          job.status = absl::OkStatus();
        } else if (absl::Status s = cpu_.Encode({&job, 1}, workspace_); !s.ok()) {
          return s;
        }
      }
      return absl::OkStatus();
    }
    absl::Status Decode(absl::Span<DecodeJob> jobs) override {
      ++device_->calls;
      if (absl::Status s = device_->on_call(); !s.ok()) return s;
      if (!device_->leaves_decodes) return cpu_.Decode(jobs, workspace_);
      for (DecodeJob& job : jobs) job.status = absl::UnimplementedError("left");
      return absl::OkStatus();
    }

   private:
    FakeDevice* const device_;
    const Codec& cpu_;
    Workspace workspace_;
  };
};

class DeviceCodecTest : public ::testing::Test {
 protected:
  DeviceCodecTest()
      : geometry_(UniformGeometry(1, 2, 16, Rope())),
        cache_(geometry_, 0, 1, 8, Dtype::kBf16, Layout::kContiguous) {
    std::mt19937 rng(7);
    cache_.FillRandom(rng);
    spec_ = {geometry_, {0, 1, 0, 1, 0, 2}, nullptr};
    expected_ = EncodeWith(*FindCodec(CodecId::kInt8)->make(spec_).value());
  }

  std::unique_ptr<Codec> Make(CodecId id = CodecId::kInt8) {
    auto codec = MakeCodecOn(&device_, &state_, *FindCodec(id), spec_);
    EXPECT_TRUE(codec.ok()) << codec.status();
    return *std::move(codec);
  }
  EncodeJob Job(std::vector<uint8_t>* out, const Codec& codec) {
    out->resize(codec.MaxTileBytes(0, 8, Dtype::kBf16));
    EncodeJob job;
    job.tokens = 8;
    job.source = cache_.const_view();
    job.positions = positions_;
    job.destination = absl::MakeSpan(*out);
    return job;
  }
  std::vector<uint8_t> EncodeWith(const Codec& codec) {
    std::vector<uint8_t> out;
    EncodeJob job = Job(&out, codec);
    Workspace workspace;
    EXPECT_TRUE(codec.Encode({&job, 1}, workspace).ok());
    EXPECT_TRUE(job.status.ok()) << job.status;
    out.resize(job.bytes);
    return out;
  }
  void ExpectDecodes(const Codec& codec) {
    TestCache out(geometry_, 0, 1, 8, Dtype::kBf16, Layout::kContiguous);
    DecodeJob job;
    job.tokens = job.token_end = 8;
    job.tile = expected_;
    job.positions = positions_;
    job.layer_end = 1;
    job.destination = out.view();
    Workspace workspace;
    EXPECT_TRUE(codec.Decode({&job, 1}, workspace).ok());
    EXPECT_TRUE(job.status.ok()) << job.status;
    EXPECT_NEAR(out.Get(0, 1, 3, 5), cache_.Get(0, 1, 3, 5), .1);
  }

  const Geometry geometry_;
  TestCache cache_;
  std::vector<uint32_t> positions_ = PositionsFrom(0, 8);
  CodecSpec spec_;
  std::vector<uint8_t> expected_;
  FakeDevice device_;
  DeviceState state_;
};

TEST_F(DeviceCodecTest, RunsOnTheDevice) {
  auto codec = Make();
  EXPECT_EQ(EncodeWith(*codec), expected_);
  ExpectDecodes(*codec);
  EXPECT_EQ(device_.calls, 2);
  EXPECT_EQ(state_.batches, 2u);
  EXPECT_EQ(state_.tiles, 2u);
  EXPECT_EQ(state_.cpu_tiles, 0u);
}

TEST_F(DeviceCodecTest, ACodecWithoutKernelsIsTheCpus) {
  auto codec = Make(CodecId::kRaw);
  EncodeWith(*codec);
  EXPECT_EQ(device_.calls, 0);
  EXPECT_FALSE(state_.lost());
}

TEST_F(DeviceCodecTest, TheCpuTakesWhatTheDeviceLeaves) {
  auto codec = Make();
  device_.leaves = [](const EncodeJob&) { return true; };
  device_.leaves_decodes = true;
  EXPECT_EQ(EncodeWith(*codec), expected_);
  ExpectDecodes(*codec);
  EXPECT_EQ(state_.cpu_tiles, 2u);
  EXPECT_EQ(state_.tiles, 0u);
}

TEST_F(DeviceCodecTest, ABadJobFailsAlone) {
  auto codec = Make();
  std::vector<uint8_t> out[3];
  EncodeJob jobs[3] = {Job(&out[0], *codec), Job(&out[1], *codec), Job(&out[2], *codec)};
  jobs[1].tokens = 129;
  Workspace workspace;
  ASSERT_TRUE(codec->Encode(absl::MakeSpan(jobs), workspace).ok());
  EXPECT_EQ(jobs[1].status.code(), absl::StatusCode::kInvalidArgument);
  for (int i : {0, 2}) {
    ASSERT_TRUE(jobs[i].status.ok());
    out[i].resize(jobs[i].bytes);
    EXPECT_EQ(out[i], expected_);
  }
  EXPECT_FALSE(state_.lost());
}

TEST_F(DeviceCodecTest, ALostDeviceCostsNoJobAndIsNotAskedAgain) {
  auto codec = Make();
  device_.on_call = [] { return absl::InternalError("CUDA: cudaErrorIllegalAddress"); };
  EXPECT_EQ(EncodeWith(*codec), expected_);
  EXPECT_TRUE(state_.lost());
  EXPECT_EQ(state_.why().message(), "CUDA: cudaErrorIllegalAddress");
  ExpectDecodes(*codec);
  EXPECT_EQ(EncodeWith(*codec), expected_);
  EXPECT_EQ(device_.calls, 1);
  // Codecs made from now on are the CPU's.
  const int made = device_.made;
  EXPECT_EQ(EncodeWith(*Make()), expected_);
  EXPECT_EQ(device_.made, made);
}

TEST_F(DeviceCodecTest, ADeviceShortOfMemoryIsAskedAgain) {
  auto codec = Make();
  int calls = 0;
  device_.on_call = [&] {
    return ++calls == 1 ? absl::ResourceExhaustedError("full") : absl::OkStatus();
  };
  EXPECT_EQ(EncodeWith(*codec), expected_);
  EXPECT_EQ(state_.short_of_memory, 1u);
  EXPECT_EQ(state_.batches, 0u);
  EXPECT_EQ(EncodeWith(*codec), expected_);
  EXPECT_EQ(state_.batches, 1u);
  EXPECT_FALSE(state_.lost());
}

TEST_F(DeviceCodecTest, ADeviceThatFailsWhileACodecIsMadeLeavesItToTheCpu) {
  device_.make = absl::ResourceExhaustedError("full");
  EXPECT_EQ(EncodeWith(*Make()), expected_);
  EXPECT_FALSE(state_.lost());
  device_.make = absl::InternalError("gone");
  EXPECT_EQ(EncodeWith(*Make()), expected_);
  EXPECT_TRUE(state_.lost());
}

TEST_F(DeviceCodecTest, TwoBatchesAreInFlightAndAThirdWaits) {
  auto codec = Make();
  std::mutex mutex;
  std::condition_variable changed;
  int inside = 0, most = 0, entered = 0;
  device_.on_call = [&] {
    std::unique_lock<std::mutex> lock(mutex);
    most = std::max(most, ++inside);
    ++entered;
    changed.notify_all();
    // The first two meet here; with one batch at a time they would wait for ever.
    changed.wait(lock, [&] { return entered >= 2; });
    --inside;
    return absl::OkStatus();
  };
  std::vector<std::thread> threads;
  std::vector<std::vector<uint8_t>> got(5);
  for (auto& g : got) threads.emplace_back([&, out = &g] { *out = EncodeWith(*codec); });
  for (auto& t : threads) t.join();
  for (const auto& g : got) EXPECT_EQ(g, expected_);
  EXPECT_EQ(most, kBatchesInFlight);
  EXPECT_EQ(state_.batches, 5u);
}

TEST_F(DeviceCodecTest, BatchesThatWaitedWhileTheDeviceWasLostAreCodedByTheCpu) {
  auto codec = Make();
  std::mutex mutex;
  std::condition_variable changed;
  int entered = 0;
  device_.on_call = [&] {
    std::unique_lock<std::mutex> lock(mutex);
    ++entered;
    changed.notify_all();
    changed.wait(lock, [&] { return entered >= 2; });
    return absl::InternalError("gone");
  };
  std::vector<std::thread> threads;
  std::vector<std::vector<uint8_t>> got(5);
  for (auto& g : got) threads.emplace_back([&, out = &g] { *out = EncodeWith(*codec); });
  for (auto& t : threads) t.join();
  for (const auto& g : got) EXPECT_EQ(g, expected_);
  EXPECT_TRUE(state_.lost());
}

}  // namespace
}  // namespace kvcask
