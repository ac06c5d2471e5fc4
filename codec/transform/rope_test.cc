#include "codec/transform/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>

namespace kvcask {
namespace {

struct Case {
  RopeStyle style;
  int head_dim, dims;
  float attention_scale;
};
constexpr Case kCases[] = {
    {RopeStyle::kRotateHalf, 64, 64, 1},    {RopeStyle::kRotateHalf, 128, 32, 1.25f},
    {RopeStyle::kInterleaved, 128, 128, 1}, {RopeStyle::kInterleaved, 80, 64, 0.9f},
    {RopeStyle::kRotateHalf, 6, 2, 1},
};
constexpr uint32_t kStarts[] = {0, 5000, 1000000, 4294967000u};

Rope MakeRope(const Case& c) {
  Rope rope = StandardRope(c.style, c.dims, 10000);
  rope.attention_scale = c.attention_scale;
  return rope;
}

// One row, from the definition, in long double.
std::vector<float> SlowRotate(const Rope& rope, int64_t position, long double scale,
                              const std::vector<float>& x) {
  std::vector<float> y = x;
  for (int i = 0; i < rope.dims / 2; ++i) {
    const bool half = rope.style == RopeStyle::kRotateHalf;
    const int a = half ? i : 2 * i, b = half ? i + rope.dims / 2 : 2 * i + 1;
    const long double angle = static_cast<long double>(position) * rope.inv_freq[i];
    const long double c = std::cos(angle) * scale, s = std::sin(angle) * scale;
    y[a] = static_cast<float>(x[a] * c - x[b] * s);
    y[b] = static_cast<float>(x[a] * s + x[b] * c);
  }
  return y;
}

class RopeTest : public testing::Test {
 protected:
  RopeTest() : seed_(std::random_device{}()), rng_(seed_) {}
  std::vector<float> RandomRow(int n) {
    std::normal_distribution<float> normal(0, 3);
    std::vector<float> x(n);
    for (float& v : x) v = normal(rng_);
    return x;
  }
  // Rounding of cos, sin, two products and a sum, of numbers up to `scale` times a row's.
  static void ExpectNear(const std::vector<float>& got, const float* want, float scale) {
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], want[i], 30 * scale * 0x1p-22f) << "element " << i;
    }
  }
  const uint32_t seed_;
  std::mt19937 rng_;
};

TEST_F(RopeTest, RotationMatchesTheDefinitionAtAnyPosition) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const Case& c : kCases) {
    const Rope rope = MakeRope(c);
    for (uint32_t start : kStarts) {
      SCOPED_TRACE(testing::Message() << "dims " << c.dims << " start " << start);
      std::vector<uint32_t> positions;
      for (int t = 0; t < 130; ++t) positions.push_back(start + t);
      const RopeTable table = MakeRopeTable(rope, positions, 0, RopeDirection::kRotate);
      const int stride = c.head_dim + 3;
      std::vector<float> rows = RandomRow(130 * stride);
      const std::vector<float> before = rows;
      ApplyRope(rope, table, 130, stride, rows.data());
      for (int t = 0; t < 130; ++t) {
        const std::vector<float> x(before.begin() + t * stride, before.begin() + (t + 1) * stride);
        ExpectNear(SlowRotate(rope, positions[t], c.attention_scale, x), &rows[t * stride],
                   c.attention_scale);
        for (int d = c.dims; d < stride; ++d) {
          ASSERT_EQ(rows[t * stride + d], x[d]) << "an element that must not turn";
        }
      }
    }
  }
}

TEST_F(RopeTest, ExplicitPositionsGiveTheSameTableAsConsecutiveOnes) {
  const Rope rope = MakeRope(kCases[1]);
  const std::vector<uint32_t> run = {1000000, 1000001, 1000002, 1000003};
  const std::vector<uint32_t> shuffled = {1000002, 1000000, 1000003, 1000001};
  const RopeTable a = MakeRopeTable(rope, run, 0, RopeDirection::kRotate);
  const RopeTable b = MakeRopeTable(rope, shuffled, 0, RopeDirection::kRotate);
  for (int r = 0; r < 4; ++r) {
    const size_t row = (shuffled[r] - 1000000) * a.pairs;
    for (int i = 0; i < a.pairs; ++i) {
      EXPECT_FLOAT_EQ(a.cosines[row + i], b.cosines[r * a.pairs + i]);
      EXPECT_FLOAT_EQ(a.sines[row + i], b.sines[r * a.pairs + i]);
    }
  }
}

TEST_F(RopeTest, UnrotationUndoesRotationAndItsScale) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const Case& c : kCases) {
    const Rope rope = MakeRope(c);
    for (uint32_t start : kStarts) {
      const std::vector<uint32_t> positions = {start, start + 7, start + 100};
      std::vector<float> rows = RandomRow(3 * c.head_dim);
      const std::vector<float> before = rows;
      ApplyRope(rope, MakeRopeTable(rope, positions, 0, RopeDirection::kRotate), 3, c.head_dim,
                rows.data());
      ApplyRope(rope, MakeRopeTable(rope, positions, 0, RopeDirection::kUnrotate), 3, c.head_dim,
                rows.data());
      ExpectNear(rows, before.data(), 1);
    }
  }
}

TEST_F(RopeTest, AShiftMovesRotatedKeysAndKeepsTheirScale) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const Case& c : kCases) {
    const Rope rope = MakeRope(c);
    for (int64_t offset : {1, -5000, 123456}) {
      const std::vector<uint32_t> positions = {5000, 5001, 9000};
      std::vector<float> moved = RandomRow(3 * c.head_dim);
      std::vector<float> direct = moved;
      ApplyRope(rope, MakeRopeTable(rope, positions, 0, RopeDirection::kRotate), 3, c.head_dim,
                moved.data());
      ApplyRope(rope, MakeRopeShift(rope, offset), 3, c.head_dim, moved.data());
      ApplyRope(rope, MakeRopeTable(rope, positions, offset, RopeDirection::kRotate), 3, c.head_dim,
                direct.data());
      ExpectNear(moved, direct.data(), 2);
    }
  }
}

TEST_F(RopeTest, PairsAreThoseOfTheStyle) {
  Rope rope;
  rope.dims = 4;
  rope.inv_freq = {static_cast<float>(M_PI / 2), 0};
  const std::vector<uint32_t> one = {1};
  std::vector<float> half = {1, 2, 3, 4, 5}, interleaved = half;
  rope.style = RopeStyle::kRotateHalf;
  ApplyRope(rope, MakeRopeTable(rope, one, 0, RopeDirection::kRotate), 1, 5, half.data());
  EXPECT_NEAR(half[0], -3, 1e-6);
  EXPECT_NEAR(half[2], 1, 1e-6);
  EXPECT_EQ(half[1], 2);
  EXPECT_EQ(half[4], 5);
  rope.style = RopeStyle::kInterleaved;
  ApplyRope(rope, MakeRopeTable(rope, one, 0, RopeDirection::kRotate), 1, 5, interleaved.data());
  EXPECT_NEAR(interleaved[0], -2, 1e-6);
  EXPECT_NEAR(interleaved[1], 1, 1e-6);
  EXPECT_EQ(interleaved[2], 3);
}

TEST_F(RopeTest, NoStyleLeavesRowsAlone) {
  std::vector<float> x = {1, 2};
  ApplyRope(Rope(), RopeTable(), 1, 2, x.data());
  EXPECT_EQ(x, (std::vector<float>{1, 2}));
}

}  // namespace
}  // namespace kvcask
