#include "codec/kakeya/frequent_directions.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "codec/kakeya/section.h"

namespace kvcask::kakeya {
namespace {

class FrequentDirectionsTest : public testing::Test {
 protected:
  FrequentDirectionsTest() : seed_(std::random_device{}()), rng_(seed_) {}
  // n rows about a mean, falling variance along random directions.
  std::vector<float> Rows(int n, int dim, float decay) {
    std::normal_distribution<float> normal;
    std::vector<float> mix(dim * dim), mean(dim), rows;
    for (float& x : mix) x = normal(rng_);
    for (float& x : mean) x = 10 * normal(rng_);
    for (int i = 0; i < n; ++i) {
      std::vector<float> row = mean;
      for (int k = 0; k < dim; ++k) {
        const float along = normal(rng_) * std::pow(decay, static_cast<float>(k));
        for (int d = 0; d < dim; ++d) row[d] += along * mix[k * dim + d];
      }
      rows.insert(rows.end(), row.begin(), row.end());
    }
    return rows;
  }
  const uint32_t seed_;
  std::mt19937 rng_;
};

// |A v|^2 by the centred rows themselves, in double.
double SlowSquares(const std::vector<float>& rows, int dim, const std::vector<double>& v) {
  const size_t n = rows.size() / dim;
  std::vector<double> mean(dim);
  for (size_t i = 0; i < rows.size(); ++i) mean[i % dim] += rows[i] / static_cast<double>(n);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    double along = 0;
    for (int d = 0; d < dim; ++d) along += (rows[i * dim + d] - mean[d]) * v[d];
    sum += along * along;
  }
  return sum;
}

TEST_F(FrequentDirectionsTest, TheSketchIsWithinItsBoundInEveryDirection) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (int sketch_rows : {8, 16, 30}) {
    const int dim = 24;
    const auto rows = Rows(700, dim, .9f);
    FrequentDirections fd(dim, sketch_rows);
    for (int i = 0; i < 700; ++i) fd.Append({&rows[i * dim], static_cast<size_t>(dim)});
    double total = 0;
    for (int d = 0; d < dim; ++d) {
      std::vector<double> axis(dim);
      axis[d] = 1;
      total += SlowSquares(rows, dim, axis);
    }
    EXPECT_NEAR(fd.squares(), total, 1e-6 * total);
    std::normal_distribution<double> normal;
    double worst = 0;
    for (int round = 0; round < 200; ++round) {
      std::vector<double> v(dim);
      double length = 0;
      for (double& x : v) x = normal(rng_), length += x * x;
      for (double& x : v) x /= std::sqrt(length);
      if (round == 0) {  // the direction that has the most
        PcaOptions one;
        one.rank_cap = 1;
        v = ComputePca(rows, dim, {}, one).basis;
      }
      double kept = 0;
      for (int r = 0; r < sketch_rows; ++r) {
        double along = 0;
        for (int d = 0; d < dim; ++d) along += fd.sketch()[r * dim + d] * v[d];
        kept += along * along;
      }
      const double lost = SlowSquares(rows, dim, v) - kept;
      ASSERT_GE(lost, -1e-6 * total);
      ASSERT_LE(lost, total / (sketch_rows / 2));
      worst = std::max(worst, lost);
    }
    if (sketch_rows == 8) {
      EXPECT_GT(worst, 0) << "a small sketch does give something up";
    }
  }
}

TEST_F(FrequentDirectionsTest, ASketchOfMoreRowsThanDimensionsLosesNothing) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const auto rows = Rows(500, 12, .9f);
  FrequentDirections fd(12, 26);
  for (int i = 0; i < 500; ++i) fd.Append({&rows[i * 12], 12});
  const Pca sketched = fd.Basis(PcaOptions()), exact = ComputePca(rows, 12, {}, PcaOptions());
  for (int r = 0; r < 12; ++r) {
    EXPECT_NEAR(sketched.variances[r], exact.variances[r], 1e-6 * exact.total_variance);
    EXPECT_NEAR(sketched.mean[r], exact.mean[r], 1e-6 * (1 + std::fabs(exact.mean[r])));
  }
}

TEST_F(FrequentDirectionsTest, TheStateOfAStreamIsBoundedAndItsHotTailIsExact) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const int dim = 16, n = 4000;
  const auto rows = Rows(n, dim, .8f);
  StreamingEncoder::Options options;
  options.params.bits = 3;
  std::vector<std::vector<uint8_t>> sections;
  StreamingEncoder encoder(dim, options, [&](std::vector<uint8_t> s) {
    sections.push_back(std::move(s));
    return absl::OkStatus();
  });
  size_t most = 0;
  for (int i = 0; i < n; ++i) {
    ASSERT_TRUE(encoder.Append({&rows[i * dim], static_cast<size_t>(dim)}).ok());
    most = std::max(most, encoder.state_bytes());
  }
  const size_t sketch = (2 * dim + 2 + 1) * dim * sizeof(double);
  EXPECT_LE(most, sketch + 1024 * dim * sizeof(float)) << "whatever the length";
  // 512 rows at least stay as they were: blocks sealed at 1,024, 1,536, ... rows.
  ASSERT_EQ(sections.size(), static_cast<size_t>((n - 512) / 512));
  const auto hot = encoder.HotRows();
  ASSERT_EQ(hot, std::vector<float>(rows.begin() + sections.size() * 512 * dim, rows.end()));
  EXPECT_GE(hot.size() / dim, 512u);
  // Against blocks coded with bases of their own, by exact PCA.
  double stream_error = 0, block_error = 0;
  for (size_t b = 0; b < sections.size(); ++b) {
    const std::vector<float> block(rows.begin() + b * 512 * dim,
                                   rows.begin() + (b + 1) * 512 * dim);
    auto view = SectionView::Parse(sections[b], 512, dim, nullptr);
    ASSERT_TRUE(view.ok()) << view.status();
    std::vector<float> streamed(block.size()), own(block.size());
    ASSERT_TRUE(view->DecodeRows(0, 512, streamed.data()).ok());
    std::vector<uint8_t> section;
    ASSERT_TRUE(EncodeSection(block, dim, options.params, {}, &section).ok());
    auto other = SectionView::Parse(section, 512, dim, nullptr);
    ASSERT_TRUE(other->DecodeRows(0, 512, own.data()).ok());
    for (size_t i = 0; i < block.size(); ++i) {
      stream_error += std::pow(streamed[i] - block[i], 2);
      block_error += std::pow(own[i] - block[i], 2);
    }
  }
  std::printf("streaming error %.3f times that of a PCA of each block\n",
              stream_error / block_error);
  EXPECT_LT(stream_error, 1.3 * block_error);
}

TEST_F(FrequentDirectionsTest, ASinkThatFailsStopsTheStream) {
  const auto rows = Rows(1024, 4, .9f);
  StreamingEncoder encoder(4, {},
                           [](std::vector<uint8_t>) { return absl::UnavailableError("full"); });
  absl::Status s;
  int appended = 0;
  for (; appended < 1024 && s.ok(); ++appended) s = encoder.Append({&rows[appended * 4], 4});
  EXPECT_EQ(appended, 1024);
  EXPECT_EQ(s.code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace kvcask::kakeya
