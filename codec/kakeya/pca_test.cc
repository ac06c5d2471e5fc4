#include "codec/kakeya/pca.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "codec/kakeya/line_kmeans.h"

namespace kvcask::kakeya {
namespace {

using Rows = std::vector<float>;

class PcaTest : public testing::Test {
 protected:
  PcaTest() : seed_(std::random_device{}()), rng_(seed_) {}

  // n rows around a mean, with standard deviation decay^i along the i-th of `rank` random
  // directions.
  Rows RowsOfRank(int n, int dim, int rank, double decay) {
    std::normal_distribution<double> normal;
    std::vector<double> directions(static_cast<size_t>(rank) * dim), mean(dim);
    for (double& x : directions) x = normal(rng_) / std::sqrt(dim);
    for (double& x : mean) x = 5 * normal(rng_);
    Rows rows(static_cast<size_t>(n) * dim);
    for (int i = 0; i < n; ++i) {
      std::vector<double> row = mean;
      for (int r = 0; r < rank; ++r) {
        const double along = normal(rng_) * std::pow(decay, r);
        for (int d = 0; d < dim; ++d) row[d] += along * directions[r * dim + d];
      }
      for (int d = 0; d < dim; ++d) rows[i * dim + d] = static_cast<float>(row[d]);
    }
    return rows;
  }

  const uint32_t seed_;
  std::mt19937 rng_;
};

// Variances along the principal axes, by cyclic Jacobi rotations of the scatter matrix.
std::vector<double> SlowVariances(const Rows& rows, int dim, const std::vector<double>& weights) {
  const size_t n = rows.size() / dim;
  std::vector<double> mean(dim), a(static_cast<size_t>(dim) * dim);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    for (int d = 0; d < dim; ++d) mean[d] += weights[i] * rows[i * dim + d];
    sum += weights[i];
  }
  for (double& m : mean) m /= sum;
  for (size_t i = 0; i < n; ++i) {
    for (int p = 0; p < dim; ++p) {
      for (int q = 0; q < dim; ++q) {
        a[p * dim + q] +=
            weights[i] * (rows[i * dim + p] - mean[p]) * (rows[i * dim + q] - mean[q]);
      }
    }
  }
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (int p = 0; p < dim; ++p) {
      for (int q = p + 1; q < dim; ++q) {
        if (std::fabs(a[p * dim + q]) < 1e-300) continue;
        const double theta = .5 * std::atan2(2 * a[p * dim + q], a[p * dim + p] - a[q * dim + q]);
        const double c = std::cos(theta), s = std::sin(theta);
        for (int k = 0; k < dim; ++k) {
          const double x = a[k * dim + p], y = a[k * dim + q];
          a[k * dim + p] = c * x + s * y, a[k * dim + q] = c * y - s * x;
        }
        for (int k = 0; k < dim; ++k) {
          const double x = a[p * dim + k], y = a[q * dim + k];
          a[p * dim + k] = c * x + s * y, a[q * dim + k] = c * y - s * x;
        }
      }
    }
  }
  std::vector<double> values(dim);
  for (int d = 0; d < dim; ++d) values[d] = a[d * dim + d];
  std::sort(values.rbegin(), values.rend());
  return values;
}

// Weighted squared error of rows projected on the basis.
double ProjectionError(const Rows& rows, int dim, const Pca& pca,
                       const std::vector<double>& weights) {
  double error = 0;
  for (size_t i = 0; i < rows.size() / dim; ++i) {
    std::vector<double> rest(dim);
    for (int d = 0; d < dim; ++d) rest[d] = rows[i * dim + d] - pca.mean[d];
    for (int r = 0; r < pca.rank; ++r) {
      double along = 0;
      for (int d = 0; d < dim; ++d) along += rest[d] * pca.basis[r * dim + d];
      for (int d = 0; d < dim; ++d) rest[d] -= along * pca.basis[r * dim + d];
    }
    for (double x : rest) error += weights[i] * x * x;
  }
  return error;
}

void ExpectOrthonormal(const Pca& pca, int dim) {
  for (int p = 0; p < pca.rank; ++p) {
    for (int q = p; q < pca.rank; ++q) {
      double dot = 0;
      for (int d = 0; d < dim; ++d) dot += pca.basis[p * dim + d] * pca.basis[q * dim + d];
      ASSERT_NEAR(dot, p == q, 1e-6) << p << " " << q;
    }
  }
}

