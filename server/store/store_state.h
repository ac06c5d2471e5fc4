// The store's data, and what is done to it while its mutex is held. session_store.cc, saver.cc
// and restore.cc work on it; nobody else sees it.
//
// std::mutex and not absl::Mutex: ThreadSanitizer sees through the former only, since the
// system's Abseil is not instrumented.
#pragma once

#include <absl/container/flat_hash_map.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <absl/types/span.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/store/page_tree.h"
#include "server/store/session.h"
#include "server/store/session_store.h"
#include "server/store/tier.h"

namespace kvcask {

absl::Status NoSession(const SessionKey& key);

struct StoreState {
  struct Namespace {
    uint64_t number = 0;
    std::map<std::string, std::unique_ptr<Session>> sessions;
  };
  struct LeaseState {
    std::vector<PageNode*> nodes;  // held
    uint64_t tokens = 0;
    absl::Time expires;
  };
  struct Waiter {
    uint64_t incarnation = 0;  // of the session; 0: its removal
    uint64_t change = 0;
    std::function<void(absl::Status)> done;
  };

  StoreState(uint64_t page_tokens, SessionStoreOptions options);
  ~StoreState();

  Session* Find(const SessionKey& key) const;
  // RESOURCE_EXHAUSTED: max_sessions, or the namespace's.
  absl::StatusOr<Session*> Add(const SessionKey& key, absl::Time now);
  uint64_t Remove(Session* session, Graveyard* dead);
  void SetTraits(Session* session, const SessionTraits& traits);
  // Moves the session in the order of expiry, and counts a change.
  void Touch(Session* session, absl::Time now, std::optional<absl::Duration> ttl);
  void MarkDirty(Session* session);
  // Its bytes are corrupt and nowhere else; the tier will remember.
  void MarkLost(PageNode* node, Graveyard* dead);
  ShardChain* Shard(Session* session, uint32_t shard, const std::string& label);
  void SetPinned(Session* session, bool pinned);
  // Cuts every shard to `tokens`.
  uint64_t Cut(Session* session, uint64_t tokens, Graveyard* dead);
  uint64_t NamespaceNumber(const std::string& ns) const;  // 0: there is none

  // The nodes of `chain` that cover [begin, end), in order.
  std::vector<PageNode*> Nodes(const ShardChain& chain, uint64_t begin, uint64_t end) const;
  // The longest held prefixes, one for each form, longest first.
  struct Held {
    const Form* form = nullptr;
    std::vector<PageNode*> nodes;  // by shard
    uint64_t tokens = 0;
  };
  std::vector<Held> FindHeld(const std::string& ns, absl::Span<const Digest> ids) const;
  uint64_t HostBytes(const PageNode* node) const;  // of it and all before

  absl::StatusOr<Lease> AddLease(std::vector<PageNode*> nodes, uint64_t tokens,
                                 absl::Duration duration);
  void DropLease(const std::string& id, Graveyard* dead);

  // Takes one page's host memory away, or, from the end of sessions, the page itself. Bytes;
  // 0: nothing may go.
  uint64_t Demote(Graveyard* dead);
  uint64_t EvictOne(Graveyard* dead);

  const uint64_t page_tokens;
  const SessionStoreOptions options;

  mutable std::mutex mutex;  // guards all below
  std::map<std::string, Namespace> namespaces;  // those that hold sessions
  uint64_t session_count = 0;
  std::set<std::pair<absl::Time, Session*>> expiry;  // sessions with a ttl
  absl::flat_hash_map<std::string, LeaseState> leases;
  std::set<std::pair<absl::Time, std::string>> lease_expiry;
  std::minstd_rand random;
  std::random_device secure_random;
  PageTree tree;
  StoreUsage counters;  // those that only grow

  // What the tier has to be told. Sessions by name, since they may be gone meanwhile.
  std::set<std::pair<std::string, std::string>> dirty;
  std::multimap<std::pair<std::string, std::string>, Waiter> waiters;
  std::function<void()> wake_saver;  // null: nobody saves by itself
  uint64_t scrub_after = 0;          // the last chunk that was checked
};

// Reads what of `nodes` is not in host memory, and leaves it there as far as the budget
// allows; the chunks, in order. The nodes were held by the caller; they still are.
// DATA_LOSS: lost ones, by tokens. Takes the mutex.
absl::StatusOr<std::vector<ChunkRef>> Fetch(StoreState* state, const SessionKey& name,
                                            const std::vector<PageNode*>& nodes);

}  // namespace kvcask
