#include "codec/kakeya/cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <utility>

namespace kvcask::kakeya {
namespace {

// Keys or values of one layer: a few directions and noise, about a mean, as real ones have.
std::vector<float> RandomPlane(std::mt19937& rng, int heads, int tokens, int dim, float decay) {
  std::normal_distribution<float> normal;
  std::vector<float> rows;
  for (int h = 0; h < heads; ++h) {
    std::vector<float> mix(static_cast<size_t>(dim) * dim);
    for (float& x : mix) x = normal(rng);
    for (int t = 0; t < tokens; ++t) {
      std::vector<float> row(dim);
      for (int k = 0; k < dim; ++k) {
        const float along = normal(rng) * std::pow(decay, static_cast<float>(k));
        for (int d = 0; d < dim; ++d) row[d] += along * mix[k * dim + d];
      }
      rows.insert(rows.end(), row.begin(), row.end());
    }
  }
  return rows;
}

class CacheTest : public testing::Test {
 protected:
  CacheTest() : seed_(std::random_device{}()), rng_(seed_) {}
  PlaneResult RoundTrip(const Params& params, int heads, int dim, absl::Span<const float> rows,
                        const Sealing& sealing, StreamKind kind = StreamKind::kV,
                        bool stages = false) {
    auto r = RoundTripPlane(*CalibrationOf(params, 4), {kind, 3, 0, heads, dim, &rope_}, sealing, 0,
                            rows, {}, stages);
    EXPECT_TRUE(r.ok()) << r.status();
    return *std::move(r);
  }
  const uint32_t seed_;
  std::mt19937 rng_;
  const Rope rope_ = StandardRope(RopeStyle::kRotateHalf, 32, 1e4);
};

TEST_F(CacheTest, NothingIsSealedBelow768TokensAndTheTailIsThePublishedOne) {
  const Sealing published = {512, 256};
  EXPECT_EQ(SealedTokens(0, published), 0);
  EXPECT_EQ(SealedTokens(767, published), 0);
  EXPECT_EQ(SealedTokens(768, published), 512);
  for (int64_t length = 256; length < 5000; ++length) {
    const int64_t tail = length - SealedTokens(length, published);
    ASSERT_GE(tail, 256);
    ASSERT_LE(tail, 767);
  }
  for (int64_t length = 1024; length <= 262144; length *= 2) {
    EXPECT_EQ(length - SealedTokens(length, published), 512) << length;
  }
}

TEST_F(CacheTest, TheTailIsKeptBitForBitAndEveryByteIsCounted) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const auto rows = RandomPlane(rng_, 2, 1300, 32, .8f);
  const Sealing published = {512, 256};
  const PlaneResult r = RoundTrip(*PresetParams("kakeya-1.0"), 2, 32, rows, published);
  ASSERT_TRUE(r.coded);
  ASSERT_EQ(r.sealed_tokens, 1024);
  EXPECT_EQ(r.raw_bytes, 2u * 2 * 1300 * 32);
  EXPECT_EQ(r.stored_bytes, r.section_bytes + 2u * 2 * (1300 - 1024) * 32);
  EXPECT_LT(r.stored_bytes, r.raw_bytes);
  for (int h = 0; h < 2; ++h) {
    for (int i = 1024 * 32; i < 1300 * 32; ++i) {
      ASSERT_EQ(r.rows[h * 1300 * 32 + i], rows[h * 1300 * 32 + i]);
    }
  }
  const PlaneResult none = RoundTrip(*PresetParams("kakeya-1.0"), 2, 32,
                                     absl::MakeConstSpan(rows).first(2 * 767 * 32), published);
  EXPECT_FALSE(none.coded);
  EXPECT_EQ(none.stored_bytes, none.raw_bytes);
}

TEST_F(CacheTest, BoundaryLayersAreRawAndCounted) {
  const auto rows = RandomPlane(rng_, 1, 512, 32, .8f);
  Params p = *PresetParams("kakeya-1.2");
  p.raw_layers = {3};
  const PlaneResult r = RoundTrip(p, 1, 32, rows, {512, 0});
  EXPECT_FALSE(r.coded);
  EXPECT_EQ(r.stored_bytes, r.raw_bytes);
  EXPECT_EQ(r.rows, rows);
}

TEST_F(CacheTest, SinksAreKeptAndPaidFor) {
  const auto rows = RandomPlane(rng_, 2, 512, 32, .8f);
  Params p = *PresetParams("kakeya-1.2");
  p.sink_tokens = 4;
  const PlaneResult r = RoundTrip(p, 2, 32, rows, {512, 0});
  ASSERT_TRUE(r.coded);
  EXPECT_EQ(r.stored_bytes, r.section_bytes + 2u * 2 * 4 * 32);
  for (int h = 0; h < 2; ++h) {
    for (int i = 0; i < 4 * 32; ++i) ASSERT_EQ(r.rows[h * 512 * 32 + i], rows[h * 512 * 32 + i]);
  }
}

TEST_F(CacheTest, PerHeadRowsLoseLessThanPooledOnesWhereHeadsDiffer) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  // Eight heads with bases of their own. Ranks capped at half, as in v1.3.
  const auto rows = RandomPlane(rng_, 8, 512, 32, .75f);
  Params p = *PresetParams("kakeya-1.3");
  p.v.share_basis = false;
  p.v.bits = 3;
  p.v.variance_ratio = 1;
  p.rows = RowOrder::kPooled;
  const Fidelity pooled = Compare(rows, RoundTrip(p, 8, 32, rows, {512, 0}).rows);
  p.rows = RowOrder::kPerHead;
  const Fidelity apart = Compare(rows, RoundTrip(p, 8, 32, rows, {512, 0}).rows);
  std::printf(
      "8 heads, relative L2: pooled %.4f, per head %.4f, %.2f times (published .3766, "
      ".1667)\n",
      pooled.relative_l2, apart.relative_l2, pooled.relative_l2 / apart.relative_l2);
  EXPECT_LT(apart.relative_l2, .5 * pooled.relative_l2);
}

