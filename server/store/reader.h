// What readers ask of the store: prefixes that are held, chunks in order, leases that keep both.
// The methods are SessionStore's, which says what they do.
//
// Thread-safe.
#pragma once

#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <absl/types/span.h>

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "server/store/session_store.h"
#include "server/store/store_state.h"

namespace kvcask {

class Reader {
 public:
  explicit Reader(StoreState* state) : state_(state) {}

  absl::StatusOr<ReadPlan> OpenRead(const SessionKey& key, uint64_t begin, uint64_t end);
  absl::StatusOr<ReadPlan> OpenPrefix(const std::string& ns, absl::Span<const Digest> ids,
                                      uint64_t begin, uint64_t end);
  std::vector<HeldPrefix> Lookup(const std::string& ns, absl::Span<const Digest> ids) const;

  absl::StatusOr<Lease> LeaseSession(const SessionKey& key, absl::Duration duration);
  absl::StatusOr<Lease> LeasePrefix(const std::string& ns, absl::Span<const Digest> ids,
                                    absl::Duration duration);
  absl::StatusOr<Lease> RenewLease(const std::string& id, absl::Duration duration);
  bool ReleaseLease(const std::string& id);

 private:
  // A plan of [begin, end) of chains that hold `tokens`. `lock` is let go.
  absl::StatusOr<ReadPlan> Open(ReadPlan plan,
                                const std::vector<std::pair<const ShardForm*, PageNode*>>& shards,
                                uint64_t tokens, uint64_t begin, uint64_t end,
                                std::unique_lock<std::mutex>* lock);

  StoreState* const state_;
};

}  // namespace kvcask
