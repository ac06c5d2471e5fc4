#include "codec/kakeya/params.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace kvcask::kakeya {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr size_t kMaxJsonBytes = 64 << 10;
constexpr int kMaxLayer = 1023;

template <typename... Args>
absl::Status Bad(const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("kakeya parameters: ", what...));
}

std::string Quoted(absl::string_view s) {
  return absl::StrCat("\"", absl::CHexEscape(s.substr(0, 80)), "\"");
}

struct Name {
  const char* text;
  int value;
};
constexpr Name kResiduals[] = {{"sparse", static_cast<int>(Residual::kSparse)},
                               {"coded", static_cast<int>(Residual::kCoded)}};
constexpr Name kPcas[] = {{"exact", static_cast<int>(PcaMethod::kExact)},
                          {"randomized", static_cast<int>(PcaMethod::kRandomized)}};
constexpr Name kMetrics[] = {{"mse", static_cast<int>(Metric::kMse)},
                             {"inner_product", static_cast<int>(Metric::kInnerProduct)},
                             {"linf", static_cast<int>(Metric::kLinf)}};
constexpr Name kOrders[] = {{"per_head", static_cast<int>(RowOrder::kPerHead)},
                            {"pooled", static_cast<int>(RowOrder::kPooled)}};
constexpr Name kDtypes[] = {{"bf16", static_cast<int>(Dtype::kBf16)},
                            {"f16", static_cast<int>(Dtype::kF16)},
                            {"f32", static_cast<int>(Dtype::kF32)}};

// Reads the members of one JSON object into variables; the first that does not fit is kept.
class Reader {
 public:
  Reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) status_ = Bad(where_, " is not an object");
  }
  void Take(const char* key, bool* out) {
    if (const json* j = Find(key, &json::is_boolean, "true or false")) *out = j->get<bool>();
  }
  void Take(const char* key, int* out) {
    const json* j = Find(key, &json::is_number_integer, "a whole number");
    if (j == nullptr) return;
    const auto value = j->get<int64_t>();
    if (value < -(1 << 30) || value > 1 << 30) {
      status_ = Bad(where_, key, " is ", value, "; expected at most 2^30");
    } else {
      *out = static_cast<int>(value);
    }
  }
  void Take(const char* key, uint64_t* out) {
    if (const json* j = Find(key, &json::is_number_unsigned, "a whole number from 0")) {
      *out = j->get<uint64_t>();
    }
  }
  void Take(const char* key, double* out) {
    if (const json* j = Find(key, &json::is_number, "a number")) *out = j->get<double>();
  }
  template <typename E, size_t N>
  void Take(const char* key, const Name (&names)[N], E* out) {
    const json* j = Find(key, &json::is_string, "a string");
    if (j == nullptr) return;
    const auto text = j->get<std::string>();
    std::string known;
    for (const Name& n : names) {
      if (text == n.text) {
        *out = static_cast<E>(n.value);
        return;
      }
      absl::StrAppend(&known, known.empty() ? "" : ", ", n.text);
    }
    status_ = Bad(where_, key, " is ", Quoted(text), "; expected ", known);
  }
  void Take(const char* key, std::vector<int>* out) {
    const json* j = Find(key, &json::is_array, "a list");
    if (j == nullptr) return;
    out->clear();
    for (const json& item : *j) {
      const bool whole = item.is_number_unsigned()
                             ? item.get<uint64_t>() <= kMaxLayer
                             : item.is_number_integer() && item.get<int64_t>() >= -kMaxLayer - 1;
      if (!whole) {
        status_ = Bad(where_, key, " has ", item.dump().substr(0, 20), "; expected layers, 0 to ",
                      kMaxLayer, ", or -1 to ", -kMaxLayer - 1, " from the end");
        return;
      }
      if (out->size() > kMaxLayer) {
        status_ = Bad(where_, key, " has more than ", kMaxLayer + 1, " layers");
        return;
      }
      out->push_back(item.get<int>());
    }
  }
  // A member that somebody else reads.
  void Known(const char* key) { taken_.push_back(key); }
  // After all were taken: what nobody asked for is an error.
  absl::Status Finish() {
    if (!status_.ok()) return status_;
    for (const auto& [key, value] : object_.items()) {
      bool known = false;
      for (const std::string& t : taken_) known |= t == key;
      if (!known) return Bad("unknown key ", where_, Quoted(key));
    }
    return absl::OkStatus();
  }

 private:
  const json* Find(const char* key, bool (json::*is)() const noexcept, const char* expected) {
    taken_.push_back(key);
    if (!status_.ok()) return nullptr;
    const auto it = object_.find(key);
    if (it == object_.end()) return nullptr;
    if (!((*it).*is)()) {
      status_ = Bad(where_, key, " is ", it->dump().substr(0, 20), "; expected ", expected);
      return nullptr;
    }
    return &*it;
  }

  const json& object_;
  const std::string where_;
  std::vector<std::string> taken_;
  absl::Status status_;
};