TEST_F(CacheTest, KeysUnRotatedInTheirOwnPairingAreSmallerAndNearerInAnotherTheyAreNot) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  // Keys of few directions before RoPE, in adjacent pairs as GLM's; then rotated.
  const Rope adjacent = StandardRope(RopeStyle::kInterleaved, 32, 1e4);
  std::vector<uint32_t> positions(512);
  for (uint32_t i = 0; i < 512; ++i) positions[i] = i;
  std::vector<float> rows = RandomPlane(rng_, 1, 512, 32, .5f);
  ApplyRope(adjacent, MakeRopeTable(adjacent, positions, 0, RopeDirection::kRotate), 512, 32,
            rows.data());
  Params p = *PresetParams("kakeya-1.2");
  const auto measure = [&](bool unrotate, const Rope& rope) {
    p.unrotate_keys = unrotate;
    auto r = RoundTripPlane(*CalibrationOf(p, 4), {StreamKind::kK, 3, 0, 1, 32, &rope}, {512, 0}, 0,
                            rows, {}, false);
    EXPECT_TRUE(r.ok()) << r.status();
    return std::make_pair(Compare(rows, r->rows).mse, static_cast<double>(r->section_bytes));
  };
  const auto rotated = measure(false, adjacent), right = measure(true, adjacent),
             wrong = measure(true, rope_);
  std::printf(
      "un-rotated over rotated keys: MSE %.2f, bytes %.2f; in the wrong pairing %.2f, %.2f "
      "(published .49, .80; 1.13, 1.03)\n",
      right.first / rotated.first, right.second / rotated.second, wrong.first / rotated.first,
      wrong.second / rotated.second);
  // The rule of 95 % of the variance keeps the error and takes the gain in bytes.
  EXPECT_LT(right.second, .5 * rotated.second);
  EXPECT_LT(right.first, 1.2 * rotated.first);
  EXPECT_GT(wrong.second, .95 * rotated.second);
  EXPECT_GT(wrong.first, .7 * rotated.first);
  p.k.variance_ratio = 1;  // the same bytes, the gain in error
  p.k.rank = 12;
  const auto rotated12 = measure(false, adjacent), right12 = measure(true, adjacent),
             wrong12 = measure(true, rope_);
  EXPECT_EQ(right12.second, rotated12.second);
  EXPECT_LT(right12.first, .3 * rotated12.first);
  EXPECT_GT(wrong12.first, .8 * rotated12.first);
}

