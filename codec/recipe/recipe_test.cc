#include "codec/recipe/recipe.h"

#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <random>

#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/profile/profile.h"
#include "codec/testing/test_cache.h"

namespace kvcask {
namespace {

Geometry EightLayers() {
  Geometry g = UniformGeometry(8, 2, 32, StandardRope(RopeStyle::kRotateHalf, 32, 1e4));
  for (int l : {2, 5}) {
    g.layers[l].kind = LayerKind::kSliding;
    g.layers[l].window = 16;
  }
  g.layers[7] = LayerGeometry();
  g.layers[7].kind = LayerKind::kShared;
  g.layers[7].shared_with = 6;
  return g;
}

std::string PlanText(absl::string_view text, const Geometry& g) {
  const auto recipe = Recipe::Parse(text);
  if (!recipe.ok()) return std::string(recipe.status().message());
  const auto plan = recipe->Plan(g);
  if (!plan.ok()) return std::string(plan.status().message());
  std::string out;
  for (const CoderSpec& s : *plan) absl::StrAppend(&out, DescribeCoder(s), ", ");
  return out;
}

TEST(RecipeTest, LaterLinesOverrideEarlierOnes) {
  EXPECT_EQ(PlanText("k: turbo4 sinks=4   # keys\n\nv: int4\nlayers 0 -1: raw\nsliding v: fp8",
                     UniformGeometry(3, 2, 32, Rope())),
            "raw, raw, turbo4 sinks=4, int4 group=32, raw, raw, ");
  Geometry g = UniformGeometry(2, 2, 32, Rope());
  g.layers[1].kind = LayerKind::kSliding;
  EXPECT_EQ(PlanText("all: e8 q=12; sliding: d4; sliding v: int8", g),
            "e8 q=12, e8 q=12, d4 q=38, int8 group=row, ");
  EXPECT_EQ(PlanText("all: fp8; layers -1--1 k: channel2 group=64 unrotated=on", g),
            "fp8, fp8, channel2 group=64 unrotated, fp8, ");
}

TEST(RecipeTest, SharedLayersHaveNoStreamsToName) {
  EXPECT_EQ(PlanText("all: fp8; layers 6-7: raw", EightLayers()),
            "fp8, fp8, fp8, fp8, fp8, fp8, fp8, fp8, fp8, fp8, fp8, fp8, raw, raw, ");
}

TEST(RecipeTest, WhatIsUnknownOrContradictoryIsRefusedWithTheLine) {
  const Geometry g = EightLayers();
  const std::pair<const char*, const char*> cases[] = {
      {"k: turbo4\nv: int9", "line 2: unknown form \"int9\"; expected raw, fp8, int2"},
      {"k turbo4", "line 1: found \"k turbo4\"; expected WHERE: HOW"},
      {"\n\nkeys: fp8", "line 3: found \"keys\"; expected all, k, v"},
      {"all: fp8 q=3", "line 1: found \"q=3\"; fp8 takes scale sinks mean unrotated"},
      {"all: raw sinks=4", "line 1: found \"sinks=4\"; raw takes no options"},
      {"all: e8 q=1", "line 1: q is \"1\"; expected 2 to 1024"},
      {"all: e8 q=2000", "line 1: q is \"2000\"; expected 2 to 1024"},
      {"all: e8 q=12x", "line 1: q is \"12x\""},
      {"all: turbo4 nc=maybe", "line 1: nc is \"maybe\"; expected on or off"},
      {"all: turbo4 nc=on nc=off", "line 1: nc twice"},
      {"all: channel4 group=129", "line 1: group is \"129\"; expected 1 to 128 tokens"},
      {"all: int4 group=0", "line 1: group is \"0\"; expected 1 to 4096 elements or row"},
      {"all: int4 sinks=129", "line 1: sinks is \"129\"; expected 0 to 128"},
      {"k v: int4", "line 1: two streams in one rule"},
      {"full sliding: int4", "line 1: two kinds of layer in one rule"},
      {"all k: int4", "line 1: \"all\" beside something less than all"},
      {"layers: int4", "line 1: \"layers\" without a number"},
      {": int4", "line 1: says of nothing"},
      {"all:", "line 1: no form after the colon"},
      {"all: fp8\nlayers 5-3: raw", "line 2: layers 5-3 end before they begin"},
      {"all: fp8\nlayers x: raw", "line 2: found \"x\"; expected a layer A or layers A-B"},
      {"all: fp8\nall: raw", "line 2: \"all\" again, as in line 1"},
      {"k: fp8\nv: fp8\nk: raw", "line 3: \"k\" again, as in line 1"},
      {"k: fp8\nv: int4\nall: raw", "line 1: \"k\" is overridden everywhere by later lines"},
      {"all: fp8\nlayers 8: raw", "line 2: layer 8 of a model with 8 layers"},
      {"all: fp8\nlayers -9: raw", "line 2: layer -9 of a model with 8 layers"},
      {"k: fp8", "no rule names stream v of layer 0"},
      {"all: fp8 \x01", "line 1: a character that is not printable ASCII"},
      {"# nothing\n", "recipe: no rule"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_NE(PlanText(text, g).find(message), std::string::npos)
        << text << "\n" << PlanText(text, g);
  }
  EXPECT_NE(PlanText(std::string(kMaxRecipeBytes + 1, '#'), g).find("1025 bytes"),
            std::string::npos);
  std::string many;
  for (int i = 0; i <= kMaxRecipeRules; ++i) absl::StrAppend(&many, "layers ", i, ": raw;");
  EXPECT_NE(PlanText(many, g).find("more than 64 rules"), std::string::npos);
}

TEST(RecipeTest, RandomTextIsARecipeOrAStatus) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  const char* const words[] = {"k",  "v",    "all",    ":",     ";",     "\n",      "layers",
                               "-1", "0-3",  "raw",    "fp8",   "int4",  "turbo3",  "e8",
                               "q=", "q=9",  "sinks=", "nc=on", "-",     "--",      "99999999999",
                               "#",  "full", "latent", "=",     "\xff",  "group=8", "mean=off"};
  const Geometry g = EightLayers();
  int good = 0;
  for (int i = 0; i < 20000; ++i) {
    // Mostly noise around something that might stand.
    std::string text = rng() % 2 ? "" : rng() % 2 ? "k: turbo4; v: " : "all: int4\nlayers ";
    for (int n = rng() % 9; n >= 0; --n) {
      absl::StrAppend(&text, words[rng() % std::size(words)], rng() % 2 ? " " : "");
    }
    const auto recipe = Recipe::Parse(text);
    if (!recipe.ok()) continue;
    (void)recipe->Plan(g);
    const std::string canonical = recipe->Canonical();
    const auto again = Recipe::Parse(canonical);
    ASSERT_TRUE(again.ok()) << text << "\n" << canonical << "\n" << again.status();
    ASSERT_EQ(again->Canonical(), canonical);
    ASSERT_EQ(PlanText(text, g).substr(0, 7) == "recipe:",
              PlanText(canonical, g).substr(0, 7) == "recipe:");
    ++good;
  }
  EXPECT_GT(good, 50);
}

TEST(RecipeTest, EqualRecipesHaveEqualSettings) {
  EXPECT_EQ(*CanonicalRecipe("v: int4 group=32 ;  k:turbo4 nc=on sinks=0"), "v: int4; k: turbo4");
  EXPECT_EQ(*CanonicalRecipe("layers 0-0,1 k: e8 q=38 mean=off"), "k layers 0 1: e8 mean=off");
  EXPECT_EQ(*CanonicalRecipe(""), "default");
  EXPECT_EQ(*CanonicalRecipe("vllm-k8v4"), "vllm-k8v4");
  const absl::Status s = CanonicalRecipe("nothing-like-it").status();
  EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(s.message().find("vllm-k8v4"), absl::string_view::npos) << s;
}

TEST(RecipeTest, ShippedFilesAreThePresetsAndPlanEveryKindOfModel) {
  Geometry latent = UniformGeometry(6, 2, 32, Rope());
  for (LayerGeometry& layer : latent.layers) {
    layer.kind = LayerKind::kLatent;
    layer.streams = {{StreamKind::kLatent, 1, 72}};
  }
  EXPECT_GE(RecipePresets().size(), 9u);
  for (const RecipePreset& preset : RecipePresets()) {
    std::ifstream file(absl::StrCat("codec/recipe/presets/", preset.name, ".recipe"));
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    EXPECT_EQ(text, preset.text) << preset.name;
    const auto recipe = Recipe::Parse(preset.text);
    ASSERT_TRUE(recipe.ok()) << preset.name << ": " << recipe.status();
    for (const Geometry& g : {EightLayers(), latent}) {
      const auto plan = recipe->Plan(g);
      EXPECT_TRUE(plan.ok()) << preset.name << ": " << plan.status();
    }
  }
}

// A cache of six layers through a recipe and back.
class SwitchesTest : public testing::Test {
 protected:
  static constexpr int kTokens = 40;
  SwitchesTest() : in_(g_, 0, 6, kTokens, Dtype::kBf16, Layout::kContiguous) {
    std::mt19937 rng(11);
    in_.FillRandom(rng);
  }
  std::shared_ptr<const Profile> ProfileOfMeans(float mean) {
    std::vector<uint8_t> file;
    SafetensorsWriter writer([&](absl::Span<const uint8_t> b) {
      file.insert(file.end(), b.begin(), b.end());
      return absl::OkStatus();
    });
    for (const auto& [key, value] : {std::pair("kvcask.profile", "1"), std::pair("codec", "int8"),
                                     std::pair("name", "test"), std::pair("model", "test")}) {
      writer.SetMetadata(key, value);
    }
    writer.SetMetadata("geometry", GeometryToJson(g_));
    const std::vector<float> means(2 * 16, mean);
    for (int l = 0; l < 6; ++l) {
      for (const char* stream : {"k", "v"}) {
        EXPECT_TRUE(writer.Declare(absl::StrCat("mean.0", l, ".", stream), "F32", {2, 16}).ok());
      }
    }
    EXPECT_TRUE(writer.Begin().ok());
    for (int i = 0; i < 12; ++i) {
      const auto* p = reinterpret_cast<const uint8_t*>(means.data());
      EXPECT_TRUE(writer.Write({p, means.size() * 4}).ok());
    }
    EXPECT_TRUE(writer.Finish().ok());
    auto profile = Profile::Parse(file);
    EXPECT_TRUE(profile.ok()) << profile.status();
    return *profile;
  }
  // Largest error of each plane (K and V of layer 0, of layer 1, ...) over tokens [begin, end).
  std::vector<double> Errors(const std::string& recipe, int begin, int end, uint32_t first = 0,
                             std::shared_ptr<const Profile> profile = nullptr) {
    const CodecSpec spec{g_, {0, 1, 0, 6, 0, 2}, std::move(profile), recipe};
    auto codec = MakeRecipeCodec(spec);
    EXPECT_TRUE(codec.ok()) << codec.status();
    const auto positions = PositionsFrom(first, kTokens);
    std::vector<double> errors;
    for (int layer = 0; layer < 6; ++layer) {
      Workspace workspace;
      std::vector<uint8_t> tile((*codec)->MaxTileBytes(layer, kTokens, Dtype::kBf16));
      EncodeJob put;
      put.group = layer;
      put.tokens = kTokens;
      put.source = {Dtype::kBf16, in_.const_view().planes.subspan(2 * layer, 2), {}};
      put.positions = positions;
      put.destination = absl::MakeSpan(tile);
      EXPECT_TRUE((*codec)->Encode({&put, 1}, workspace).ok());
      EXPECT_TRUE(put.status.ok()) << put.status;
      TestCache out(g_, layer, layer + 1, kTokens, Dtype::kBf16, Layout::kContiguous);
      DecodeJob get;
      get.group = layer;
      get.tokens = get.token_end = kTokens;
      get.tile = put.destination.first(put.bytes);
      get.positions = positions;
      get.layer_begin = layer;
      get.layer_end = layer + 1;
      get.destination = out.view();
      EXPECT_TRUE((*codec)->Decode({&get, 1}, workspace).ok());
      EXPECT_TRUE(get.status.ok()) << get.status;
      for (int p = 0; p < 2; ++p) {
        double largest = 0;
        for (int h = 0; h < 2; ++h) {
          for (int t = begin; t < end; ++t) {
            for (int d = 0; d < 16; ++d) {
              largest = std::max<double>(largest, std::abs(out.Get(p, h, t, d) -
                                                           in_.Get(2 * layer + p, h, t, d)));
            }
          }
        }
        errors.push_back(largest);
      }
    }
    return errors;
  }
  const Geometry g_ = UniformGeometry(6, 2, 16, Rope());
  TestCache in_;
};

TEST_F(SwitchesTest, BoundaryLayersAndSingleStreamsComeBackBitExactAndTheOthersDoNot) {
  const auto boundary = Errors("all: turbo3; layers 0-1 -2--1: raw", 0, kTokens);
  const auto k_only = Errors("k: turbo4; v: raw", 0, kTokens);
  const auto v_only = Errors("v-only", 0, kTokens);
  for (int p = 0; p < 12; ++p) {
    SCOPED_TRACE(testing::Message() << "plane " << p);
    const bool inner = p / 2 == 2 || p / 2 == 3;
    EXPECT_EQ(boundary[p] > 0, inner);
    EXPECT_EQ(k_only[p] > 0, p % 2 == 0);
    EXPECT_EQ(v_only[p] > 0, p % 2 == 1);
  }
}

TEST_F(SwitchesTest, SinksAreTheFirstPositionsNotTheFirstRows) {
  const std::string recipe = "all: int2 sinks=4; layers 5: int2";
  const auto sinks = Errors(recipe, 0, 4), others = Errors(recipe, 4, kTokens);
  for (int p = 0; p < 12; ++p) {
    SCOPED_TRACE(testing::Message() << "plane " << p);
    EXPECT_EQ(sinks[p] > 0, p >= 10) << "layer 5 keeps none";
    EXPECT_GT(others[p], 0);
  }
  for (double error : Errors("all: int2 sinks=4", 0, 3, /*first=*/1)) EXPECT_EQ(error, 0);
  for (double error : Errors("all: int2 sinks=4", 3, 4, /*first=*/1)) EXPECT_GT(error, 0);
}

// A mean that the rows do not have: taking it off costs precision where it is done.
TEST_F(SwitchesTest, MeansAreTakenOffWhereTheRecipeSaysSo) {
  const auto profile = ProfileOfMeans(1000);
  const std::string recipe = "all: int4 mean=off; v: int4; layers 0: int4 mean=off";
  const auto without = Errors(recipe, 8, kTokens), with = Errors(recipe, 8, kTokens, 0, profile);
  const auto off = Errors("all: turbo4 mean=off", 8, kTokens);
  const auto still_off = Errors("all: turbo4 mean=off", 8, kTokens, 0, profile);
  const auto on = Errors("all: turbo4", 8, kTokens, 0, profile);
  EXPECT_EQ(off, still_off);
  for (int p = 0; p < 12; ++p) {
    SCOPED_TRACE(testing::Message() << "plane " << p);
    EXPECT_GT(on[p], 10 * off[p]);
    if (p % 2 == 0 || p < 2) {
      EXPECT_EQ(with[p], without[p]);
    }
  }
  EXPECT_NE(with, without) << "values after layer 0";
}

TEST(RecipeTest, AShardUsesItsLayersOfThePlan) {
  const Geometry model = UniformGeometry(6, 4, 16, Rope());
  CodecSpec spec{model, {1, 2, 3, 6, 0, 4}, nullptr, "all: int4; layers -1: raw"};
  auto codec = MakeRecipeCodec(spec);
  ASSERT_TRUE(codec.ok()) << codec.status();
  std::mt19937 rng(1);
  for (int group = 0; group < 3; ++group) {
    TestCache in((*codec)->geometry(), group, group + 1, 20, Dtype::kBf16, Layout::kContiguous);
    in.FillRandom(rng);
    const auto positions = PositionsFrom(0, 20);
    std::vector<uint8_t> tile((*codec)->MaxTileBytes(group, 20, Dtype::kBf16));
    EncodeJob job;
    job.group = group;
    job.tokens = 20;
    job.source = in.const_view();
    job.positions = positions;
    job.destination = absl::MakeSpan(tile);
    Workspace workspace;
    ASSERT_TRUE((*codec)->Encode({&job, 1}, workspace).ok());
    ASSERT_TRUE(job.status.ok());
    const size_t raw = 20 * 2 * 4 * 16 * 2;
    if (group == 2) {
      EXPECT_EQ(job.bytes, 4 + raw) << "the model's last layer is kept raw";
    } else {
      EXPECT_EQ(job.bytes, 4 + 2 * kCoderSpecBytes + 20 * 2 * 4 * (8 + 4u));
    }
  }
}

}  // namespace
}  // namespace kvcask
