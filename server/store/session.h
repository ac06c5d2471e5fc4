// What the store keeps of one session, and the rules that a commit to it must meet.
//
// Not thread-safe: the store's mutex guards it.
#pragma once

#include <absl/status/status.h>
#include <absl/time/time.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/store/page_tree.h"
#include "server/store/session_store.h"

namespace kvcask {

struct Session;

// One shard's chain: the pages up to `head`, of which the first `tokens` tokens are its own.
// The last page may be a chunk of fewer tokens (a raw tail), or a longer one that the chain
// shares and sees only the beginning of (after a fork or rewind within a page).
struct ShardChain {
  Session* session = nullptr;
  const ShardForm* form = nullptr;
  PageNode* head = nullptr;
  ShardChain *next = nullptr, *previous = nullptr;  // with the same head
  uint64_t tokens = 0;
  uint64_t version = 0;
  bool sealed = false;
  std::vector<std::pair<std::string, CommitResult>> puts;  // the last kRememberedPuts

  // Sums over the chain; the last page counts by the tokens that are seen of it.
  uint64_t raw_bytes(uint64_t page_tokens) const;
  uint64_t stored_bytes() const { return head == nullptr ? 0 : head->stored_bytes; }
  double kld_tokens(uint64_t page_tokens) const;
  uint64_t chunks() const { return head == nullptr ? 0 : head->page + 1; }
  // The node of the incomplete page at the end; null: none.
  PageNode* tail(uint64_t page_tokens) const {
    return tokens % page_tokens != 0 ? head : nullptr;
  }
};

// The call that made a session, so that a repeat of it is known. No id: none.
struct ForkedFrom {
  std::string fork_id;
  std::string from;     // in the same namespace
  uint64_t tokens = 0;  // that were asked for

  bool operator==(const ForkedFrom& o) const {
    return fork_id == o.fork_id && from == o.from && tokens == o.tokens;
  }
};

struct Session {
  SessionKey key;
  uint64_t ns = 0;           // its namespace's number
  uint64_t incarnation = 0;  // never the same twice
  Form* form = nullptr;      // with its traits; null: none yet
  absl::Time created, modified;
  absl::Duration ttl;  // zero: none
  std::map<std::string, std::string> labels;
  std::map<uint32_t, ShardChain> shards;
  uint64_t evicted_tokens = 0;  // that it had and that eviction took from its end
  bool pinned = false;
  ForkedFrom forked_from;
  std::vector<std::pair<std::string, uint64_t>> rewinds;  // the last ids, and to which token
  uint64_t changes = 0;
  uint64_t saved_changes = 0;  // of those, that the tier has

  const SessionTraits* traits() const { return form == nullptr ? nullptr : &form->traits; }
  uint64_t visible_tokens() const;
  bool sealed() const;
  SessionStat Stat(uint64_t page_tokens) const;
  absl::Time expires() const {
    return ttl > absl::ZeroDuration() && !pinned ? modified + ttl : absl::InfiniteFuture();
  }
};

// Makes `node` (null: none) the chain's head, with a reference to it; the old head's goes.
// Bytes freed.
uint64_t SetHead(PageTree* tree, ShardChain* chain, PageNode* node, Graveyard* dead);

// "session 'id' of 'namespace'", escaped.
std::string NameOf(const SessionKey& key);

// Whether the run and its chunks are well formed in themselves. INVALID_ARGUMENT.
absl::Status CheckRun(const CommitRequest& request, uint64_t page_tokens);
// FAILED_PRECONDITION names the field that differs and both values.
absl::Status CheckTraits(const Session& session, const SessionTraits& traits);
// FAILED_PRECONDITION: this shard is sealed.
absl::Status CheckUnsealed(const Session& session, uint32_t shard);
// Whether `request` may be applied to `session`: as SessionStore::Commit says.
absl::Status CheckCommit(const Session& session, const CommitRequest& request,
                         uint64_t page_tokens);

}  // namespace kvcask