TEST_F(CacheTest, SignalToNoiseIsOneOverOneMinusTheSquaredCorrelation) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const auto rows = RandomPlane(rng_, 1, 1024, 32, .9f);
  // Where the error is uncorrelated with the decoded numbers, as of a projection or a Lloyd-Max
  // quantiser.
  const PlaneResult r =
      RoundTrip(*PresetParams("kakeya-1.2"), 1, 32, rows, {512, 0}, StreamKind::kV, true);
  for (const Stage& stage : r.stages) {
    const Fidelity f = Compare(rows, stage.rows);
    EXPECT_NEAR(f.snr * (1 - f.correlation * f.correlation), 1, .05) << stage.name;
  }
  EXPECT_NEAR(r.quantiser_variance, 1, 1e-3);
  // Stages in their order: each loses something.
  ASSERT_EQ(r.stages.size(), 4u);
  EXPECT_GT(Compare(rows, r.stages[0].rows).snr, Compare(rows, r.stages[3].rows).snr);
  EXPECT_GT(Compare(rows, r.stages[3].rows).snr, Compare(rows, r.stages[1].rows).snr);
}

TEST_F(CacheTest, RandomizedPcaCostsNoMoreThanTheExactOneOnRankTen) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  // The published synthetic case: 2,048 x 128 of rank 10, two bits: 12.72x with either.
  std::normal_distribution<float> normal;
  std::vector<float> mix(10 * 128), rows;
  for (float& x : mix) x = normal(rng_);
  for (int t = 0; t < 2048; ++t) {
    std::vector<float> row(128);
    for (int k = 0; k < 10; ++k) {
      const float along = normal(rng_);
      for (int d = 0; d < 128; ++d) row[d] += along * mix[k * 128 + d];
    }
    rows.insert(rows.end(), row.begin(), row.end());
  }
  Params p = *PresetParams("kakeya-1.3");
  p.v.share_basis = false;
  p.rows = RowOrder::kPerHead;
  double ratio[2], mse[2];
  for (int randomized = 0; randomized < 2; ++randomized) {
    p.v.pca = randomized ? PcaMethod::kRandomized : PcaMethod::kExact;
    p.v.rank_factor = randomized ? .5 : 0;
    const PlaneResult r = RoundTrip(p, 1, 128, rows, {512, 0});
    ratio[randomized] = static_cast<double>(r.raw_bytes) / r.stored_bytes;
    mse[randomized] = Compare(rows, r.rows).mse;
  }
  std::printf(
      "rank 10, 2 bits: exact %.2fx MSE %.3f, randomized %.2fx MSE %.3f (published "
      "12.72x 2.303, 12.72x 2.296)\n",
      ratio[0], mse[0], ratio[1], mse[1]);
  // 1.00 over seeds (published: at most 1.02), .97 to 1.03 from one to the next.
  EXPECT_LE(mse[1], 1.1 * mse[0]);
  EXPECT_NEAR(ratio[1], ratio[0], .01 * ratio[0]);
}

TEST_F(CacheTest, ThePublishedFormulaGivesThePublishedTable) {
  // Gemma-4's full-attention layers, in a bf16 store: a sealed block is 4.46 times smaller, and
  // the tail is 512 tokens at powers of two.
  const auto ratio = [](double length) { return length / ((length - 512) / 4.46 + 512); };
  for (auto [length, published] : {std::pair<double, double>{8192, 3.67},
                                   {16384, 4.03},
                                   {32768, 4.23},
                                   {65536, 4.35},
                                   {131072, 4.40},
                                   {262144, 4.43}}) {
    EXPECT_NEAR(ratio(length), published, .015) << length;
  }
  // A block of the formula, fp32 store against bf16: exactly twice.
  EXPECT_EQ(PublishedBlockBytes(100, 512, 16, 8, 512, 4),
            2 * PublishedBlockBytes(100, 512, 16, 8, 512, 2));
}

}  // namespace
}  // namespace kvcask::kakeya
