#include "codec/recipe/recipe.h"

#include <absl/strings/ascii.h>
#include <absl/strings/escaping.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <set>

#include "codec/fixed/fixed_codec.h"
#include "codec/fixed/presets.h"

namespace kvcask {
namespace {

template <typename... Args>
absl::Status BadLine(int line, const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("recipe: line ", line, ": ", what...));
}

std::string Quoted(absl::string_view s) {
  return absl::StrCat("\"", absl::CHexEscape(s.substr(0, 40)), "\"");
}

bool ParseInt(absl::string_view text, int low, int high, int* out) {
  const absl::string_view digits = absl::StripPrefix(text, "-");
  return !digits.empty() && digits.size() <= 5 &&
         digits.find_first_not_of("0123456789") == digits.npos && absl::SimpleAtoi(text, out) &&
         *out >= low && *out <= high;
}

struct LayerKindName {
  const char* name;
  LayerKind kind;
};
constexpr LayerKindName kLayerKinds[] = {{"full", LayerKind::kFull},
                                         {"sliding", LayerKind::kSliding},
                                         {"chunked", LayerKind::kChunked},
                                         {"latent-layers", LayerKind::kLatent}};
struct NamedStream {
  const char* name;
  StreamKind kind;
};
constexpr NamedStream kStreams[] = {
    {"k", StreamKind::kK}, {"v", StreamKind::kV}, {"latent", StreamKind::kLatent}};

// How a stream is coded, by its first word. The options that each takes come after.
struct Form {
  const char* name;
  CoderKind kind;
  int bits;
  const char* options;  // besides those of every form
};
constexpr Form kForms[] = {
    {"raw", CoderKind::kRaw, 0, ""},
    {"fp8", CoderKind::kFp8, 0, "scale"},
    {"int2", CoderKind::kUniform, 2, "group"},
    {"int3", CoderKind::kUniform, 3, "group"},
    {"int4", CoderKind::kUniform, 4, "group"},
    {"int5", CoderKind::kUniform, 5, "group"},
    {"int6", CoderKind::kUniform, 6, "group"},
    {"int8", CoderKind::kUniform, 8, "group"},
    {"turbo1", CoderKind::kTurbo, 1, "nc signs"},
    {"turbo2", CoderKind::kTurbo, 2, "nc signs"},
    {"turbo3", CoderKind::kTurbo, 3, "nc signs"},
    {"turbo4", CoderKind::kTurbo, 4, "nc signs"},
    {"d4", CoderKind::kLattice, 4, "q"},
    {"e8", CoderKind::kLattice, 8, "q"},
    {"channel2", CoderKind::kChannel, 2, "group"},
    {"channel3", CoderKind::kChannel, 3, "group"},
    {"channel4", CoderKind::kChannel, 4, "group"},
    {"channel8", CoderKind::kChannel, 8, "group"},
};

bool Lists(const char* words, absl::string_view word) {
  for (absl::string_view w : absl::StrSplit(words, ' ')) {
    if (w == word) return true;
  }
  return false;
}

// A switch: "on" or "off".
bool ParseSwitch(absl::string_view text, bool* out) {
  *out = text == "on";
  return text == "on" || text == "off";
}

// What an option may be, and what it sets; "" when it was understood.
std::string SetOption(absl::string_view name, absl::string_view value, CoderSpec* s) {
  if (name == "group") {
    if (s->kind == CoderKind::kChannel) {
      return ParseInt(value, 1, 128, &s->group) ? "" : "1 to 128 tokens";
    }
    if (value == "row") {
      s->group = 0;
      return "";
    }
    return ParseInt(value, 1, 4096, &s->group) ? "" : "1 to 4096 elements or row";
  }
  if (name == "q") return ParseInt(value, 2, 1024, &s->q) ? "" : "2 to 1024";
  if (name == "sinks") return ParseInt(value, 0, 128, &s->sinks) ? "" : "0 to 128";
  bool* flag = name == "scale"  ? &s->scaled
               : name == "nc"   ? &s->norm_corrected
               : name == "signs" ? &s->signs
               : name == "mean" ? &s->minus_mean
                                : &s->unrotated;
  return ParseSwitch(value, flag) ? "" : "on or off";
}

std::string CanonicalHow(const Form& form, const CoderSpec& s, const CoderSpec& standard) {
  std::string out = form.name;
  const auto flag = [&](const char* name, bool value, bool usual) {
    if (value != usual) absl::StrAppend(&out, " ", name, "=", value ? "on" : "off");
  };
  if (s.group != standard.group) {
    absl::StrAppend(&out, " group=", s.group == 0 ? "row" : absl::StrCat(s.group));
  }
  if (s.q != standard.q) absl::StrAppend(&out, " q=", s.q);
  flag("scale", s.scaled, standard.scaled);
  flag("nc", s.norm_corrected, standard.norm_corrected);
  flag("signs", s.signs, standard.signs);
  flag("mean", s.minus_mean, standard.minus_mean);
  flag("unrotated", s.unrotated, standard.unrotated);
  if (s.sinks != 0) absl::StrAppend(&out, " sinks=", s.sinks);
  return out;
}

CoderSpec Standard(const Form& form) {
  CoderSpec s;
  s.kind = form.kind;
  s.bits = form.bits;
  if (form.kind == CoderKind::kRaw) return s;
  s.minus_mean = true;
  s.scaled = form.kind == CoderKind::kFp8;
  s.norm_corrected = s.signs = form.kind == CoderKind::kTurbo;
  if (Lists(form.options, "group")) s.group = 32;
  if (form.kind == CoderKind::kUniform && form.bits == 8) s.group = 0;
  if (form.kind == CoderKind::kLattice) s.q = 38;
  return s;
}

}  // namespace

