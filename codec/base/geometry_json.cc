#include "codec/base/geometry_json.h"

#include <absl/strings/escaping.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

namespace kvcask {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr int kMaxDepth = 8;
constexpr char kLayout[] = "[kv_head][token][head_dim]";

template <typename... Args>
absl::Status Bad(const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("geometry: ", what...));
}

std::string Quoted(absl::string_view s) {
  return absl::StrCat("\"", absl::CHexEscape(s.substr(0, 80)), "\"");
}

struct Name {
  const char* text;
  int value;
};
constexpr Name kLayerKinds[] = {
    {"full", 1}, {"sliding", 2}, {"chunked", 3}, {"shared", 4}, {"latent", 5}};
constexpr Name kStreamKinds[] = {{"k", 1}, {"v", 2}, {"latent", 3}};
constexpr Name kRopeStyles[] = {{"none", 0}, {"rotate_half", 1}, {"interleaved", 2}};
constexpr Name kDtypes[] = {{"bf16", 1}, {"f16", 2}, {"f32", 3}};

template <size_t N>
absl::StatusOr<int> Lookup(const Name (&names)[N], absl::string_view text,
                           const std::string& where) {
  std::string known;
  for (const Name& n : names) {
    if (text == n.text) return n.value;
    absl::StrAppend(&known, known.empty() ? "" : ", ", n.text);
  }
  return Bad(where, " ", Quoted(text), "; expected ", known);
}

template <size_t N, typename E>
const char* NameOf(const Name (&names)[N], E value) {
  for (const Name& n : names) {
    if (n.value == static_cast<int>(value)) return n.text;
  }
  return "unknown";
}

// Brackets nested deeper than any geometry's, found before the parser allocates for them.
bool TooDeep(absl::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

// One JSON object of which every key must be asked for. Errors are kept; the first wins.
class Fields {
 public:
  Fields(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) Fail(where_, ": expected an object");
  }

  bool Has(const char* key) const { return object_.is_object() && object_.contains(key); }

  int Int(const char* key, int fallback, int limit) {
    const json* v = Take(key);
    if (v == nullptr) return fallback;
    if (!v->is_number_unsigned() || v->get<uint64_t>() > static_cast<uint64_t>(limit)) {
      Fail(where_, ".", key, ": expected a whole number from 0 to ", limit);
      return fallback;
    }
    return static_cast<int>(v->get<uint64_t>());
  }
  double Number(const char* key, double fallback) {
    const json* v = Take(key);
    if (v == nullptr) return fallback;
    if (!v->is_number()) Fail(where_, ".", key, ": expected a number");
    return v->is_number() ? v->get<double>() : fallback;
  }
  std::string String(const char* key, const char* fallback) {
    const json* v = Take(key);
    if (v == nullptr) return fallback;
    if (!v->is_string()) Fail(where_, ".", key, ": expected a string");
    return v->is_string() ? v->get<std::string>() : fallback;
  }
  template <size_t N>
  int Enum(const char* key, const Name (&names)[N], const char* fallback) {
    absl::StatusOr<int> v = Lookup(names, String(key, fallback), absl::StrCat(where_, ".", key));
    if (v.ok()) return *v;
    if (status_.ok()) status_ = v.status();
    return 0;
  }
  // An empty array when there is none.
  const json& Array(const char* key) {
    static const json* const kEmpty = new json(json::array());
    const json* v = Take(key);
    if (v == nullptr) return *kEmpty;
    if (!v->is_array()) Fail(where_, ".", key, ": expected an array");
    return v->is_array() ? *v : *kEmpty;
  }
  const json* Object(const char* key) { return Take(key); }

  const std::string& where() const { return where_; }
  template <typename... Args>
  void Fail(const Args&... what) {
    if (status_.ok()) status_ = Bad(what...);
  }
  void Adopt(const absl::Status& s) {
    if (status_.ok()) status_ = s;
  }
  // After all keys were asked for.
  absl::Status Finish() {
    if (status_.ok()) {
      for (auto it = object_.begin(); it != object_.end(); ++it) {
        if (!taken_.count(it.key())) Fail(where_, ": unknown key ", Quoted(it.key()));
      }
    }
    return status_;
  }

 private:
  const json* Take(const char* key) {
    taken_[key] = true;
    return Has(key) ? &object_[key] : nullptr;
  }

  const json& object_;
  const std::string where_;
  std::map<std::string, bool> taken_;
  absl::Status status_;
};

// The cast alone would be undefined for numbers beyond fp32.
bool ToFloat(double d, float* f) {
  if (!(std::fabs(d) <= std::numeric_limits<float>::max())) return false;
  *f = static_cast<float>(d);
  return true;
}

