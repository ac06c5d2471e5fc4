// The recipe language: which stream of which layer is coded how, as text. docs/codecs.md has the
// grammar and examples; the shipped presets are the files in presets/.
//
//   # comments and empty lines
//   k: turbo4 sinks=4          one rule a line: where, colon, how
//   v: int4 group=32
//   layers 0-1, -2--1: raw     of all streams in these layers; negative counts from the end
//   sliding k: fp8             of a kind of layer: full, sliding, chunked, latent
//
// Later rules override earlier ones, but a rule that leaves nothing of an earlier one is a
// contradiction. Every stream of a model must be named by some rule ("all: ..." or one for
// each of k, v, latent).
//
// Thread-safe: immutable values and pure functions.
#pragma once

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <memory>
#include <string>
#include <vector>

#include "codec/api/codec.h"
#include "codec/fixed/plane_coder.h"

namespace kvcask {

inline constexpr size_t kMaxRecipeBytes = 1024;
inline constexpr int kMaxRecipeRules = 64;

class Recipe {
 public:
  // Lines are separated by newlines or semicolons. INVALID_ARGUMENT names the line, what was
  // found there and what was expected; text from outside is bounded before it is read.
  static absl::StatusOr<Recipe> Parse(absl::string_view text);

  // Of every plane of the model, in Geometry's order. INVALID_ARGUMENT names the line of a rule
  // that matches nothing in this model, or of which later rules leave nothing, and a
  // stream that no rule names.
  absl::StatusOr<std::vector<CoderSpec>> Plan(const Geometry& model) const;

  // One line, without comments, rules separated by "; ", numbers in their shortest form: equal
  // recipes have equal texts. Parses to the same recipe.
  std::string Canonical() const;

 private:
  struct Layers {  // inclusive; negative: from the end
    int first = 0, last = 0;
  };
  struct Rule {
    int line = 0;
    std::vector<Layers> layers;  // none: all
    int layer_kind = 0;          // a LayerKind, or 0: all
    int stream = 0;              // a StreamKind, or 0: all
    CoderSpec coder;
    std::string where, how;  // canonical
  };
  static absl::StatusOr<Rule> ParseRule(absl::string_view text, int line);
  static absl::Status ParseWhere(absl::string_view text, Rule* rule);
  static absl::Status ParseHow(absl::string_view text, Rule* rule);
  bool Matches(const Rule& rule, const Geometry& model, int layer, StreamKind stream) const;

  std::vector<Rule> rules_;
};

// The recipes that are part of the program: presets/NAME.recipe.
struct RecipePreset {
  const char* name;
  const char* text;
};
absl::Span<const RecipePreset> RecipePresets();

// A preset's name or a recipe; "" is the preset "default". The canonical form: the name, or
// Canonical(). INVALID_ARGUMENT as Recipe::Parse.
absl::StatusOr<std::string> CanonicalRecipe(absl::string_view setting);
// The recipe of a canonical setting.
absl::StatusOr<Recipe> FindRecipe(absl::string_view setting);

// For the table of codecs: spec.setting is the recipe.
absl::StatusOr<std::unique_ptr<Codec>> MakeRecipeCodec(const CodecSpec& spec);

}  // namespace kvcask