absl::Status Recipe::ParseWhere(absl::string_view text, Rule* rule) {
  bool all = false, in_layers = false;
  for (absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(" ,\t"), absl::SkipEmpty())) {
    if (word == "layers") {
      if (in_layers) return BadLine(rule->line, "\"layers\" twice");
      in_layers = true;
      continue;
    }
    if (word == "all") {
      all = true;
      continue;
    }
    bool known = false;
    for (const LayerKindName& k : kLayerKinds) {
      if (word != k.name) continue;
      if (rule->layer_kind != 0) return BadLine(rule->line, "two kinds of layer in one rule");
      rule->layer_kind = static_cast<int>(k.kind);
      known = true;
    }
    for (const NamedStream& s : kStreams) {
      if (word != s.name) continue;
      if (rule->stream != 0) return BadLine(rule->line, "two streams in one rule");
      rule->stream = static_cast<int>(s.kind);
      known = true;
    }
    if (known) continue;
    if (!in_layers) {
      return BadLine(rule->line, "found ", Quoted(word),
                     "; expected all, k, v, latent, full, sliding, chunked, latent-layers or "
                     "layers A-B");
    }
    const size_t dash = word.find('-', 1);  // the first one may be a sign
    Layers range;
    const bool one = dash == word.npos;
    if (!ParseInt(word.substr(0, dash), -kMaxLayers, kMaxLayers - 1, &range.first) ||
        !(one || ParseInt(word.substr(dash + 1), -kMaxLayers, kMaxLayers - 1, &range.last))) {
      return BadLine(rule->line, "found ", Quoted(word), "; expected a layer A or layers A-B");
    }
    if (one) range.last = range.first;
    if ((range.first < 0) == (range.last < 0) && range.last < range.first) {
      return BadLine(rule->line, "layers ", word, " end before they begin");
    }
    rule->layers.push_back(range);
  }
  const bool some = rule->stream != 0 || rule->layer_kind != 0 || !rule->layers.empty();
  if (in_layers && rule->layers.empty()) return BadLine(rule->line, "\"layers\" without a number");
  if (!some && !all) return BadLine(rule->line, "says of nothing how it is coded");
  if (some && all) return BadLine(rule->line, "\"all\" beside something less than all");
  std::vector<std::string> words;
  if (all) words.push_back("all");
  for (const LayerKindName& k : kLayerKinds) {
    if (static_cast<int>(k.kind) == rule->layer_kind) words.push_back(k.name);
  }
  for (const NamedStream& s : kStreams) {
    if (static_cast<int>(s.kind) == rule->stream) words.push_back(s.name);
  }
  if (in_layers) words.push_back("layers");
  for (const Layers& l : rule->layers) {
    words.push_back(l.first == l.last ? absl::StrCat(l.first) : absl::StrCat(l.first, "-", l.last));
  }
  rule->where = absl::StrJoin(words, " ");
  return absl::OkStatus();
}