absl::Status TakeStream(const json& object, const std::string& where, StreamParams* s) {
  Reader r(object, where);
  r.Take("coded", &s->coded);
  r.Take("residual", kResiduals, &s->residual);
  r.Take("skeleton", kDtypes, &s->skeleton);
  r.Take("pca", kPcas, &s->pca);
  r.Take("variance_ratio", &s->variance_ratio);
  r.Take("rank_factor", &s->rank_factor);
  r.Take("rank", &s->rank);
  r.Take("oversample", &s->oversample);
  r.Take("power_iterations", &s->power_iterations);
  r.Take("share_basis", &s->share_basis);
  r.Take("clusters", &s->clusters);
  r.Take("sparse_count", &s->sparse_count);
  r.Take("bits", &s->bits);
  r.Take("metric", kMetrics, &s->metric);
  r.Take("norm_correction", &s->norm_correction);
  r.Take("outlier_threshold", &s->outlier_threshold);
  r.Take("calibrated_centroids", &s->calibrated_centroids);
  return r.Finish();
}

template <size_t N, typename E>
const char* NameOf(const Name (&names)[N], E value) {
  for (const Name& n : names) {
    if (n.value == static_cast<int>(value)) return n.text;
  }
  return "unknown";
}

ordered_json StreamToJson(const StreamParams& s) {
  return {{"coded", s.coded},
          {"residual", NameOf(kResiduals, s.residual)},
          {"skeleton", NameOf(kDtypes, s.skeleton)},
          {"pca", NameOf(kPcas, s.pca)},
          {"variance_ratio", s.variance_ratio},
          {"rank_factor", s.rank_factor},
          {"rank", s.rank},
          {"oversample", s.oversample},
          {"power_iterations", s.power_iterations},
          {"share_basis", s.share_basis},
          {"clusters", s.clusters},
          {"sparse_count", s.sparse_count},
          {"bits", s.bits},
          {"metric", NameOf(kMetrics, s.metric)},
          {"norm_correction", s.norm_correction},
          {"outlier_threshold", s.outlier_threshold},
          {"calibrated_centroids", s.calibrated_centroids}};
}

absl::Status CheckRange(const std::string& name, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();  // also not NaN
  return Bad(name, " ", value, "; expected ", low, " to ", high);
}