absl::StatusOr<Rope> ReadRope(const json& object, const std::string& where) {
  Fields f(object, where);
  Rope rope;
  rope.style = static_cast<RopeStyle>(f.Enum("style", kRopeStyles, "none"));
  const int dims = f.Int("dims", 0, kMaxHeadDim);
  const double theta = f.Number("theta", 0);
  const bool has_theta = f.Has("theta");
  f.Adopt(CheckRopeScaling(f.String("scaling", "")));
  const std::string scaling = f.String("scaling", "");
  if (!ToFloat(f.Number("attention_scale", 1), &rope.attention_scale)) {
    f.Fail(where, ".attention_scale: not within fp32");
  }
  const json& frequencies = f.Array("inv_freq");
  if (frequencies.size() > kMaxHeadDim / 2) f.Fail(where, ".inv_freq: too many");
  for (const json& v : frequencies) {
    float x = 0;
    if (!v.is_number() || !ToFloat(v.get<double>(), &x)) {
      f.Fail(where, ".inv_freq: expected numbers within fp32");
      break;
    }
    rope.inv_freq.push_back(x);
  }
  if (has_theta && !rope.inv_freq.empty()) f.Fail(where, ": both theta and inv_freq");
  if (has_theta && (scaling == "yarn" || scaling == "llama3")) {
    f.Fail(where, ": scaling ", scaling, " needs inv_freq, not theta");
  }
  if (has_theta && !(theta > 0 && std::isfinite(theta))) {
    f.Fail(where, ".theta: expected a positive number");
  }
  if (absl::Status s = f.Finish(); !s.ok()) return s;
  if (has_theta) rope.inv_freq = StandardRope(rope.style, dims, theta).inv_freq;
  rope.dims = dims;
  return rope;
}

absl::StatusOr<LayerGeometry> ReadLayer(const json& object, const std::string& where, int* repeat) {
  Fields f(object, where);
  LayerGeometry layer;
  *repeat = f.Int("repeat", 1, kMaxLayers);
  layer.kind = static_cast<LayerKind>(f.Enum("kind", kLayerKinds, "full"));
  layer.window = f.Int("window", 0, std::numeric_limits<int>::max());
  layer.shared_with = f.Int("shared_with", 0, kMaxLayers);
  const json& streams = f.Array("streams");
  if (streams.size() > 2) f.Fail(where, ".streams: more than two");
  for (size_t i = 0; i < streams.size() && i < 2; ++i) {
    Fields s(streams[i], absl::StrCat(where, ".streams[", i, "]"));
    StreamGeometry stream;
    stream.kind = static_cast<StreamKind>(s.Enum("kind", kStreamKinds, ""));
    stream.heads = s.Int("heads", 0, kMaxHeads);
    stream.head_dim = s.Int("head_dim", 0, kMaxHeadDim);
    f.Adopt(s.Finish());
    layer.streams.push_back(stream);
  }
  if (const json* rope = f.Object("rope")) {
    absl::StatusOr<Rope> r = ReadRope(*rope, absl::StrCat(where, ".rope"));
    if (r.ok()) layer.rope = *std::move(r);
    if (!r.ok()) f.Adopt(r.status());
  }
  if (absl::Status s = f.Finish(); !s.ok()) return s;
  return layer;
}

bool SameRope(const Rope& a, const Rope& b) {
  return a.style == b.style && a.dims == b.dims && a.inv_freq == b.inv_freq &&
         a.attention_scale == b.attention_scale;
}

bool SameLayer(const LayerGeometry& a, const LayerGeometry& b) {
  if (a.kind != b.kind || a.window != b.window || a.shared_with != b.shared_with ||
      a.streams.size() != b.streams.size() || !SameRope(a.rope, b.rope)) {
    return false;
  }
  for (size_t i = 0; i < a.streams.size(); ++i) {
    const StreamGeometry &x = a.streams[i], &y = b.streams[i];
    if (x.kind != y.kind || x.heads != y.heads || x.head_dim != y.head_dim) return false;
  }
  return true;
}

ordered_json LayerToJson(const LayerGeometry& layer, int repeat) {
  ordered_json out = ordered_json::object();
  if (repeat > 1) out["repeat"] = repeat;
  out["kind"] = NameOf(kLayerKinds, layer.kind);
  if (layer.window != 0) out["window"] = layer.window;
  if (layer.kind == LayerKind::kShared) out["shared_with"] = layer.shared_with;
  for (const StreamGeometry& s : layer.streams) {
    out["streams"].push_back(
        {{"kind", NameOf(kStreamKinds, s.kind)}, {"heads", s.heads}, {"head_dim", s.head_dim}});
  }
  if (layer.rope.style == RopeStyle::kNone) return out;
  ordered_json& rope = out["rope"];
  rope["style"] = NameOf(kRopeStyles, layer.rope.style);
  rope["dims"] = layer.rope.dims;
  rope["inv_freq"] = layer.rope.inv_freq;
  if (layer.rope.attention_scale != 1) rope["attention_scale"] = layer.rope.attention_scale;
  return out;
}

