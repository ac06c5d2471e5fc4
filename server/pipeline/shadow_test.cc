// Shadow mode on its own: codecs of int8's bytes that certify what a test says and decode as it
// says.
#include "server/pipeline/shadow.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <cmath>
#include <random>

#include <absl/strings/str_cat.h>

#include "codec/builtin_codecs.h"
#include "codec/format/chunk.h"

namespace kvcask {
namespace {

using testing::HasSubstr;
using testing::Not;

Geometry Model() {
  return UniformGeometry(2, 2, 16, StandardRope(RopeStyle::kRotateHalf, 16, 1e4));
}

CodecSpec Spec() {
  CodecSpec spec;
  spec.model = Model();
  spec.shard.layer_end = 2;
  spec.shard.head_end = 2;
  return spec;
}

// What a latch holds back until it is let go.
class Gate {
 public:
  void Open() {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void Pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void AwaitOne() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return waiting_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int waiting_ = 0;
};

// A codec that answers for `inner`, with a certificate and a fault of its own.
class FaultCodec : public Codec {
 public:
  explicit FaultCodec(const char* inner) : inner_(*FindCodec(inner)->make(Spec())) {}

  double certified = -1;     // of each tile
  float added = 0;           // to one element of what is decoded
  absl::Status refuse;       // every decode
  Gate* gate = nullptr;      // that every decode passes

  CodecId id() const override { return inner_->id(); }
  const Geometry& geometry() const override { return inner_->geometry(); }
  absl::Span<const Group> groups() const override { return inner_->groups(); }
  size_t MaxTileBytes(int group, int tokens, Dtype dtype) const override {
    return inner_->MaxTileBytes(group, tokens, dtype);
  }
  absl::Status Encode(absl::Span<EncodeJob> jobs, Workspace& w) const override {
    absl::Status s = inner_->Encode(jobs, w);
    for (EncodeJob& job : jobs) job.certificate.predicted_kld = certified;
    return s;
  }
  absl::Status Decode(absl::Span<DecodeJob> jobs, Workspace& w) const override {
    if (gate != nullptr) gate->Pass();
    absl::Status s = inner_->Decode(jobs, w);
    for (DecodeJob& job : jobs) {
      if (!refuse.ok()) job.status = refuse;
      uint8_t* at = job.destination.At(0, 0, 0, 0);
      StoreElement(LoadElement(at, job.destination.dtype) + added, job.destination.dtype, at);
    }
    return s;
  }
  // The mean squared error of the group's first plane.
  double MeasureKld(const EncodeJob& job, const ConstKvView& decoded) const override {
    if (certified <= 0) return -1;
    double sum = 0;
    for (int t = 0; t < job.tokens; ++t) {
      const double e = LoadElement(job.source.At(0, 0, t, 0), job.source.dtype) -
                       LoadElement(decoded.At(0, 0, t, 0), decoded.dtype);
      sum += e * e;
    }
    return sum / job.tokens;
  }

