// Sessions in memory: chains of chunks by shard, shared by content, committed whole.
//
// The store sees opaque chunks and does not know that codecs exist. A session's tokens
// are visible as far as every one of its shards has committed them; a page is
// kChunkTokens tokens at a multiple of that; all chunks of a chain but the last are whole
// pages. Chunks with the same key in one namespace are kept once.
//
// Pages are a tree (page_tree.h): a fork or rewind copies nothing and costs O(log pages). When
// host memory is full, pages go by eviction.h from the ends of sessions: to the tier below
// when there is one (tier.h), for good when there is none. Never those that are pinned,
// leased or being read.
//
// Thread-safe. Nothing it returns is invalidated by later calls: reads hold references.
// One mutex; a commit or delete costs O(its chunks), a stat O(its own pages), a lookup
// O(forms * log pages). Bytes are freed, and the tier is read and written, after the mutex is
// let go.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/clock.h>
#include <absl/time/time.h>
#include <absl/types/span.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/admission/byte_budget.h"
#include "server/store/stored_chunk.h"

namespace kvcask {

using Digest = std::array<uint8_t, 32>;

class GpuChunks;
class Tier;

// One chunk as the pipeline hands it over.
struct NewChunk {
  uint64_t token_begin = 0;  // in the session; a multiple of the page
  uint32_t tokens = 0;       // of the page; less only in the last
  ChunkBytes bytes;
  uint64_t raw_bytes = 0;     // 2 bytes x elements that were put
  double predicted_kld = -1;  // < 0: none
  // Whole pages of sessions with token ids. A digest over the page's token ids and the
  // prefix_id before it, so that who holds page i by it holds all pages before.
  // Chunks of equal namespace, traits, shard (with its label), prefix_id, tokens and raw_bytes
  // are interchangeable: one of them is kept.
  std::optional<Digest> prefix_id;
};

struct SessionKey {
  std::string ns;
  std::string id;
};

// What a session is of. All commits must agree with the first; FAILED_PRECONDITION says
// which field differs and both values.
struct SessionTraits {
  std::string model_id;
  std::string extra_key;
  std::string codec;
  std::string quality;
  std::string dtype;
  Digest geometry{};  // fingerprint
  Digest profile{};   // fingerprint, or zeros
  uint64_t first_position = 0;
  uint32_t shard_count = 1;
  // What the pipeline needs to decode (geometry, profile); opaque here. Kept alive as long as
  // a session or chunk of these traits.
  std::shared_ptr<const void> attachment;
  // From which a restart makes the attachment again; opaque, kept with the tier.
  std::string descriptor;
};

struct CommitRequest {
  SessionKey session;
  SessionTraits traits;
  uint32_t shard = 0;         // < traits.shard_count
  std::string shard_label;    // opaque: the shard's range, given back in stat
  uint64_t base_version = 0;  // of this shard, that the chunks were made against
  // Of the session that base_version is of (ShardSnapshot): tells it from another that
  // was made under the same name since. 0 does not check.
  uint64_t incarnation = 0;
  uint64_t token_begin = 0;  // = what the shard held at base_version
  uint64_t tokens = 0;       // the run's length
  // From the page that holds token_begin on: a tail there is replaced. A run of no tokens
  // may hold none (seal, ttl or labels alone) or the tail in another form.
  std::vector<NewChunk> chunks;
  // Covers the chunks' bytes (INTERNAL if not); what is over, or shared, goes back. Empty:
  // nothing is accounted for.
  Reservation reservation;
  // This shard gets no more tokens. The session is sealed when all of its shards are, at
  // one length.
  bool seal = false;
  std::string put_id;
  std::optional<absl::Duration> ttl;          // none keeps; zero: for ever
  std::map<std::string, std::string> labels;  // none keeps; else they replace all
};

struct CommitResult {
  uint64_t version = 0;
  uint64_t shard_tokens = 0;
  uint64_t visible_tokens = 0;
  uint64_t raw_bytes = 0;     // of this commit's run
  uint64_t stored_bytes = 0;  // kept for it; its share, by raw_bytes, of a replaced tail
  double predicted_kld = 0;   // mean over the tokens of the chunks; 0 without any
  bool replayed = false;
  uint64_t token_begin = 0;  // the run's, so that a replay can be told from
  uint64_t tokens = 0;       // another use of its put_id
};

struct ShardState {
  uint32_t shard = 0;
  std::string label;
  uint64_t tokens = 0;
  uint64_t version = 0;
  bool sealed = false;
};

struct SessionStat {
  SessionKey key;
  SessionTraits traits;  // of the first commit; empty model_id: none yet
  uint64_t tokens = 0;   // visible
  bool sealed = false;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;  // logical
  uint64_t unique_bytes = 0;  // held by this session alone
  double predicted_kld = 0;   // mean over tokens, summed over shards
  uint32_t chunks = 0;
  absl::Time created, modified;
  absl::Duration ttl;  // zero: none
  std::map<std::string, std::string> labels;
  std::vector<ShardState> shards;
  bool pinned = false;
  uint64_t evicted_tokens = 0;  // that eviction took from its end
  bool durable = false;         // the tier below has its latest state
  uint64_t host_bytes = 0;      // of stored_bytes, in host memory; only Stat fills it in
  uint64_t gpu_bytes = 0;       // of host_bytes, copied to a GPU; the same
  // [begin, end) whose chunks were found corrupt: gone. Only Stat fills them in.
  std::vector<std::pair<uint64_t, uint64_t>> lost;
  bool replayed = false;  // Fork and Rewind: it was done before, nothing was done now
};

// What a writer needs before its first byte.
struct ShardSnapshot {
  uint64_t version = 0;
  uint64_t tokens = 0;
  ChunkRef tail;  // the chunk of the last, incomplete page; null: none
  uint32_t tail_tokens = 0;  // that are this shard's: after a fork or rewind, less than it has
  bool sealed = false;
  std::optional<Digest> last_prefix_id;  // of the last whole page; none: no pages yet
  uint64_t incarnation = 0;              // of the session; 0: there is none yet
};

// Chunks of one shard that cover the tokens asked for, in order.
struct ReadPlan {
  SessionStat stat;
  uint64_t token_begin = 0, token_end = 0;
  struct Shard {
    uint32_t shard = 0;
    std::string label;
    std::vector<ChunkRef> chunks;
  };
  std::vector<Shard> shards;
};

struct HeldPrefix {
  std::string codec, quality;
  uint64_t tokens = 0;
  uint64_t stored_bytes = 0;
  uint64_t raw_bytes = 0;
  uint64_t host_bytes = 0;  // of stored_bytes, in host memory; the rest is on disk
};

// While it lasts, what it was granted for is neither evicted nor deleted with its session.
struct Lease {
  std::string id;  // 32 hex digits, unguessable
  absl::Time expires;
  uint64_t tokens = 0;
};

struct StoreUsage {
  uint64_t sessions = 0;
  uint64_t chunks = 0;        // each once
  uint64_t stored_bytes = 0;  // each once, wherever they are
  uint64_t host_bytes = 0;
  uint64_t disk_chunks = 0, disk_bytes = 0;
  uint64_t leases = 0;
  uint64_t lost_chunks = 0;
  uint64_t evicted_chunks = 0, evicted_bytes = 0;    // for good, since the start
  uint64_t demoted_chunks = 0, promoted_chunks = 0;  // host to disk and back
  uint64_t unsaved_sessions = 0;                     // wait for the tier
  uint64_t tier_errors = 0;                          // rounds of writing that failed
};

struct NamespaceQuota {
  uint64_t max_bytes = 0;     // each chunk once; 0: no limit
  uint64_t max_sessions = 0;  // 0: no limit
};

// How far an acknowledged durable commit survives.
enum class SyncPolicy {
  kCommit,    // each waits for fsync; those that wait together share one
  kInterval,  // each waits for the next fsync, every sync_interval
  kNever,     // it has left this process: a kill, not a power failure
};

struct RestoreReport {
  uint64_t sessions = 0, chunks = 0;
  uint64_t dropped_sessions = 0;  // whose records were unreadable or whose codec is gone
  uint64_t dropped_chunks = 0;    // that no session needs
  std::vector<std::string> problems;
};

// Of each shard: results of older puts are forgotten, and a repeat of one is then refused
// as any other write against an old version.
inline constexpr int kRememberedPuts = 16;
// Of each session.
inline constexpr int kRememberedRewinds = 16;
// Fork: all that are visible.
inline constexpr uint64_t kAllTokens = ~uint64_t{0};

struct SessionStoreOptions {
  // Names, labels and put_ids are outside the byte budget: at most some KB a session.
  uint64_t max_sessions = 250'000;
  std::function<absl::Time()> now = absl::Now;
  uint64_t max_leases = 100'000;
  absl::Duration max_lease = absl::Hours(1);
  std::function<NamespaceQuota(const std::string& ns)> quota;  // null: no limits