TEST_F(PcaTest, ExactFindsTheSlowReferencesAxesAndTheLeastRankForTheVariance) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (auto [n, dim] : {std::pair<int, int>{200, 16}, {12, 16}, {3, 24}, {64, 1}, {40, 40}}) {
    for (double ratio : {.7, .95, 1.}) {
      const Rows rows = RowsOfRank(n, dim, dim, .8);
      std::vector<double> weights(n, 1);
      for (int i = 0; i < n; i += 3) weights[i] = .25;
      PcaOptions options;
      options.variance_ratio = ratio;
      const Pca pca = ComputePca(rows, dim, weights, options);
      const std::vector<double> want = SlowVariances(rows, dim, weights);
      double total = 0, sum = 0;
      for (double v : want) total += v;
      ASSERT_NEAR(pca.total_variance, total, 1e-9 * total);
      ExpectOrthonormal(pca, dim);
      for (int r = 0; r < pca.rank; ++r) {
        ASSERT_NEAR(pca.variances[r], want[r], 1e-7 * total) << "axis " << r;
        if (r > 0) {
          ASSERT_LE(pca.variances[r], pca.variances[r - 1] * (1 + 1e-9));
        }
        sum += want[r];
      }
      if (ratio < 1) {
        EXPECT_GE(sum, ratio * total * (1 - 1e-6));
        EXPECT_LT(sum - want[pca.rank - 1], ratio * total) << "a lower rank would do";
      }
      ASSERT_NEAR(ProjectionError(rows, dim, pca, weights), total - sum, 1e-6 * total);
    }
  }
}

TEST_F(PcaTest, ACapLimitsTheRank) {
  const Rows rows = RowsOfRank(100, 20, 20, 1);
  PcaOptions options;
  options.rank_cap = 7;
  EXPECT_EQ(ComputePca(rows, 20, {}, options).rank, 7);
  options.randomized = true;
  EXPECT_EQ(ComputePca(rows, 20, {}, options).rank, 7);
}

TEST_F(PcaTest, RowsThatAreAlikeGiveRankOneAndTheirMean) {
  Rows rows(5 * 8, 3.5f);
  const Pca pca = ComputePca(rows, 8, {}, PcaOptions());
  EXPECT_EQ(pca.rank, 1);
  EXPECT_EQ(pca.mean, std::vector<double>(8, 3.5));
  ExpectOrthonormal(pca, 8);
  const Rows one = {1, 2, 3};
  EXPECT_EQ(ComputePca(one, 3, {}, PcaOptions()).mean, (std::vector<double>{1, 2, 3}));
}

TEST_F(PcaTest, RandomizedIsExactOnRankOne) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Rows rows = RowsOfRank(300, 64, 1, 1);
  PcaOptions options;
  options.randomized = true;
  options.rank_cap = 4;
  options.variance_ratio = .9999;
  const Pca pca = ComputePca(rows, 64, {}, options);
  EXPECT_EQ(pca.rank, 1);
  EXPECT_LT(ProjectionError(rows, 64, pca, std::vector<double>(300, 1)), 1e-8 * pca.total_variance);
}

TEST_F(PcaTest, RandomizedFindsASubspaceOfRankFourWithinFiveHundredths) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Rows rows = RowsOfRank(400, 64, 4, .9);
  PcaOptions options;
  options.rank_cap = 4;
  const Pca exact = ComputePca(rows, 64, {}, options);
  for (uint64_t seed : {0, 1, 2}) {
    options.randomized = true;
    options.seed = seed;
    const Pca got = ComputePca(rows, 64, {}, options);
    ASSERT_EQ(got.rank, 4);
    // sin of the largest angle: the most of an axis that the subspace misses.
    for (int r = 0; r < 4; ++r) {
      double inside = 0;
      for (int q = 0; q < 4; ++q) {
        double dot = 0;
        for (int d = 0; d < 64; ++d) dot += exact.basis[r * 64 + d] * got.basis[q * 64 + d];
        inside += dot * dot;
      }
      EXPECT_LT(std::sqrt(std::max(0., 1 - inside)), 5e-2) << "seed " << seed;
    }
  }
}

