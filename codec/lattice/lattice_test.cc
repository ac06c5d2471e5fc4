#include "codec/lattice/lattice.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "codec/transform/hadamard.h"

namespace kvcask {
namespace {

TEST(LatticeTest, EveryIndexIsAPointOfItsOwnAndNoOtherIs) {
  for (LatticeKind kind : {LatticeKind::kD4, LatticeKind::kE8}) {
    const Lattice lattice{kind, 2};
    const int n = lattice.dimensions();
    std::set<std::vector<int>> seen;
    for (LatticeIndex i = 0; i < lattice.points(); ++i) {
      std::vector<int> twice(n);
      ASSERT_TRUE(lattice.PointOf(i, twice.data()));
      ASSERT_TRUE(lattice.IndexOf(twice.data()) == i);
      int sum = 0;
      for (int c : twice) {
        ASSERT_EQ(c & 1, twice[0] & 1) << "all integers or all halves";
        ASSERT_GE(c, -4);
        ASSERT_LE(c, 3);
        sum += c;
      }
      // The sum of D4's and D8's points is even; a half more in eight dimensions adds four.
      ASSERT_EQ(sum % 4, 0);
      if (kind == LatticeKind::kD4) {
        ASSERT_EQ(twice[0] & 1, 0);
      }
      seen.insert(twice);
    }
    EXPECT_EQ(seen.size(), kind == LatticeKind::kD4 ? 4u * 4 * 4 * 4 / 2 : 65536u);
    std::vector<int> twice(n);
    EXPECT_FALSE(lattice.PointOf(lattice.points(), twice.data()));
    EXPECT_FALSE(lattice.PointOf(~LatticeIndex{0}, twice.data()));
  }
}

TEST(LatticeTest, NearestIsTheNearestOfAllPoints) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  for (LatticeKind kind : {LatticeKind::kD4, LatticeKind::kE8}) {
    const Lattice lattice{kind, 2};
    const int n = lattice.dimensions();
    std::uniform_real_distribution<float> inside(-2.4f, 2.4f);  // beyond the cube, too
    for (int round = 0; round < 60; ++round) {
      float y[8];
      for (int i = 0; i < n; ++i) y[i] = inside(rng);
      double least = 1e9;
      int twice[8];
      for (LatticeIndex p = 0; p < lattice.points(); ++p) {
        ASSERT_TRUE(lattice.PointOf(p, twice));
        double d = 0;
        for (int i = 0; i < n; ++i) d += std::pow(y[i] - twice[i] / 2.0, 2);
        least = std::min(least, d);
      }
      lattice.Nearest(y, twice);
      double found = 0;
      for (int i = 0; i < n; ++i) found += std::pow(y[i] - twice[i] / 2.0, 2);
      ASSERT_NEAR(found, least, 1e-5) << round;
      ASSERT_TRUE(lattice.IndexOf(twice) < lattice.points());
    }
  }
}

// Conway and Sloane, Sphere Packings, table 2.3: normalised second moments .0766 and .0717
// against 1/12 of the integers: .37 and .65 dB. Volumes: 2 and 1.
TEST(LatticeTest, TheErrorIsThatOfTheLattice) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  for (LatticeKind kind : {LatticeKind::kD4, LatticeKind::kE8}) {
    const Lattice lattice{kind, 64};
    const int n = lattice.dimensions();
    std::uniform_real_distribution<float> uniform(-50, 50);
    double error = 0;
    constexpr int kRounds = 40000;
    for (int round = 0; round < kRounds; ++round) {
      float y[8];
      int twice[8];
      for (int i = 0; i < n; ++i) y[i] = uniform(rng);
      lattice.Nearest(y, twice);
      for (int i = 0; i < n; ++i) error += std::pow(y[i] - twice[i] / 2.0, 2);
    }
    const double volume = kind == LatticeKind::kD4 ? 2 : 1;
    const double moment = error / kRounds / n / std::pow(volume, 2.0 / n);
    EXPECT_NEAR(moment, kind == LatticeKind::kD4 ? .0766 : .0717, .0004);
  }
}

TEST(LatticeTest, RowsComeBackWithinTheReachOfTheLattice) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, 3);
  for (LatticeKind kind : {LatticeKind::kD4, LatticeKind::kE8}) {
    for (int q : {2, 10, 38, 1024}) {
      for (size_t n : {1, 21, 64, 128}) {
        const Lattice lattice{kind, q};
        const std::vector<float> signs = HadamardSigns(n);
        std::vector<float> x(n);
        for (float& v : x) v = normal(rng);
        std::vector<float> in = x, out(n);
        std::vector<uint8_t> bytes(LatticeRowBytes(lattice, n));
        ASSERT_TRUE(EncodeLatticeRows(lattice, signs.data(), n, in.data(), 1, bytes.data()));
        ASSERT_TRUE(DecodeLatticeRows(lattice, signs.data(), n, bytes.data(), 1, out.data()));
        double error = 0, energy = 0;
        for (size_t i = 0; i < n; ++i) {
          error += std::pow(x[i] - out[i], 2);
          energy += double(x[i]) * x[i];
        }
        // The covering radius of both is 1: so far is the worst block from a point, unless the
        // cube's side is in between.
        const double blocks = std::ceil(static_cast<double>(n) / lattice.dimensions());
        const double step = std::sqrt(energy) / (q - .5);
        EXPECT_LT(std::sqrt(error), 1.05 * step * std::sqrt(blocks) + 2e-3 * std::sqrt(energy))
            << "q " << q << " n " << n;
      }
    }
  }
}

TEST(LatticeTest, AHostileRowIsRefused) {
  const Lattice lattice{LatticeKind::kE8, 10};
  const std::vector<float> signs = HadamardSigns(8);
  std::vector<uint8_t> bytes(LatticeRowBytes(lattice, 8), 0xff);
  std::vector<float> out(8);
  EXPECT_FALSE(DecodeLatticeRows(lattice, signs.data(), 8, bytes.data(), 1, out.data()));
  bytes[0] = bytes[1] = bytes[2] = bytes[3] = 0;
  EXPECT_FALSE(DecodeLatticeRows(lattice, signs.data(), 8, bytes.data(), 1, out.data()))
      << "2^35 - 1 is no point";
}

}  // namespace
}  // namespace kvcask
