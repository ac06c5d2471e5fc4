#include "server/rpc/convert.h"

#include <algorithm>
#include <utility>

#include <absl/strings/escaping.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>

#include "codec/builtin_codecs.h"
#include "server/pipeline/errors.h"

namespace kvcask {
namespace {

constexpr size_t kMaxSessionId = 256, kMaxNamespace = 64, kMaxModelId = 512, kMaxExtraKey = 4096;
constexpr size_t kMaxPutId = 128, kMaxLabels = 16, kMaxLabelKey = 64, kMaxLabelValue = 256;
constexpr int kMaxTokens = 1 << 20;

absl::Status Field(absl::string_view field, const std::string& text) {
  return WithReason(absl::InvalidArgumentError(absl::StrCat(field, ": ", text)), "FIELD");
}

absl::Status CheckName(absl::string_view field, const std::string& s, size_t least, size_t most) {
  if (s.size() < least || s.size() > most) {
    return Field(field, absl::StrCat("found ", s.size(), " bytes, expected ", least, " to ", most));
  }
  for (size_t i = 0; i < s.size(); ++i) {
    if (s[i] <= ' ' || s[i] > '~' || s[i] == '/') {
      return Field(field, absl::StrCat("found '", absl::CHexEscape(s.substr(i, 1)), "' at byte ", i,
                                       ", expected printable ASCII without '/' and spaces"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Dtype> DtypeOf(v1::Dtype d) {
  switch (d) {
    case v1::DTYPE_BF16:
      return Dtype::kBf16;
    case v1::DTYPE_F16:
      return Dtype::kF16;
    case v1::DTYPE_F32:
      return Dtype::kF32;
    case v1::DTYPE_F8_E4M3:
      return WithReason(absl::UnimplementedError("dtype: FP8 is not supported yet"), "FIELD");
    default:
      return Field("dtype", absl::StrCat("found ", static_cast<int>(d),
                                         ", expected DTYPE_BF16, DTYPE_F16 or DTYPE_F32"));
  }
}

absl::StatusOr<Rope> FromProto(const v1::Rope& r, const std::string& where) {
  Rope out;
  if (!r.scaling().empty() && r.scaling() != "yarn" && r.scaling() != "llama3") {
    return WithReason(
        absl::UnimplementedError(absl::StrCat(
            where, ".rope.scaling: found '", absl::CHexEscape(r.scaling().substr(0, 32)),
            "', expected '', 'yarn' or 'llama3'; LongRoPE, dynamic NTK and mRoPE do not work yet")),
        "GEOMETRY");
  }
  if (r.style() < 0 || r.style() > 2) {
    return Field(where + ".rope.style", absl::StrCat("found ", static_cast<int>(r.style()),
                                                     ", expected 0 to 2"));
  }
  if (r.dims() > static_cast<uint32_t>(kMaxHeadDim)) {
    return Field(where + ".rope.dims",
                 absl::StrCat("found ", r.dims(), ", expected at most ", kMaxHeadDim));
  }
  out.style = static_cast<RopeStyle>(r.style());
  out.dims = static_cast<int>(r.dims());
  out.inv_freq.assign(r.inverse_frequencies().begin(), r.inverse_frequencies().end());
  out.attention_scale = r.attention_scale() == 0 ? 1 : r.attention_scale();
  return out;
}

template <typename T>
absl::StatusOr<int> Bounded(absl::string_view field, T value, int most) {
  if (value > static_cast<T>(most)) {
    return Field(field, absl::StrCat("found ", value, ", expected at most ", most));
  }
  return static_cast<int>(value);
}

}  // namespace

absl::Status CheckNamespace(const std::string& ns) {
  return CheckName("namespace", ns, 0, kMaxNamespace);
}

absl::Status CheckIdentity(const v1::ModelIdentity& m) {
  if (m.model_id().empty() || m.model_id().size() > kMaxModelId) {
    return Field("identity.model_id", absl::StrCat("found ", m.model_id().size(),
                                                   " bytes, expected 1 to ", kMaxModelId));
  }
  if (m.extra_key().size() > kMaxExtraKey) {
    return Field("identity.extra_key", absl::StrCat("found ", m.extra_key().size(),
                                                    " bytes, expected at most ", kMaxExtraKey));
  }
  return absl::OkStatus();
}

absl::Status CheckLabels(const google::protobuf::Map<std::string, std::string>& labels) {
  if (labels.size() > kMaxLabels) {
    return Field("labels", absl::StrCat("found ", labels.size(), ", expected at most ", kMaxLabels));
  }
  for (const auto& [k, v] : labels) {
    if (absl::Status s = CheckName("labels' key", k, 1, kMaxLabelKey); !s.ok()) return s;
    if (v.size() > kMaxLabelValue) {
      return Field(absl::StrCat("labels[", k, "]"),
                   absl::StrCat("found ", v.size(), " bytes, expected at most ", kMaxLabelValue));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCallId(absl::string_view field, const std::string& id) {
  if (id.size() <= kMaxPutId) return absl::OkStatus();
  return Field(field,
               absl::StrCat("found ", id.size(), " bytes, expected at most ", kMaxPutId));
}

absl::Status CheckLeaseSeconds(absl::string_view field, uint64_t seconds, uint64_t least,
                               absl::Duration most) {
  const auto limit = static_cast<uint64_t>(absl::ToInt64Seconds(most));
  if (seconds >= least && seconds <= limit) return absl::OkStatus();
  return Field(field,
               absl::StrCat("found ", seconds, ", expected ", least, " to ", limit));
}

absl::StatusOr<SessionKey> FromProto(const v1::SessionRef& ref) {
  if (absl::Status s = CheckNamespace(ref.namespace_()); !s.ok()) return s;
  if (absl::Status s = CheckName("session_id", ref.session_id(), 1, kMaxSessionId); !s.ok()) return s;
  return SessionKey{ref.namespace_(), ref.session_id()};
}

absl::StatusOr<Geometry> FromProto(const v1::Geometry& g) {
  if (g.layers_size() < 1 || g.layers_size() > kMaxLayers) {
    return Field("geometry.layers",
                 absl::StrCat("found ", g.layers_size(), ", expected 1 to ", kMaxLayers));
  }
  Geometry out;
  for (int i = 0; i < g.layers_size(); ++i) {
    const v1::Layer& l = g.layers(i);
    const std::string where = absl::StrCat("geometry.layers[", i, "]");
    LayerGeometry layer;
    if (l.kind() < 1 || l.kind() > 5) {
      return Field(where + ".kind",
                   absl::StrCat("found ", static_cast<int>(l.kind()), ", expected 1 to 5"));
    }
    layer.kind = static_cast<LayerKind>(l.kind());
    auto window = Bounded(where + ".window", l.window(), 1 << 30);
    auto shared = Bounded(where + ".shared_with", l.shared_with(), kMaxLayers);
    if (!window.ok()) return window.status();
    if (!shared.ok()) return shared.status();
    layer.window = *window;
    layer.shared_with = *shared;
    if (l.streams_size() > 2) {
      return Field(where + ".streams", absl::StrCat("found ", l.streams_size(), ", expected at most 2"));
    }
    for (const v1::Stream& s : l.streams()) {
      StreamGeometry stream;
      if (s.kind() < 1 || s.kind() > 3) {
        return Field(where + ".streams.kind",
                     absl::StrCat("found ", static_cast<int>(s.kind()), ", expected 1 to 3"));
      }
      stream.kind = static_cast<StreamKind>(s.kind());
      auto heads = Bounded(where + ".streams.heads", s.heads(), kMaxHeads);
      auto dim = Bounded(where + ".streams.head_dim", s.head_dim(), kMaxHeadDim);
      if (!heads.ok()) return heads.status();
      if (!dim.ok()) return dim.status();
      stream.heads = *heads;
      stream.head_dim = *dim;
      layer.streams.push_back(stream);
    }
    auto rope = FromProto(l.rope(), where);
    if (!rope.ok()) return rope.status();
    layer.rope = *std::move(rope);
    out.layers.push_back(std::move(layer));
  }
  if (absl::Status s = out.Validate(); !s.ok()) return WithReason(s, "GEOMETRY");
  return out;
}

namespace {

absl::StatusOr<ShardRange> ShardOf(const v1::Shard& s, const Geometry& g) {
  int heads = 0;
  for (const auto& l : g.layers) {
    for (const auto& st : l.streams) heads = std::max(heads, st.heads);
  }
  const uint32_t layers = static_cast<uint32_t>(g.layers.size());
  ShardRange out;
  const uint32_t count = std::max(s.count(), 1u);
  const uint32_t layer_end = s.layer_end() == 0 ? layers : s.layer_end();
  const uint32_t head_end = s.head_end() == 0 ? static_cast<uint32_t>(heads) : s.head_end();
  if (count > 1024 || s.index() >= count) {
    return Field("shard", absl::StrCat("found index ", s.index(), " of ", s.count(),
                                       ", expected an index below a count of at most 1024"));
  }
  if (s.layer_begin() >= layer_end || layer_end > layers) {
    return Field("shard", absl::StrCat("found layers [", s.layer_begin(), ", ", layer_end,
                                       "), expected a range within the model's [0, ", layers, ")"));
  }
  if (s.head_begin() >= head_end || head_end > static_cast<uint32_t>(heads)) {
    return Field("shard", absl::StrCat("found heads [", s.head_begin(), ", ", head_end,
                                       "), expected a range within the model's [0, ", heads, ")"));
  }
  out.index = static_cast<int>(s.index());
  out.count = static_cast<int>(count);
  out.layer_begin = static_cast<int>(s.layer_begin());
  out.layer_end = static_cast<int>(layer_end);
  out.head_begin = static_cast<int>(s.head_begin());
  out.head_end = static_cast<int>(head_end);
  return out;
}

}  // namespace

absl::StatusOr<PutParams> FromProto(const v1::PutOpen& o) {
  PutParams p;
  auto key = FromProto(o.session());
  if (!key.ok()) return key.status();
  p.session = *std::move(key);
  if (absl::Status s = CheckIdentity(o.identity()); !s.ok()) return s;
  p.model_id = o.identity().model_id();
  p.extra_key = o.identity().extra_key();
  auto geometry = FromProto(o.geometry());
  if (!geometry.ok()) return geometry.status();
  p.geometry = *std::move(geometry);
  auto shard = ShardOf(o.shard(), p.geometry);
  if (!shard.ok()) return shard.status();
  p.shard = *shard;
  p.codec = o.codec().name();
  if (p.codec.size() > 64) return Field("codec.name", "found over 64 bytes");
  p.quality = o.codec().quality();
  if (const std::string& f = o.codec().profile_fingerprint(); !f.empty()) {
    if (f.size() != 32) {
      return Field("codec.profile_fingerprint",
                   absl::StrCat("found ", f.size(), " bytes, expected 32"));
    }
    p.profile.emplace();
    std::copy(f.begin(), f.end(), p.profile->begin());
  }
  auto dtype = DtypeOf(o.dtype());
  if (!dtype.ok()) return dtype.status();
  p.dtype = *dtype;
  if (o.token_begin() > (uint64_t{1} << 40)) return Field("token_begin", "found over 2^40");
  p.token_begin = o.token_begin();
  p.token_count = o.token_count();
  if (p.token_count == 0 || p.token_count > kMaxTokens) {
    return Field("token_count",
                 absl::StrCat("found ", o.token_count(), ", expected 1 to ", kMaxTokens));
  }
  if (o.positions().first_position() > UINT32_MAX) {
    return Field("positions.first_position", absl::StrCat("found ", o.positions().first_position(),
                                                          ", expected less than 2^32"));
  }
  p.first_position = o.positions().first_position();
  auto tokens = [&](const char* field, const auto& from, std::vector<uint32_t>* to) {
    if (from.empty()) return absl::OkStatus();
    if (static_cast<uint32_t>(from.size()) != p.token_count) {
      return Field(field, absl::StrCat("found ", from.size(), ", expected token_count, ",
                                       p.token_count, ", or none"));
    }
    to->assign(from.begin(), from.end());
    return absl::OkStatus();
  };
  absl::Status s = tokens("positions.explicit", o.positions().explicit_(), &p.explicit_positions);
  if (s.ok()) s = tokens("token_ids", o.token_ids(), &p.token_ids);
  if (!s.ok()) return s;
  if (absl::Status l = CheckCallId("put_id", o.put_id()); !l.ok()) return l;
  p.put_id = o.put_id();
  p.expected_version = o.expected_version();
  if (o.ttl_seconds() > 0) {
    p.ttl = absl::Seconds(std::min<uint64_t>(o.ttl_seconds(), uint64_t{1} << 32));
  }
  if (absl::Status l = CheckLabels(o.labels()); !l.ok()) return l;
  p.labels.insert(o.labels().begin(), o.labels().end());
  return p;
}

absl::StatusOr<RectangleSpec> FromProto(const v1::Rectangle& r) {
  RectangleSpec out;
  for (const auto& [field, value, most] :
       {std::tuple<const char*, uint32_t, int>{"layer_begin", r.layer_begin(), kMaxLayers},
        {"layer_count", r.layer_count(), kMaxLayers},
        {"head_begin", r.head_begin(), kMaxHeads},
        {"head_count", r.head_count(), kMaxHeads}}) {
    auto v = Bounded(absl::StrCat("rectangle.", field), value, most);
    if (!v.ok()) return v.status();
  }
  out.layer_begin = static_cast<int>(r.layer_begin());
  out.layer_count = static_cast<int>(r.layer_count());
  out.head_begin = static_cast<int>(r.head_begin());
  out.head_count = static_cast<int>(r.head_count());
  out.token_begin = r.token_begin();
  out.token_count = r.token_count();
  if (r.streams_size() > 0) {
    out.k = out.v = out.latent = false;
    for (int s : r.streams()) {
      if (s < 1 || s > 3) {
        return Field("rectangle.streams", absl::StrCat("found ", s, ", expected 1 to 3"));
      }
      (s == 1 ? out.k : s == 2 ? out.v : out.latent) = true;
    }
  }
  return out;
}

absl::StatusOr<GetParams> FromProto(const v1::GetRequest& r) {
  GetParams p;
  if (r.has_session()) {
    auto key = FromProto(r.session());
    if (!key.ok()) return key.status();
    p.session = *std::move(key);
  } else if (r.has_prefix()) {
    const v1::PrefixRef& f = r.prefix();
    if (absl::Status s = CheckNamespace(f.namespace_()); !s.ok()) return s;
    if (absl::Status s = CheckIdentity(f.identity()); !s.ok()) return s;
    if (f.token_ids_size() > kMaxTokens) {
      return Field("prefix.token_ids",
                   absl::StrCat("found ", f.token_ids_size(), ", expected at most ", kMaxTokens));
    }
    p.ns = f.namespace_();
    p.model_id = f.identity().model_id();
    p.extra_key = f.identity().extra_key();
    p.prefix_token_ids.assign(f.token_ids().begin(), f.token_ids().end());
  } else {
    return Field("from", "found neither a session nor a prefix");
  }
  for (const auto& [name, range] : {std::pair<const char*, const v1::Range&>{"tokens", r.tokens()},
                                    {"layers", r.layers()}}) {
    if (range.end() != 0 && range.begin() >= range.end()) {
      return Field(name, absl::StrCat("found [", range.begin(), ", ", range.end(),
                                      "), expected begin < end (end 0: to the end)"));
    }
  }
  if (r.layers().begin() > kMaxLayers || r.layers().end() > kMaxLayers) {
    return Field("layers", absl::StrCat("found [", r.layers().begin(), ", ", r.layers().end(),
                                        "), expected at most ", kMaxLayers));
  }
  p.token_begin = r.tokens().begin();
  p.token_end = r.tokens().end();
  p.layer_begin = static_cast<int>(r.layers().begin());
  p.layer_end = static_cast<int>(r.layers().end());
  if (r.order() < 0 || r.order() > 1) return Field("order", "expected 0 or 1");
  p.layer_major = r.order() == v1::GetRequest::ORDER_LAYER_MAJOR;
  if (r.dtype() != v1::DTYPE_UNSPECIFIED) {
    auto dtype = DtypeOf(r.dtype());
    if (!dtype.ok()) return dtype.status();
    p.dtype = *dtype;
  }
  if (r.position_offset() > INT32_MAX || r.position_offset() < INT32_MIN) {
    return Field("position_offset",
                 absl::StrCat("found ", r.position_offset(), ", expected a 32-bit number"));
  }
  p.position_offset = r.position_offset();
  if (r.has_shard()) {
    const v1::Shard& s = r.shard();
    const int layer_end = static_cast<int>(std::min<uint32_t>(s.layer_end(), kMaxLayers));
    p.head_begin = static_cast<int>(std::min<uint32_t>(s.head_begin(), kMaxHeads));
    p.head_end = static_cast<int>(std::min<uint32_t>(s.head_end(), kMaxHeads));
    p.layer_begin = std::max<int>(p.layer_begin,
                                  static_cast<int>(std::min<uint32_t>(s.layer_begin(), kMaxLayers)));
    if (layer_end != 0 && (p.layer_end == 0 || layer_end < p.layer_end)) p.layer_end = layer_end;
    if ((p.head_end != 0 && p.head_begin >= p.head_end) ||
        (p.layer_end != 0 && p.layer_begin >= p.layer_end)) {
      return Field("shard", absl::StrCat("found layers [", p.layer_begin, ", ", p.layer_end,
                                         ") and heads [", p.head_begin, ", ", p.head_end,
                                         "), expected none to be empty"));
    }
  }
  return p;
}

v1::Dtype ToProto(Dtype d) {
  return d == Dtype::kBf16 ? v1::DTYPE_BF16 : d == Dtype::kF16 ? v1::DTYPE_F16 : v1::DTYPE_F32;
}

v1::Geometry ToProto(const Geometry& g) {
  v1::Geometry out;
  for (const LayerGeometry& l : g.layers) {
    v1::Layer* to = out.add_layers();
    to->set_kind(static_cast<v1::Layer::Kind>(l.kind));
    to->set_window(static_cast<uint32_t>(l.window));
    to->set_shared_with(static_cast<uint32_t>(l.shared_with));
    for (const StreamGeometry& s : l.streams) {
      v1::Stream* st = to->add_streams();
      st->set_kind(static_cast<v1::StreamKind>(s.kind));
      st->set_heads(static_cast<uint32_t>(s.heads));
      st->set_head_dim(static_cast<uint32_t>(s.head_dim));
    }
    if (l.rope.style != RopeStyle::kNone) {
      v1::Rope* r = to->mutable_rope();
      r->set_style(static_cast<v1::Rope::Style>(l.rope.style));
      r->set_dims(static_cast<uint32_t>(l.rope.dims));
      r->mutable_inverse_frequencies()->Assign(l.rope.inv_freq.begin(), l.rope.inv_freq.end());
      r->set_attention_scale(l.rope.attention_scale);
    }
  }
  return out;
}

v1::PutCommitted ToProto(const CommitResult& r) {
  v1::PutCommitted out;
  out.set_version(r.version);
  out.set_shard_tokens(r.shard_tokens);
  out.set_visible_tokens(r.visible_tokens);
  out.set_raw_bytes(r.raw_bytes);
  out.set_stored_bytes(r.stored_bytes);
  out.set_predicted_kld(r.predicted_kld);
  out.set_replayed(r.replayed);
  return out;
}

namespace {
void SetTime(absl::Time t, google::protobuf::Timestamp* to) {
  const int64_t ns = absl::ToUnixNanos(t);
  to->set_seconds(ns / 1000000000);
  to->set_nanos(static_cast<int32_t>(ns % 1000000000));
}
}  // namespace

v1::Session ToProto(const SessionStat& s, bool whole) {
  v1::Session out;
  out.set_replayed(s.replayed);
  out.mutable_ref()->set_namespace_(s.key.ns);
  out.mutable_ref()->set_session_id(s.key.id);
  const SessionTraits& t = s.traits;
  out.mutable_identity()->set_model_id(t.model_id);
  out.mutable_identity()->set_extra_key(t.extra_key);
  out.set_codec(t.codec);
  out.set_quality(t.quality);
  if (t.profile != Digest{}) {
    out.set_profile_fingerprint(std::string(t.profile.begin(), t.profile.end()));
  }
  for (Dtype d : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
    if (t.dtype == DtypeName(d)) out.set_dtype(ToProto(d));
  }
  out.set_tokens(s.tokens);
  out.set_first_position(t.first_position);
  out.set_sealed(s.sealed);
  out.set_raw_bytes(s.raw_bytes);
  out.set_stored_bytes(s.stored_bytes);
  out.set_unique_bytes(s.unique_bytes);
  out.set_predicted_kld(s.predicted_kld);
  out.set_chunks(s.chunks);
  SetTime(s.created, out.mutable_created());
  SetTime(s.modified, out.mutable_modified());
  out.set_ttl_seconds(static_cast<uint64_t>(absl::ToInt64Seconds(s.ttl)));
  out.mutable_labels()->insert(s.labels.begin(), s.labels.end());
  out.set_pinned(s.pinned);
  out.set_evicted_tokens(s.evicted_tokens);
  out.set_durable(s.durable);
  const bool on_gpu = s.gpu_bytes > 0 && s.gpu_bytes == s.stored_bytes;
  out.set_tier(!whole ? "host" : on_gpu ? "gpu" : s.host_bytes < s.stored_bytes ? "disk" : "host");
  if (!whole) return out;
  out.set_host_bytes(s.host_bytes);
  out.set_gpu_bytes(s.gpu_bytes);
  for (const auto& [begin, end] : s.lost) {
    v1::Range* range = out.add_lost();
    range->set_begin(begin);
    range->set_end(end);
  }
  if (t.attachment) {
    const auto* a = static_cast<const SessionAttachment*>(t.attachment.get());
    *out.mutable_geometry() = ToProto(a->geometry);
  }
  for (const ShardState& sh : s.shards) {
    auto* to = out.add_shards();
    to->mutable_shard()->set_index(sh.shard);
    to->mutable_shard()->set_count(t.shard_count);
    const std::vector<std::string> p = absl::StrSplit(sh.label, ':');
    uint32_t v[4];
    if (p.size() == 4 && absl::SimpleAtoi(p[0], &v[0]) && absl::SimpleAtoi(p[1], &v[1]) &&
        absl::SimpleAtoi(p[2], &v[2]) && absl::SimpleAtoi(p[3], &v[3])) {
      to->mutable_shard()->set_layer_begin(v[0]);
      to->mutable_shard()->set_layer_end(v[1]);
      to->mutable_shard()->set_head_begin(v[2]);
      to->mutable_shard()->set_head_end(v[3]);
    }
    to->set_tokens(sh.tokens);
    to->set_version(sh.version);
  }
  return out;
}

v1::Profile ToProto(const ProfileRegistry::Entry& e, bool whole) {
  v1::Profile out;
  const Profile& p = *e.profile;
  out.set_fingerprint(std::string(p.fingerprint().begin(), p.fingerprint().end()));
  out.set_name(p.name());
  out.set_model(p.model());
  out.set_codec(p.codec());
  out.set_size_bytes(p.size_bytes());
  out.set_chunks(e.users);
  if (const CodecEntry* c = FindCodec(p.codec()); c != nullptr && c->has_quality) {
    for (Quality q : {Quality::kNearLossless, Quality::kBalanced, Quality::kCompact}) {
      out.add_qualities(std::string(QualityName(q)));
    }
  }
  SetTime(e.added, out.mutable_added());
  if (!whole) return out;
  *out.mutable_geometry() = ToProto(p.geometry());
  for (const auto& [k, v] : p.metadata()) {
    if (k != "geometry" && v.size() <= 4096) (*out.mutable_metadata())[k] = v;
  }
  return out;
}

v1::GetHeader HeaderOf(const GetRun& run) {
  v1::GetHeader h;
  const SessionStat& s = run.plan().stat;
  *h.mutable_geometry() = ToProto(run.geometry());
  h.mutable_identity()->set_model_id(s.traits.model_id);
  h.mutable_identity()->set_extra_key(s.traits.extra_key);
  h.set_dtype(ToProto(run.dtype()));
  h.mutable_tokens()->set_begin(run.token_begin());
  h.mutable_tokens()->set_end(run.token_end());
  h.mutable_layers()->set_begin(static_cast<uint64_t>(run.layer_begin()));
  h.mutable_layers()->set_end(static_cast<uint64_t>(run.layer_end()));
  h.set_total_tokens(s.tokens);
  h.set_first_position(s.traits.first_position);
  h.mutable_token_ids()->Assign(run.token_ids().begin(), run.token_ids().end());
  h.set_codec(s.traits.codec);
  h.set_payload_bytes(run.payload_bytes());
  for (const GetRun::Absent& a : run.absent()) {
    auto* to = h.add_absent();
    to->set_layer(static_cast<uint32_t>(a.layer));
    to->mutable_tokens()->set_begin(a.token_begin);
    to->mutable_tokens()->set_end(a.token_end);
  }
  return h;
}

}  // namespace kvcask
