#include "codec/recipe/layer_plan.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "codec/base/geometry_json.h"

namespace kvcask {
namespace {

using nlohmann::json;

template <typename... Args>
absl::Status Bad(const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("model config: ", what...));
}

// Typed reads of one JSON object; a null is an absent key. The first wrong one is kept.
class Config {
 public:
  explicit Config(const json& object) : object_(object) {}

  bool Has(const char* key) const {
    const auto it = object_.find(key);
    return it != object_.end() && !it->is_null();
  }
  int64_t Int(const char* key, int64_t low, int64_t high, std::optional<int64_t> otherwise) {
    if (!Has(key)) {
      if (!otherwise) Fail(absl::StrCat(key, " is missing"));
      return otherwise.value_or(low);
    }
    const json& v = object_[key];
    if (!v.is_number_integer() || v.get<int64_t>() < low || v.get<int64_t>() > high) {
      Fail(absl::StrCat(key, " is ", v.dump().substr(0, 40), "; expected an integer ", low, " to ",
                        high));
      return low;
    }
    return v.get<int64_t>();
  }
  double Number(const char* key, double otherwise) {
    if (!Has(key)) return otherwise;
    const json& v = object_[key];
    if (!v.is_number() || !(v.get<double>() > 0) || !std::isfinite(v.get<double>())) {
      Fail(absl::StrCat(key, " is ", v.dump().substr(0, 40), "; expected a positive number"));
      return otherwise;
    }
    return v.get<double>();
  }
  bool Bool(const char* key, bool otherwise) {
    if (!Has(key)) return otherwise;
    if (!object_[key].is_boolean()) Fail(absl::StrCat(key, " is no boolean"));
    return object_[key] == true;
  }
  std::string Text(const char* key) {
    if (!Has(key)) return "";
    if (!object_[key].is_string()) {
      Fail(absl::StrCat(key, " is no string"));
      return "";
    }
    return object_[key].get<std::string>();
  }
  const json* Find(const char* key) const { return Has(key) ? &object_[key] : nullptr; }
  void Fail(const std::string& what) {
    if (status_.ok()) status_ = Bad(what);
  }
  void Fail(absl::Status status) { status_.Update(status); }
  const absl::Status& status() const { return status_; }

