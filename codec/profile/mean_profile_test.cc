#include "codec/profile/mean_profile.h"

#include <absl/strings/match.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "codec/profile/means.h"
#include "codec/profile/profile.h"
#include "codec/testing/test_cache.h"
#include "codec/transform/rope.h"

namespace kvcask {
namespace {

Geometry Model() {
  Geometry g = UniformGeometry(4, 2, 16, StandardRope(RopeStyle::kRotateHalf, 16, 1e4));
  g.layers[1].rope = StandardRope(RopeStyle::kInterleaved, 8, 500);
  g.layers[2].rope = Rope();
  g.layers[3] = LayerGeometry();
  g.layers[3].kind = LayerKind::kLatent;
  g.layers[3].streams = {{StreamKind::kLatent, 1, 24}};
  return g;
}

float Bias(int plane, int head, int d) {
  return static_cast<float>(20 * std::sin(1 + plane * 7 + head * 3 + d));
}

// Keys of a bias in every channel and some noise, turned to their positions as engines hold them.
// The first four positions are far off.
void Fill(const Geometry& g, int tokens, uint32_t first, std::mt19937& rng, TestCache* cache) {
  std::normal_distribution<float> noise;
  for (int p = 0; p < cache->planes(); ++p) {
    const Rope& rope = g.layers[p / 2].rope;
    for (int h = 0; h < cache->heads(p); ++h) {
      for (int t = 0; t < tokens; ++t) {
        std::vector<float> row(cache->head_dim(p));
        for (int d = 0; d < cache->head_dim(p); ++d) {
          row[d] = Bias(p, h, d) + noise(rng) + (first + t < 4 ? 1e4f : 0);
        }
        if (p % 2 == 0 && rope.style != RopeStyle::kNone) {
          const uint32_t position = first + t;
          ApplyRope(rope, MakeRopeTable(rope, {&position, 1}, 0, RopeDirection::kRotate), 1,
                    cache->head_dim(p), row.data());
        }
        for (int d = 0; d < cache->head_dim(p); ++d) cache->Set(p, h, t, d, row[d]);
      }
    }
  }
}

TEST(MeanProfileTest, FindsTheBiasOfUnrotatedKeysAndOfValuesWithoutTheSinks) {
  const Geometry g = Model();
  std::mt19937 rng(3);
  MeanProfileMaker maker(g);
  for (const auto& [tokens, first] : {std::pair<int, uint32_t>{300, 0}, {200, 7000}, {3, 0}}) {
    TestCache cache(g, 0, 4, tokens, Dtype::kF32, Layout::kPagedNhd);
    Fill(g, tokens, first, rng, &cache);
    ASSERT_TRUE(maker.Add(cache.const_view(), tokens, first).ok());
  }
  EXPECT_EQ(maker.tokens(), 296 + 200);
  auto file = maker.Build("means", "a model");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto profile = Profile::Parse(*std::move(file));
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ((*profile)->codec(), "int8");
  EXPECT_EQ((*profile)->metadata().at("means.tokens"), "496");
  CodecSpec spec;
  spec.model = g;
  spec.shard = {0, 1, 0, 4, 0, 2};
  spec.profile = *profile;
  const auto means = ReadMeans(spec, g);
  ASSERT_TRUE(means.ok()) << means.status();
  ASSERT_EQ(means->size(), 7u);
  for (int p = 0; p < 6; ++p) {
    ASSERT_EQ((*means)[p].size(), 32u);
    for (int i = 0; i < 32; ++i) {
      // 496 draws of deviation 1: six sigma.
      EXPECT_NEAR((*means)[p][i], Bias(p, i / 16, i % 16), .27) << p << " " << i;
    }
  }
  EXPECT_TRUE((*means)[6].empty()) << "latent";
}

TEST(MeanProfileTest, WhatCannotBeCountedIsRefusedWhole) {
  const Geometry g = Model();
  std::mt19937 rng(3);
  MeanProfileMaker maker(g);
  const auto refused = [&](const absl::Status& s, const char* text) {
    EXPECT_FALSE(s.ok());
    EXPECT_TRUE(absl::StrContains(s.message(), text)) << s;
    EXPECT_EQ(maker.tokens(), 0);
  };
  TestCache cache(g, 0, 4, 200, Dtype::kBf16, Layout::kContiguous);
  cache.FillRandom(rng);
  refused(maker.Build("n", "m").status(), "no token beyond position 3");
  refused(maker.Add(cache.const_view(), 200, (int64_t{1} << 32) - 100), "positions end at 2^32");
  ConstKvView cut = cache.const_view();
  cut.planes = cut.planes.first(4);
  refused(maker.Add(cut, 200, 0), "4 planes; expected 7");
  cache.Set(3, 1, 150, 2, NAN);
  refused(maker.Add(cache.const_view(), 200, 0), "layer 1 V head 1 token 150");
  ASSERT_TRUE(maker.Add(cache.const_view(), 4, 0).ok());
  EXPECT_EQ(maker.tokens(), 0) << "sinks alone";
}

}  // namespace
}  // namespace kvcask
