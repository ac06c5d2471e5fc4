#include "codec/base/row_kernels.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "codec/base/dtype.h"

namespace kvcask {
namespace {

float FloatOf(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// Runs each test on every instruction set that this CPU has.
class RowKernelsTest : public testing::TestWithParam<int64_t> {
 protected:
  RowKernelsTest() : seed_(std::random_device{}()), rng_(seed_) {
    hwy::SetSupportedTargetsForTest(GetParam());
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ~RowKernelsTest() override {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  const uint32_t seed_;
  std::mt19937 rng_;
};

TEST_P(RowKernelsTest, ConversionsGiveTheBitsOfTheScalarOnes) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  // Every 16-bit pattern, then random floats, a third of them near the halves' range.
  std::vector<uint16_t> all(0x10000 + 1);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  std::vector<float> out(all.size());
  Bf16ToFloatRow(reinterpret_cast<const uint8_t*>(all.data()), all.size(), out.data());
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(FloatBits(out[i]), FloatBits(Bf16ToFloat(all[i])));
  }
  F16ToFloatRow(reinterpret_cast<const uint8_t*>(all.data()), all.size(), out.data());
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(FloatBits(out[i]), FloatBits(F16ToFloat(all[i]))) << i;
  }
  std::vector<float> in(100003);
  for (float& f : in) {
    f = FloatOf(rng_() % 3 ? rng_() : (rng_() & 0x807fffff) | ((100 + rng_() % 45) << 23));
  }
  for (uint32_t b : {0x7fc00000u, 0x7f800001u, 0xffbfffffu, 0x7f800000u, 0x7f7fffffu, 0x80000000u,
                     0x477fefffu, 0x477ff000u, 0x33000000u, 0x33000001u}) {
    in[rng_() % in.size()] = FloatOf(b);
  }
  std::vector<uint8_t> narrow(2 * in.size() + 1);
  FloatToBf16Row(in.data(), in.size(), narrow.data() + 1);
  for (size_t i = 0; i < in.size(); ++i) {
    uint16_t b;
    std::memcpy(&b, &narrow[1 + 2 * i], 2);
    ASSERT_EQ(b, FloatToBf16(in[i])) << FloatBits(in[i]);
  }
  FloatToF16Row(in.data(), in.size(), narrow.data() + 1);
  for (size_t i = 0; i < in.size(); ++i) {
    uint16_t b;
    std::memcpy(&b, &narrow[1 + 2 * i], 2);
    ASSERT_EQ(b, FloatToF16(in[i])) << FloatBits(in[i]);
  }
}

TEST_P(RowKernelsTest, TheLargestMagnitudeIsFoundWhereverItIs) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  EXPECT_EQ(MaxMagnitudeBits(nullptr, 0), 0u);
  for (int round = 0; round < 300; ++round) {
    std::vector<float> x(1 + rng_() % 70);
    uint32_t want = 0;
    for (float& f : x) {
      f = FloatOf(rng_());
      want = std::max(want, FloatBits(f) & 0x7fffffff);
    }
    ASSERT_EQ(MaxMagnitudeBits(x.data(), x.size()), want);
  }
  std::vector<float> x(33, 1);
  EXPECT_LT(MaxMagnitudeBits(x.data(), 33), kNonFiniteBits);
  x[32] = -INFINITY;
  EXPECT_EQ(MaxMagnitudeBits(x.data(), 33), kNonFiniteBits);
  x[3] = NAN;
  EXPECT_GT(MaxMagnitudeBits(x.data(), 33), kNonFiniteBits);
}

TEST_P(RowKernelsTest, QuantisingRoundsToNearestEvenAndBack) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (int round = 0; round < 300; ++round) {
    const float scale =
        std::ldexp(1.f + (rng_() % 1024) / 1024.f, static_cast<int>(rng_() % 20) - 10);
    const float inverse = 1 / scale;
    std::vector<float> x(rng_() % 70);
    for (float& f : x) {
      f = round % 2 ? scale * (static_cast<int>(rng_() % 255) - 127) / 2  // half the time a tie
                    : scale * 127 * std::uniform_real_distribution<float>(-1, 1)(rng_);
    }
    std::vector<int8_t> q(x.size() + 1, 99);
    QuantiseInt8(x.data(), x.size(), inverse, q.data());
    std::vector<float> back(x.size() + 1, 99);
    DequantiseInt8(q.data(), x.size(), scale, back.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const float product = x[i] * inverse;
      ASSERT_EQ(q[i], std::lrint(product)) << product;
      ASSERT_EQ(back[i], static_cast<float>(q[i]) * scale);
    }
    ASSERT_EQ(q.back(), 99);
    ASSERT_EQ(back.back(), 99);
  }
}

std::vector<int64_t> Targets() {
  std::vector<int64_t> targets;
  for (int64_t left = hwy::SupportedTargets(); left != 0; left &= left - 1) {
    targets.push_back(left & -left);
  }
  return targets;
}
INSTANTIATE_TEST_SUITE_P(EveryTarget, RowKernelsTest, testing::ValuesIn(Targets()),
                         [](const auto& info) {
                           return std::string(hwy::TargetName(info.param)) + "_" +
                                  std::to_string(info.index);
                         });

}  // namespace
}  // namespace kvcask
