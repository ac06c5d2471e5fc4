#include "codec/base/geometry.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/types/span.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codec/base/sha256.h"

namespace kvcask {
namespace {

template <typename... Args>
absl::Status BadLayer(size_t layer, const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("geometry: layer ", layer, ": ", what...));
}

absl::Status ValidateRope(size_t layer, const Rope& rope, int head_dim) {
  if (rope.style == RopeStyle::kNone) {
    if (rope.dims != 0 || !rope.inv_freq.empty() || rope.attention_scale != 1) {
      return BadLayer(layer, "rope style none with dims ", rope.dims, ", ", rope.inv_freq.size(),
                      " inverse frequencies and attention scale ", rope.attention_scale,
                      "; expected 0, 0 and 1");
    }
    return absl::OkStatus();
  }
  if (rope.style != RopeStyle::kRotateHalf && rope.style != RopeStyle::kInterleaved) {
    return BadLayer(layer, "unknown rope style ", static_cast<int>(rope.style));
  }
  if (rope.dims < 2 || rope.dims % 2 != 0 || rope.dims > head_dim) {
    return BadLayer(layer, "rope dims ", rope.dims,
                    "; expected an even number from 2 to the keys' ", "head_dim ", head_dim);
  }
  if (rope.inv_freq.size() != static_cast<size_t>(rope.dims) / 2) {
    return BadLayer(layer, rope.inv_freq.size(),
                    " inverse frequencies; expected rope dims / 2 = ", rope.dims / 2);
  }
  for (size_t i = 0; i < rope.inv_freq.size(); ++i) {
    if (!std::isfinite(rope.inv_freq[i])) {
      return BadLayer(layer, "inverse frequency ", i, " is ", rope.inv_freq[i],
                      "; expected a finite number");
    }
  }
  if (!std::isfinite(rope.attention_scale) || rope.attention_scale <= 0) {
    return BadLayer(layer, "rope attention scale ", rope.attention_scale,
                    "; expected a finite positive number");
  }
  return absl::OkStatus();
}

absl::Status ValidateStreams(size_t index, const LayerGeometry& layer) {
  const std::vector<StreamGeometry>& s = layer.streams;
  switch (layer.kind) {
    case LayerKind::kShared:
      if (!s.empty()) return BadLayer(index, s.size(), " streams; a shared layer has none");
      break;
    case LayerKind::kLatent:
      if (s.size() != 1 || s[0].kind != StreamKind::kLatent) {
        return BadLayer(index, s.size(), " streams; expected one latent stream");
      }
      break;
    default:
      if (s.size() != 2 || s[0].kind != StreamKind::kK || s[1].kind != StreamKind::kV) {
        return BadLayer(index, s.size(), " streams; expected K then V");
      }
  }
  int64_t elements = 0;
  for (const StreamGeometry& stream : s) {
    if (stream.heads < 1 || stream.heads > kMaxHeads) {
      return BadLayer(index, stream.heads, " heads; expected 1 to ", kMaxHeads);
    }
    if (stream.head_dim < 1 || stream.head_dim > kMaxHeadDim) {
      return BadLayer(index, "head_dim ", stream.head_dim, "; expected 1 to ", kMaxHeadDim);
    }
    elements += static_cast<int64_t>(stream.heads) * stream.head_dim;
  }
  if (elements > kMaxLayerElements) {
    return BadLayer(index, elements, " elements a token; expected at most ", kMaxLayerElements);
  }
  return absl::OkStatus();
}

absl::Status ValidateLayer(const Geometry& g, size_t index) {
  const LayerGeometry& layer = g.layers[index];
  const auto kind = static_cast<int>(layer.kind);
  if (kind < 1 || kind > 5) return BadLayer(index, "unknown layer kind ", kind);
  const bool windowed = layer.kind == LayerKind::kSliding || layer.kind == LayerKind::kChunked;
  if (windowed ? layer.window < 1 : layer.window != 0) {
    return BadLayer(index, "window ", layer.window, "; expected ",
                    windowed ? "at least 1" : "0: only sliding and chunked layers have one");
  }
  if (layer.kind == LayerKind::kShared) {
    if (layer.shared_with < 0 || static_cast<size_t>(layer.shared_with) >= index) {
      return BadLayer(index, "shared with layer ", layer.shared_with,
                      "; expected an earlier layer");
    }
    if (g.layers[layer.shared_with].kind == LayerKind::kShared) {
      return BadLayer(index, "shared with layer ", layer.shared_with,
                      ", which is shared itself; expected a layer that keeps its KV");
    }
  } else if (layer.shared_with != 0) {
    return BadLayer(index, "shared_with ", layer.shared_with, " on a layer that is not shared");
  }
  if (absl::Status s = ValidateStreams(index, layer); !s.ok()) return s;
  const bool has_keys = !layer.streams.empty() && layer.streams[0].kind == StreamKind::kK;
  if (!has_keys && layer.rope.style != RopeStyle::kNone) {
    return BadLayer(index, "rope on a layer without a K stream");
  }
  return ValidateRope(index, layer.rope, has_keys ? layer.streams[0].head_dim : 0);
}

// The canonical serialisation of codec/format/FORMAT.md.
class Canonical {
 public:
  void U8(uint8_t v) { bytes_.push_back(v); }
  void U32(uint32_t v) {
    for (int i = 0; i < 4; ++i) U8(static_cast<uint8_t>(v >> (8 * i)));
  }
  void F32(float f) {
    if (f == 0) f = 0;  // -0 and 0 turn the same way
    uint32_t u;
    std::memcpy(&u, &f, 4);
    U32(u);
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  std::vector<uint8_t> bytes_;
};

void AppendLayer(const LayerGeometry& layer, Canonical& out) {
  out.U8(static_cast<uint8_t>(layer.kind));
  out.U32(static_cast<uint32_t>(layer.window));
  out.U32(static_cast<uint32_t>(layer.shared_with));
  out.U32(static_cast<uint32_t>(layer.streams.size()));
  for (const StreamGeometry& s : layer.streams) {
    out.U8(static_cast<uint8_t>(s.kind));
    out.U32(static_cast<uint32_t>(s.heads));
    out.U32(static_cast<uint32_t>(s.head_dim));
  }
  out.U8(static_cast<uint8_t>(layer.rope.style));
  out.U32(static_cast<uint32_t>(layer.rope.dims));
  out.U32(static_cast<uint32_t>(layer.rope.inv_freq.size()));
  for (float f : layer.rope.inv_freq) out.F32(f);
  out.F32(layer.rope.attention_scale);
}

// Different where the floats are, 0 and -0 apart.
std::string Digits(float f) { return absl::StrFormat("%.9g", f + 0.0f); }

int MostHeads(const Geometry& g) {
  int most = 0;
  for (const LayerGeometry& layer : g.layers) {
    for (const StreamGeometry& s : layer.streams) most = std::max(most, s.heads);
  }
  return most;
}

}  // namespace

absl::Status Geometry::Validate() const {
  if (layers.empty() || layers.size() > static_cast<size_t>(kMaxLayers)) {
    return absl::InvalidArgumentError(
        absl::StrCat("geometry: ", layers.size(), " layers; expected 1 to ", kMaxLayers));
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    if (absl::Status s = ValidateLayer(*this, i); !s.ok()) return s;
  }
  return absl::OkStatus();
}

Fingerprint Geometry::ComputeFingerprint() const {
  Canonical out;
  for (char c : absl::string_view("kvcask.geometry.0")) out.U8(static_cast<uint8_t>(c));
  out.U32(static_cast<uint32_t>(layers.size()));
  for (const LayerGeometry& layer : layers) AppendLayer(layer, out);
  return Sha256(out.bytes());
}

int64_t Geometry::ElementsPerToken(int layer_begin, int layer_end) const {
  int64_t n = 0;
  for (int l = layer_begin; l < layer_end; ++l) {
    for (const StreamGeometry& s : layers[l].streams) {
      n += static_cast<int64_t>(s.heads) * s.head_dim;
    }
  }
  return n;
}

absl::StatusOr<Geometry> SliceGeometry(const Geometry& model, const ShardRange& shard) {
  const int layers = static_cast<int>(model.layers.size());
  const int most_heads = MostHeads(model);
  const auto bad = [&](const auto&... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("shard ", shard.index, " of ", shard.count, ": ", what...));
  };
  if (shard.count < 1 || shard.index < 0 || shard.index >= shard.count) {
    return bad("expected an index from 0 to count - 1");
  }
  if (shard.layer_begin < 0 || shard.layer_begin >= shard.layer_end || shard.layer_end > layers) {
    return bad("layers ", shard.layer_begin, " to ", shard.layer_end,
               "; expected a range within the model's ", layers);
  }
  if (shard.head_begin < 0 || shard.head_begin >= shard.head_end || shard.head_end > most_heads) {
    return bad("heads ", shard.head_begin, " to ", shard.head_end,
               "; expected a range within the model's ", most_heads);
  }
  const bool all_heads = shard.head_begin == 0 && shard.head_end == most_heads;
  Geometry out;
  for (int l = shard.layer_begin; l < shard.layer_end; ++l) {
    LayerGeometry layer = model.layers[l];
    if (layer.kind == LayerKind::kShared) {
      if (layer.shared_with < shard.layer_begin) {
        return bad("layer ", l, " is shared with layer ", layer.shared_with,
                   ", which is outside layers ", shard.layer_begin, " to ", shard.layer_end);
      }
      layer.shared_with -= shard.layer_begin;
    }
    for (StreamGeometry& s : layer.streams) {
      if (all_heads) continue;  // also of layers that have fewer than the most
      if (shard.head_end > s.heads) {
        return bad("heads ", shard.head_begin, " to ", shard.head_end, "; layer ", l, " has ",
                   s.heads);
      }
      s.heads = shard.head_end - shard.head_begin;
    }
    out.layers.push_back(std::move(layer));
  }
  return out;
}

