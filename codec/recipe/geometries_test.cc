// The geometry files of examples/geometries against the models' own configs, and what a user is
// told of them.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "codec/base/geometry_json.h"
#include "codec/recipe/layer_plan.h"
#include "codec/recipe/projection.h"

namespace kvcask {
namespace {

std::string ReadText(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(GeometriesTest, AreThoseOfTheModelsConfigs) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator("examples/geometries")) {
    if (entry.path().extension() != ".json") continue;
    ++files;
    const std::string name = entry.path().filename();
    SCOPED_TRACE(name);
    const auto g = GeometryFromJson(ReadText(entry.path()));
    ASSERT_TRUE(g.ok()) << g.status();
    // NAME-decompressed.json: of MLA models, what the latent expands to.
    const size_t end = name.find("-decompressed.json");
    const bool decompressed = end != std::string::npos;
    const std::string model = decompressed ? name.substr(0, end) + ".json" : name;
    const auto want =
        GeometryFromModelConfig(ReadText("codec/recipe/testdata/configs/" + model),
                                decompressed ? MlaCache::kDecompressed : MlaCache::kLatent);
    ASSERT_TRUE(want.ok()) << want.status();
    EXPECT_EQ(DescribeGeometryDifference(*g, *want, "the file", "the config"), "");
  }
  EXPECT_EQ(files, 12);
}

// Bytes of one head and token at turbo3: ceil(3 D / 8) + 2 for each vector, and what tiles and
// chunks add: under 1 %.
// The documents' turbo3 of DeepSeek-V3.1 and Kimi-K2, 5.19, is of keys of 192 (16 D / (3 D + 16)),
// not of the latent that is kept.
TEST(GeometriesTest, LatentsAreATinyPartOfWhatTheyExpandTo) {
  for (const auto& [name, times] : {std::pair("deepseek-v3.1", 71), std::pair("kimi-k2", 35)}) {
    ProjectionSpec spec;
    spec.codec = "turbo3";
    spec.tokens = 32768;
    spec.model =
        *GeometryFromJson(ReadText(std::string("examples/geometries/") + name + ".json"));
    const auto latent = Project(spec);
    ASSERT_TRUE(latent.ok()) << latent.status();
    EXPECT_NEAR(latent->ratio(), 16. * 576 / (3 * 576 + 16), .01);
    spec.model = *GeometryFromJson(
        ReadText(std::string("examples/geometries/") + name + "-decompressed.json"));
    const auto expanded = Project(spec);
    ASSERT_TRUE(expanded.ok()) << expanded.status();
    EXPECT_NEAR(expanded->ratio(), 16. * (192 + 128) / (3 * (192 + 128) + 2 * 16), .01);
    EXPECT_EQ(expanded->raw_bytes / latent->raw_bytes, times) << name;
  }
}

TEST(GeometriesTest, ProjectionsAreTheFormulaAndTheFraming) {
  const struct {
    const char* name;
    double vectors, dim;  // vectors of a token
  } cases[] = {{"qwen3-235b-a22b", 94 * 2 * 4, 128},
               {"glm-4.6", 92 * 2 * 8, 128},
               {"minimax-m2", 62 * 2 * 8, 128},
               {"kimi-k2", 61, 576},
               {"deepseek-v3.1", 61, 576}};
  for (const auto& c : cases) {
    ProjectionSpec spec;
    spec.model = *GeometryFromJson(ReadText(std::string("examples/geometries/") + c.name + ".json"));
    spec.codec = "turbo3";
    for (int64_t tokens : {2048, 8192, 32768, 131072}) {
      spec.tokens = tokens;
      const auto p = Project(spec);
      ASSERT_TRUE(p.ok()) << p.status();
      const double formula = static_cast<double>(tokens) * c.vectors * (3 * c.dim / 8 + 2);
      EXPECT_GT(p->stored_bytes, formula) << c.name;
      EXPECT_LT(p->stored_bytes, 1.01 * formula) << c.name;
    }
  }
}

}  // namespace
}  // namespace kvcask