// The theta of textbook frequencies, where it is a whole number; 0 where there is none.
double FindTheta(const Rope& rope) {
  if (rope.dims < 4) return 0;
  const double exponent = -static_cast<double>(rope.dims) / (rope.dims - 2);
  const double theta = std::round(std::pow(rope.inv_freq.back(), exponent));
  if (!(theta >= 1 && theta <= 1e15)) return 0;
  const bool same = StandardRope(rope.style, rope.dims, theta).inv_freq == rope.inv_freq;
  return same && rope.attention_scale == 1 ? theta : 0;
}

// The plain keys of a cache file.
class PlainKeys {
 public:
  explicit PlainKeys(const std::map<std::string, std::string>& metadata) : metadata_(metadata) {}

  const std::string* Find(const char* key) const {
    const auto it = metadata_.find(key);
    return it == metadata_.end() ? nullptr : &it->second;
  }
  absl::Status Int(const char* key, int64_t low, int64_t high, int64_t* out) const {
    const std::string* text = Find(key);
    if (text == nullptr) return Bad("metadata has no ", key);
    if (!absl::SimpleAtoi(*text, out) || *out < low || *out > high) {
      return Bad("metadata ", key, " is ", Quoted(*text), "; expected ", low, " to ", high);
    }
    return absl::OkStatus();
  }
  std::string String(const char* key, const char* fallback) const {
    const std::string* text = Find(key);
    return text == nullptr ? fallback : *text;
  }

 private:
  const std::map<std::string, std::string>& metadata_;
};

absl::StatusOr<Geometry> PlainGeometry(const PlainKeys& keys) {
  int64_t layers, kv_heads, head_dim;
  if (auto s = keys.Int("layers", 1, kMaxLayers, &layers); !s.ok()) return s;
  if (auto s = keys.Int("kv_heads", 1, kMaxHeads, &kv_heads); !s.ok()) return s;
  if (auto s = keys.Int("head_dim", 1, kMaxHeadDim, &head_dim); !s.ok()) return s;
  if (auto s = CheckRopeScaling(keys.String("rope_scaling", "")); !s.ok()) return s;
  const std::string scaling = keys.String("rope_scaling", "");
  if (scaling == "yarn" || scaling == "llama3") {
    return Bad("metadata rope_scaling ", scaling, " needs `geometry` with inverse frequencies");
  }
  absl::StatusOr<int> style = Lookup(kRopeStyles, keys.String("rope", "none"), "metadata rope");
  if (!style.ok()) return style.status();
  Rope rope;
  if (*style != 0) {
    int64_t dims = head_dim;
    if (keys.Find("rope_dim")) {
      if (auto s = keys.Int("rope_dim", 2, head_dim, &dims); !s.ok()) return s;
    }
    double theta;
    const std::string text = keys.String("rope_theta", "");
    if (!absl::SimpleAtod(text, &theta) || !(theta > 0 && std::isfinite(theta))) {
      return Bad("metadata rope_theta is ", Quoted(text), "; expected a positive number");
    }
    rope = StandardRope(static_cast<RopeStyle>(*style), static_cast<int>(dims), theta);
  }
  return UniformGeometry(static_cast<int>(layers), static_cast<int>(kv_heads),
                         static_cast<int>(head_dim), rope);
}

}  // namespace

absl::Status CheckRopeScaling(absl::string_view scaling) {
  for (const char* known : {"", "none", "default", "yarn", "llama3"}) {
    if (scaling == known) return absl::OkStatus();
  }
  static constexpr struct {
    const char* name;
    const char* title;
  } kRefused[] = {{"longrope", "LongRoPE"},
                  {"su", "LongRoPE"},
                  {"dynamic", "dynamic NTK"},
                  {"dynamic_ntk", "dynamic NTK"},
                  {"mrope", "mRoPE"}};
  for (const auto& r : kRefused) {
    if (scaling == r.name) {
      return absl::UnimplementedError(
          absl::StrCat("RoPE scaling ", Quoted(scaling), " (", r.title,
                       ") is not supported: its frequencies change with length or modality"));
    }
  }
  return Bad("RoPE scaling ", Quoted(scaling), "; expected none, yarn or llama3");
}

