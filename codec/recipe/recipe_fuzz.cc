// Any text as a recipe, a model's config.json or a geometry: a status that names what is wrong,
// or something that holds together: a recipe whose canonical form is itself, plans every plane or
// says why not; a geometry that every codec of constant size can be projected for.
#include <cstdlib>
#include <string>

#include "codec/base/geometry_json.h"
#include "codec/recipe/layer_plan.h"
#include "codec/recipe/projection.h"
#include "codec/recipe/recipe.h"

namespace kvcask {
namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

const Geometry& FuzzGeometry() {
  static const Geometry* const kGeometry = [] {
    auto* g = new Geometry(UniformGeometry(4, 2, 8, StandardRope(RopeStyle::kRotateHalf, 8, 1e4)));
    g->layers[1].kind = LayerKind::kSliding;
    g->layers[1].window = 16;
    g->layers[2] = LayerGeometry();
    g->layers[2].kind = LayerKind::kLatent;
    g->layers[2].streams = {{StreamKind::kLatent, 1, 24}};
    return g;
  }();
  return *kGeometry;
}

void TryRecipe(const std::string& text) {
  const auto recipe = Recipe::Parse(text);
  if (!recipe.ok()) {
    Check(recipe.status().code() == absl::StatusCode::kInvalidArgument);
    return;
  }
  const std::string canonical = recipe->Canonical();
  const auto again = Recipe::Parse(canonical);
  Check(again.ok() && again->Canonical() == canonical);
  const auto plan = recipe->Plan(FuzzGeometry());
  if (plan.ok()) Check(plan->size() == 7);
  ProjectionSpec spec;
  spec.model = FuzzGeometry();
  spec.codec = "recipe";
  spec.setting = canonical;
  spec.tokens = 200;
  Check(Project(spec).ok() == plan.ok());
}

void TryModel(const std::string& text) {
  for (const auto& g : {GeometryFromModelConfig(text), GeometryFromJson(text),
                        GeometryFromModelConfig(text, MlaCache::kDecompressed)}) {
    if (!g.ok()) continue;
    Check(g->Validate().ok());
    DescribeLayers(*g);
    ProjectionSpec spec;
    spec.model = *g;
    spec.codec = "turbo3";
    spec.tokens = 1;
    Check(Project(spec).ok());
  }
}

}  // namespace
}  // namespace kvcask

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  kvcask::TryRecipe(text);
  kvcask::TryModel(text);
  return 0;
}