 private:
  const std::unique_ptr<Codec> inner_;
};

// The block of one page of random bf16, as PutRun makes it. Its layers below `held_from` hold
// only the tokens from `token_begin` on.
ShadowBlock MakeBlock(std::shared_ptr<const Codec> codec, uint32_t seed, int tokens = 128,
                      int token_begin = 0) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  ShadowBlock block;
  block.session = "/s";
  block.codec_name = "int8";
  block.codec = codec;
  const Geometry& g = codec->geometry();
  std::vector<int> first = {0};
  for (const LayerGeometry& layer : g.layers) {
    for (const StreamGeometry& s : layer.streams) {
      const size_t n = size_t(s.heads) * tokens * s.head_dim;
      block.memory.emplace_back(new uint8_t[2 * n]);
      for (size_t i = 0; i < n; ++i) {
        StoreElement(normal(rng), Dtype::kBf16, block.memory.back().get() + 2 * i);
      }
      block.source.push_back({block.memory.back().get(), 2 * int64_t{tokens} * s.head_dim,
                              2 * int64_t{s.head_dim}, 2});
    }
    first.push_back(static_cast<int>(block.source.size()));
  }
  ChunkHeader header;
  header.codec = codec->id();
  header.shard = Spec().shard;
  header.tokens = tokens;
  for (int t = 0; t < tokens; ++t) header.positions.push_back(t);
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<EncodedTile> tiles;
  bytes.reserve(codec->groups().size());
  for (size_t i = 0; i < codec->groups().size(); ++i) {
    const Group& group = codec->groups()[i];
    const int begin = i == 0 ? token_begin : 0;
    std::vector<ConstPlaneView> planes(block.source.begin() + first[group.layer_begin],
                                       block.source.begin() + first[group.layer_end]);
    for (ConstPlaneView& v : planes) v.data += begin * v.token_stride;
    bytes.emplace_back(codec->MaxTileBytes(static_cast<int>(i), tokens - begin, Dtype::kBf16));
    EncodeJob job;
    job.group = static_cast<int>(i);
    job.tokens = tokens - begin;
    job.source.planes = planes;
    job.positions = absl::MakeConstSpan(header.positions).subspan(begin);
    job.destination = absl::MakeSpan(bytes.back());
    Workspace workspace;
    EXPECT_TRUE(codec->Encode(absl::MakeSpan(&job, 1), workspace).ok());
    EXPECT_TRUE(job.status.ok()) << job.status;
    tiles.push_back({static_cast<int>(i), begin, tokens - begin,
                     absl::MakeConstSpan(bytes.back()).first(job.bytes), job.certificate});
  }
  block.chunk = BuildChunk(header, tiles);
  return block;
}

absl::StatusOr<ShadowReport> Measure(const ShadowBlock& block) {
  Workspace workspace;
  return MeasureChunk(block, workspace);
}

TEST(MeasureChunkTest, ACodecWithoutCertificatesGetsItsRelativeError) {
  const auto codec = std::make_shared<FaultCodec>("int8");
  auto report = Measure(MakeBlock(codec, 1));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->result, ShadowResult::kUncertified);
  EXPECT_GT(report->relative_error, .001);  // one step of 127 by row
  EXPECT_LT(report->relative_error, .02);
  codec->added = 1000;  // one element of 128 x 2 x 2 x 2 x 16, by layer
  report = Measure(MakeBlock(codec, 1));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_NEAR(report->relative_error, 1000 * std::sqrt(codec->groups().size() / 16384.), 1);
}

TEST(MeasureChunkTest, RawIsExact) {
  const auto codec = std::make_shared<FaultCodec>("raw");
  codec->certified = 0;
  auto report = Measure(MakeBlock(codec, 2));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->relative_error, 0);
  EXPECT_EQ(report->result, ShadowResult::kWithin);
  codec->added = .5;
  report = Measure(MakeBlock(codec, 2));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->result, ShadowResult::kOver) << "of the lossless any difference is too much";
}

TEST(MeasureChunkTest, AWrongDecodeIsOverItsCertificate) {
  const auto codec = std::make_shared<FaultCodec>("int8");
  codec->certified = 1e-4;
  auto report = Measure(MakeBlock(codec, 3));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->result, ShadowResult::kWithin);
  EXPECT_NEAR(report->certified_kld, 1e-4 * codec->groups().size(), 1e-9);
  EXPECT_GT(report->measured_kld, 0);
  codec->added = 4;
  report = Measure(MakeBlock(codec, 3));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->result, ShadowResult::kOver);
  EXPECT_NEAR(report->measured_kld, codec->groups().size() * 16 / 128., .01);
}

TEST(MeasureChunkTest, WhatLacksItsOldestTokensIsMeasuredFromThere) {
  const auto codec = std::make_shared<FaultCodec>("int8");
  for (int begin : {1, 50, 127}) {
    const auto report = Measure(MakeBlock(codec, 4, 128, begin));
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_LT(report->relative_error, .02) << "from token " << begin;
  }
}

TEST(MeasureChunkTest, WhatDoesNotDecodeSaysSo) {
  const auto codec = std::make_shared<FaultCodec>("int8");
  ShadowBlock block = MakeBlock(codec, 5);
  block.chunk[block.chunk.size() / 2] ^= 1;
  EXPECT_TRUE(absl::IsDataLoss(Measure(block).status())) << "a flipped bit";
  codec->refuse = absl::DataLossError("planted");
  EXPECT_EQ(Measure(MakeBlock(codec, 5)).status().message(), "planted");
  codec->refuse = absl::OkStatus();
  codec->added = INFINITY;
  EXPECT_TRUE(absl::IsDataLoss(Measure(MakeBlock(codec, 5)).status())) << "infinity came back";
}

