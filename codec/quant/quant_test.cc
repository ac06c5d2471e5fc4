#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "codec/quant/bit_pack.h"
#include "codec/quant/fp8.h"
#include "codec/quant/half.h"
#include "codec/quant/lloyd_max.h"
#include "codec/quant/uniform.h"

namespace kvcask {
namespace {

TEST(BitPackTest, CodesStandSideBySideFromTheLowestBitOn) {
  std::mt19937 rng(1);
  for (int bits = 1; bits <= 8; ++bits) {
    for (size_t n = 1; n < 40; ++n) {
      std::vector<uint8_t> codes(n), packed(PackedBytes(n, bits) + 8, 0xee), back(n + 8, 0xee);
      for (uint8_t& c : codes) c = rng() & ((1 << bits) - 1);
      PackBits(codes.data(), n, bits, packed.data());
      for (size_t i = 0; i < n * bits; ++i) {
        ASSERT_EQ(packed[i / 8] >> (i % 8) & 1, codes[i / bits] >> (i % bits) & 1);
      }
      for (size_t i = n * bits; i < PackedBytes(n, bits) * 8; ++i) {
        ASSERT_EQ(packed[i / 8] >> (i % 8) & 1, 0);
      }
      EXPECT_EQ(packed[PackedBytes(n, bits)], 0xee) << "not a byte more";
      UnpackBits(packed.data(), n, bits, back.data());
      ASSERT_EQ(std::memcmp(back.data(), codes.data(), n), 0);
      EXPECT_EQ(back[n], 0xee);
    }
  }
}

TEST(Fp8Test, RoundsToTheNearestOfAllNumbers) {
  for (int e = 0; e < 256; ++e) {
    if (IsNanE4m3(e)) {
      EXPECT_TRUE(std::isnan(E4m3ToFloat(e)));
    } else {
      EXPECT_EQ(FloatToE4m3(E4m3ToFloat(e)), e);
    }
  }
  EXPECT_EQ(E4m3ToFloat(0x7e), 448);
  EXPECT_EQ(E4m3ToFloat(1), 0x1p-9f);
  std::mt19937 rng(2);
  for (int i = 0; i < 20000; ++i) {
    const float x = std::ldexp(static_cast<float>(rng() % 4096), static_cast<int>(rng() % 22) - 20);
    const uint8_t found = FloatToE4m3(x);
    for (int e = 0; e < 127; ++e) {
      const double here = std::fabs(E4m3ToFloat(found) - x), there = std::fabs(E4m3ToFloat(e) - x);
      ASSERT_LE(here, there) << x;
      if (here == there && e != found) {
        ASSERT_EQ(found % 2, 0) << "a tie goes to the even code";
      }
    }
    ASSERT_EQ(FloatToE4m3(-x), found | 0x80);
  }
  EXPECT_EQ(FloatToE4m3(1e30f), 0x7e);
}

TEST(HalfTest, BoundsFromBothSides) {
  std::mt19937 rng(3);
  for (int i = 0; i < 100000; ++i) {
    uint32_t bits = rng();
    float x;
    std::memcpy(&x, &bits, 4);
    if (!(std::fabs(x) < 65000)) continue;
    const float low = F16ToFloat(HalfAtMost(x)), high = F16ToFloat(HalfAtLeast(std::fabs(x)));
    ASSERT_LE(low, x);
    ASSERT_GE(high, std::fabs(x));
    ASSERT_LE(x - low, std::fabs(x) * 0x1p-10 + 0x1p-24);
    ASSERT_LE(high - std::fabs(x), std::fabs(x) * 0x1p-10 + 0x1p-24);
  }
  EXPECT_EQ(HalfAtMost(-0.f), 0);
  EXPECT_EQ(HalfAtLeast(-0.f), 0);
  EXPECT_EQ(HalfAtMost(-1e-30f), 0x8001);
  EXPECT_FALSE(IsFiniteHalf(HalfAtMost(-70000)));
  EXPECT_EQ(HalfAtLeast(70000), kInfiniteHalf);
}

// Max 1960, table I, and the errors there; the levels to the unit of 2^-10.
TEST(LloydMaxTest, TheNormalCodebooksAreTheTextbooks) {
  const std::vector<std::vector<double>> levels = {
      {.7979},
      {.4528, 1.5104},
      {.2451, .7560, 1.3439, 2.1519},
      {.1284, .3880, .6568, .9423, 1.2562, 1.6180, 2.0690, 2.7326}};
  const double errors[] = {.36338, .11748, .03455, .00950};
  for (int bits = 1; bits <= 4; ++bits) {
    const Codebook& book = LloydMaxCodebook(bits, 0);
    ASSERT_EQ(book.levels.size(), levels[bits - 1].size());
    for (size_t m = 0; m < book.levels.size(); ++m) {
      EXPECT_NEAR(book.levels[m] / 1024.0, levels[bits - 1][m], .0006);
    }
    EXPECT_NEAR(ExpectedSquaredError(book, 0), errors[bits - 1], .00001);
  }
}

TEST(LloydMaxTest, EveryLevelIsTheMeanOfItsCellOnTheSphere) {
  std::mt19937 rng(4);
  std::normal_distribution<double> normal(0, 1);
  const int n = 16;
  const Codebook& book = LloydMaxCodebook(3, n);
  double sum[4] = {}, count[4] = {}, error = 0;
  for (int round = 0; round < 200000; ++round) {
    double x[16], norm = 0;
    for (double& v : x) {
      v = normal(rng);
      norm += v * v;
    }
    const double magnitude = std::fabs(x[0]) * std::sqrt(n / norm);
    int m = 0;
    while (m < 3 && magnitude >= book.thresholds[m + 1]) ++m;
    sum[m] += magnitude;
    count[m] += 1;
    error += std::pow(magnitude - book.levels[m] / 1024.0, 2);
  }
  for (int m = 0; m < 4; ++m) EXPECT_NEAR(sum[m] / count[m], book.levels[m] / 1024.0, .004);
  EXPECT_NEAR(error / 200000, ExpectedSquaredError(book, n), .0005);
}

TEST(UniformTest, ErrorsAreWithinHalfAScale) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, 1);
  for (int bits = 1; bits <= 8; ++bits) {
    for (int group : {7, 32, 100}) {
      const UniformRow shape{100, group, bits};
      std::vector<float> x(2 * 100), y(2 * 100);
      for (float& v : x) v = 1000 * normal(rng) + normal(rng);
      std::vector<uint8_t> bytes(2 * shape.bytes());
      ASSERT_TRUE(EncodeUniformRows(shape, x.data(), 2, bytes.data()));
      ASSERT_TRUE(DecodeUniformRows(shape, bytes.data(), 2, y.data()));
      for (size_t i = 0; i < x.size(); ++i) {
        const size_t at = i / 100 * shape.bytes() + i % 100 / group * 4;
        const float scale = F16ToFloat(LoadHalf(&bytes[at]));
        ASSERT_LE(std::fabs(x[i] - y[i]), (.5 + 0x1p-15) * scale + 2 * 0x1p-23 * std::fabs(x[i]));
      }
    }
  }
  std::vector<uint8_t> bytes(100);
  const UniformRow one{8, 8, 4};
  const std::vector<float> huge = {0, 0, 0, 0, 0, 0, 0, 3e38f};
  EXPECT_FALSE(EncodeUniformRows(one, huge.data(), 1, bytes.data()));
  std::vector<float> out(8);
  for (const uint16_t bad : {0x7c00, 0x7e00, 0x8000, 0xfc00}) {
    std::memset(bytes.data(), 0, 8);
    StoreHalf(bad, bytes.data());
    EXPECT_FALSE(DecodeUniformRows(one, bytes.data(), 1, out.data())) << bad << " as a scale";
  }
}

// A scale of -0 would be none.
TEST(UniformTest, MinusZerosComeBackAsZeros) {
  const std::vector<float> minus(32, -0.f);
  for (const UniformRow& shape : {UniformRow{32, 32, 4}, UniformRow{32, 7, 3}}) {
    std::vector<uint8_t> bytes(shape.bytes());
    std::vector<float> back(32, 1);
    ASSERT_TRUE(EncodeUniformRows(shape, minus.data(), 1, bytes.data()));
    ASSERT_TRUE(DecodeUniformRows(shape, bytes.data(), 1, back.data()));
    EXPECT_EQ(back, std::vector<float>(32, 0));
  }
  std::vector<uint8_t> bytes(UniformColumnsBytes(4, 8, 2));
  std::vector<float> back(32, 1);
  ASSERT_TRUE(EncodeUniformColumns(minus.data(), 4, 8, 2, bytes.data()));
  ASSERT_TRUE(DecodeUniformColumns(bytes.data(), 4, 8, 2, 0, 4, back.data()));
  EXPECT_EQ(back, std::vector<float>(32, 0));
}

}  // namespace
}  // namespace kvcask