  // Without a tier, and with `evict`, MakeRoom takes from the ends of sessions; with a tier,
  // it takes what the tier has too. `evict` is also what happens when the tier is full.
  bool evict = true;
  Tier* tier = nullptr;          // borrowed
  uint64_t tier_bytes = 0;       // the tier's budget for chunks; 0: no limit
  ByteBudget* budget = nullptr;  // for what comes back from the tier
  // Borrowed, and outlives the store: gets a copy of what is committed. Null: there is none.
  GpuChunks* gpu = nullptr;
  SyncPolicy sync = SyncPolicy::kCommit;
  absl::Duration sync_interval = absl::Milliseconds(100);
  // Makes a session's attachment after a restart, from traits.descriptor.
  std::function<absl::StatusOr<std::shared_ptr<const void>>(const SessionTraits&)> attach;
};

class SessionStore {
 public:
  explicit SessionStore(int page_tokens, SessionStoreOptions options = {});
  ~SessionStore();  // Stop()

  // Takes up what the tier holds. Once, before anything else.
  absl::StatusOr<RestoreReport> Restore();
  // A thread that saves to the tier; without it, Save does.
  void Start();
  void Stop();
  // Saves all that changed since the last call, and what waits for it; false: nothing to do.
  bool Save();

  // ALREADY_EXISTS when there is one. RESOURCE_EXHAUSTED: max_sessions. traits null: the
  // first commit says.
  absl::Status Create(const SessionKey& key, const SessionTraits* traits, absl::Duration ttl,
                      std::map<std::string, std::string> labels);