absl::Status Recipe::ParseHow(absl::string_view text, Rule* rule) {
  const Form* form = nullptr;
  std::set<std::string> seen;
  for (absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(" \t"), absl::SkipEmpty())) {
    if (form == nullptr) {
      for (const Form& f : kForms) {
        if (word == f.name) form = &f;
      }
      if (form == nullptr) {
        std::vector<std::string> names;
        for (const Form& f : kForms) names.push_back(f.name);
        return BadLine(rule->line, "unknown form ", Quoted(word), "; expected ",
                       absl::StrJoin(names, ", "));
      }
      rule->coder = Standard(*form);
      continue;
    }
    const std::pair<absl::string_view, absl::string_view> option =
        absl::StrSplit(word, absl::MaxSplits('=', 1));
    const bool coded = form->kind != CoderKind::kRaw;
    if (option.first.empty() ||
        !(Lists(form->options, option.first) ||
          (coded && Lists("sinks mean unrotated", option.first)))) {
      return BadLine(rule->line, "found ", Quoted(word), "; ", form->name, " takes ",
                     coded ? absl::StrCat(form->options, form->options[0] == 0 ? "" : " ",
                                          "sinks mean unrotated")
                           : "no options");
    }
    if (!seen.insert(std::string(option.first)).second) {
      return BadLine(rule->line, option.first, " twice");
    }
    const std::string expected = SetOption(option.first, option.second, &rule->coder);
    if (!expected.empty()) {
      return BadLine(rule->line, option.first, " is ", Quoted(option.second), "; expected ",
                     expected);
    }
  }
  if (form == nullptr) return BadLine(rule->line, "no form after the colon");
  if (absl::Status s = CheckCoderSpec(rule->coder); !s.ok()) {
    return BadLine(rule->line, s.message());
  }
  rule->how = CanonicalHow(*form, rule->coder, Standard(*form));
  return absl::OkStatus();
}

absl::StatusOr<Recipe::Rule> Recipe::ParseRule(absl::string_view text, int line) {
  Rule rule;
  rule.line = line;
  const size_t colon = text.find(':');
  if (colon == text.npos) {
    return BadLine(line, "found ", Quoted(text), "; expected WHERE: HOW");
  }
  if (absl::Status s = ParseWhere(text.substr(0, colon), &rule); !s.ok()) return s;
  if (absl::Status s = ParseHow(text.substr(colon + 1), &rule); !s.ok()) return s;
  return rule;
}

absl::StatusOr<Recipe> Recipe::Parse(absl::string_view text) {
  if (text.size() > kMaxRecipeBytes) {
    return absl::InvalidArgumentError(absl::StrCat("recipe: ", text.size(),
                                                   " bytes; expected at most ", kMaxRecipeBytes));
  }
  Recipe recipe;
  int line = 0;
  for (absl::string_view whole : absl::StrSplit(text, '\n')) {
    ++line;
    whole = whole.substr(0, whole.find('#'));
    for (absl::string_view part : absl::StrSplit(whole, ';')) {
      part = absl::StripAsciiWhitespace(part);
      if (part.empty()) continue;
      for (char c : part) {
        if (c != '\t' && !absl::ascii_isprint(static_cast<unsigned char>(c))) {
          return BadLine(line, "a character that is not printable ASCII");
        }
      }
      absl::StatusOr<Rule> rule = ParseRule(part, line);
      if (!rule.ok()) return rule.status();
      if (recipe.rules_.size() == kMaxRecipeRules) {
        return BadLine(line, "more than ", kMaxRecipeRules, " rules");
      }
      for (const Rule& other : recipe.rules_) {
        if (other.where == rule->where) {
          return BadLine(line, "\"", rule->where, "\" again, as in line ", other.line);
        }
      }
      recipe.rules_.push_back(*std::move(rule));
    }
  }
  if (recipe.rules_.empty()) return absl::InvalidArgumentError("recipe: no rule");
  return recipe;
}

