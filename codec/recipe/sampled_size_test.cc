#include "codec/recipe/sampled_size.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <random>

#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/builtin_codecs.h"
#include "codec/profile/profile.h"
#include "codec/testing/test_cache.h"

namespace kvcask {
namespace {

std::vector<uint8_t> ReadExample(const std::string& name) {
  std::ifstream in("examples/" + name, std::ios::binary);
  EXPECT_TRUE(in.good()) << name;
  return {std::istreambuf_iterator<char>(in), {}};
}

std::unique_ptr<Codec> Make(const char* name, const Geometry& g,
                            std::shared_ptr<const Profile> profile = nullptr) {
  CodecSpec spec;
  spec.model = g;
  spec.shard = {0, 1, 0, static_cast<int>(g.layers.size()), 0, g.layers[0].streams[0].heads};
  spec.profile = std::move(profile);
  auto codec = FindCodec(name)->make(spec);
  EXPECT_TRUE(codec.ok()) << codec.status();
  return *std::move(codec);
}

// What the store would hold of the cache's first `tokens`: every page encoded, made a chunk.
double RealBytes(const Codec& codec, const ConstKvView& cache, int tokens, Quality quality,
                 bool profile, absl::Span<const uint32_t> ids) {
  double total = 0;
  Workspace workspace;
  for (int begin = 0; begin < tokens; begin += kPageTokens) {
    ChunkHeader header;
    header.codec = codec.id();
    header.tokens = std::min(kPageTokens, tokens - begin);
    header.positions = PositionsFrom(begin, header.tokens);
    header.shard.layer_end = static_cast<int>(codec.geometry().layers.size());
    header.shard.head_end = codec.geometry().layers[0].streams[0].heads;
    header.token_begin = begin;
    if (profile) header.profile.emplace();
    if (!ids.empty()) {
      header.token_ids.assign(ids.begin() + begin, ids.begin() + begin + header.tokens);
    }
    std::vector<std::vector<uint8_t>> bytes(codec.groups().size());
    std::vector<EncodedTile> tiles;
    for (size_t i = 0; i < bytes.size(); ++i) {
      const Group group = codec.groups()[i];  // one layer each, two planes
      std::vector<ConstPlaneView> planes;
      for (int p = 2 * group.layer_begin; p < 2 * group.layer_end; ++p) {
        planes.push_back(cache.planes[p]);
        planes.back().data += begin * planes.back().token_stride;
      }
      bytes[i].resize(codec.MaxTileBytes(static_cast<int>(i), header.tokens, cache.dtype));
      EncodeJob job;
      job.group = static_cast<int>(i);
      job.tokens = header.tokens;
      job.source = {cache.dtype, planes, {}};
      job.positions = header.positions;
      job.token_ids = header.token_ids;
      job.quality = quality;
      job.destination = absl::MakeSpan(bytes[i]);
      EXPECT_TRUE(codec.Encode({&job, 1}, workspace).ok());
      EXPECT_TRUE(job.status.ok()) << job.status;
      tiles.push_back({job.group, 0, header.tokens, job.destination.first(job.bytes), {}});
    }
    total += static_cast<double>(BuildChunk(header, tiles).size());
  }
  return total;
}

// The shipped profile and cache: 256 tokens of a novel that calibration did not see.
class RealSampleTest : public testing::Test {
 protected:
  void SetUp() override {
    auto profile = Profile::Parse(ReadExample("smollm2-135m-layer.fklt.profile.safetensors"));
    ASSERT_TRUE(profile.ok()) << profile.status();
    codec_ = Make("fklt", (*profile)->geometry(), *profile);
    cache_ = ReadExample("smollm2-135m-book-256.safetensors");
    auto header = ParseSafetensorsHeader(cache_, cache_.size());
    ASSERT_TRUE(header.ok()) << header.status();
    for (int layer = 0; layer < 30; ++layer) {
      for (const char* stream : {"k", "v"}) {
        const auto& t = header->tensors.at(absl::StrFormat("%s.%02d", stream, layer));
        planes_.push_back({cache_.data() + t.offset, 2 * 64 * 256, 2 * 64, 2});
      }
    }
  }
  ConstKvView view() const { return {Dtype::kBf16, planes_, {}}; }