  // The state that a new run of `shard` continues. A session or shard that does not exist
  // is empty. FAILED_PRECONDITION: the shard is sealed, or traits differ.
  // INVALID_ARGUMENT: there is no such shard.
  absl::StatusOr<ShardSnapshot> BeginWrite(const SessionKey& key, const SessionTraits& traits,
                                           uint32_t shard) const;
  // The result of an earlier commit with this put_id, if the session remembers it.
  std::optional<CommitResult> FindPut(const SessionKey& key, uint32_t shard,
                                      const std::string& put_id) const;
  // All or nothing. A repeat of a remembered put_id answers its result, replayed;
  // ALREADY_EXISTS when that was another run, or the shard holds the tokens already.
  // ABORTED when the shard's version is not base_version (or the session another).
  // FAILED_PRECONDITION: sealed, traits differ, or another shard was given other token ids.
  // INVALID_ARGUMENT: chunks that do not cover the run, or a gap before it.
  // RESOURCE_EXHAUSTED: max_sessions.
  absl::StatusOr<CommitResult> Commit(CommitRequest request);

  // end 0: to the end. NOT_FOUND; OUT_OF_RANGE when the range leaves the visible tokens
  // or is empty (the text says how many there are).
  absl::StatusOr<ReadPlan> OpenRead(const SessionKey& key, uint64_t begin, uint64_t end) const;

