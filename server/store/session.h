// What the store keeps of one session, and the rules that a commit to it must meet.
//
// Not thread-safe: the store's mutex guards it.
#pragma once

#include <absl/status/status.h>
#include <absl/time/time.h>

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/store/chunk_table.h"
#include "server/store/prefix_index.h"
#include "server/store/session_store.h"

namespace kvcask {

// One shard's chain: whole pages, then at most one incomplete one.
struct ShardChain {
  std::string label;
  uint64_t tokens = 0;
  uint64_t version = 0;
  bool sealed = false;
  std::vector<ChunkPtr> chunks;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  double kld_tokens = 0;  // sum over chunks of predicted_kld x tokens
  std::deque<std::pair<std::string, CommitResult>> puts;  // the last kRememberedPuts

  // The incomplete page at the end; null: none.
  const ChunkPtr* tail(uint64_t page_tokens) const {
    return tokens % page_tokens != 0 ? &chunks.back() : nullptr;
  }
  void Count(const StoredChunk& chunk, int sign);
};

struct Session {
  SessionKey key;
  uint64_t ns = 0;           // its namespace's number
  uint64_t incarnation = 0;  // never the same twice
  std::optional<SessionTraits> traits;
  uint32_t form = 0;  // of traits' codec and quality
  absl::Time created, modified;
  absl::Duration ttl;  // zero: none
  std::map<std::string, std::string> labels;
  std::map<uint32_t, ShardChain> shards;
  uint64_t unique_bytes = 0;             // kept by ChunkTable
  std::list<PrefixIndex::Link> indexed;  // of pages 0, 1, ...

  uint64_t visible_tokens() const;
  bool sealed() const;
  SessionStat Stat() const;
  absl::Time expires() const {
    return ttl > absl::ZeroDuration() ? modified + ttl : absl::InfiniteFuture();
  }
};

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
