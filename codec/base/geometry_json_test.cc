#include "codec/base/geometry_json.h"

#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <cmath>

namespace kvcask {
namespace {

Geometry Mixed() {
  Geometry g = UniformGeometry(4, 2, 64, StandardRope(RopeStyle::kRotateHalf, 64, 1e6));
  g.layers[1].kind = LayerKind::kSliding;
  g.layers[1].window = 512;
  g.layers[1].rope = StandardRope(RopeStyle::kInterleaved, 16, 1e4);
  g.layers[1].rope.attention_scale = 1.1f;
  g.layers[2] = LayerGeometry();
  g.layers[2].kind = LayerKind::kShared;
  g.layers[2].shared_with = 1;
  g.layers[3] = LayerGeometry();
  g.layers[3].kind = LayerKind::kLatent;
  g.layers[3].streams = {{StreamKind::kLatent, 1, 576}};
  return g;
}

testing::AssertionResult Refused(const std::string& text, const std::string& why,
                                 absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
  const absl::Status s = GeometryFromJson(text).status();
  if (s.code() != code) return testing::AssertionFailure() << "status " << s;
  if (s.message().find(why) == absl::string_view::npos) {
    return testing::AssertionFailure() << "\"" << s.message() << "\" lacks \"" << why << "\"";
  }
  return testing::AssertionSuccess();
}

std::string WithRope(const std::string& rope) {
  return R"({"layers":[{"streams":[{"kind":"k","heads":1,"head_dim":8},)"
         R"({"kind":"v","heads":1,"head_dim":8}],"rope":)" +
         rope + "}]}";
}

TEST(GeometryJsonTest, WhatIsWrittenIsReadBackTheSame) {
  for (const Geometry& g : {Mixed(), UniformGeometry(30, 3, 64, Rope())}) {
    const std::string text = GeometryToJson(g);
    const auto back = GeometryFromJson(text);
    ASSERT_TRUE(back.ok()) << back.status() << text;
    EXPECT_EQ(back->ComputeFingerprint(), g.ComputeFingerprint());
    EXPECT_EQ(GeometryToJson(*back), text);
  }
}

TEST(GeometryJsonTest, ThetaMeansTheTextbookFrequencies) {
  const auto g = GeometryFromJson(WithRope(R"({"style":"rotate_half","dims":8,"theta":1e4})"));
  ASSERT_TRUE(g.ok()) << g.status();
  EXPECT_EQ(g->layers[0].rope.inv_freq, StandardRope(RopeStyle::kRotateHalf, 8, 1e4).inv_freq);
  EXPECT_FLOAT_EQ(g->layers[0].rope.inv_freq[3], std::pow(1e4, -0.75));
}

TEST(GeometryJsonTest, ScalingsWhoseFrequenciesChangeAreRefusedByName) {
  const auto code = absl::StatusCode::kUnimplemented;
  const std::string begin = R"({"style":"rotate_half","dims":2,"inv_freq":[1],"scaling":")";
  EXPECT_TRUE(Refused(WithRope(begin + "longrope\"}"), "LongRoPE", code));
  EXPECT_TRUE(Refused(WithRope(begin + "dynamic\"}"), "dynamic NTK", code));
  EXPECT_TRUE(Refused(WithRope(begin + "mrope\"}"), "mRoPE", code));
  EXPECT_TRUE(Refused(WithRope(begin + "magic\"}"), "\"magic\"; expected"));
  EXPECT_TRUE(GeometryFromJson(WithRope(begin + "yarn\",\"attention_scale\":1.2}")).ok());
  EXPECT_TRUE(Refused(WithRope(R"({"style":"rotate_half","dims":8,"theta":1e4,)"
                               R"("scaling":"llama3"})"),
                      "needs inv_freq"));
}

TEST(GeometryJsonTest, WhatIsNotUnderstoodIsRefused) {
  EXPECT_TRUE(Refused("", "not JSON"));
  EXPECT_TRUE(Refused("[]", "expected an object"));
  EXPECT_TRUE(Refused("{}", "0 layers"));
  EXPECT_TRUE(Refused(R"({"layers":[{}],"layer":1})", "unknown key \"layer\""));
  EXPECT_TRUE(Refused(R"({"layers":[{"kindd":"full"}]})", "layers[0]: unknown key \"kindd\""));
  EXPECT_TRUE(Refused(R"({"layers":[{"kind":"fool"}]})", "\"fool\"; expected full, sliding"));
  EXPECT_TRUE(Refused(R"({"layers":[{"repeat":2000}]})", "expected a whole number"));
  EXPECT_TRUE(Refused(R"({"layers":[{"repeat":0}]})", "repeat 0"));
  EXPECT_TRUE(Refused(R"({"layers":[{"window":-1}]})", "layers[0].window"));
  EXPECT_TRUE(
      Refused(WithRope(R"({"style":"rotate_half","dims":2,"inv_freq":[1e300]})"), "within fp32"));
  EXPECT_TRUE(
      Refused(WithRope(R"({"style":"rotate_half","dims":2,"inv_freq":["1"]})"), "within fp32"));
  EXPECT_TRUE(Refused(WithRope(R"({"style":"rotate_half","dims":2,"theta":0})"), "theta"));
  EXPECT_TRUE(Refused(WithRope(R"({"style":"rotate_half","dims":2,"theta":2,"inv_freq":[1]})"),
                      "both theta and inv_freq"));
  EXPECT_TRUE(Refused(WithRope(R"({"style":"rotate_half","dims":10,"theta":2})"), "dims 10"));
  EXPECT_TRUE(Refused(std::string(1000, '['), "nested deeper"));
  EXPECT_TRUE(Refused(std::string(kMaxGeometryJsonBytes + 1, ' '), "expected at most"));
}

std::map<std::string, std::string> Plain() {
  return {{"model", "m"},
          {"layers", "24"},
          {"kv_heads", "2"},
          {"q_heads", "14"},
          {"head_dim", "64"},
          {"tokens", "512"},
          {"rope", "rotate_half"},
          {"rope_theta", "1000000.0"},
          {"rope_dim", "64"},
          {"first_position", "5"},
          {"layout", "[kv_head][token][head_dim]"},
          {"dtype", "bf16"}};
}

TEST(CacheMetadataTest, PlainKeysDescribeAUniformModel) {
  const auto cache = ParseCacheMetadata(Plain());
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(cache->tokens, 512);
  EXPECT_EQ(cache->first_position, 5);
  const Geometry g = UniformGeometry(24, 2, 64, StandardRope(RopeStyle::kRotateHalf, 64, 1e6));
  EXPECT_EQ(cache->geometry.ComputeFingerprint(), g.ComputeFingerprint());
  const auto written = MakeCacheMetadata(*cache);
  for (const auto& [key, value] : Plain()) {
    if (key == "q_heads") continue;  // of no use for a cache
    EXPECT_EQ(written.at(key), value) << key;
  }
  const auto again = ParseCacheMetadata(written);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->geometry.ComputeFingerprint(), g.ComputeFingerprint());
}