 private:
  const json& object_;
  absl::Status status_;
};

// "rope_scaling", or the newer "rope_parameters", whose numbers lie beside the type.
Rope ReadRope(Config& c, int head_dim, const char* theta_key, bool scaled) {
  Rope rope;
  const std::string family = c.Text("model_type");
  const bool interleaved = family.rfind("cohere", 0) == 0 || family == "glm" || family == "glm4" ||
                           family == "chatglm" || family.rfind("llama4", 0) == 0;
  rope.style = interleaved ? RopeStyle::kInterleaved : RopeStyle::kRotateHalf;
  const double partial = c.Number("partial_rotary_factor", 1);
  rope.dims = static_cast<int>(head_dim * std::min(partial, 1.0)) / 2 * 2;
  rope.dims = static_cast<int>(c.Int("rotary_dim", 0, head_dim, rope.dims)) / 2 * 2;  // MiniMax
  const double theta = c.Number(theta_key, 10000);
  std::vector<double> frequencies;
  for (int i = 0; i < rope.dims / 2; ++i) {
    frequencies.push_back(std::pow(theta, -2.0 * i / rope.dims));
  }
  const json* parameters = c.Find("rope_scaling");
  if (scaled && parameters != nullptr && parameters->is_object()) {
    Config s(*parameters);
    std::string type = s.Text("rope_type");
    if (type.empty()) type = s.Text("type");
    const double factor = s.Number("factor", 1);
    if (type == "linear") {
      for (double& f : frequencies) f /= factor;
    } else if (type == "llama3") {
      const double low = s.Number("low_freq_factor", 1), high = s.Number("high_freq_factor", 4);
      const double original = s.Number("original_max_position_embeddings", 8192);
      for (double& f : frequencies) {
        const double turns = original * f / (2 * M_PI);  // over the original context
        const double smooth = std::clamp((turns - low) / std::max(high - low, 1e-9), 0.0, 1.0);
        f = (1 - smooth) * f / factor + smooth * f;
      }
    } else if (type == "yarn") {
      const double original = s.Number("original_max_position_embeddings", 4096);
      const double fast = s.Number("beta_fast", 32), slow = s.Number("beta_slow", 1);
      const auto dim_of = [&](double turns) {
        return rope.dims * std::log(original / (turns * 2 * M_PI)) / (2 * std::log(theta));
      };
      const double first = std::max(0.0, std::floor(dim_of(fast)));
      const double last = std::min(rope.dims - 1.0, std::ceil(dim_of(slow)));
      for (size_t i = 0; i < frequencies.size(); ++i) {
        const double ramp = std::clamp((i - first) / std::max(last - first, .001), 0.0, 1.0);
        frequencies[i] *= 1 - ramp + ramp / factor;
      }
      rope.attention_scale = static_cast<float>(
          s.Number("attention_factor", factor > 1 ? .1 * std::log(factor) + 1 : 1));
    } else if (!type.empty() && type != "default") {
      c.Fail(CheckRopeScaling(type));
    }
    c.Fail(s.status());
  }
  for (double f : frequencies) rope.inv_freq.push_back(static_cast<float>(f));
  return rope;
}

absl::StatusOr<std::vector<LayerKind>> ReadKinds(Config& c, int layers, int window, int chunk) {
  if (const json* types = c.Find("layer_types"); types != nullptr) {
    if (!types->is_array() || static_cast<int>(types->size()) != layers) {
      return Bad("layer_types has ", types->size(), " entries; expected ", layers);
    }
    std::vector<LayerKind> kinds;
    for (const json& t : *types) {
      const std::string type = t.is_string() ? t.get<std::string>() : t.dump().substr(0, 40);
      if (type == "full_attention") {
        kinds.push_back(LayerKind::kFull);
      } else if (type == "sliding_attention") {
        kinds.push_back(LayerKind::kSliding);
      } else if (type == "chunked_attention") {
        kinds.push_back(LayerKind::kChunked);
      } else {
        return absl::UnimplementedError(absl::StrCat(
            "model config: layer_types[", kinds.size(), "] is \"", type.substr(0, 40),
            "\"; expected full_attention, sliding_attention or chunked_attention"));
      }
    }
    return kinds;
  }
  std::vector<LayerKind> kinds(layers, LayerKind::kFull);
  if (chunk > 0) {
    const json* no_rope = c.Find("no_rope_layers");
    const bool pattern = no_rope != nullptr && no_rope->is_array() &&
                         static_cast<int>(no_rope->size()) == layers;
    for (int l = 0; l < layers; ++l) {
      kinds[l] = pattern && (*no_rope)[l] == 0 ? LayerKind::kFull : LayerKind::kChunked;
    }
  } else if (window > 0) {
    const bool gemma2 = c.Text("model_type") == "gemma2";  // every other layer, unsaid
    const int64_t pattern = c.Int("sliding_window_pattern", 1, kMaxLayers, gemma2 ? 2 : 0);
    const bool partly = c.Has("use_sliding_window");  // Qwen 2
    const int64_t first = partly ? c.Int("max_window_layers", 0, kMaxLayers, 0) : 0;
    for (int l = 0; l < layers; ++l) {
      const bool full = pattern > 0 ? (l + 1) % pattern == 0 : l < first;
      if (!full) kinds[l] = LayerKind::kSliding;
    }
  }
  return kinds;
}

// Which layers turn their keys: all, but where the config has a list of those that don't.
bool TurnsKeys(const Config& c, int layer) {
  const json* no_rope = c.Find("no_rope_layers");
  return no_rope == nullptr || !no_rope->is_array() ||
         layer >= static_cast<int>(no_rope->size()) || (*no_rope)[layer] != 0;
}

}  // namespace

