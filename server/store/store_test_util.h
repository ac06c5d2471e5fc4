// Makers of commits for the store's tests: pages of kPage tokens, bytes that follow from
// what they are of.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "server/store/session_store.h"

namespace kvcask {
namespace store_test {

inline constexpr uint64_t kPage = 4;

// A digest of anything: good enough where nobody attacks.
inline Digest Digested(const std::string& text) {
  Digest d{};
  for (size_t i = 0; i < d.size(); i += 8) {
    const uint64_t h = std::hash<std::string>()(text + static_cast<char>('0' + i));
    for (size_t j = 0; j < 8; ++j) d[i + j] = static_cast<uint8_t>(h >> (8 * j));
  }
  return d;
}

using Tokens = std::vector<int>;

// Of whole pages: the digest after each.
inline std::vector<Digest> PrefixIds(const Tokens& tokens) {
  std::vector<Digest> ids;
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    text += std::to_string(tokens[i]) + ",";
    if ((i + 1) % kPage == 0) ids.push_back(Digested(text));
  }
  return ids;
}

inline SessionTraits Traits(const std::string& codec = "int8", uint32_t shards = 1) {
  SessionTraits t;
  t.model_id = "model";
  t.codec = codec;
  t.dtype = "bf16";
  t.shard_count = shards;
  return t;
}

// The chunks of `shard` for tokens [begin, all.size()), begin's page from its first token
// on. With `ids`, whole pages have a prefix_id and a key.
inline std::vector<NewChunk> Chunks(const Tokens& all, uint64_t begin, const SessionTraits& traits,
                                    uint32_t shard, bool ids) {
  const std::vector<Digest> prefix_ids = PrefixIds(all);
  std::vector<NewChunk> chunks;
  for (uint64_t b = begin - begin % kPage; b < all.size(); b += kPage) {
    NewChunk c;
    c.token_begin = b;
    c.tokens = static_cast<uint32_t>(std::min<uint64_t>(kPage, all.size() - b));
    const bool whole = c.tokens == kPage;
    std::string text = traits.codec + traits.quality + std::to_string(shard) + "/" +
                       std::to_string(traits.shard_count) + ":";
    for (uint32_t i = 0; i < c.tokens; ++i) text += std::to_string(all[b + i]) + ",";
    c.bytes.assign(text.begin(), text.end());
    c.bytes.resize(text.size() + (whole ? 20 : 50), 0);
    c.raw_bytes = 30 * c.tokens;
    c.predicted_kld = whole ? 0.25 * (1 + shard) : -1;
    if (ids && whole) {
      const Digest& id = prefix_ids[b / kPage];
      c.prefix_id = id;
    }
    chunks.push_back(std::move(c));
  }
  return chunks;
}

// A run of `all` from `begin` on, against a shard at `version`.
inline CommitRequest MakeRun(const SessionKey& key, const Tokens& all, uint64_t begin = 0,
                             uint64_t version = 0, const SessionTraits& traits = Traits(),
                             uint32_t shard = 0, bool ids = true) {
  CommitRequest r;
  r.session = key;
  r.traits = traits;
  r.shard = shard;
  r.shard_label = "shard " + std::to_string(shard);
  r.base_version = version;
  r.token_begin = begin;
  r.tokens = all.size() - begin;
  r.chunks = Chunks(all, begin, traits, shard, ids);
  return r;
}

inline uint64_t BytesOf(const CommitRequest& r) {
  uint64_t n = 0;
  for (const auto& c : r.chunks) n += c.bytes.size();
  return n;
}

// first, first + 1, ...: `count` tokens.
inline Tokens Sequence(int first, int count) {
  Tokens t;
  for (int i = 0; i < count; ++i) t.push_back(first + i);
  return t;
}

}  // namespace store_test
}  // namespace kvcask