TEST(ShadowTest, TheSampleIsTheFractionAndAlwaysTheSame) {
  Metrics metrics("v", "c", "b");
  ShadowOptions options;
  EXPECT_FALSE(Shadow(options, &metrics).Samples("a")) << "off";
  options.fraction = 1;
  EXPECT_TRUE(Shadow(options, &metrics).Samples("a"));
  options.fraction = .1;
  const Shadow one(options, &metrics), other(options, &metrics);
  int sampled = 0;
  for (int i = 0; i < 20000; ++i) {
    const std::string name = absl::StrCat("tenant\nsession\n", i * 128, "\n0");
    ASSERT_EQ(one.Samples(name), other.Samples(name));
    sampled += one.Samples(name);
  }
  EXPECT_NEAR(sampled, 2000, 200);  // 4.7 sigma
}

TEST(ShadowTest, ResultsAreCountedByCodec) {
  Metrics metrics("v", "c", "b");
  metrics.DeclareCodec("int8");
  ShadowOptions options;
  options.fraction = 1;
  Shadow shadow(options, &metrics);
  const auto right = std::make_shared<FaultCodec>("int8");
  right->certified = 1e-4;
  const auto wrong = std::make_shared<FaultCodec>("int8");
  wrong->certified = 1e-4;
  wrong->added = 4;
  const auto broken = std::make_shared<FaultCodec>("int8");
  broken->refuse = absl::DataLossError("planted");
  for (int i = 0; i < 3; ++i) shadow.Submit(MakeBlock(right, i));
  shadow.Submit(MakeBlock(wrong, 9));
  shadow.Submit(MakeBlock(broken, 10));
  shadow.Submit(MakeBlock(std::make_shared<FaultCodec>("int8"), 11));
  shadow.WaitIdle();
  const std::string text = metrics.Text();
  for (const char* line :
       {"kvcask_shadow_chunks_total{codec=\"int8\",result=\"within\"} 3",
        "kvcask_shadow_chunks_total{codec=\"int8\",result=\"over\"} 1",
        "kvcask_shadow_chunks_total{codec=\"int8\",result=\"failed\"} 1",
        "kvcask_shadow_chunks_total{codec=\"int8\",result=\"uncertified\"} 1",
        "kvcask_shadow_kld_ratio_count{codec=\"int8\"} 4",
        "kvcask_shadow_kld_ratio_bucket{codec=\"int8\",le=\"1.1\"} 3",
        "kvcask_shadow_relative_error_count{codec=\"int8\"} 5"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(ShadowTest, RoomIsBoundedAndWhatFindsNoneIsSkipped) {
  Metrics metrics("v", "c", "b");
  ShadowOptions options;
  options.fraction = 1;
  options.bytes = 1000;
  Shadow shadow(options, &metrics);
  Gate gate;
  const auto codec = std::make_shared<FaultCodec>("int8");
  codec->gate = &gate;
  auto room = shadow.TakeRoom(600);
  ASSERT_TRUE(room.has_value());
  EXPECT_FALSE(shadow.TakeRoom(600).has_value());
  EXPECT_THAT(metrics.Text(), HasSubstr("kvcask_shadow_skipped_total 1"));
  ShadowBlock block = MakeBlock(codec, 1);
  block.room = *std::move(room);
  shadow.Submit(std::move(block));
  gate.AwaitOne();  // it is being measured
  EXPECT_EQ(shadow.kept_bytes(), 600u);
  EXPECT_TRUE(shadow.TakeRoom(400).has_value());
  gate.Open();
  shadow.WaitIdle();
  EXPECT_EQ(shadow.kept_bytes(), 0u);
}

TEST(ShadowTest, WhatWaitsIsDroppedAtTheEnd) {
  Metrics metrics("v", "c", "b");
  metrics.DeclareCodec("int8");
  ShadowOptions options;
  options.fraction = 1;
  Gate gate;
  const auto codec = std::make_shared<FaultCodec>("int8");
  codec->gate = &gate;
  {
    Shadow shadow(options, &metrics);
    for (int i = 0; i < 50; ++i) shadow.Submit(MakeBlock(codec, i));
    gate.AwaitOne();
    gate.Open();
  }
  EXPECT_EQ(codec.use_count(), 1) << "nothing holds it any more";
}

}  // namespace
}  // namespace kvcask