  std::unique_ptr<Codec> codec_;
  std::vector<uint8_t> cache_;
  std::vector<ConstPlaneView> planes_;
  const std::vector<uint32_t> ids_ = PositionsFrom(1, 256);
};

TEST_F(RealSampleTest, OfTheSampleItselfIsExactAndOfPartOfItWithinThreePercent) {
  for (Quality quality : {Quality::kNearLossless, Quality::kCompact}) {
    for (bool with_ids : {false, true}) {
      const absl::Span<const uint32_t> ids = with_ids ? ids_ : absl::Span<const uint32_t>();
      SizeSampler sampler(codec_.get(), quality, /*profile=*/true);
      ASSERT_TRUE(sampler.Add(view(), 256, 0, ids).ok());
      const auto whole = sampler.Project(256);
      ASSERT_TRUE(whole.ok()) << whole.status();
      EXPECT_EQ(whole->mean_bytes, RealBytes(*codec_, view(), 256, quality, true, ids));
      EXPECT_EQ(whole->raw_bytes, 256u * 30 * 2 * 3 * 64 * 2);
      EXPECT_LT(whole->one_more_bytes, 0) << "one sample tells nothing about others";
      for (int tokens : {200, 250}) {
        const double real = RealBytes(*codec_, view(), tokens, quality, true, ids);
        EXPECT_NEAR(sampler.Project(tokens)->mean_bytes / real, 1, .03) << tokens;
      }
    }
  }
}

TEST(SizeSamplerTest, OfACodecOfConstantSizeIsExactAtAnyLengthAndCertain) {
  const Geometry g = UniformGeometry(3, 2, 16, StandardRope(RopeStyle::kRotateHalf, 16, 1e4));
  std::mt19937 rng(5);
  TestCache small(g, 0, 3, 256, Dtype::kBf16, Layout::kContiguous);
  TestCache large(g, 0, 3, 1100, Dtype::kBf16, Layout::kContiguous);
  small.FillRandom(rng);
  large.FillRandom(rng);
  for (const char* name : {"raw", "int8", "turbo3", "e8"}) {
    const auto codec = Make(name, g);
    SizeSampler sampler(codec.get(), Quality::kDefault, false);
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(sampler.Add(small.const_view(), 256, 0, {}).ok());
    for (int tokens : {128, 256, 640, 1024}) {
      const auto size = sampler.Project(tokens);
      ASSERT_TRUE(size.ok());
      EXPECT_EQ(size->mean_bytes,
                RealBytes(*codec, large.const_view(), tokens, Quality::kDefault, false, {}));
      EXPECT_EQ(size->one_more_bytes, 0);
      EXPECT_EQ(size->mean_of_many_bytes, 0);
    }
  }
}

// Tiles of random sizes: a level that each text has, and pages that scatter about it.
class RandomSizes : public Codec {
 public:
  RandomSizes(const Geometry& g, double between, double within)
      : geometry_(g), between_(between), within_(within) {}
  void NextText() { level_ = normal_(rng_) * between_; }
  double level() const { return level_; }

  CodecId id() const override { return CodecId::kRaw; }
  const Geometry& geometry() const override { return geometry_; }
  absl::Span<const Group> groups() const override { return groups_; }
  size_t MaxTileBytes(int, int, Dtype) const override { return 1; }
  absl::Status Encode(absl::Span<EncodeJob> jobs, Workspace&) const override {
    for (EncodeJob& job : jobs) {
      job.bytes = static_cast<size_t>(10000 * (1 + level_ + normal_(rng_) * within_));
    }
    return absl::OkStatus();
  }
  absl::Status Decode(absl::Span<DecodeJob>, Workspace&) const override {
    return absl::UnimplementedError("encodes alone");
  }