TEST(CacheMetadataTest, LayersThatDifferTravelAsGeometry) {
  CacheMetadata cache;
  cache.model = "m";
  cache.geometry = Mixed();
  cache.dtype = Dtype::kF16;
  cache.tokens = 3;
  const auto written = MakeCacheMetadata(cache);
  EXPECT_EQ(written.count("kv_heads"), 0u);
  const auto back = ParseCacheMetadata(written);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->dtype, Dtype::kF16);
  EXPECT_EQ(back->geometry.ComputeFingerprint(), Mixed().ComputeFingerprint());
}

TEST(CacheMetadataTest, EveryWrongKeyIsNamed) {
  for (const auto& [key, value] :
       std::map<std::string, std::string>{{"layers", "0"},
                                          {"layers", "x"},
                                          {"kv_heads", "1025"},
                                          {"head_dim", "-1"},
                                          {"tokens", "1e9"},
                                          {"rope", "sideways"},
                                          {"rope_theta", "nan"},
                                          {"rope_dim", "65"},
                                          {"first_position", "4294967295"},
                                          {"layout", "[token]"},
                                          {"dtype", "f8"},
                                          {"rope_scaling", "weird"},
                                          {"geometry", "{"}}) {
    auto metadata = Plain();
    metadata[key] = value;
    const absl::Status s = ParseCacheMetadata(metadata).status();
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << key;
    const std::string named = key == "rope_scaling" ? "RoPE scaling" : key;
    EXPECT_NE(s.message().find(named), absl::string_view::npos) << s;
  }
  auto metadata = Plain();
  metadata["rope_scaling"] = "longrope";
  EXPECT_EQ(ParseCacheMetadata(metadata).status().code(), absl::StatusCode::kUnimplemented);
  metadata = Plain();
  metadata.erase("tokens");
  EXPECT_NE(ParseCacheMetadata(metadata).status().message().find("no tokens"),
            absl::string_view::npos);
}

}  // namespace
}  // namespace kvcask
