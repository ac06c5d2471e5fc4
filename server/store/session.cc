#include "server/store/session.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <limits>

namespace kvcask {
namespace {

std::string Hex(const Digest& d) {
  if (d == Digest{}) return "none";
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(d.data()), d.size()));
}

absl::Status Differs(const Session& session, absl::string_view field, absl::string_view held,
                     absl::string_view given) {
  return absl::FailedPreconditionError(absl::StrCat(NameOf(session.key), " was begun with ", field,
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
  if ((chunk.prefix_id) && tokens < page_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("chunk ", index, " of ", tokens,
                                                   " tokens has a prefix_id: only "
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
          absl::StrCat("shard ", index, " sealed ", NameOf(session.key), " at ", chain.tokens,
                       " tokens, this run of shard ", request.shard, " would end at ", end));
    }
    if (request.seal && chain.tokens > end) {
      return absl::FailedPreconditionError(
          absl::StrCat("shard ", request.shard, " would seal ", NameOf(session.key), " at ", end,
                       " tokens, shard ", index, " holds ", chain.tokens));
    }
  }
  return absl::OkStatus();
}

// All shards of a session were given the same token ids.
absl::Status CheckPrefixIds(const Session& session, const CommitRequest& request,
                            uint64_t page_tokens) {
  if (request.chunks.empty()) return absl::OkStatus();
  const uint64_t first = request.chunks.front().token_begin / page_tokens;
  for (const auto& [index, chain] : session.shards) {
    const uint64_t end = std::min(chain.tokens / page_tokens, first + request.chunks.size());
    if (index == request.shard || end <= first) continue;
    const PageNode* node = PageTree::Ancestor(chain.head, end - 1);
    for (; node != nullptr && node->page >= first; node = node->parent) {
      const NewChunk& chunk = request.chunks[node->page - first];
      if (!chunk.prefix_id || !node->named || *chunk.prefix_id == node->prefix_id) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("tokens ", chunk.token_begin, " to ", chunk.token_begin + chunk.tokens,
                       " of ", NameOf(session.key), ": shard ", request.shard,
                       " was given other token ids than shard ", index));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string NameOf(const SessionKey& key) {
  return absl::StrCat("session '", absl::CHexEscape(key.id), "'",
                      key.ns.empty() ? "" : absl::StrCat(" of '", absl::CHexEscape(key.ns), "'"));
}

uint64_t ShardChain::raw_bytes(uint64_t page_tokens) const {
  if (head == nullptr) return 0;
  const uint64_t seen = tokens - head->page * page_tokens;
  if (seen >= head->tokens) return head->raw_bytes;
  const uint64_t own = head->own_raw_bytes();
  return head->raw_bytes - own + own / head->tokens * seen;
}

double ShardChain::kld_tokens(uint64_t page_tokens) const {
  if (head == nullptr) return 0;
  const uint64_t seen = tokens - head->page * page_tokens;
  if (seen >= head->tokens) return head->kld_tokens;
  const double own = head->own_kld_tokens();
  return head->kld_tokens - own + own / head->tokens * static_cast<double>(seen);
}

uint64_t SetHead(PageTree* tree, ShardChain* chain, PageNode* node, Graveyard* dead) {
  PageNode* before = chain->head;
  if (node == before) return 0;
  const bool pinned = chain->session->pinned;
  if (pinned && node != nullptr) tree->Hold(node);
  if (before != nullptr) {
    if (chain->previous != nullptr) {
      chain->previous->next = chain->next;
    } else {
      before->heads = chain->next;
    }
    if (chain->next != nullptr) chain->next->previous = chain->previous;
  }
  chain->head = node;
  chain->previous = chain->next = nullptr;
  if (node != nullptr) {
    tree->Ref(node);
    chain->next = node->heads;
    if (node->heads != nullptr) node->heads->previous = chain;
    node->heads = chain;
  }
  if (before == nullptr) return 0;
  if (pinned) tree->Unhold(before, dead);  // the chain's reference still keeps it
  return tree->Unref(before, dead);
}

uint64_t Session::visible_tokens() const {
  if (form == nullptr || shards.size() < form->traits.shard_count) return 0;
  uint64_t tokens = std::numeric_limits<uint64_t>::max();
  for (const auto& [index, chain] : shards) tokens = std::min(tokens, chain.tokens);
  return tokens;
}

bool Session::sealed() const {
  if (form == nullptr || shards.size() < form->traits.shard_count) return false;
  return std::all_of(shards.begin(), shards.end(), [](const auto& s) { return s.second.sealed; });
}

SessionStat Session::Stat(uint64_t page_tokens) const {
  SessionStat stat;
  stat.key = key;
  if (form != nullptr) stat.traits = form->traits;
  stat.tokens = visible_tokens();
  stat.sealed = sealed();
  stat.created = created;
  stat.modified = modified;
  stat.ttl = ttl;
  stat.labels = labels;
  stat.pinned = pinned;
  stat.evicted_tokens = evicted_tokens;
  stat.durable = saved_changes > 0 && saved_changes == changes;
  for (const auto& [index, chain] : shards) {
    stat.raw_bytes += chain.raw_bytes(page_tokens);
    stat.stored_bytes += chain.stored_bytes();
    stat.unique_bytes += PageTree::BytesAlone(chain.head);
    stat.chunks += static_cast<uint32_t>(chain.chunks());
    if (chain.tokens > 0) {
      stat.predicted_kld += chain.kld_tokens(page_tokens) / static_cast<double>(chain.tokens);
    }
    stat.shards.push_back({index, chain.form->label, chain.tokens, chain.version, chain.sealed});
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
  if (session.form == nullptr) return absl::OkStatus();
  const SessionTraits& held = session.form->traits;
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
  return absl::FailedPreconditionError(absl::StrCat("shard ", shard, " of ", NameOf(session.key),
                                                    " is sealed at ", it->second.tokens,
                                                    " tokens: it takes no more"));
}

absl::Status CheckCommit(const Session& session, const CommitRequest& r, uint64_t page_tokens) {
  static const ShardChain& kNoShard = *new ShardChain;
  const auto it = session.shards.find(r.shard);
  const ShardChain& chain = it == session.shards.end() ? kNoShard : it->second;
  if (r.incarnation != 0 && r.incarnation != session.incarnation) {
    return absl::AbortedError(absl::StrCat(NameOf(session.key), " was deleted since this run began"));
  }
  if (auto s = CheckTraits(session, r.traits); !s.ok()) return s;
  if (chain.version != r.base_version) {
    return absl::AbortedError(absl::StrCat(
        "shard ", r.shard, " of ", NameOf(session.key), " is at version ", chain.version,
        ", this run was made against ", r.base_version, ": another writer committed first"));
  }
  if (auto s = CheckUnsealed(session, r.shard); !s.ok()) return s;
  if (r.token_begin < chain.tokens) {
    return absl::AlreadyExistsError(absl::StrCat("shard ", r.shard, " of ", NameOf(session.key),
                                                 " holds ", chain.tokens,
                                                 " tokens, this run begins at ", r.token_begin));
  }
  if (r.token_begin > chain.tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("shard ", r.shard, " of ", NameOf(session.key), " holds ", chain.tokens,
                     " tokens, this run begins at ", r.token_begin, ": there would be a gap"));
  }
  if (auto s = CheckSealedLength(session, r); !s.ok()) return s;
  return CheckPrefixIds(session, r, page_tokens);
}

}  // namespace kvcask