 private:
  const Geometry geometry_;
  const std::vector<Group> groups_ = {{0, 1}};
  const double between_, within_;
  double level_ = 0;
  mutable std::mt19937 rng_{17};
  mutable std::normal_distribution<double> normal_;
};

TEST(SizeSamplerTest, IntervalsHoldNineteenTimesInTwenty) {
  const Geometry g = UniformGeometry(1, 1, 8, Rope());
  const TestCache cache(g, 0, 1, 1024, Dtype::kBf16, Layout::kContiguous);
  RandomSizes codec(g, .05, .05);
  constexpr int kTrials = 600;
  int one = 0, many = 0, one_by_the_mean = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    SizeSampler sampler(&codec, Quality::kDefault, false);
    for (int i = 0; i < 6; ++i) {
      codec.NextText();
      ASSERT_TRUE(sampler.Add(cache.const_view(), 1024, 0, {}).ok());
    }
    const auto size = sampler.Project(1 << 17);  // 1,024 pages: its own level, without scatter
    ASSERT_TRUE(size.ok());
    codec.NextText();
    const double pages = 1024;
    ChunkHeader header;
    header.tokens = kPageTokens;
    header.positions = PositionsFrom(0, kPageTokens);
    const double expected = pages * static_cast<double>(ChunkSize(header, {size_t{10000}}));
    const double text = expected + pages * 10000 * codec.level();
    one += std::abs(text - size->mean_bytes) <= size->one_more_bytes;
    many += std::abs(expected - size->mean_bytes) <= size->mean_of_many_bytes;
    one_by_the_mean += std::abs(text - size->mean_bytes) <= size->mean_of_many_bytes;
  }
  EXPECT_GT(one, .93 * kTrials);
  EXPECT_LT(one, .985 * kTrials);
  EXPECT_GT(many, .93 * kTrials);
  EXPECT_LT(many, .985 * kTrials);
  EXPECT_LT(one_by_the_mean, .8 * kTrials) << "the narrower one would not do for one session";
}

TEST(SizeSamplerTest, StudentsQuantiles) {
  EXPECT_NEAR(StudentT95(1), 12.706, 1e-3);
  EXPECT_NEAR(StudentT95(20), 2.086, 1e-3);
  EXPECT_NEAR(StudentT95(21), 2.080, 1e-3);
  EXPECT_NEAR(StudentT95(60), 2.000, 1e-3);
}

TEST(SizeSamplerTest, SamplesThatSayNothingAreRefused) {
  const Geometry g = UniformGeometry(2, 1, 8, Rope());
  TestCache cache(g, 0, 2, 300, Dtype::kBf16, Layout::kContiguous);
  std::mt19937 rng(1);
  cache.FillRandom(rng);
  const auto codec = Make("int8", g);
  SizeSampler sampler(codec.get(), Quality::kDefault, false);
  const auto refused = [&](const absl::Status& s, const char* text) {
    EXPECT_FALSE(s.ok());
    EXPECT_TRUE(absl::StrContains(s.message(), text)) << s;
  };
  refused(sampler.Project(128).status(), "no samples");
  refused(sampler.Add(cache.const_view(), 255, 0, {}), "255 tokens; expected at least two pages");
  const std::vector<uint32_t> ids(299);
  refused(sampler.Add(cache.const_view(), 300, 0, ids), "299 token ids for 300 tokens");
  ConstKvView cut = cache.const_view();
  cut.planes = cut.planes.first(2);
  refused(sampler.Add(cut, 300, 0, {}), "2 planes; expected 4");
  cache.Set(3, 0, 140, 2, NAN);
  refused(sampler.Add(cache.const_view(), 300, 0, {}), "page 1: ");
  EXPECT_EQ(sampler.samples(), 0);
  cache.Set(3, 0, 140, 2, 0);
  ASSERT_TRUE(sampler.Add(cache.const_view(), 300, 0, {}).ok());
  const std::vector<uint32_t> all(300);
  refused(sampler.Add(cache.const_view(), 300, 0, all), "whether it has token ids");
  refused(sampler.Project(0).status(), "0 tokens");
}

}  // namespace
}  // namespace kvcask