std::string GeometryToJson(const Geometry& g) {
  ordered_json out;
  out["layers"] = ordered_json::array();
  for (size_t i = 0; i < g.layers.size();) {
    size_t end = i + 1;
    while (end < g.layers.size() && SameLayer(g.layers[i], g.layers[end])) ++end;
    out["layers"].push_back(LayerToJson(g.layers[i], static_cast<int>(end - i)));
    i = end;
  }
  return out.dump();
}

absl::StatusOr<Geometry> GeometryFromJson(absl::string_view text) {
  if (text.size() > kMaxGeometryJsonBytes) {
    return Bad("JSON of ", text.size(), " bytes; expected at most ", kMaxGeometryJsonBytes);
  }
  if (TooDeep(text)) return Bad("JSON nested deeper than ", kMaxDepth);
  const json parsed = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) return Bad("not JSON");
  Fields top(parsed, "geometry");
  const json& layers = top.Array("layers");
  if (absl::Status s = top.Finish(); !s.ok()) return s;
  Geometry g;
  for (size_t i = 0; i < layers.size(); ++i) {
    int repeat = 1;
    absl::StatusOr<LayerGeometry> layer =
        ReadLayer(layers[i], absl::StrCat("layers[", i, "]"), &repeat);
    if (!layer.ok()) return layer.status();
    if (repeat < 1 || g.layers.size() + repeat > static_cast<size_t>(kMaxLayers)) {
      return Bad("layers[", i, "]: repeat ", repeat, " after ", g.layers.size(),
                 " layers; expected 1 to ", kMaxLayers, " layers in all");
    }
    g.layers.insert(g.layers.end(), repeat, *layer);
  }
  if (absl::Status s = g.Validate(); !s.ok()) return s;
  return g;
}

absl::StatusOr<CacheMetadata> ParseCacheMetadata(
    const std::map<std::string, std::string>& metadata) {
  const PlainKeys keys(metadata);
  CacheMetadata cache;
  cache.model = keys.String("model", "");
  const std::string layout = keys.String("layout", kLayout);
  if (layout != kLayout) {
    return Bad("metadata layout is ", Quoted(layout), "; expected \"", kLayout, "\"");
  }
  absl::StatusOr<int> dtype = Lookup(kDtypes, keys.String("dtype", ""), "metadata dtype");
  if (!dtype.ok()) return dtype.status();
  cache.dtype = static_cast<Dtype>(*dtype);
  constexpr int64_t kMaxPosition = std::numeric_limits<uint32_t>::max();
  if (auto s = keys.Int("tokens", 1, kMaxPosition, &cache.tokens); !s.ok()) return s;
  if (keys.Find("first_position")) {
    auto s = keys.Int("first_position", 0, kMaxPosition - cache.tokens + 1, &cache.first_position);
    if (!s.ok()) return s;
  }
  const std::string* text = keys.Find("geometry");
  absl::StatusOr<Geometry> g = text ? GeometryFromJson(*text) : PlainGeometry(keys);
  if (!g.ok()) return g.status();
  cache.geometry = *std::move(g);
  if (absl::Status s = cache.geometry.Validate(); !s.ok()) return s;
  return cache;
}

std::map<std::string, std::string> MakeCacheMetadata(const CacheMetadata& cache) {
  const Geometry& g = cache.geometry;
  std::map<std::string, std::string> out = {
      {"model", cache.model},
      {"geometry", GeometryToJson(g)},
      {"layers", absl::StrCat(g.layers.size())},
      {"tokens", absl::StrCat(cache.tokens)},
      {"first_position", absl::StrCat(cache.first_position)},
      {"layout", kLayout},
      {"dtype", std::string(DtypeName(cache.dtype))},
  };
  const LayerGeometry& first = g.layers[0];
  for (const LayerGeometry& layer : g.layers) {
    if (!SameLayer(layer, first)) return out;
  }
  if (first.kind != LayerKind::kFull || first.streams[0].heads != first.streams[1].heads ||
      first.streams[0].head_dim != first.streams[1].head_dim) {
    return out;
  }
  out["kv_heads"] = absl::StrCat(first.streams[0].heads);
  out["head_dim"] = absl::StrCat(first.streams[0].head_dim);
  out["rope"] = NameOf(kRopeStyles, first.rope.style);
  if (first.rope.style == RopeStyle::kNone) return out;
  out["rope_dim"] = absl::StrCat(first.rope.dims);
  const double theta = FindTheta(first.rope);
  if (theta > 0) out["rope_theta"] = json(theta).dump();
  return out;
}

}  // namespace kvcask
