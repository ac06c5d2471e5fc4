#include "codec/base/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace kvcask {
namespace {

uint32_t BitsOf(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
float FloatOf(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// From the definition of binary16.
double SlowF16(uint16_t h) {
  const int exponent = (h >> 10) & 31, mantissa = h & 1023;
  const double sign = (h & 0x8000) ? -1 : 1;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(DtypeTest, EveryHalfConvertsAsDefinedAndBack) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float f = F16ToFloat(h);
    if ((h & 0x7c00) == 0x7c00) {
      EXPECT_EQ(std::isnan(f), (h & 0x3ff) != 0);
      EXPECT_EQ(std::isinf(f), (h & 0x3ff) == 0);
      if (!std::isnan(f)) {
        EXPECT_EQ(FloatToF16(f), h);
      }
      continue;
    }
    ASSERT_EQ(static_cast<double>(f), SlowF16(h)) << h;
    ASSERT_EQ(FloatToF16(f), h);
  }
  EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16(std::nanf("")))));
}

// The nearest of all halves, ties to the even one.
uint16_t SlowNearestF16(float f) {
  const double x = std::fabs(static_cast<double>(f));
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  if (x >= 65520) return sign | 0x7c00;
  int low = 0, high = 0x7bff;
  while (low < high) {  // the last half that is <= x
    const int mid = (low + high + 1) / 2;
    if (SlowF16(mid) <= x)
      low = mid;
    else
      high = mid - 1;
  }
  if (low == 0x7bff) return sign | low;
  const double below = x - SlowF16(low), above = SlowF16(low + 1) - x;
  if (below == above) return sign | ((low & 1) ? low + 1 : low);
  return sign | (below < above ? low : low + 1);
}

TEST(DtypeTest, FloatRoundsToTheNearestHalf) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  for (float f : {0.f, -0.f, 65504.f, 65519.99f, 65520.f, 1e9f, 0x1p-24f, 0x1p-25f, 0x1.8p-25f,
                  0x1.000002p-25f, 0x1p-14f, 0x1.ffcp-15f, 0x1.ffffp-15f, 1.f + 0x1p-11f}) {
    EXPECT_EQ(FloatToF16(f), SlowNearestF16(f)) << f;
    EXPECT_EQ(FloatToF16(-f), SlowNearestF16(-f)) << f;
  }
  for (int i = 0; i < 200000; ++i) {
    // Exponents around binary16's range.
    const float f = FloatOf((rng() & 0x807fffff) | ((90 + rng() % 60) << 23));
    ASSERT_EQ(FloatToF16(f), SlowNearestF16(f)) << BitsOf(f);
  }
}

TEST(DtypeTest, FloatRoundsToTheNearestBfloat16) {
  EXPECT_EQ(FloatToBf16(FloatOf(0x3f808000)), 0x3f80);  // tie to even
  EXPECT_EQ(FloatToBf16(FloatOf(0x3f818000)), 0x3f82);
  EXPECT_EQ(FloatToBf16(FloatOf(0x3f808001)), 0x3f81);
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(FloatOf(0x7f800001)))));
  for (uint32_t b = 0; b < 0x10000; ++b) {
    const float f = Bf16ToFloat(b);
    if (std::isnan(f)) continue;
    ASSERT_EQ(FloatToBf16(f), b);
  }
}

TEST(DtypeTest, RowsEqualElementByElementConversionAtAnyStrideAndAddress) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  std::vector<uint8_t> memory(8192);
  for (Dtype d : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
    for (int round = 0; round < 50; ++round) {
      for (auto& b : memory) b = rng();
      const size_t n = rng() % 200;
      const int64_t size = DtypeSize(d);
      const int64_t stride = round % 3 == 0   ? size
                             : round % 3 == 1 ? -size - rng() % 9
                                              : size + rng() % 9;
      const uint8_t* p = memory.data() + (stride < 0 ? 4096 : rng() % 5);
      std::vector<float> row(n);
      LoadRow(p, stride, d, n, row.data());
      for (size_t i = 0; i < n; ++i) {
        ASSERT_EQ(BitsOf(row[i]), BitsOf(LoadElement(p + static_cast<int64_t>(i) * stride, d)));
      }
      std::vector<uint8_t> stored(memory.size(), 1), expected(memory.size(), 1);
      for (auto& f : row) f = FloatOf(rng());
      StoreRow(row.data(), n, d, stored.data() + (p - memory.data()), stride);
      for (size_t i = 0; i < n; ++i) {
        StoreElement(row[i], d,
                     expected.data() + (p - memory.data()) + static_cast<int64_t>(i) * stride);
      }
      ASSERT_EQ(stored, expected);
    }
  }
}

}  // namespace
}  // namespace kvcask