absl::StatusOr<Geometry> GeometryFromModelConfig(absl::string_view text, MlaCache mla) {
  if (text.size() > kMaxModelConfigBytes) {
    return Bad(text.size(), " bytes; expected at most ", kMaxModelConfigBytes);
  }
  json root = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return Bad("no JSON object");
  if (root.contains("text_config") && root["text_config"].is_object()) {
    const json inner = root["text_config"];
    root = inner;
  }
  Config c(root);
  const int layers = static_cast<int>(c.Int("num_hidden_layers", 1, kMaxLayers, std::nullopt));
  const int64_t heads = c.Int("num_attention_heads", 1, 1 << 16, std::nullopt);
  if (!c.status().ok()) return c.status();
  Geometry g;
  if (c.Has("kv_lora_rank")) {
    const int rank = static_cast<int>(c.Int("kv_lora_rank", 1, kMaxHeadDim, std::nullopt));
    const int turned = static_cast<int>(c.Int("qk_rope_head_dim", 0, kMaxHeadDim, 0));
    LayerGeometry layer;
    if (mla == MlaCache::kDecompressed) {
      const int still = static_cast<int>(c.Int("qk_nope_head_dim", 0, kMaxHeadDim, std::nullopt));
      const int value = static_cast<int>(c.Int("v_head_dim", 1, kMaxHeadDim, std::nullopt));
      layer.streams = {{StreamKind::kK, static_cast<int>(heads), still + turned},
                       {StreamKind::kV, static_cast<int>(heads), value}};
    } else {
      layer.kind = LayerKind::kLatent;
      layer.streams = {{StreamKind::kLatent, 1, rank + turned}};
    }
    g.layers.assign(layers, layer);
    if (!c.status().ok()) return c.status();
    if (absl::Status s = g.Validate(); !s.ok()) return s;
    return g;
  }
  if (mla == MlaCache::kDecompressed) {
    return Bad("no kv_lora_rank, so that nothing is latent and nothing to decompress");
  }
  const int kv_heads = static_cast<int>(c.Int("num_key_value_heads", 1, kMaxHeads, heads));
  int64_t dim = c.Int("head_dim", 1, kMaxHeadDim, 0);
  if (dim == 0) dim = c.Int("hidden_size", 1, 1 << 20, std::nullopt) / heads;
  if (!c.status().ok()) return c.status();
  if (dim < 1 || dim > kMaxHeadDim) return Bad("head_dim is ", dim);
  const int global_dim = static_cast<int>(c.Int("global_head_dim", 1, kMaxHeadDim, dim));
  const int global_heads =
      static_cast<int>(c.Int("num_global_key_value_heads", 1, kMaxHeads, kv_heads));
  const bool windowed = c.Bool("use_sliding_window", true);
  const int window = windowed ? static_cast<int>(c.Int("sliding_window", 0, 1 << 30, 0)) : 0;
  const int chunk = static_cast<int>(c.Int("attention_chunk_size", 0, 1 << 30, 0));
  const int shared = static_cast<int>(c.Int("num_kv_shared_layers", 0, layers, 0));
  if (!c.status().ok()) return c.status();
  auto kinds = ReadKinds(c, layers, window, chunk);
  if (!kinds.ok()) return kinds.status();
  const bool local_theta = c.Has("rope_local_base_freq");  // Gemma 3: sliding layers have their own
  const Rope full_rope = ReadRope(c, global_dim, "rope_theta", true);
  const Rope other_rope = ReadRope(c, static_cast<int>(dim),
                                   local_theta ? "rope_local_base_freq" : "rope_theta",
                                   !local_theta);
  if (!c.status().ok()) return c.status();
  std::map<LayerKind, int> last_of_kind;
  for (int l = 0; l < layers; ++l) {
    LayerGeometry layer;
    layer.kind = (*kinds)[l];
    if (l >= layers - shared) {  // with shared = 0 never
      const auto source = last_of_kind.find(layer.kind);
      if (source == last_of_kind.end()) {
        return Bad("num_kv_shared_layers is ", shared, ", but no layer before layer ", l,
                   " is of its kind");
      }
      layer.kind = LayerKind::kShared;
      layer.shared_with = source->second;
      g.layers.push_back(layer);
      continue;
    }
    last_of_kind[layer.kind] = l;
    const bool full = layer.kind == LayerKind::kFull;
    if (layer.kind == LayerKind::kSliding) layer.window = window;
    if (layer.kind == LayerKind::kChunked) layer.window = chunk;
    if (!full && layer.window == 0) {
      return Bad("layer ", l, " is sliding or chunked, but there is no sliding_window or "
                 "attention_chunk_size");
    }
    const int h = full ? global_heads : kv_heads;
    const int d = full ? global_dim : static_cast<int>(dim);
    layer.streams = {{StreamKind::kK, h, d}, {StreamKind::kV, h, d}};
    if (TurnsKeys(c, l)) layer.rope = full ? full_rope : other_rope;
    g.layers.push_back(std::move(layer));
  }
  if (absl::Status s = g.Validate(); !s.ok()) return s;
  return g;
}

std::string DescribeLayers(const Geometry& g) {
  std::vector<std::string> order;
  std::map<std::string, int> counts;
  for (const LayerGeometry& layer : g.layers) {
    std::string text = layer.kind == LayerKind::kFull      ? "full"
                       : layer.kind == LayerKind::kSliding ? "sliding"
                       : layer.kind == LayerKind::kChunked ? "chunked"
                       : layer.kind == LayerKind::kShared  ? "shared"
                                                           : "latent";
    if (layer.window > 0) absl::StrAppend(&text, " ", layer.window);
    std::vector<std::string> streams;
    for (const StreamGeometry& s : layer.streams) {
      streams.push_back(absl::StrCat(s.kind == StreamKind::kK   ? "K "
                                     : s.kind == StreamKind::kV ? "V "
                                                                : "latent ",
                                     s.heads, " x ", s.head_dim));
    }
    if (!streams.empty()) absl::StrAppend(&text, " (", absl::StrJoin(streams, ", "), ")");
    if (counts[text]++ == 0) order.push_back(text);
  }
  std::vector<std::string> parts;
  for (const std::string& text : order) parts.push_back(absl::StrCat(counts[text], " ", text));
  return absl::StrJoin(parts, "; ");
}

}  // namespace kvcask