  // The longest run of leading prefix_ids held whole, by codec and quality; longest first.
  std::vector<HeldPrefix> Lookup(const std::string& ns, absl::Span<const Digest> prefix_ids) const;
  // A plan for the longest of them: the first of Lookup. NOT_FOUND when there is none;
  // OUT_OF_RANGE as OpenRead, of the prefix.
  absl::StatusOr<ReadPlan> OpenPrefix(const std::string& ns, absl::Span<const Digest> prefix_ids,
                                      uint64_t begin, uint64_t end) const;

  // --- over a session's life

  // `to` becomes a session of its own with the first `tokens` tokens of `from`, and shares
  // them: O(log pages), nothing is copied. It is unsealed. ALREADY_EXISTS, NOT_FOUND,
  // OUT_OF_RANGE (more than are visible), RESOURCE_EXHAUSTED as Commit.
  // A repeat with the fork_id that `to` was made with, of the same session and tokens, answers
  // `to` as it is now, replayed, even when `from` has changed or gone.
  absl::StatusOr<SessionStat> Fork(const SessionKey& from, const SessionKey& to, uint64_t tokens,
                                   absl::Duration ttl, std::map<std::string, std::string> labels,
                                   const std::string& fork_id = "");
  // Cuts every shard back to `tokens` and unseals it. Every shard's version grows: writers
  // under way get ABORTED. ABORTED when expected_version is neither 0 nor the sum of the
  // shards' versions; OUT_OF_RANGE when more than are visible.
  // A repeat of a remembered rewind_id answers the session as it is now, replayed, and cuts
  // nothing that was appended since; ALREADY_EXISTS when that rewind was to other tokens.
  absl::StatusOr<SessionStat> Rewind(const SessionKey& key, uint64_t tokens,
                                     uint64_t expected_version,
                                     const std::string& rewind_id = "");
  struct Change {
    std::optional<bool> pinned;         // pinned: neither evicted nor expired
    std::optional<absl::Duration> ttl;  // from now on
    std::optional<std::map<std::string, std::string>> labels;
  };
  absl::StatusOr<SessionStat> Update(const SessionKey& key, const Change& change);

  // `done` is called once, from any thread: OK when the tier holds all that the session is
  // now, as far as the sync policy says. UNIMPLEMENTED: there is no tier.
  void WhenDurable(const SessionKey& key, std::function<void(absl::Status)> done);

  // --- leases. RESOURCE_EXHAUSTED: max_leases.
  absl::StatusOr<Lease> LeaseSession(const SessionKey& key, absl::Duration duration);
  // On the longest of Lookup.
  absl::StatusOr<Lease> LeasePrefix(const std::string& ns, absl::Span<const Digest> prefix_ids,
                                    absl::Duration duration);
  absl::StatusOr<Lease> RenewLease(const std::string& id, absl::Duration duration);
  bool ReleaseLease(const std::string& id);  // false: there was none

  // --- space

  // Frees host memory until `bytes` of the budget given at construction are free, or nothing
  // more may go. Bytes freed; some may be freed only when readers end.
  uint64_t MakeRoom(uint64_t bytes);
  // RESOURCE_EXHAUSTED names the limit of the namespace that `bytes` more would pass.
  absl::Status CheckQuota(const std::string& ns, uint64_t bytes) const;
  // Reads the next chunks of the tier, `bytes` or one at least, checking them; corrupt ones
  // are lost from then on. Chunks checked and found corrupt; {0, 0}: there are none.
  std::pair<uint64_t, uint64_t> Scrub(uint64_t bytes);
  // Chunks whose traits have this profile.
  uint64_t ChunksOf(const Digest& profile) const;

  absl::StatusOr<SessionStat> Stat(const SessionKey& key) const;
  // Up to `limit` sessions with ids greater than `after`, in order.
  std::vector<SessionStat> List(const std::string& ns, const std::string& after, int limit) const;
  // Bytes that only it held: freed, when no read is using them. NOT_FOUND.
  absl::StatusOr<uint64_t> Delete(const SessionKey& key);
  // Deletes sessions whose ttl has passed since their last commit; how many.
  int Expire(absl::Time now);

  StoreUsage Usage() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvcask
