#include "server/store/session.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <limits>

namespace kvcask {
namespace {

std::string Name(const SessionKey& key) {
  return absl::StrCat("session '", absl::CHexEscape(key.id), "'",
                      key.ns.empty() ? "" : absl::StrCat(" of '", absl::CHexEscape(key.ns), "'"));
}

std::string Hex(const Digest& d) {
  if (d == Digest{}) return "none";
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(d.data()), d.size()));
}

absl::Status Differs(const Session& session, absl::string_view field, absl::string_view held,
                     absl::string_view given) {
  return absl::FailedPreconditionError(absl::StrCat(Name(session.key), " was begun with ", field,
                                                    " '", held, "', this run has '", given, "'"));
}

absl::Status CheckChunk(const NewChunk& chunk, size_t index, uint64_t begin, uint64_t end,
                        uint64_t page_tokens) {
  const uint64_t tokens = std::min(page_tokens, end - begin);
  if (chunk.token_begin != begin || chunk.tokens != tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "chunk ", index, " holds tokens ", chunk.token_begin, " to ",
        chunk.token_begin + chunk.tokens, ", expected ", begin, " to ", begin + tokens));
  }
  if ((chunk.prefix_id || chunk.key) && tokens < page_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("chunk ", index, " of ", tokens,
                                                   " tokens has a prefix_id or a key: only "
                                                   "whole pages of ",
                                                   page_tokens, " do"));
  }
  return absl::OkStatus();
}

// A sealed shard fixes the session's length for all of them.
absl::Status CheckSealedLength(const Session& session, const CommitRequest& request) {
  const uint64_t end = request.token_begin + request.tokens;
  for (const auto& [index, chain] : session.shards) {
    if (index == request.shard) continue;
    if (chain.sealed && (end > chain.tokens || (request.seal && end != chain.tokens))) {
      return absl::FailedPreconditionError(
          absl::StrCat("shard ", index, " sealed ", Name(session.key), " at ", chain.tokens,
                       " tokens, this run of shard ", request.shard, " would end at ", end));
    }
    if (request.seal && chain.tokens > end) {
      return absl::FailedPreconditionError(
          absl::StrCat("shard ", request.shard, " would seal ", Name(session.key), " at ", end,
                       " tokens, shard ", index, " holds ", chain.tokens));
    }
  }
  return absl::OkStatus();
}

// All shards of a session were given the same token ids.
absl::Status CheckPrefixIds(const Session& session, const CommitRequest& request,
                            uint64_t page_tokens) {
  for (const auto& [index, chain] : session.shards) {
    if (index == request.shard) continue;
    for (const NewChunk& chunk : request.chunks) {
      const uint64_t page = chunk.token_begin / page_tokens;
      if (page >= chain.chunks.size()) break;
      const auto& other = chain.chunks[page]->prefix_id;
      if (chunk.prefix_id && other && *chunk.prefix_id != *other) {
        return absl::FailedPreconditionError(
            absl::StrCat("tokens ", chunk.token_begin, " to ", chunk.token_begin + chunk.tokens,
                         " of ", Name(session.key), ": shard ", request.shard,
                         " was given other token ids than shard ", index));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

void ShardChain::Count(const StoredChunk& chunk, int sign) {
  raw_bytes += sign * chunk.raw_bytes;  // modulo 2^64: subtracts when sign is -1
  stored_bytes += sign * chunk.bytes.size();
  kld_tokens += sign * std::max(0.0, chunk.predicted_kld) * chunk.tokens;
}

uint64_t Session::visible_tokens() const {
  if (!traits || shards.size() < traits->shard_count) return 0;
  uint64_t tokens = std::numeric_limits<uint64_t>::max();
  for (const auto& [index, chain] : shards) tokens = std::min(tokens, chain.tokens);
  return tokens;
}

bool Session::sealed() const {
  if (!traits || shards.size() < traits->shard_count) return false;
  return std::all_of(shards.begin(), shards.end(), [](const auto& s) { return s.second.sealed; });
}

SessionStat Session::Stat() const {
  SessionStat stat;
  stat.key = key;
  if (traits) stat.traits = *traits;
  stat.tokens = visible_tokens();
  stat.sealed = sealed();
  stat.unique_bytes = unique_bytes;
  stat.created = created;
  stat.modified = modified;
  stat.ttl = ttl;
  stat.labels = labels;
  for (const auto& [index, chain] : shards) {
    stat.raw_bytes += chain.raw_bytes;
    stat.stored_bytes += chain.stored_bytes;
    stat.chunks += static_cast<uint32_t>(chain.chunks.size());
    if (chain.tokens > 0) stat.predicted_kld += chain.kld_tokens / chain.tokens;
    stat.shards.push_back({index, chain.label, chain.tokens, chain.version, chain.sealed});
  }
  return stat;
}

absl::Status CheckRun(const CommitRequest& r, uint64_t page_tokens) {
  if (r.shard >= r.traits.shard_count) {
    return absl::InvalidArgumentError(absl::StrCat("shard ", r.shard, " of ", r.traits.shard_count,
                                                   ": expected less than the count"));
  }
  if (r.tokens > std::numeric_limits<uint64_t>::max() - r.token_begin) {
    return absl::InvalidArgumentError(
        absl::StrCat("a run of ", r.tokens, " tokens from ", r.token_begin, " overflows"));
  }
  const uint64_t end = r.token_begin + r.tokens;
  uint64_t begin = r.token_begin - r.token_begin % page_tokens;
  if (r.chunks.empty()) begin = r.token_begin;  // nothing is covered, nothing replaced
  uint64_t bytes = 0;
  for (size_t i = 0; i < r.chunks.size() && begin < end; ++i) {
    if (auto s = CheckChunk(r.chunks[i], i, begin, end, page_tokens); !s.ok()) return s;
    begin += r.chunks[i].tokens;
    bytes += r.chunks[i].bytes.size();
  }
  const uint64_t pages = end / page_tokens + (end % page_tokens != 0) - r.token_begin / page_tokens;
  if (begin != end || (!r.chunks.empty() && r.chunks.size() != pages)) {
    return absl::InvalidArgumentError(absl::StrCat(r.chunks.size(), " chunks for tokens ",
                                                   r.token_begin, " to ", end,
                                                   ", expected one for each page they touch"));
  }
  if (r.reservation.bytes() > 0 && r.reservation.bytes() < bytes) {
    return absl::InternalError(
        absl::StrCat("a reservation of ", r.reservation.bytes(), " bytes for chunks of ", bytes));
  }
  return absl::OkStatus();
}

absl::Status CheckTraits(const Session& session, const SessionTraits& given) {
  if (!session.traits) return absl::OkStatus();
  const SessionTraits& held = *session.traits;
  const auto text = [&](absl::string_view field, const std::string& a, const std::string& b) {
    return a == b ? absl::OkStatus()
                  : Differs(session, field, absl::CHexEscape(a), absl::CHexEscape(b));
  };
  const auto digest = [&](absl::string_view field, const Digest& a, const Digest& b) {
    return a == b ? absl::OkStatus() : Differs(session, field, Hex(a), Hex(b));
  };
  const auto number = [&](absl::string_view field, uint64_t a, uint64_t b) {
    return a == b ? absl::OkStatus() : Differs(session, field, absl::StrCat(a), absl::StrCat(b));
  };
  for (const absl::Status& s :
       {text("model_id", held.model_id, given.model_id),
        text("extra_key", held.extra_key, given.extra_key),
        digest("geometry", held.geometry, given.geometry), text("codec", held.codec, given.codec),
        text("quality", held.quality, given.quality),
        digest("profile", held.profile, given.profile), text("dtype", held.dtype, given.dtype),
        number("first_position", held.first_position, given.first_position),
        number("shard_count", held.shard_count, given.shard_count)}) {
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status CheckUnsealed(const Session& session, uint32_t shard) {
  const auto it = session.shards.find(shard);
  if (it == session.shards.end() || !it->second.sealed) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("shard ", shard, " of ", Name(session.key),
                                                    " is sealed at ", it->second.tokens,
                                                    " tokens: it takes no more"));
}

absl::Status CheckCommit(const Session& session, const CommitRequest& r, uint64_t page_tokens) {
  static const ShardChain& kNoShard = *new ShardChain;
  const auto it = session.shards.find(r.shard);
  const ShardChain& chain = it == session.shards.end() ? kNoShard : it->second;
  if (r.incarnation != 0 && r.incarnation != session.incarnation) {
    return absl::AbortedError(absl::StrCat(Name(session.key), " was deleted since this run began"));
  }
  if (auto s = CheckTraits(session, r.traits); !s.ok()) return s;
  if (chain.version != r.base_version) {
    return absl::AbortedError(absl::StrCat(
        "shard ", r.shard, " of ", Name(session.key), " is at version ", chain.version,
        ", this run was made against ", r.base_version, ": another writer committed first"));
  }
  if (auto s = CheckUnsealed(session, r.shard); !s.ok()) return s;
  if (r.token_begin < chain.tokens) {
    return absl::AlreadyExistsError(absl::StrCat("shard ", r.shard, " of ", Name(session.key),
                                                 " holds ", chain.tokens,
                                                 " tokens, this run begins at ", r.token_begin));
  }
  if (r.token_begin > chain.tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("shard ", r.shard, " of ", Name(session.key), " holds ", chain.tokens,
                     " tokens, this run begins at ", r.token_begin, ": there would be a gap"));
  }
  if (auto s = CheckSealedLength(session, r); !s.ok()) return s;
  return CheckPrefixIds(session, r, page_tokens);
}

}  // namespace kvcask
