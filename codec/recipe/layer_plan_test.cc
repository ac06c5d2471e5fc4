#include "codec/recipe/layer_plan.h"

#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>

namespace kvcask {
namespace {

std::string ReadFile(const std::string& name) {
  std::ifstream file(absl::StrCat("codec/recipe/testdata/configs/", name, ".json"));
  return {std::istreambuf_iterator<char>(file), {}};
}

// Extracts of the families' own config.json: every rule of layer_plan.h has one.
TEST(LayerPlanTest, FollowsTheConfigsOfRealFamilies) {
  const std::pair<const char*, const char*> cases[] = {
      {"smollm2-135m", "30 full (K 3 x 64, V 3 x 64)"},
      {"smollm2-1.7b", "24 full (K 32 x 64, V 32 x 64)"},
      {"llama-3.1-8b", "32 full (K 8 x 128, V 8 x 128)"},
      {"mistral-7b-v0.1", "32 sliding 4096 (K 8 x 128, V 8 x 128)"},
      {"qwen2.5-0.5b", "24 full (K 2 x 64, V 2 x 64)"},
      {"deepseek-r1-distill-qwen-1.5b", "28 full (K 2 x 128, V 2 x 128)"},
      {"qwen3-0.6b", "28 full (K 8 x 128, V 8 x 128)"},
      {"qwen3-235b-a22b", "94 full (K 4 x 128, V 4 x 128)"},
      {"gemma-2-2b", "13 sliding 4096 (K 4 x 256, V 4 x 256); 13 full (K 4 x 256, V 4 x 256)"},
      {"gemma-3-270m", "15 sliding 512 (K 1 x 256, V 1 x 256); 3 full (K 1 x 256, V 1 x 256)"},
      {"gemma-3-27b",
       "52 sliding 1024 (K 16 x 128, V 16 x 128); 10 full (K 16 x 128, V 16 x 128)"},
      {"gemma-3n-e2b",
       "16 sliding 512 (K 2 x 256, V 2 x 256); 4 full (K 2 x 256, V 2 x 256); 10 shared"},
      {"gemma-4-e2b",
       "12 sliding 512 (K 1 x 256, V 1 x 256); 3 full (K 1 x 512, V 1 x 512); 20 shared"},
      {"cohere2-r7b", "24 sliding 4096 (K 8 x 128, V 8 x 128); 8 full (K 8 x 128, V 8 x 128)"},
      {"smollm3-3b", "36 full (K 4 x 128, V 4 x 128)"},
      {"llama-4-scout", "36 chunked 8192 (K 8 x 128, V 8 x 128); 12 full (K 8 x 128, V 8 x 128)"},
      {"gpt-oss-20b", "12 sliding 128 (K 8 x 64, V 8 x 64); 12 full (K 8 x 64, V 8 x 64)"},
      {"deepseek-v3.1", "61 latent (latent 1 x 576)"},
      {"kimi-k2", "61 latent (latent 1 x 576)"},
      {"glm-4.6", "92 full (K 8 x 128, V 8 x 128)"},
      {"minimax-m2", "62 full (K 8 x 128, V 8 x 128)"},
  };
  for (const auto& [name, want] : cases) {
    const auto g = GeometryFromModelConfig(ReadFile(name));
    ASSERT_TRUE(g.ok()) << name << ": " << g.status();
    EXPECT_EQ(DescribeLayers(*g), want) << name;
  }
}

// What engines keep that expand the latent before attention: 40960 and 20480 numbers a layer and
// token instead of 576.
TEST(LayerPlanTest, LatentLayersDecompressedAreKeysOf192AndValuesOf128) {
  const std::pair<const char*, const char*> cases[] = {
      {"deepseek-v3.1", "61 full (K 128 x 192, V 128 x 128)"},
      {"kimi-k2", "61 full (K 64 x 192, V 64 x 128)"},
  };
  for (const auto& [name, want] : cases) {
    const auto g = GeometryFromModelConfig(ReadFile(name), MlaCache::kDecompressed);
    ASSERT_TRUE(g.ok()) << name << ": " << g.status();
    EXPECT_EQ(DescribeLayers(*g), want) << name;
  }
  const auto refused = [](const std::string& text) {
    const auto g = GeometryFromModelConfig(text, MlaCache::kDecompressed);
    return std::string(g.status().message());
  };
  EXPECT_NE(refused(ReadFile("glm-4.6")).find("no kv_lora_rank"), std::string::npos);
  const std::string half =
      R"({"num_hidden_layers": 1, "num_attention_heads": 2, "kv_lora_rank": 8)";
  EXPECT_NE(refused(half + "}").find("qk_nope_head_dim is missing"), std::string::npos);
  EXPECT_NE(refused(half + R"(, "qk_nope_head_dim": 4})").find("v_head_dim is missing"),
            std::string::npos);
  EXPECT_NE(refused(half + R"(, "qk_nope_head_dim": 0, "v_head_dim": 4})"), "")
      << "keys of no elements";
}

TEST(LayerPlanTest, SharedLayersPointAtTheLastOfTheirKind) {
  const auto g = GeometryFromModelConfig(ReadFile("gemma-3n-e2b"));
  ASSERT_TRUE(g.ok()) << g.status();
  EXPECT_EQ(g->layers[19].kind, LayerKind::kFull);
  EXPECT_EQ(g->layers[20].kind, LayerKind::kShared);
  EXPECT_EQ(g->layers[20].shared_with, 18) << "sliding, as layer 20 would be";
  EXPECT_EQ(g->layers[24].shared_with, 19) << "full";
}

// Slicing a list by [:-0] once gave an empty plan.
TEST(LayerPlanTest, NoSharedLayersIsAFullPlan) {
  const auto g = GeometryFromModelConfig(
      R"({"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 32,
          "num_kv_shared_layers": 0})");
  ASSERT_TRUE(g.ok()) << g.status();
  EXPECT_EQ(DescribeLayers(*g), "3 full (K 2 x 16, V 2 x 16)");
}

TEST(LayerPlanTest, RopeIsTheFamilys) {
  const auto layer = [&](const char* name, int i) {
    const auto g = GeometryFromModelConfig(ReadFile(name));
    EXPECT_TRUE(g.ok()) << g.status();
    return g->layers[i].rope;
  };
  EXPECT_EQ(layer("smollm2-135m", 0).dims, 64);
  EXPECT_FLOAT_EQ(layer("smollm2-135m", 0).inv_freq[1], std::pow(100000., -2. / 64));
  EXPECT_EQ(layer("glm-4.6", 0).dims, 64) << "half of the head turns";
  EXPECT_EQ(layer("minimax-m2", 0).dims, 64);
  EXPECT_EQ(layer("smollm3-3b", 3).style, RopeStyle::kNone);
  EXPECT_EQ(layer("smollm3-3b", 2).style, RopeStyle::kRotateHalf);
  EXPECT_EQ(layer("llama-4-scout", 0).style, RopeStyle::kInterleaved);
  EXPECT_EQ(layer("llama-4-scout", 3).style, RopeStyle::kNone);
  EXPECT_EQ(layer("cohere2-r7b", 0).style, RopeStyle::kInterleaved);
  // Gemma 3: sliding layers have a theta of their own, full ones the scaling.
  EXPECT_FLOAT_EQ(layer("gemma-3-27b", 0).inv_freq[1], std::pow(10000., -2. / 128));
  EXPECT_FLOAT_EQ(layer("gemma-3-27b", 5).inv_freq[1], std::pow(1000000., -2. / 128) / 8);
  // Llama 3.1: the highest frequencies stay, the lowest are divided by the factor.
  EXPECT_FLOAT_EQ(layer("llama-3.1-8b", 0).inv_freq[0], 1);
  EXPECT_FLOAT_EQ(layer("llama-3.1-8b", 0).inv_freq[63], std::pow(500000., -126. / 128) / 8);
  // YaRN: the same, and a scale of attention.
  EXPECT_FLOAT_EQ(layer("gpt-oss-20b", 1).inv_freq[0], 1);
  EXPECT_FLOAT_EQ(layer("gpt-oss-20b", 1).inv_freq[31], std::pow(150000., -62. / 64) / 32);
  EXPECT_FLOAT_EQ(layer("gpt-oss-20b", 1).attention_scale, .1 * std::log(32) + 1);
}

TEST(LayerPlanTest, WhatIsWrongIsRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {"[]", "no JSON object"},
      {"{", "no JSON object"},
      {R"({"num_attention_heads": 2})", "num_hidden_layers is missing"},
      {R"({"num_hidden_layers": 2000, "num_attention_heads": 2})",
       "num_hidden_layers is 2000; expected an integer 1 to 1024"},
      {R"({"num_hidden_layers": "2", "num_attention_heads": 2})", "num_hidden_layers is \"2\""},
      {R"({"num_hidden_layers": 2, "num_attention_heads": 2})", "hidden_size is missing"},
      {R"({"num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
           "layer_types": ["full_attention"]})",
       "layer_types has 1 entries; expected 2"},
      {R"({"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
           "layer_types": ["linear_attention"]})",
       "layer_types[0] is \"linear_attention\""},
      {R"({"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
           "layer_types": ["sliding_attention"]})",
       "layer 0 is sliding or chunked, but there is no sliding_window"},
      {R"({"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
           "num_kv_shared_layers": 1})",
       "num_kv_shared_layers is 1, but no layer before layer 0 is of its kind"},
      {R"({"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
           "rope_scaling": {"rope_type": "longrope"}})",
       "longrope"},
      {R"({"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "rope_theta": -1})",
       "rope_theta is -1; expected a positive number"},
      {R"({"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "kv_lora_rank": 9999})",
       "kv_lora_rank is 9999"},
  };
  for (const auto& [text, message] : cases) {
    const auto g = GeometryFromModelConfig(text);
    ASSERT_FALSE(g.ok()) << text;
    EXPECT_NE(std::string(g.status().message()).find(message), std::string::npos)
        << text << "\n" << g.status();
  }
}

}  // namespace
}  // namespace kvcask