Geometry UniformGeometry(int layers, int kv_heads, int head_dim, const Rope& rope) {
  LayerGeometry layer;
  layer.streams = {{StreamKind::kK, kv_heads, head_dim}, {StreamKind::kV, kv_heads, head_dim}};
  layer.rope = rope;
  Geometry g;
  g.layers.assign(layers, layer);
  return g;
}

Rope StandardRope(RopeStyle style, int dims, double theta) {
  Rope rope;
  rope.style = style;
  rope.dims = dims;
  for (int i = 0; i < dims / 2; ++i) {
    rope.inv_freq.push_back(static_cast<float>(std::pow(theta, -2.0 * i / dims)));
  }
  return rope;
}

std::string DescribeGeometryDifference(const Geometry& a, const Geometry& b,
                                       const std::string& a_name, const std::string& b_name) {
  std::string where;
  const auto differ = [&](const auto& what, const auto& x, const auto& y) {
    if (x == y) return false;
    absl::StrAppend(&where, what, " ", x, " in ", a_name, ", ", y, " in ", b_name);
    return true;
  };
  if (differ("layers:", a.layers.size(), b.layers.size())) return where;
  for (size_t l = 0; l < a.layers.size(); ++l) {
    const LayerGeometry &x = a.layers[l], &y = b.layers[l];
    where = absl::StrCat("layer ", l, ": ");
    if (differ("kind", static_cast<int>(x.kind), static_cast<int>(y.kind)) ||
        differ("window", x.window, y.window) ||
        differ("shared with", x.shared_with, y.shared_with) ||
        differ("streams", x.streams.size(), y.streams.size())) {
      return where;
    }
    for (size_t s = 0; s < x.streams.size(); ++s) {
      const std::string stream = absl::StrCat("stream ", s, " ");
      if (differ(stream + "kind", static_cast<int>(x.streams[s].kind),
                 static_cast<int>(y.streams[s].kind)) ||
          differ(stream + "heads", x.streams[s].heads, y.streams[s].heads) ||
          differ(stream + "head_dim", x.streams[s].head_dim, y.streams[s].head_dim)) {
        return where;
      }
    }
    if (differ("rope style", static_cast<int>(x.rope.style), static_cast<int>(y.rope.style)) ||
        differ("rope dims", x.rope.dims, y.rope.dims) ||
        differ("inverse frequencies", x.rope.inv_freq.size(), y.rope.inv_freq.size()) ||
        differ("attention scale", Digits(x.rope.attention_scale), Digits(y.rope.attention_scale))) {
      return where;
    }
    for (size_t i = 0; i < x.rope.inv_freq.size(); ++i) {
      if (differ(absl::StrCat("inverse frequency ", i), Digits(x.rope.inv_freq[i]),
                 Digits(y.rope.inv_freq[i]))) {
        return where;
      }
    }
  }
  return "";
}

std::string ToHex(const Fingerprint& f) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string s;
  for (uint8_t b : f) {
    s.push_back(kDigits[b >> 4]);
    s.push_back(kDigits[b & 15]);
  }
  return s;
}

}  // namespace kvcask
