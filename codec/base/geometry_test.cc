#include "codec/base/geometry.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace kvcask {
namespace {

Geometry Llama() {
  return UniformGeometry(4, 2, 64, StandardRope(RopeStyle::kRotateHalf, 64, 1e4));
}

testing::AssertionResult RefusedWith(const Geometry& g, const std::string& text) {
  const absl::Status s = g.Validate();
  if (s.code() != absl::StatusCode::kInvalidArgument) {
    return testing::AssertionFailure() << "status " << s;
  }
  if (s.message().find(text) == absl::string_view::npos) {
    return testing::AssertionFailure() << "\"" << s.message() << "\" lacks \"" << text << "\"";
  }
  return testing::AssertionSuccess();
}

TEST(GeometryTest, EveryNumberOutsideItsLimitsIsNamed) {
  EXPECT_TRUE(Llama().Validate().ok());
  EXPECT_TRUE(RefusedWith(Geometry(), "0 layers; expected 1 to 1024"));
  Geometry g = Llama();
  g.layers.resize(1025, g.layers[0]);
  EXPECT_TRUE(RefusedWith(g, "1025 layers"));
  g = Llama(), g.layers[2].streams[0].heads = 0;
  EXPECT_TRUE(RefusedWith(g, "layer 2: 0 heads"));
  g = Llama(), g.layers[2].streams[1].heads = 1025;
  EXPECT_TRUE(RefusedWith(g, "layer 2: 1025 heads"));
  g = Llama(), g.layers[1].streams[1].head_dim = 4097;
  EXPECT_TRUE(RefusedWith(g, "layer 1: head_dim 4097"));
  g = UniformGeometry(1, 1024, 4096, Rope());
  EXPECT_TRUE(RefusedWith(g, "layer 0: 8388608 elements a token"));
  g = Llama(), std::swap(g.layers[3].streams[0], g.layers[3].streams[1]);
  EXPECT_TRUE(RefusedWith(g, "layer 3: 2 streams; expected K then V"));
  g = Llama(), g.layers[0].window = 5;
  EXPECT_TRUE(RefusedWith(g, "layer 0: window 5"));
  g = Llama(), g.layers[0].kind = LayerKind::kSliding;
  EXPECT_TRUE(RefusedWith(g, "layer 0: window 0; expected at least 1"));
  g = Llama(), g.layers[0].kind = static_cast<LayerKind>(9);
  EXPECT_TRUE(RefusedWith(g, "unknown layer kind 9"));
}

TEST(GeometryTest, RopeThatDoesNotFitTheKeysIsRefused) {
  Geometry g = Llama();
  g.layers[1].rope.dims = 66;
  EXPECT_TRUE(RefusedWith(g, "layer 1: rope dims 66"));
  g = Llama(), g.layers[1].rope.dims = 63;
  EXPECT_TRUE(RefusedWith(g, "rope dims 63"));
  g = Llama(), g.layers[1].rope.inv_freq.pop_back();
  EXPECT_TRUE(RefusedWith(g, "31 inverse frequencies; expected rope dims / 2 = 32"));
  g = Llama(), g.layers[1].rope.inv_freq[7] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(RefusedWith(g, "inverse frequency 7 is inf"));
  g = Llama(), g.layers[1].rope.attention_scale = 0;
  EXPECT_TRUE(RefusedWith(g, "attention scale 0"));
  g = Llama(), g.layers[1].rope.attention_scale = std::nanf("");
  EXPECT_TRUE(RefusedWith(g, "attention scale nan"));
  g = Llama(), g.layers[1].rope.style = RopeStyle::kNone;
  EXPECT_TRUE(RefusedWith(g, "rope style none with dims 64"));
}

TEST(GeometryTest, SharedAndLatentLayersHaveTheirOwnForms) {
  Geometry g = Llama();
  g.layers[2] = LayerGeometry();
  g.layers[2].kind = LayerKind::kShared;
  g.layers[2].shared_with = 1;
  EXPECT_TRUE(g.Validate().ok()) << g.Validate();
  g.layers[3] = g.layers[2];
  g.layers[3].shared_with = 2;
  EXPECT_TRUE(RefusedWith(g, "layer 3: shared with layer 2, which is shared itself"));
  g.layers[3].shared_with = 3;
  EXPECT_TRUE(RefusedWith(g, "layer 3: shared with layer 3; expected an earlier layer"));
  g.layers[3] = LayerGeometry();
  g.layers[3].kind = LayerKind::kLatent;
  g.layers[3].streams = {{StreamKind::kLatent, 1, 576}};
  EXPECT_TRUE(g.Validate().ok()) << g.Validate();
  EXPECT_EQ(g.ElementsPerToken(), 2 * 256 + 576);
  EXPECT_EQ(g.ElementsPerToken(2, 4), 576);
}

TEST(GeometryTest, TheFingerprintIsTheSameForever) {
  // Computed by an independent script from the description in codec/format/FORMAT.md:
  // a value that changes means that stored chunks are orphaned.
  Geometry g = UniformGeometry(2, 3, 4, Rope());
  g.layers[1].rope.style = RopeStyle::kInterleaved;
  g.layers[1].rope.dims = 4;
  g.layers[1].rope.inv_freq = {1, 0.5};
  g.layers[1].rope.attention_scale = 1.25;
  ASSERT_TRUE(g.Validate().ok());
  EXPECT_EQ(ToHex(g.ComputeFingerprint()),
            "d1b7ac94a4a3e21b48d1362310d0738e592b492af627837d974f7466383da383");
}

TEST(GeometryTest, EveryNumberChangesTheFingerprint) {
  const Fingerprint before = Llama().ComputeFingerprint();
  EXPECT_EQ(before, Llama().ComputeFingerprint());
  Geometry g = Llama();
  g.layers[3].rope.inv_freq[31] = std::nextafter(g.layers[3].rope.inv_freq[31], 1.f);
  EXPECT_NE(before, g.ComputeFingerprint());
  g = Llama(), g.layers[0].streams[1].heads = 3;
  EXPECT_NE(before, g.ComputeFingerprint());
  g = Llama(), g.layers[0].rope.style = RopeStyle::kInterleaved;
  EXPECT_NE(before, g.ComputeFingerprint());
  g = Llama(), g.layers[0].kind = LayerKind::kSliding, g.layers[0].window = 512;
  EXPECT_NE(before, g.ComputeFingerprint());
  g = Llama(), g.layers.pop_back();
  EXPECT_NE(before, g.ComputeFingerprint());
}

TEST(GeometryTest, ADifferenceIsDescribedByItsFirstNumber) {
  const auto describe = [](const Geometry& g) {
    const std::string text = DescribeGeometryDifference(g, Llama(), "A", "B");
    EXPECT_EQ(text.empty(), g.ComputeFingerprint() == Llama().ComputeFingerprint());
    return text;
  };
  EXPECT_EQ(describe(Llama()), "");
  Geometry g = Llama();
  g.layers.pop_back();
  EXPECT_EQ(describe(g), "layers: 3 in A, 4 in B");
  g = Llama(), g.layers[3].streams[1].head_dim = 32;
  EXPECT_EQ(describe(g), "layer 3: stream 1 head_dim 32 in A, 64 in B");
  g = Llama(), g.layers[2].rope.inv_freq[0] = 2;
  EXPECT_EQ(describe(g), "layer 2: inverse frequency 0 2 in A, 1 in B");
  g = Llama(), g.layers[2].kind = LayerKind::kChunked, g.layers[2].window = 9;
  EXPECT_EQ(describe(g), "layer 2: kind 3 in A, 1 in B");
}

TEST(SliceGeometryTest, TakesLayersAndHeadsOfTheShard) {
  Geometry model = UniformGeometry(6, 8, 64, StandardRope(RopeStyle::kRotateHalf, 32, 1e4));
  model.layers[5] = LayerGeometry();
  model.layers[5].kind = LayerKind::kShared;
  model.layers[5].shared_with = 3;
  const auto g = SliceGeometry(model, {1, 2, 2, 6, 4, 8});
  ASSERT_TRUE(g.ok()) << g.status();
  ASSERT_EQ(g->layers.size(), 4u);
  EXPECT_EQ(g->layers[0].streams[0].heads, 4);
  EXPECT_EQ(g->layers[3].shared_with, 1);
  EXPECT_TRUE(g->Validate().ok());
  EXPECT_FALSE(SliceGeometry(model, {1, 2, 4, 6, 4, 8}).ok()) << "cut from its source";
  for (ShardRange bad : {ShardRange{0, 0, 0, 6, 0, 8},
                         {2, 2, 0, 6, 0, 8},
                         {0, 1, 0, 7, 0, 8},
                         {0, 1, 3, 3, 0, 8},
                         {0, 1, 0, 6, 0, 9},
                         {0, 1, 0, 6, -1, 8}}) {
    EXPECT_EQ(SliceGeometry(model, bad).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(SliceGeometryTest, AllHeadsMeansAllOfEveryLayerHoweverMany) {
  Geometry model = UniformGeometry(2, 8, 64, Rope());
  model.layers[1].streams[0].heads = model.layers[1].streams[1].heads = 2;
  const auto g = SliceGeometry(model, {0, 1, 0, 2, 0, 8});
  ASSERT_TRUE(g.ok()) << g.status();
  EXPECT_EQ(g->layers[1].streams[0].heads, 2);
  EXPECT_EQ(g->ComputeFingerprint(), model.ComputeFingerprint());
  EXPECT_FALSE(SliceGeometry(model, {1, 2, 0, 2, 4, 8}).ok());
}

}  // namespace
}  // namespace kvcask
