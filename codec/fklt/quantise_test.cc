#include "codec/fklt/quantise.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace kvcask::fklt {
namespace {

// A tile of 124 tokens, as the first page's less its sinks, ends within a vector: what stands
// behind it, in arrays that nobody clears, is no part of the row.
TEST(QuantiseTest, WhatStandsBehindTheLastPlaceChangesNothing) {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal;
  std::vector<float> centroids(kClasses * 4);
  for (size_t i = 0; i < centroids.size(); ++i) centroids[i] = static_cast<float>(i % 4) + .01f;
  for (int count : {1, 7, 8, 9, 100, 121, 124, 127, 128}) {
    for (float behind : {0.0f, std::numeric_limits<float>::infinity(),
                         std::numeric_limits<float>::quiet_NaN(), -3e38f}) {
      SCOPED_TRACE(testing::Message() << count << " places, " << behind << " behind them");
      PlaceScales scales;
      alignas(64) float y[kMaxTokens];
      for (int p = 0; p < kMaxTokens; ++p) {
        const bool here = p < count;
        y[p] = here ? normal(rng) : behind;
        scales.step[p] = here ? .25f : behind;
        scales.inverse_step[p] = here ? 4.0f : behind;
        scales.terms[p] = here ? 0 : std::numeric_limits<int16_t>::min();
      }
      uint8_t classes[2][kMaxTokens + 64] = {};
      int16_t symbols[2][kMaxTokens + 64] = {};
      alignas(64) float error[2][kMaxTokens] = {};
      for (int i = 0; i < 2; ++i) {
        EXPECT_TRUE(QuantiseRow(5, y, count, .5f, centroids.data(), scales, classes[i],
                                symbols[i], error[i],
                                i == 0 ? RansPath::kPortable : RansPath::kBest));
      }
      EXPECT_EQ(std::memcmp(classes[0], classes[1], count), 0);
      EXPECT_EQ(std::memcmp(symbols[0], symbols[1], count * sizeof(int16_t)), 0);
      EXPECT_EQ(std::memcmp(error[0], error[1], count * sizeof(float)), 0);
    }
  }
}

TEST(QuantiseTest, ANumberThatNoSymbolHoldsIsRefusedAtAnyPlace) {
  const std::vector<float> centroids(kClasses * 4, 1);
  for (int at : {0, 8, 123}) {
    for (float bad : {1e9f, std::numeric_limits<float>::quiet_NaN()}) {
      PlaceScales scales;
      alignas(64) float y[kMaxTokens] = {}, error[kMaxTokens] = {};
      for (int p = 0; p < kMaxTokens; ++p) {
        scales.step[p] = scales.inverse_step[p] = 1;
        scales.terms[p] = 0;
      }
      y[at] = bad;
      uint8_t classes[kMaxTokens + 64];
      int16_t symbols[kMaxTokens + 64];
      for (RansPath path : {RansPath::kPortable, RansPath::kBest}) {
        EXPECT_FALSE(QuantiseRow(5, y, 124, .5f, centroids.data(), scales, classes, symbols,
                                 error, path));
        EXPECT_TRUE(QuantiseRow(5, y, at, .5f, centroids.data(), scales, classes, symbols, error,
                                path));
      }
    }
  }
}

}  // namespace
}  // namespace kvcask::fklt
