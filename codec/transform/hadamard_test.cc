#include "codec/transform/hadamard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace kvcask {
namespace {

// Entry (i, j) of the matrix: (-1)^(number of common bits).
double Entry(size_t i, size_t j) { return __builtin_popcountll(i & j) % 2 ? -1 : 1; }

TEST(HadamardTest, IsTheMatrixOfSignsInEachBlock) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, 1);
  for (size_t n : {1, 2, 3, 7, 8, 16, 31, 40, 64, 80, 96, 128, 192, 576, 4096}) {
    std::vector<float> x(n);
    for (float& v : x) v = normal(rng);
    std::vector<float> y = x;
    Hadamard({}, y.data(), n);
    size_t at = 0;
    for (size_t block : HadamardBlocks(n)) {
      for (size_t i = 0; i < block; i += block > 256 ? 61 : 1) {
        double want = 0;
        for (size_t j = 0; j < block; ++j) want += Entry(i, j) * x[at + j];
        ASSERT_NEAR(y[at + i], want, 1e-4 * std::sqrt(block)) << n << " " << at + i;
      }
      at += block;
    }
    ASSERT_EQ(at, n);
  }
}

TEST(HadamardTest, TheInverseGivesBackWhatWasTurned) {
  for (size_t n : {1, 5, 24, 64, 128, 200}) {
    const std::vector<float> signs = HadamardSigns(n);
    std::vector<float> x(n);
    for (size_t i = 0; i < n; ++i) x[i] = static_cast<float>(i % 7) - 3;
    std::vector<float> y = x;
    Hadamard(signs, y.data(), n);
    InverseHadamard(signs, y.data(), n);
    size_t at = 0;
    for (size_t block : HadamardBlocks(n)) {
      for (size_t end = at + block; at < end; ++at) ASSERT_EQ(y[at], x[at] * block);
    }
  }
}

TEST(HadamardTest, SignsAreFrozenAndBalanced) {
  const std::vector<float> signs = HadamardSigns(4096);
  const std::string first = [&] {
    std::string s;
    for (int i = 0; i < 32; ++i) s += signs[i] < 0 ? '-' : '+';
    return s;
  }();
  EXPECT_EQ(first, "-++-+++-+-+-----+-+----+--++---+") << "frozen in the file format";
  double sum = 0;
  for (float s : signs) sum += s;
  EXPECT_LT(std::fabs(sum), 4 * 64);
}

TEST(HadamardTest, SumOfSquaresIsTheStatedSum) {
  std::mt19937 rng(5);
  std::normal_distribution<float> normal(0, 1);
  for (size_t n : {0, 1, 15, 16, 17, 64, 100, 128}) {
    std::vector<float> x(n);
    for (float& v : x) v = normal(rng);
    float s[16] = {};
    for (size_t i = 0; i < n; ++i) s[i % 16] += x[i] * x[i];
    for (int step = 8; step > 0; step /= 2) {
      for (int j = 0; j < step; ++j) s[j] += s[j + step];
    }
    EXPECT_EQ(SumOfSquares(x.data(), n), s[0]);
  }
}

}  // namespace
}  // namespace kvcask