bool Recipe::Matches(const Rule& rule, const Geometry& model, int layer, StreamKind stream) const {
  if (rule.stream != 0 && rule.stream != static_cast<int>(stream)) return false;
  if (rule.layer_kind != 0 && rule.layer_kind != static_cast<int>(model.layers[layer].kind)) {
    return false;
  }
  if (rule.layers.empty()) return true;
  const int count = static_cast<int>(model.layers.size());
  return std::any_of(rule.layers.begin(), rule.layers.end(), [&](const Layers& l) {
    const int first = l.first < 0 ? count + l.first : l.first;
    const int last = l.last < 0 ? count + l.last : l.last;
    return layer >= first && layer <= last;
  });
}

absl::StatusOr<std::vector<CoderSpec>> Recipe::Plan(const Geometry& model) const {
  const int count = static_cast<int>(model.layers.size());
  std::vector<CoderSpec> plan;
  std::vector<int> matched(rules_.size()), kept(rules_.size());
  for (int layer = 0; layer < count; ++layer) {
    for (const StreamGeometry& stream : model.layers[layer].streams) {
      int last = -1;
      for (size_t r = 0; r < rules_.size(); ++r) {
        if (!Matches(rules_[r], model, layer, stream.kind)) continue;
        ++matched[r];
        last = static_cast<int>(r);
      }
      if (last < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("recipe: no rule names stream ",
                         kStreams[static_cast<int>(stream.kind) - 1].name, " of layer ", layer));
      }
      ++kept[last];
      plan.push_back(rules_[last].coder);
    }
  }
  for (size_t r = 0; r < rules_.size(); ++r) {
    const Rule& rule = rules_[r];
    for (const Layers& l : rule.layers) {
      for (int n : {l.first, l.last}) {
        if (n >= count || n < -count) {
          return BadLine(rule.line, "layer ", n, " of a model with ", count, " layers");
        }
      }
    }
    // A rule for a stream or kind of layer that this model lacks is no contradiction.
    if (matched[r] > 0 && kept[r] == 0) {
      return BadLine(rule.line, "\"", rule.where, "\" is overridden everywhere by later lines");
    }
  }
  return plan;
}

std::string Recipe::Canonical() const {
  std::vector<std::string> rules;
  for (const Rule& rule : rules_) rules.push_back(absl::StrCat(rule.where, ": ", rule.how));
  return absl::StrJoin(rules, "; ");
}

namespace {

constexpr char kDefaultPreset[] = "default";

const RecipePreset* FindPreset(absl::string_view name) {
  for (const RecipePreset& preset : RecipePresets()) {
    if (name == preset.name) return &preset;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<std::string> CanonicalRecipe(absl::string_view setting) {
  if (setting.empty()) return std::string(kDefaultPreset);
  if (setting.find(':') == setting.npos) {
    if (FindPreset(setting) != nullptr) return std::string(setting);
    std::vector<std::string> names;
    for (const RecipePreset& preset : RecipePresets()) names.push_back(preset.name);
    return absl::InvalidArgumentError(absl::StrCat("no recipe ", Quoted(setting), "; there are ",
                                                   absl::StrJoin(names, ", "),
                                                   ", or write one: WHERE: HOW; ..."));
  }
  const absl::StatusOr<Recipe> recipe = Recipe::Parse(setting);
  if (!recipe.ok()) return recipe.status();
  return recipe->Canonical();
}

absl::StatusOr<Recipe> FindRecipe(absl::string_view setting) {
  if (setting.empty()) setting = kDefaultPreset;
  const RecipePreset* preset = FindPreset(setting);
  return Recipe::Parse(preset == nullptr ? setting : preset->text);
}

absl::StatusOr<std::unique_ptr<Codec>> MakeRecipeCodec(const CodecSpec& spec) {
  const absl::StatusOr<Recipe> recipe = FindRecipe(spec.setting);
  if (!recipe.ok()) return recipe.status();
  if (absl::Status s = spec.model.Validate(); !s.ok()) return s;
  const absl::StatusOr<std::vector<CoderSpec>> plan = recipe->Plan(spec.model);
  if (!plan.ok()) return plan.status();
  std::vector<size_t> first_of_layer;  // in `plan`
  size_t planes = 0;
  for (const LayerGeometry& layer : spec.model.layers) {
    first_of_layer.push_back(planes);
    planes += layer.streams.size();
  }
  return MakeFixedCodec(CodecId::kRecipe, "recipe", spec, [&](int layer, const PlaneInfo& plane) {
    const bool second = plane.kind == StreamKind::kV;
    return (*plan)[first_of_layer[layer] + second];
  });
}

}  // namespace kvcask
