#include "client/cc/convert.h"

#include <absl/strings/str_cat.h>

namespace kvcask {

v1::Geometry GeometryToProto(const Geometry& geometry) {
  v1::Geometry out;
  for (const LayerGeometry& layer : geometry.layers) {
    v1::Layer* l = out.add_layers();
    l->set_kind(static_cast<v1::Layer::Kind>(layer.kind));
    l->set_window(static_cast<uint32_t>(layer.window));
    l->set_shared_with(static_cast<uint32_t>(layer.shared_with));
    for (const StreamGeometry& stream : layer.streams) {
      v1::Stream* s = l->add_streams();
      s->set_kind(static_cast<v1::StreamKind>(stream.kind));
      s->set_heads(static_cast<uint32_t>(stream.heads));
      s->set_head_dim(static_cast<uint32_t>(stream.head_dim));
    }
    if (layer.rope.style == RopeStyle::kNone) continue;
    v1::Rope* r = l->mutable_rope();
    r->set_style(static_cast<v1::Rope::Style>(layer.rope.style));
    r->set_dims(static_cast<uint32_t>(layer.rope.dims));
    r->mutable_inverse_frequencies()->Add(layer.rope.inv_freq.begin(), layer.rope.inv_freq.end());
    r->set_attention_scale(layer.rope.attention_scale);
  }
  return out;
}

absl::StatusOr<Geometry> GeometryFromProto(const v1::Geometry& geometry) {
  const auto unknown = [](int layer, const char* what, int value) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, ": unknown ", what, " ", value));
  };
  if (geometry.layers_size() > kMaxLayers) {
    return absl::InvalidArgumentError(
        absl::StrCat("a geometry of ", geometry.layers_size(), " layers; at most ", kMaxLayers));
  }
  Geometry out;
  for (int i = 0; i < geometry.layers_size(); ++i) {
    const v1::Layer& l = geometry.layers(i);
    if (l.kind() < 1 || l.kind() > 5) return unknown(i, "kind", l.kind());
    LayerGeometry layer;
    layer.kind = static_cast<LayerKind>(l.kind());
    layer.window = static_cast<int>(l.window());
    layer.shared_with = static_cast<int>(l.shared_with());
    for (const v1::Stream& s : l.streams()) {
      if (s.kind() < 1 || s.kind() > 3) return unknown(i, "stream kind", s.kind());
      layer.streams.push_back({static_cast<StreamKind>(s.kind()), static_cast<int>(s.heads()),
                               static_cast<int>(s.head_dim())});
    }
    if (l.rope().style() < 0 || l.rope().style() > 2)
      return unknown(i, "rope style", l.rope().style());
    layer.rope.style = static_cast<RopeStyle>(l.rope().style());
    layer.rope.dims = static_cast<int>(l.rope().dims());
    layer.rope.inv_freq.assign(l.rope().inverse_frequencies().begin(),
                               l.rope().inverse_frequencies().end());
    if (l.rope().attention_scale() != 0) layer.rope.attention_scale = l.rope().attention_scale();
    out.layers.push_back(std::move(layer));
  }
  if (absl::Status s = out.Validate(); !s.ok()) return s;
  return out;
}

v1::Dtype DtypeToProto(Dtype dtype) { return static_cast<v1::Dtype>(dtype); }

absl::StatusOr<Dtype> DtypeFromProto(v1::Dtype dtype) {
  switch (dtype) {
    case v1::DTYPE_BF16:
      return Dtype::kBf16;
    case v1::DTYPE_F16:
      return Dtype::kF16;
    case v1::DTYPE_F32:
      return Dtype::kF32;
    default:
      return absl::InvalidArgumentError(absl::StrCat("unknown dtype ", static_cast<int>(dtype)));
  }
}

}  // namespace kvcask