absl::Status CheckStream(const std::string& where, const StreamParams& s) {
  const struct {
    const char* name;
    double value, low, high;
  } ranges[] = {
      {"variance_ratio", s.variance_ratio, .01, 1},
      {"rank_factor", s.rank_factor, 0, 1},
      {"rank", static_cast<double>(s.rank), 0, 4096},
      {"oversample", static_cast<double>(s.oversample), 0, 4096},
      {"power_iterations", static_cast<double>(s.power_iterations), 0, 16},
      {"clusters", static_cast<double>(s.clusters), 1, kMaxClusters},
      {"sparse_count", static_cast<double>(s.sparse_count), 0, 4096},
      {"bits", static_cast<double>(s.bits), 1, 4},
      {"outlier_threshold", s.outlier_threshold, 0, 1000},
  };
  for (const auto& r : ranges) {
    if (absl::Status ok = CheckRange(where + r.name, r.value, r.low, r.high); !ok.ok()) return ok;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Params> PresetParams(absl::string_view name) {
  Params p;
  if (name == "kakeya-1.0") {
    p.rows = RowOrder::kPooled;
    p.unrotate_keys = false;
    p.k.residual = p.v.residual = Residual::kSparse;
    p.k.skeleton = p.v.skeleton = Dtype::kBf16;
    return p;
  }
  if (name == "kakeya-1.2") {
    p.rows = RowOrder::kPooled;
    p.unrotate_keys = false;
    return p;
  }
  if (name == "kakeya-1.3" || name == "kakeya-1.3-ppl") {
    p.rows = RowOrder::kPooled;
    for (StreamParams* s : {&p.k, &p.v}) {
      s->bits = 2;
      s->pca = PcaMethod::kRandomized;
      s->rank_factor = .5;
    }
    p.k.metric = Metric::kInnerProduct;
    p.v.share_basis = true;
    if (name == "kakeya-1.3") return p;
    // The guardrails. Rows of one head each, which were measured to matter most.
    p.rows = RowOrder::kPerHead;
    p.whiten_keys = true;
    p.k.bits = 3;
    p.k.calibrated_centroids = p.v.calibrated_centroids = true;
    p.k.outlier_threshold = 2;
    return p;
  }
  return Bad("preset ", Quoted(name),
             "; expected kakeya-1.0, kakeya-1.2, kakeya-1.3 or kakeya-1.3-ppl");
}

absl::Status CheckParams(const Params& p) {
  if (absl::Status s = CheckRange("block_rows", p.block_rows, 2, kMaxBlockRows); !s.ok()) return s;
  if (absl::Status s = CheckRange("sink_tokens", p.sink_tokens, 0, kMaxSinkTokens); !s.ok()) {
    return s;
  }
  if (absl::Status s = CheckRange("hot_bits", p.hot_bits, 1, 4); !s.ok()) return s;
  for (const std::vector<int>* layers : {&p.raw_layers, &p.hot_layers}) {
    for (int layer : *layers) {
      if (absl::Status s = CheckRange("layer", layer, -kMaxLayer - 1, kMaxLayer); !s.ok()) return s;
    }
  }
  if (absl::Status s = CheckStream("k.", p.k); !s.ok()) return s;
  return CheckStream("v.", p.v);
}

namespace {

absl::StatusOr<json> ParseObject(absl::string_view text) {
  if (text.size() > kMaxJsonBytes) {
    return Bad(text.size(), " bytes; expected at most ", kMaxJsonBytes);
  }
  // Depth 3 is all that is known: deeper ones never reach the parser.
  int depth = 0;
  for (char c : text) {
    depth += c == '{' || c == '[' ? 1 : c == '}' || c == ']' ? -1 : 0;
    if (depth > 3) return Bad("nested deeper than 3");
  }
  json j = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (j.is_discarded() || !j.is_object()) return Bad("not a JSON object");
  return j;
}

absl::StatusOr<Params> TakeParams(const json& j, const Params& base, bool preset) {
  absl::StatusOr<Params> p = base;
  Reader r(j, "");
  for (const char* key : {"k", "v"}) r.Known(key);
  if (preset) r.Known("preset");
  r.Take("rows", kOrders, &p->rows);
  r.Take("block_rows", &p->block_rows);
  r.Take("seed", &p->seed);
  r.Take("unrotate_keys", &p->unrotate_keys);
  r.Take("whiten_keys", &p->whiten_keys);
  r.Take("sink_tokens", &p->sink_tokens);
  r.Take("raw_layers", &p->raw_layers);
  r.Take("hot_layers", &p->hot_layers);
  r.Take("hot_bits", &p->hot_bits);
  if (absl::Status s = r.Finish(); !s.ok()) return s;
  for (auto [key, stream] : {std::pair<const char*, StreamParams*>{"k", &p->k}, {"v", &p->v}}) {
    const auto it = j.find(key);
    if (it == j.end()) continue;
    if (absl::Status s = TakeStream(*it, absl::StrCat(key, "."), stream); !s.ok()) return s;
  }
  if (absl::Status s = CheckParams(*p); !s.ok()) return s;
  return p;
}

}  // namespace

absl::StatusOr<Params> ParamsFromJson(absl::string_view text) {
  const absl::StatusOr<json> j = ParseObject(text);
  if (!j.ok()) return j.status();
  std::string preset = "kakeya-1.3";
  if (const auto it = j->find("preset"); it != j->end()) {
    if (!it->is_string()) return Bad("preset is not a string");
    preset = it->get<std::string>();
  }
  const absl::StatusOr<Params> base = PresetParams(preset);
  if (!base.ok()) return base;
  return TakeParams(*j, *base, /*preset=*/true);
}

absl::StatusOr<Params> ParamsFromJson(absl::string_view text, const Params& base) {
  const absl::StatusOr<json> j = ParseObject(text);
  if (!j.ok()) return j.status();
  return TakeParams(*j, base, /*preset=*/false);
}

absl::Status ResolveLayers(int layers, Params* params) {
  for (auto [key, list] :
       {std::pair<const char*, std::vector<int>*>{"raw_layers", &params->raw_layers},
        {"hot_layers", &params->hot_layers}}) {
    for (int& layer : *list) {
      if (layer >= layers || layer < -layers) {
        return Bad(key, " has ", layer, "; the model has layers 0 to ", layers - 1);
      }
      if (layer < 0) layer += layers;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> CanonicalSetting(absl::string_view setting) {
  if (setting.empty()) return std::string();
  std::vector<std::string> names;
  for (const Recipe& recipe : Recipes()) {
    if (setting == recipe.name) return std::string(setting);
    names.push_back(recipe.name);
  }
  if (setting.find('{') == setting.npos) {
    return Bad("no recipe ", Quoted(setting), "; there are ", absl::StrJoin(names, ", "),
               ", or write one: {\"raw_layers\": [0, -1]}");
  }
  if (setting.size() > kMaxRecipeJsonBytes) {
    return Bad("a recipe of ", setting.size(), " bytes; expected at most ", kMaxRecipeJsonBytes);
  }
  const absl::StatusOr<json> j = ParseObject(setting);
  if (!j.ok()) return j.status();
  if (auto p = TakeParams(*j, Params(), /*preset=*/false); !p.ok()) return p.status();
  return j->empty() ? std::string() : j->dump();  // keys in order, no blanks
}

absl::StatusOr<Params> ApplySetting(absl::string_view setting, const Params& base) {
  if (setting.empty()) return base;
  for (const Recipe& recipe : Recipes()) {
    if (setting == recipe.name) return ParamsFromJson(recipe.json, base);
  }
  return ParamsFromJson(setting, base);
}

std::string ParamsToJson(const Params& p) {
  return ordered_json({{"rows", NameOf(kOrders, p.rows)},
                       {"block_rows", p.block_rows},
                       {"seed", p.seed},
                       {"unrotate_keys", p.unrotate_keys},
                       {"whiten_keys", p.whiten_keys},
                       {"sink_tokens", p.sink_tokens},
                       {"raw_layers", p.raw_layers},
                       {"hot_layers", p.hot_layers},
                       {"hot_bits", p.hot_bits},
                       {"k", StreamToJson(p.k)},
                       {"v", StreamToJson(p.v)}})
      .dump();
}

}  // namespace kvcask::kakeya
