#include "codec/raw/raw.h"

#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <cmath>

#include "codec/testing/test_cache.h"
#include "codec/transform/rope.h"

namespace kvcask {
namespace {

// Layers that differ in heads, dims and rope, one shared, one latent.
Geometry Mixed() {
  Geometry g = UniformGeometry(5, 2, 16, StandardRope(RopeStyle::kRotateHalf, 16, 1e4));
  g.layers[1].streams = {{StreamKind::kK, 3, 8}, {StreamKind::kV, 3, 24}};
  g.layers[1].rope = StandardRope(RopeStyle::kInterleaved, 4, 1e4);
  g.layers[1].rope.attention_scale = 1.5;
  g.layers[2] = LayerGeometry();
  g.layers[2].kind = LayerKind::kShared;
  g.layers[2].shared_with = 1;
  g.layers[3] = LayerGeometry();
  g.layers[3].kind = LayerKind::kLatent;
  g.layers[3].streams = {{StreamKind::kLatent, 1, 20}};
  return g;
}

std::unique_ptr<Codec> MakeCodec(const Geometry& g) {
  const int layers = static_cast<int>(g.layers.size());
  auto codec = MakeRawCodec({g, {0, 1, 0, layers, 0, 3}, nullptr});
  EXPECT_TRUE(codec.ok()) << codec.status();
  return *std::move(codec);
}

class RawTest : public testing::Test {
 protected:
  RawTest() : seed_(std::random_device{}()), rng_(seed_), codec_(MakeCodec(Mixed())) {}

  std::vector<uint8_t> Encode(int group, const TestCache& cache,
                              const std::vector<uint32_t>& positions) {
    EncodeJob job;
    job.group = group;
    job.tokens = cache.tokens();
    job.source = cache.const_view();
    job.positions = positions;
    std::vector<uint8_t> tile(codec_->MaxTileBytes(group, job.tokens, cache.dtype()));
    job.destination = absl::MakeSpan(tile);
    EXPECT_TRUE(codec_->Encode({&job, 1}, workspace_).ok());
    EXPECT_TRUE(job.status.ok()) << job.status;
    EXPECT_LE(job.bytes, tile.size());
    tile.resize(job.bytes);
    return tile;
  }
  DecodeJob JobFor(int group, const std::vector<uint8_t>& tile, TestCache& out,
                   const std::vector<uint32_t>& positions, int token_begin, Dtype dtype) {
    DecodeJob job;
    job.group = group;
    job.tokens = static_cast<int>(positions.size());
    job.source_dtype = dtype;
    job.tile = tile;
    job.positions = positions;
    job.token_begin = token_begin;
    job.token_end = token_begin + out.tokens();
    job.layer_begin = codec_->groups()[group].layer_begin;
    job.layer_end = codec_->groups()[group].layer_end;
    job.destination = out.view();
    return job;
  }

