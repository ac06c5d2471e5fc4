#include "server/store/records.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstring>

#include "codec/base/crc32c.h"

namespace kvcask {
namespace {

constexpr uint8_t kVersion = 2;  // 1 had no forks and rewinds in sessions; it is still read
constexpr uint64_t kMaxText = 1 << 24;  // descriptors hold a geometry

uint32_t Checksum(absl::string_view key, absl::string_view body) {
  const auto bytes = [](absl::string_view s) {
    return absl::MakeSpan(reinterpret_cast<const uint8_t*>(s.data()), s.size());
  };
  return Crc32cExtend(Crc32c(bytes(key)), bytes(body));
}

class Writer {
 public:
  Writer() { Number<uint8_t>(kVersion); }
  template <typename T>
  void Number(T v) {
    out_.append(reinterpret_cast<const char*>(&v), sizeof v);  // little-endian machines only
  }
  void Text(absl::string_view s) {
    Number<uint32_t>(static_cast<uint32_t>(s.size()));
    out_.append(s.data(), s.size());
  }
  void Bytes(const Digest& d) { out_.append(reinterpret_cast<const char*>(d.data()), d.size()); }
  void Time(absl::Time t) { Number<int64_t>(absl::ToUnixMicros(t)); }
  std::string Finish(absl::string_view key) {
    Number<uint32_t>(Checksum(key, out_));
    return std::move(out_);
  }

 private:
  std::string out_;
};

// Every read is bounded; after the first that fails all are zeros and ok() is false.
class Reader {
 public:
  Reader(absl::string_view key, absl::string_view value) : in_(value) {
    uint32_t crc = 0;
    if (value.size() < sizeof crc + 1) {
      Fail();
      return;
    }
    std::memcpy(&crc, value.data() + value.size() - sizeof crc, sizeof crc);
    in_.remove_suffix(sizeof crc);
    if (Checksum(key, in_) == crc) version_ = Number<uint8_t>();
    if (version_ < 1 || version_ > kVersion) Fail();
  }
  uint8_t version() const { return version_; }
  template <typename T>
  T Number() {
    T v{};
    if (in_.size() < sizeof v) {
      Fail();
      return v;
    }
    std::memcpy(&v, in_.data(), sizeof v);
    in_.remove_prefix(sizeof v);
    return v;
  }
  std::string Text() {
    const uint32_t n = Number<uint32_t>();
    if (n > kMaxText || n > in_.size()) {
      Fail();
      return "";
    }
    std::string s(in_.substr(0, n));
    in_.remove_prefix(n);
    return s;
  }
  Digest Bytes() {
    Digest d{};
    if (in_.size() < d.size()) {
      Fail();
      return d;
    }
    std::memcpy(d.data(), in_.data(), d.size());
    in_.remove_prefix(d.size());
    return d;
  }
  absl::Time Time() { return absl::FromUnixMicros(Number<int64_t>()); }
  bool ok() const { return ok_; }
  // All was read, and nothing is left.
  absl::Status Finish(absl::string_view what) const {
    if (ok_ && in_.empty()) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat("a ", what, " record is corrupt"));
  }

 private:
  void Fail() {
    ok_ = false;
    in_ = {};
  }
  absl::string_view in_;
  uint8_t version_ = 0;
  bool ok_ = true;
};

std::string NumberKey(char kind, uint64_t n) {
  std::string key(1, kind);
  for (int i = 7; i >= 0; --i) key.push_back(static_cast<char>(n >> (8 * i)));
  return key;
}

uint64_t NumberOf(absl::string_view key) {
  uint64_t n = 0;
  for (char c : key.substr(std::min<size_t>(1, key.size()))) n = n << 8 | static_cast<uint8_t>(c);
  return n;
}

void Put(Writer& w, const CommitResult& r) {
  for (uint64_t v : {r.version, r.shard_tokens, r.visible_tokens, r.raw_bytes, r.stored_bytes,
                     r.token_begin, r.tokens}) {
    w.Number(v);
  }
  w.Number(r.predicted_kld);
}

CommitResult TakeResult(Reader& in) {
  CommitResult r;
  for (uint64_t* v : {&r.version, &r.shard_tokens, &r.visible_tokens, &r.raw_bytes,
                      &r.stored_bytes, &r.token_begin, &r.tokens}) {
    *v = in.Number<uint64_t>();
  }
  r.predicted_kld = in.Number<double>();
  return r;
}

}  // namespace

std::string FormKey(uint64_t number) { return NumberKey('f', number); }
std::string PageKey(uint64_t id) { return NumberKey('n', id); }
std::string SessionRecordKey(const std::string& ns, const std::string& id) {
  return absl::StrCat("s", ns, "/", id);
}

std::string Encode(const FormRecord& r) {
  Writer w;
  w.Text(r.ns);
  const SessionTraits& t = r.traits;
  for (const std::string* s :
       {&t.model_id, &t.extra_key, &t.codec, &t.quality, &t.dtype, &t.descriptor}) {
    w.Text(*s);
  }
  w.Bytes(t.geometry);
  w.Bytes(t.profile);
  w.Number(t.first_position);
  w.Number(t.shard_count);
  return w.Finish(FormKey(r.number));
}

absl::StatusOr<FormRecord> DecodeForm(absl::string_view key, absl::string_view value) {
  Reader in(key, value);
  FormRecord r;
  r.number = NumberOf(key);
  r.ns = in.Text();
  SessionTraits& t = r.traits;
  for (std::string* s :
       {&t.model_id, &t.extra_key, &t.codec, &t.quality, &t.dtype, &t.descriptor}) {
    *s = in.Text();
  }
  t.geometry = in.Bytes();
  t.profile = in.Bytes();
  t.first_position = in.Number<uint64_t>();
  t.shard_count = in.Number<uint32_t>();
  if (absl::Status s = in.Finish("form"); !s.ok()) return s;
  return r;
}

std::string Encode(const PageRecord& r) {
  Writer w;
  w.Number(r.parent);
  w.Number(r.form);
  w.Number(r.shard);
  w.Text(r.label);
  w.Number(r.tokens);
  w.Number(r.own_raw_bytes);
  w.Number(r.own_stored_bytes);
  w.Number(r.own_kld_tokens);
  w.Number<uint8_t>(static_cast<uint8_t>(r.named | r.lost << 1));
  if (r.named) w.Bytes(r.prefix_id);
  return w.Finish(PageKey(r.id));
}

absl::StatusOr<PageRecord> DecodePage(absl::string_view key, absl::string_view value) {
  Reader in(key, value);
  PageRecord r;
  r.id = NumberOf(key);
  r.parent = in.Number<uint64_t>();
  r.form = in.Number<uint64_t>();
  r.shard = in.Number<uint32_t>();
  r.label = in.Text();
  r.tokens = in.Number<uint16_t>();
  r.own_raw_bytes = in.Number<uint64_t>();
  r.own_stored_bytes = in.Number<uint64_t>();
  r.own_kld_tokens = in.Number<double>();
  const auto flags = in.Number<uint8_t>();
  r.named = flags & 1;
  r.lost = flags & 2;
  if (r.named) r.prefix_id = in.Bytes();
  if (absl::Status s = in.Finish("page"); !s.ok()) return s;
  return r;
}

std::string Encode(const SessionRecord& r) {
  Writer w;
  w.Text(r.key.ns);
  w.Text(r.key.id);
  w.Number(r.form);
  w.Time(r.created);
  w.Time(r.modified);
  w.Number<int64_t>(absl::ToInt64Microseconds(r.ttl));
  w.Number<uint32_t>(static_cast<uint32_t>(r.labels.size()));
  for (const auto& [k, v] : r.labels) {
    w.Text(k);
    w.Text(v);
  }
  w.Number<uint8_t>(r.pinned);
  w.Number(r.evicted_tokens);
  w.Number<uint32_t>(static_cast<uint32_t>(r.shards.size()));
  for (const SessionRecord::Shard& s : r.shards) {
    w.Number(s.shard);
    w.Text(s.label);
    w.Number(s.head);
    w.Number(s.tokens);
    w.Number(s.version);
    w.Number<uint8_t>(s.sealed);
    w.Number<uint32_t>(static_cast<uint32_t>(s.puts.size()));
    for (const auto& [id, result] : s.puts) {
      w.Text(id);
      Put(w, result);
    }
  }
  w.Text(r.forked_from.fork_id);
  w.Text(r.forked_from.from);
  w.Number(r.forked_from.tokens);
  w.Number<uint32_t>(static_cast<uint32_t>(r.rewinds.size()));
  for (const auto& [id, tokens] : r.rewinds) {
    w.Text(id);
    w.Number(tokens);
  }
  return w.Finish(SessionRecordKey(r.key.ns, r.key.id));
}

absl::StatusOr<SessionRecord> DecodeSession(absl::string_view key, absl::string_view value) {
  Reader in(key, value);
  SessionRecord r;
  r.key.ns = in.Text();
  r.key.id = in.Text();
  r.form = in.Number<uint64_t>();
  r.created = in.Time();
  r.modified = in.Time();
  r.ttl = absl::Microseconds(in.Number<int64_t>());
  for (uint32_t n = in.Number<uint32_t>(); n > 0 && in.ok(); --n) {
    std::string k = in.Text();
    r.labels[std::move(k)] = in.Text();
  }
  r.pinned = in.Number<uint8_t>() != 0;
  r.evicted_tokens = in.Number<uint64_t>();
  for (uint32_t n = in.Number<uint32_t>(); n > 0 && in.ok(); --n) {
    SessionRecord::Shard s;
    s.shard = in.Number<uint32_t>();
    s.label = in.Text();
    s.head = in.Number<uint64_t>();
    s.tokens = in.Number<uint64_t>();
    s.version = in.Number<uint64_t>();
    s.sealed = in.Number<uint8_t>() != 0;
    for (uint32_t m = in.Number<uint32_t>(); m > 0 && in.ok(); --m) {
      std::string id = in.Text();
      s.puts.emplace_back(std::move(id), TakeResult(in));
    }
    r.shards.push_back(std::move(s));
  }
  if (in.version() >= 2) {
    r.forked_from.fork_id = in.Text();
    r.forked_from.from = in.Text();
    r.forked_from.tokens = in.Number<uint64_t>();
    for (uint32_t n = in.Number<uint32_t>(); n > 0 && in.ok(); --n) {
      std::string id = in.Text();
      r.rewinds.emplace_back(std::move(id), in.Number<uint64_t>());
    }
  }
  if (absl::Status s = in.Finish("session"); !s.ok()) return s;
  return r;
}

std::string EncodeIds(const std::vector<uint64_t>& ids) {
  Writer w;
  w.Number<uint32_t>(static_cast<uint32_t>(ids.size()));
  for (uint64_t id : ids) w.Number(id);
  return w.Finish(kPendingKey);
}

absl::StatusOr<std::vector<uint64_t>> DecodeIds(absl::string_view value) {
  Reader in(kPendingKey, value);
  std::vector<uint64_t> ids;
  for (uint32_t n = in.Number<uint32_t>(); n > 0 && in.ok(); --n) {
    ids.push_back(in.Number<uint64_t>());
  }
  if (absl::Status s = in.Finish("pending"); !s.ok()) return s;
  return ids;
}

}  // namespace kvcask