TEST_F(PcaTest, RandomizedLosesAtMostHalfAsMuchAgainOnADecayingSpectrum) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (double decay : {.7, .85, .95}) {
    const Rows rows = RowsOfRank(512, 64, 64, decay);
    PcaOptions options;
    options.rank_cap = 16;
    const std::vector<double> ones(512, 1);
    const double exact = ProjectionError(rows, 64, ComputePca(rows, 64, {}, options), ones);
    options.randomized = true;
    const double randomized = ProjectionError(rows, 64, ComputePca(rows, 64, {}, options), ones);
    EXPECT_LE(randomized, 1.5 * exact) << "decay " << decay;
    EXPECT_GE(randomized, exact * (1 - 1e-9));
  }
}

TEST_F(PcaTest, TheSameSeedGivesTheSameBasisBitForBit) {
  const Rows rows = RowsOfRank(100, 32, 32, .9);
  PcaOptions options;
  options.randomized = true;
  options.rank_cap = 8;
  options.seed = 7;
  EXPECT_EQ(ComputePca(rows, 32, {}, options).basis, ComputePca(rows, 32, {}, options).basis);
  const auto seven = ComputePca(rows, 32, {}, options).basis;
  options.seed = 8;
  EXPECT_NE(ComputePca(rows, 32, {}, options).basis, seven);
}

// Energy of the rows that no line takes.
double EnergyLeft(const Rows& rows, int dim, const std::vector<float>& centres) {
  double left = 0;
  for (size_t i = 0; i < rows.size() / dim; ++i) {
    double length = 0, most = 0;
    for (int d = 0; d < dim; ++d)
      length += static_cast<double>(rows[i * dim + d]) * rows[i * dim + d];
    for (size_t k = 0; k < centres.size() / dim; ++k) {
      double dot = 0;
      for (int d = 0; d < dim; ++d)
        dot += static_cast<double>(rows[i * dim + d]) * centres[k * dim + d];
      most = std::max(most, dot * dot);
    }
    left += length - most;
  }
  return left;
}

TEST_F(PcaTest, LinesAreFoundWhereRowsLieOnLines) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  std::normal_distribution<float> normal;
  Rows lines(4 * 10), rows;
  for (float& x : lines) x = normal(rng_);
  for (int i = 0; i < 200; ++i) {
    const float along = normal(rng_);  // either way
    for (int d = 0; d < 10; ++d) rows.push_back(along * lines[(i % 4) * 10 + d]);
  }
  double energy = 0;
  for (float x : rows) energy += x * x;
  // Draws may put two first centres on one line; of a few seeds one finds all four.
  double left = energy;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    left = std::min(left, EnergyLeft(rows, 10, FitLines(rows, 10, 4, seed)));
  }
  EXPECT_LT(left, 1e-5 * energy);
}

TEST_F(PcaTest, MoreLinesLeaveLessAndEveryRowGoesToItsNearest) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Rows rows = RowsOfRank(256, 12, 12, .8);
  double last = 1e300;
  for (int k : {1, 4, 16, 64}) {
    const std::vector<float> centres = FitLines(rows, 12, k, 3);
    ASSERT_EQ(centres.size(), static_cast<size_t>(k) * 12);
    for (int c = 0; c < k; ++c) {
      double length = 0;
      for (int d = 0; d < 12; ++d) length += centres[c * 12 + d] * centres[c * 12 + d];
      ASSERT_NEAR(length, 1, 1e-5);
    }
    const double left = EnergyLeft(rows, 12, centres);
    EXPECT_LT(left, last);
    last = left;
    const std::vector<int> nearest = NearestLines(rows, 12, centres);
    for (int i = 0; i < 256; ++i) {
      std::vector<double> energy(k);
      for (int c = 0; c < k; ++c) {
        double dot = 0;
        for (int d = 0; d < 12; ++d)
          dot += static_cast<double>(rows[i * 12 + d]) * centres[c * 12 + d];
        energy[c] = dot * dot;
      }
      const double best = *std::max_element(energy.begin(), energy.end());
      ASSERT_GE(energy[nearest[i]], best * (1 - 1e-4));
    }
  }
  EXPECT_EQ(FitLines(absl::MakeConstSpan(rows).first(3 * 12), 12, 16, 0).size(), 3u * 12);
  const Rows zeros(4 * 12);
  EXPECT_EQ(NearestLines(zeros, 12, FitLines(zeros, 12, 2, 0)).size(), 4u);
}

}  // namespace
}  // namespace kvcask::kakeya