  const uint32_t seed_;
  std::mt19937 rng_;
  std::unique_ptr<Codec> codec_;
  Workspace workspace_;
};

TEST_F(RawTest, EveryLayoutAndDtypeComesBackByteForByte) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Geometry g = Mixed();
  for (Dtype dtype : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
    for (Layout from : kAllLayouts) {
      for (Layout to : kAllLayouts) {
        for (size_t group = 0; group < codec_->groups().size(); ++group) {
          SCOPED_TRACE(absl::StrCat(DtypeName(dtype), " ", LayoutName(from), " to ", LayoutName(to),
                                    " group ", group));
          const Group layers = codec_->groups()[group];
          const int tokens = 1 + rng_() % kPageTokens;
          const auto positions = PositionsFrom(5000, tokens);
          TestCache in(g, layers.layer_begin, layers.layer_end, tokens, dtype, from);
          in.FillRandomBits(rng_);
          const auto tile = Encode(group, in, positions);
          const int begin = rng_() % tokens, end = begin + 1 + rng_() % (tokens - begin);
          TestCache whole(g, layers.layer_begin, layers.layer_end, tokens, dtype, to);
          TestCache part(g, layers.layer_begin, layers.layer_end, end - begin, dtype, to);
          DecodeJob jobs[] = {JobFor(group, tile, whole, positions, 0, dtype),
                              JobFor(group, tile, part, positions, begin, dtype)};
          ASSERT_TRUE(codec_->Decode(absl::MakeSpan(jobs), workspace_).ok());
          for (const DecodeJob& job : jobs) ASSERT_TRUE(job.status.ok()) << job.status;
          ASSERT_EQ(FirstDifference(in, whole), "");
          ASSERT_TRUE(whole.PaddingIntact());
          ASSERT_TRUE(part.PaddingIntact());
          for (int p = 0; p < in.planes(); ++p) {
            for (int h = 0; h < in.heads(p); ++h) {
              for (int t = begin; t < end; ++t) {
                for (int d = 0; d < in.head_dim(p); ++d) {
                  ASSERT_EQ(
                      std::memcmp(in.At(p, h, t, d), part.At(p, h, t - begin, d), DtypeSize(dtype)),
                      0);
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST_F(RawTest, AnotherDtypeRoundsAndNothingElse) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Geometry g = Mixed();
  const auto positions = PositionsFrom(0, 37);
  for (Dtype from : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
    for (Dtype to : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
      TestCache in(g, 0, 1, 37, from, Layout::kTransposedK);
      in.FillRandom(rng_);
      TestCache out(g, 0, 1, 37, to, Layout::kTransposedK);
      const auto tile = Encode(0, in, positions);
      DecodeJob job = JobFor(0, tile, out, positions, 0, from);
      ASSERT_TRUE(codec_->Decode({&job, 1}, workspace_).ok());
      ASSERT_TRUE(job.status.ok()) << job.status;
      for (int t = 0; t < 37; ++t) {
        for (int d = 0; d < 16; ++d) {
          uint8_t want[4];
          StoreElement(in.Get(0, 1, t, d), to, want);
          ASSERT_EQ(std::memcmp(out.At(0, 1, t, d), want, DtypeSize(to)), 0);
        }
      }
    }
  }
}

TEST_F(RawTest, AnOffsetTurnsKeysByTheDifferenceAndLeavesTheRest) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Geometry g = Mixed();
  const auto positions = PositionsFrom(5000, 20);
  const int64_t offset = -4321;
  const Rope& rope = g.layers[1].rope;  // interleaved, partial, attention scale 1.5
  TestCache in(g, 1, 2, 20, Dtype::kF32, Layout::kPagedNhd);
  in.FillRandom(rng_);
  TestCache out(g, 1, 2, 20, Dtype::kF32, Layout::kPagedHnd);
  const auto tile = Encode(1, in, positions);
  DecodeJob job = JobFor(1, tile, out, positions, 0, Dtype::kF32);
  job.position_offset = offset;
  ASSERT_TRUE(codec_->Decode({&job, 1}, workspace_).ok());
  ASSERT_TRUE(job.status.ok()) << job.status;
  for (int h = 0; h < 3; ++h) {
    for (int t = 0; t < 20; ++t) {
      for (int i = 0; i < 2; ++i) {
        const double angle = static_cast<double>(offset) * rope.inv_freq[i];
        const double x = in.Get(0, h, t, 2 * i), y = in.Get(0, h, t, 2 * i + 1);
        EXPECT_NEAR(out.Get(0, h, t, 2 * i), x * std::cos(angle) - y * std::sin(angle), 1e-5);
        EXPECT_NEAR(out.Get(0, h, t, 2 * i + 1), x * std::sin(angle) + y * std::cos(angle), 1e-5);
      }
      for (int d = 4; d < 8; ++d) EXPECT_EQ(out.Get(0, h, t, d), in.Get(0, h, t, d));
      for (int d = 0; d < 24; ++d) EXPECT_EQ(out.Get(1, h, t, d), in.Get(1, h, t, d));
    }
  }
}

TEST_F(RawTest, ATileOfAnotherSizeIsDataLossAndWritesNothing) {
  const Geometry g = Mixed();
  const auto positions = PositionsFrom(0, 9);
  TestCache in(g, 0, 1, 9, Dtype::kBf16, Layout::kContiguous);
  in.FillRandom(rng_);
  const auto tile = Encode(0, in, positions);
  for (size_t size : {size_t{0}, tile.size() - 1, tile.size() + 1}) {
    std::vector<uint8_t> bad = tile;
    bad.resize(size);
    TestCache out(g, 0, 1, 9, Dtype::kBf16, Layout::kContiguous);
    const TestCache untouched(g, 0, 1, 9, Dtype::kBf16, Layout::kContiguous);
    DecodeJob job = JobFor(0, bad, out, positions, 0, Dtype::kBf16);
    ASSERT_TRUE(codec_->Decode({&job, 1}, workspace_).ok());
    EXPECT_EQ(job.status.code(), absl::StatusCode::kDataLoss) << job.status;
    EXPECT_NE(job.status.message().find(absl::StrCat("expected ", tile.size())),
              absl::string_view::npos);
    EXPECT_EQ(FirstDifference(out, untouched), "");
  }
}

TEST_F(RawTest, ABadJobFailsAloneAndSaysWhy) {
  const Geometry g = Mixed();
  const auto positions = PositionsFrom(0, 9);
  TestCache in(g, 0, 1, 9, Dtype::kBf16, Layout::kContiguous);
  in.FillRandom(rng_);
  std::vector<uint8_t> memory(codec_->MaxTileBytes(0, 9, Dtype::kBf16));
  EncodeJob good;
  good.tokens = 9;
  good.source = in.const_view();
  good.positions = positions;
  good.destination = absl::MakeSpan(memory);
  EncodeJob jobs[6] = {good, good, good, good, good, good};
  jobs[0].group = 4;
  jobs[1].tokens = 129;
  jobs[2].positions = absl::MakeConstSpan(positions).first(8);
  jobs[3].destination = jobs[3].destination.first(memory.size() - 1);
  jobs[4].source.planes = jobs[4].source.planes.first(1);
  ASSERT_TRUE(codec_->Encode(absl::MakeSpan(jobs), workspace_).ok());
  const char* const kWhy[] = {"group 4", "129 tokens", "8 positions", "destination of",
                              "1 planes; expected 2"};
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(jobs[i].status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(jobs[i].status.message().find(kWhy[i]), absl::string_view::npos) << jobs[i].status;
    EXPECT_EQ(jobs[i].bytes, 0u);
  }
  EXPECT_TRUE(jobs[5].status.ok());

  const std::vector<uint8_t> tile(memory.begin(), memory.begin() + jobs[5].bytes);
  TestCache out(g, 0, 1, 9, Dtype::kBf16, Layout::kContiguous);
  DecodeJob d = JobFor(0, tile, out, positions, 0, Dtype::kBf16);
  DecodeJob decodes[5] = {d, d, d, d, d};
  decodes[0].token_end = 10;
  decodes[1].layer_end = 2;
  decodes[2].position_offset = -1;
  decodes[3].destination.pages = {};
  decodes[3].destination.planes = decodes[3].destination.planes.first(1);
  const int64_t offset = 0;
  decodes[4].destination.pages = {{&offset, 1}, 8};
  ASSERT_TRUE(codec_->Decode(absl::MakeSpan(decodes), workspace_).ok());
  for (const DecodeJob& job : decodes) {
    EXPECT_EQ(job.status.code(), absl::StatusCode::kInvalidArgument) << job.status;
  }
}

TEST_F(RawTest, AShardHoldsItsHeadsAndLayersOnly) {
  const Geometry model = UniformGeometry(4, 8, 16, Rope());
  auto codec = MakeRawCodec({model, {1, 2, 1, 3, 4, 8}, nullptr});
  ASSERT_TRUE(codec.ok()) << codec.status();
  EXPECT_EQ((*codec)->groups().size(), 2u);
  EXPECT_EQ((*codec)->MaxTileBytes(0, 10, Dtype::kBf16), 2u * 4 * 16 * 10 * 2);
  EXPECT_FALSE(MakeRawCodec({model, {0, 1, 0, 5, 0, 8}, nullptr}).ok());
}

}  // namespace
}  // namespace kvcask
