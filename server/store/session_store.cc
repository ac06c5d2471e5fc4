#include "server/store/session_store.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "server/store/gpu_chunks.h"
#include "server/store/page_tree.h"
#include "server/store/reader.h"
#include "server/store/saver.h"
#include "server/store/session.h"
#include "server/store/store_state.h"

namespace kvcask {
namespace {

// The chunks as they will be kept. Everything that allocates or copies bytes is here,
// before the mutex is taken.
std::vector<ChunkRef> MakeChunks(CommitRequest& request) {
  std::vector<ChunkRef> made;
  made.reserve(request.chunks.size());
  for (NewChunk& from : request.chunks) {
    auto chunk = std::make_shared<StoredChunk>();
    chunk->token_begin = from.token_begin;
    chunk->tokens = from.tokens;
    chunk->bytes = std::move(from.bytes);
    // The budget counts what is used, so no more than a little may lie idle.
    if (chunk->bytes.capacity() - chunk->bytes.size() > chunk->bytes.size() / 16 + 64) {
      chunk->bytes.shrink_to_fit();
    }
    chunk->reservation = request.reservation.Split(chunk->bytes.size());
    made.push_back(std::move(chunk));
  }
  return made;
}

}  // namespace

class SessionStore::Impl {
 public:
  Impl(int page_tokens, SessionStoreOptions options)
      : state_(page_tokens, std::move(options)), saver_(&state_), reader_(&state_) {}

  StoreState& state() { return state_; }
  Saver& saver() { return saver_; }
  Reader& reader() { return reader_; }

  absl::Status Create(const SessionKey& key, const SessionTraits* traits, absl::Duration ttl,
                      std::map<std::string, std::string> labels) {
    const absl::Time now = options().now();
    std::lock_guard<std::mutex> lock(state_.mutex);
    auto session = AddNew(key, now);
    if (!session.ok()) return session.status();
    if (traits != nullptr) state_.SetTraits(*session, *traits);
    (*session)->labels = std::move(labels);
    state_.Touch(*session, now, ttl);
    return absl::OkStatus();
  }

  absl::StatusOr<ShardSnapshot> BeginWrite(const SessionKey& key, const SessionTraits& traits,
                                           uint32_t shard) {
    if (shard >= traits.shard_count) {
      return absl::InvalidArgumentError(absl::StrCat("shard ", shard, " of ", traits.shard_count,
                                                     ": expected less than the count"));
    }
    ShardSnapshot snapshot;
    PageNode* tail = nullptr;
    {
      std::lock_guard<std::mutex> lock(state_.mutex);
      const Session* session = state_.Find(key);
      if (session == nullptr) return snapshot;
      if (auto s = CheckTraits(*session, traits); !s.ok()) return s;
      if (auto s = CheckUnsealed(*session, shard); !s.ok()) return s;
      snapshot.incarnation = session->incarnation;
      const auto it = session->shards.find(shard);
      if (it == session->shards.end()) return snapshot;
      const ShardChain& chain = it->second;
      snapshot.version = chain.version;
      snapshot.tokens = chain.tokens;
      tail = chain.tail(page_tokens());
      const PageNode* whole = tail != nullptr ? tail->parent : chain.head;
      if (whole != nullptr && whole->named) snapshot.last_prefix_id = whole->prefix_id;
      if (tail == nullptr) return snapshot;
      snapshot.tail_tokens = static_cast<uint32_t>(chain.tokens % page_tokens());
      state_.tree.Hold(tail);
    }
    auto chunks = Fetch(&state_, key, {tail});
    Graveyard dead;
    std::lock_guard<std::mutex> lock(state_.mutex);
    state_.tree.Unhold(tail, &dead);
    if (!chunks.ok()) return chunks.status();
    snapshot.tail = std::move((*chunks)[0]);
    return snapshot;
  }

  std::optional<CommitResult> FindPut(const SessionKey& key, uint32_t shard,
                                      const std::string& put_id) const {
    std::lock_guard<std::mutex> lock(state_.mutex);
    const Session* session = state_.Find(key);
    return session == nullptr ? std::nullopt : FindPut(*session, shard, put_id);
  }

  absl::StatusOr<CommitResult> Commit(CommitRequest request) {
    if (auto s = CheckRun(request, page_tokens()); !s.ok()) return s;
    std::vector<ChunkRef> chunks = MakeChunks(request);
    std::vector<ChunkRef> made = options().gpu != nullptr ? chunks : std::vector<ChunkRef>();
    auto result = Commit(std::move(request), std::move(chunks));
    if (!result.ok()) return result;
    // What was there already, or a replay, is held by `made` alone.
    made.erase(std::remove_if(made.begin(), made.end(),
                              [](const ChunkRef& c) { return c.use_count() == 1; }),
               made.end());
    for (ChunkRef& chunk : made) {
      options().gpu->Add(chunk);
      chunk.reset();  // it may be demoted
    }
    return result;
  }

  absl::StatusOr<CommitResult> Commit(CommitRequest request, std::vector<ChunkRef> chunks) {
    const absl::Time now = options().now();
    Graveyard dead;
    std::lock_guard<std::mutex> lock(state_.mutex);
    Session* session = state_.Find(request.session);
    if (session != nullptr) {
      if (const auto before = FindPut(*session, request.shard, request.put_id)) {
        if (before->token_begin == request.token_begin && before->tokens == request.tokens) {
          return *before;
        }
        return absl::AlreadyExistsError(absl::StrCat("put_id '", absl::CHexEscape(request.put_id),
                                                     "' was used for tokens ", before->token_begin,
                                                     " to ", before->token_begin + before->tokens));
      }
      if (auto s = CheckCommit(*session, request, page_tokens()); !s.ok()) return s;
    } else {
      // An empty session stands for the one that is not there: the same rules hold.
      Session none;
      none.key = request.session;
      if (auto s = CheckCommit(none, request, page_tokens()); !s.ok()) return s;
    }
    if (auto s = CheckQuotaLocked(request.session.ns, NewBytes(session, request, chunks)); !s.ok()) {
      return s;
    }
    if (session == nullptr) {
      auto added = state_.Add(request.session, now);
      if (!added.ok()) return added.status();
      session = *added;
    }
    return Apply(session, request, std::move(chunks), now, &dead);
  }

  absl::StatusOr<SessionStat> Stat(const SessionKey& key) const {
    std::vector<ChunkRef> in_memory;
    absl::StatusOr<SessionStat> stat = Stat(key, options().gpu != nullptr ? &in_memory : nullptr);
    // A device that hangs must not hold up who waits for the store.
    for (const ChunkRef& chunk : in_memory) {
      if (options().gpu->Holds(chunk)) stat->gpu_bytes += chunk->bytes.size();
    }
    return stat;
  }

  // `in_memory`, if given: the session's chunks there.
  absl::StatusOr<SessionStat> Stat(const SessionKey& key, std::vector<ChunkRef>* in_memory) const {
    std::lock_guard<std::mutex> lock(state_.mutex);
    const Session* session = state_.Find(key);
    if (session == nullptr) return NoSession(key);
    SessionStat stat = session->Stat(page_tokens());
    for (const auto& [index, chain] : session->shards) {
      stat.host_bytes += state_.HostBytes(chain.head);
      for (const PageNode* n = chain.head; in_memory != nullptr && n != nullptr; n = n->parent) {
        if (n->chunk != nullptr) in_memory->push_back(n->chunk);
      }
      if (state_.tree.lost_chunks() == 0) continue;
      for (const PageNode* n = chain.head; n != nullptr; n = n->parent) {
        const uint64_t begin = n->page * page_tokens();
        if (n->lost) stat.lost.emplace_back(begin, std::min(begin + n->tokens, chain.tokens));
      }
    }
    std::sort(stat.lost.begin(), stat.lost.end());
    stat.lost.erase(std::unique(stat.lost.begin(), stat.lost.end()), stat.lost.end());
    return stat;
  }

  std::vector<SessionStat> List(const std::string& ns, const std::string& after, int limit) const {
    std::lock_guard<std::mutex> lock(state_.mutex);
    std::vector<SessionStat> stats;
    const auto space = state_.namespaces.find(ns);
    if (space == state_.namespaces.end()) return stats;
    const auto& sessions = space->second.sessions;
    // "" is before every id, the empty one too.
    auto it = after.empty() ? sessions.begin() : sessions.upper_bound(after);
    for (; it != sessions.end() && static_cast<int>(stats.size()) < limit; ++it) {
      stats.push_back(it->second->Stat(page_tokens()));
    }
    return stats;
  }

  absl::StatusOr<uint64_t> Delete(const SessionKey& key) {
    Graveyard dead;
    std::lock_guard<std::mutex> lock(state_.mutex);
    Session* session = state_.Find(key);
    if (session == nullptr) return NoSession(key);
    return state_.Remove(session, &dead);
  }

  int Expire(absl::Time now) {
    constexpr int kBatch = 64;  // sessions; others get the mutex in between
    int expired = 0;
    while (true) {
      Graveyard dead;
      std::lock_guard<std::mutex> lock(state_.mutex);
      while (!state_.lease_expiry.empty() && state_.lease_expiry.begin()->first <= now) {
        state_.DropLease(std::string(state_.lease_expiry.begin()->second), &dead);
      }
      for (int i = 0; i < kBatch; ++i) {
        if (state_.expiry.empty() || state_.expiry.begin()->first > now) return expired;
        state_.Remove(state_.expiry.begin()->second, &dead);
        ++expired;
      }
    }
  }

  absl::StatusOr<SessionStat> Fork(const SessionKey& from, const SessionKey& to, uint64_t tokens,
                                   absl::Duration ttl, std::map<std::string, std::string> labels,
                                   const std::string& fork_id) {
    const absl::Time now = options().now();
    Graveyard none;
    std::lock_guard<std::mutex> lock(state_.mutex);
    // Namespaces do not share: pages of another one have other names and another owner.
    if (from.ns != to.ns) {
      return absl::InvalidArgumentError(
          absl::StrCat("a fork of ", NameOf(from), " in namespace '", absl::CHexEscape(to.ns),
                       "', expected the same namespace"));
    }
    const ForkedFrom origin{fork_id, from.id, tokens};
    if (const Session* made = state_.Find(to);
        made != nullptr && !fork_id.empty() && made->forked_from == origin) {
      SessionStat stat = made->Stat(page_tokens());
      stat.replayed = true;
      return stat;
    }
    Session* source = state_.Find(from);
    if (source == nullptr) return NoSession(from);
    if (tokens == kAllTokens) tokens = source->visible_tokens();
    if (auto s = CheckVisible(*source, tokens); !s.ok()) return s;
    auto added = AddNew(to, now);
    if (!added.ok()) return added.status();
    Session* target = *added;
    target->labels = std::move(labels);
    if (!fork_id.empty()) target->forked_from = origin;
    if (source->form != nullptr) {
      state_.SetTraits(target, source->form->traits);
      for (auto& [index, chain] : source->shards) {
        ShardChain* copy = state_.Shard(target, index, chain.form->label);
        copy->tokens = tokens;
        copy->version = 1;
        PageNode* head =
            tokens == 0 ? nullptr : PageTree::Ancestor(chain.head, (tokens - 1) / page_tokens());
        SetHead(&state_.tree, copy, head, &none);
        if (head != nullptr) state_.tree.Touch(head);
      }
    }
    state_.Touch(target, now, ttl);
    return target->Stat(page_tokens());
  }

  absl::StatusOr<SessionStat> Rewind(const SessionKey& key, uint64_t tokens,
                                     uint64_t expected_version, const std::string& rewind_id) {
    Graveyard dead;
    const absl::Time now = options().now();
    std::lock_guard<std::mutex> lock(state_.mutex);
    Session* session = state_.Find(key);
    if (session == nullptr) return NoSession(key);
    for (const auto& [id, to] : session->rewinds) {
      if (rewind_id.empty() || id != rewind_id) continue;
      if (to != tokens) {
        return absl::AlreadyExistsError(absl::StrCat(
            "rewind_id '", absl::CHexEscape(rewind_id), "' was used for a rewind of ",
            NameOf(key), " to token ", to, ", this one is to ", tokens));
      }
      SessionStat stat = session->Stat(page_tokens());
      stat.replayed = true;
      return stat;
    }
    uint64_t version = 0;
    for (const auto& [index, chain] : session->shards) version += chain.version;
    if (expected_version != 0 && expected_version != version) {
      return absl::AbortedError(absl::StrCat("the shards of ", NameOf(key),
                                             " are at versions that sum to ", version,
                                             ", expected ", expected_version));
    }
    if (auto s = CheckVisible(*session, tokens); !s.ok()) return s;
    state_.Cut(session, tokens, &dead);
    if (!rewind_id.empty()) {
      auto& rewinds = session->rewinds;
      rewinds.emplace_back(rewind_id, tokens);
      if (rewinds.size() > kRememberedRewinds) rewinds.erase(rewinds.begin());
    }
    state_.Touch(session, now, std::nullopt);
    return session->Stat(page_tokens());
  }

  absl::StatusOr<SessionStat> Update(const SessionKey& key, const Change& change) {
    const absl::Time now = options().now();
    std::lock_guard<std::mutex> lock(state_.mutex);
    Session* session = state_.Find(key);
    if (session == nullptr) return NoSession(key);
    if (change.labels) session->labels = *change.labels;
    state_.Touch(session, now, change.ttl);
    if (change.pinned) state_.SetPinned(session, *change.pinned);
    return session->Stat(page_tokens());
  }

  uint64_t MakeRoom(uint64_t bytes) {
    const ByteBudget* budget = options().budget;
    uint64_t freed = 0;
    while (budget == nullptr ? freed < bytes : budget->limit() - budget->used() < bytes) {
      Graveyard dead;
      std::lock_guard<std::mutex> lock(state_.mutex);
      uint64_t step = 0;
      for (int i = 0; i < 16 && step < bytes; ++i) {  // others get the mutex in between
        const uint64_t got = options().tier != nullptr
                                 ? state_.Demote(&dead)
                                 : options().evict ? state_.EvictOne(&dead) : 0;
        if (got == 0) break;
        step += got;
      }
      if (step == 0) break;
      freed += step;
    }
    return freed;
  }

  absl::Status CheckQuota(const std::string& ns, uint64_t bytes) const {
    std::lock_guard<std::mutex> lock(state_.mutex);
    return CheckQuotaLocked(ns, bytes);
  }

  uint64_t ChunksOf(const Digest& profile) const {
    std::lock_guard<std::mutex> lock(state_.mutex);
    uint64_t chunks = 0;
    for (const auto& [name, space] : state_.namespaces) {
      for (const Form* f : state_.tree.FormsOf(space.number)) {
        if (f->traits.profile == profile) chunks += f->chunks;
      }
    }
    return chunks;
  }

  StoreUsage Usage() const {
    std::lock_guard<std::mutex> lock(state_.mutex);
    StoreUsage u = state_.counters;
    u.sessions = state_.session_count;
    u.chunks = state_.tree.chunks();
    u.stored_bytes = state_.tree.bytes();
    u.host_bytes = state_.tree.host_bytes();
    u.disk_chunks = state_.tree.disk_chunks();
    u.disk_bytes = state_.tree.disk_bytes();
    u.leases = state_.leases.size();
    u.lost_chunks = state_.tree.lost_chunks();
    u.unsaved_sessions = state_.dirty.size();
    return u;
  }

 private:
  const SessionStoreOptions& options() const { return state_.options; }
  uint64_t page_tokens() const { return state_.page_tokens; }

  // --- below: the mutex is held

  absl::StatusOr<Session*> AddNew(const SessionKey& key, absl::Time now) {
    if (state_.Find(key) != nullptr) {
      return absl::AlreadyExistsError(absl::StrCat("session '", absl::CHexEscape(key.id),
                                                   "' exists in namespace '",
                                                   absl::CHexEscape(key.ns), "'"));
    }
    return state_.Add(key, now);
  }

  absl::Status CheckVisible(const Session& session, uint64_t tokens) const {
    if (tokens <= session.visible_tokens()) return absl::OkStatus();
    return absl::OutOfRangeError(absl::StrCat("token ", tokens, ": ", NameOf(session.key), " has ",
                                              session.visible_tokens(), " visible tokens"));
  }

  absl::Status CheckQuotaLocked(const std::string& ns, uint64_t bytes) const {
    if (!options().quota) return absl::OkStatus();
    const NamespaceQuota quota = options().quota(ns);
    const uint64_t held = state_.tree.ns_bytes(state_.NamespaceNumber(ns));
    if (quota.max_bytes == 0 || (bytes <= quota.max_bytes && held <= quota.max_bytes - bytes)) {
      return absl::OkStatus();
    }
    return absl::ResourceExhaustedError(
        absl::StrCat("namespace '", absl::CHexEscape(ns), "' holds ", held, " bytes, ", bytes,
                     " more would pass its quota of ", quota.max_bytes, " bytes"));
  }

  // Of the run's chunks, the bytes that are not there already.
  uint64_t NewBytes(const Session* session, const CommitRequest& request,
                    const std::vector<ChunkRef>& chunks) const {
    if (!options().quota) return 0;
    const PageNode* parent = nullptr;
    const ShardForm* form = nullptr;
    if (session != nullptr) {
      const auto it = session->shards.find(request.shard);
      if (it != session->shards.end()) {
        const ShardChain& chain = it->second;
        form = chain.form;
        const PageNode* tail = chain.tail(page_tokens());
        parent = tail != nullptr ? tail->parent : chain.head;
      }
    }
    if (form == nullptr) form = state_.tree.FindShard(state_.NamespaceNumber(request.session.ns),
                                                      request.traits, request.shard,
                                                      request.shard_label);
    uint64_t bytes = 0;
    bool shared = form != nullptr;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const PageNode* twin =
          shared ? state_.tree.FindTwin(form, parent, request.chunks[i]) : nullptr;
      if (twin == nullptr) bytes += chunks[i]->bytes.size();
      shared = twin != nullptr;
      parent = twin;
    }
    return bytes;
  }

  static std::optional<CommitResult> FindPut(const Session& session, uint32_t shard,
                                             const std::string& put_id) {
    const auto it = session.shards.find(shard);
    if (put_id.empty() || it == session.shards.end()) return std::nullopt;
    for (const auto& [id, result] : it->second.puts) {
      if (id != put_id) continue;
      CommitResult replay = result;
      replay.visible_tokens = session.visible_tokens();
      replay.replayed = true;
      return replay;
    }
    return std::nullopt;
  }

  // The request was checked: nothing here can fail.
  CommitResult Apply(Session* session, CommitRequest& request, std::vector<ChunkRef> chunks,
                     absl::Time now, Graveyard* dead) {
    if (session->form == nullptr) state_.SetTraits(session, request.traits);
    ShardChain* chain = state_.Shard(session, request.shard, request.shard_label);
    PageTree& tree = state_.tree;

    uint64_t replaced_raw = 0;
    PageNode* head = chain->head;
    if (!chunks.empty() && chain->tail(page_tokens()) != nullptr) {
      replaced_raw = chain->raw_bytes(page_tokens()) -
                     (head->parent != nullptr ? head->parent->raw_bytes : 0);
      head = head->parent;
    }
    CommitResult result;
    double kld_tokens = 0;
    uint64_t chunk_tokens = 0;
    PageNode* first = nullptr;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const NewChunk& from = request.chunks[i];
      PageNode* node = tree.FindTwin(chain->form, head, from);
      if (node == nullptr) {
        node = tree.Add(chain->form, head, from, chunks[i]);
      } else {
        tree.Touch(node);
        // What is on disk only is here again, at no cost.
        if (node->chunk == nullptr) tree.SetChunk(node, chunks[i], dead);
      }
      dead->push_back(std::move(chunks[i]));  // if it was not taken, its bytes go later
      if (first == nullptr) first = node;
      result.raw_bytes += node->own_raw_bytes();
      result.stored_bytes += node->own_stored_bytes();
      kld_tokens += node->own_kld_tokens();
      chunk_tokens += node->tokens;
      head = node;
    }
    SetHead(&tree, chain, head, dead);
    if (replaced_raw > 0 && first != nullptr) {
      const uint64_t raw = first->own_raw_bytes(), share = std::min(replaced_raw, raw);
      result.raw_bytes -= share;
      if (raw > 0) {
        result.stored_bytes -= static_cast<uint64_t>(
            static_cast<double>(first->own_stored_bytes()) * share / raw);
      }
    }
    if (chunk_tokens > 0) result.predicted_kld = kld_tokens / chunk_tokens;

    chain->tokens = request.token_begin + request.tokens;
    chain->sealed = request.seal;
    ++chain->version;
    if (!request.labels.empty()) session->labels = std::move(request.labels);
    state_.Touch(session, now, request.ttl);

    result.version = chain->version;
    result.shard_tokens = chain->tokens;
    result.visible_tokens = session->visible_tokens();
    result.token_begin = request.token_begin;
    result.tokens = request.tokens;
    if (!request.put_id.empty()) {
      auto& puts = chain->puts;
      puts.emplace_back(std::move(request.put_id), result);
      if (puts.size() > kRememberedPuts) puts.erase(puts.begin());
    }
    return result;
  }

  StoreState state_;
  Saver saver_;
  Reader reader_;
};

SessionStore::SessionStore(int page_tokens, SessionStoreOptions options)
    : impl_(std::make_unique<Impl>(page_tokens, std::move(options))) {}
SessionStore::~SessionStore() { Stop(); }

absl::StatusOr<RestoreReport> SessionStore::Restore() { return impl_->saver().Restore(); }
void SessionStore::Start() { impl_->saver().Start(); }
void SessionStore::Stop() { impl_->saver().Stop(); }
bool SessionStore::Save() { return impl_->saver().Save(); }
absl::Status SessionStore::Create(const SessionKey& key, const SessionTraits* traits,
                                  absl::Duration ttl, std::map<std::string, std::string> labels) {
  return impl_->Create(key, traits, ttl, std::move(labels));
}
absl::StatusOr<ShardSnapshot> SessionStore::BeginWrite(const SessionKey& key,
                                                       const SessionTraits& traits,
                                                       uint32_t shard) const {
  return impl_->BeginWrite(key, traits, shard);
}
std::optional<CommitResult> SessionStore::FindPut(const SessionKey& key, uint32_t shard,
                                                  const std::string& put_id) const {
  return impl_->FindPut(key, shard, put_id);
}
absl::StatusOr<CommitResult> SessionStore::Commit(CommitRequest request) {
  return impl_->Commit(std::move(request));
}
absl::StatusOr<ReadPlan> SessionStore::OpenRead(const SessionKey& key, uint64_t begin,
                                                uint64_t end) const {
  return impl_->reader().OpenRead(key, begin, end);
}
std::vector<HeldPrefix> SessionStore::Lookup(const std::string& ns,
                                             absl::Span<const Digest> prefix_ids) const {
  return impl_->reader().Lookup(ns, prefix_ids);
}
absl::StatusOr<ReadPlan> SessionStore::OpenPrefix(const std::string& ns,
                                                  absl::Span<const Digest> prefix_ids,
                                                  uint64_t begin, uint64_t end) const {
  return impl_->reader().OpenPrefix(ns, prefix_ids, begin, end);
}
absl::StatusOr<SessionStat> SessionStore::Stat(const SessionKey& key) const {
  return impl_->Stat(key);
}
std::vector<SessionStat> SessionStore::List(const std::string& ns, const std::string& after,
                                            int limit) const {
  return impl_->List(ns, after, limit);
}
absl::StatusOr<uint64_t> SessionStore::Delete(const SessionKey& key) { return impl_->Delete(key); }
int SessionStore::Expire(absl::Time now) { return impl_->Expire(now); }
absl::StatusOr<SessionStat> SessionStore::Fork(const SessionKey& from, const SessionKey& to,
                                               uint64_t tokens, absl::Duration ttl,
                                               std::map<std::string, std::string> labels,
                                               const std::string& fork_id) {
  return impl_->Fork(from, to, tokens, ttl, std::move(labels), fork_id);
}
absl::StatusOr<SessionStat> SessionStore::Rewind(const SessionKey& key, uint64_t tokens,
                                                 uint64_t expected_version,
                                                 const std::string& rewind_id) {
  return impl_->Rewind(key, tokens, expected_version, rewind_id);
}
absl::StatusOr<SessionStat> SessionStore::Update(const SessionKey& key, const Change& change) {
  return impl_->Update(key, change);
}
void SessionStore::WhenDurable(const SessionKey& key, std::function<void(absl::Status)> done) {
  impl_->saver().WhenDurable(key, std::move(done));
}
absl::StatusOr<Lease> SessionStore::LeaseSession(const SessionKey& key, absl::Duration duration) {
  return impl_->reader().LeaseSession(key, duration);
}
absl::StatusOr<Lease> SessionStore::LeasePrefix(const std::string& ns,
                                                absl::Span<const Digest> prefix_ids,
                                                absl::Duration duration) {
  return impl_->reader().LeasePrefix(ns, prefix_ids, duration);
}
absl::StatusOr<Lease> SessionStore::RenewLease(const std::string& id, absl::Duration duration) {
  return impl_->reader().RenewLease(id, duration);
}
bool SessionStore::ReleaseLease(const std::string& id) { return impl_->reader().ReleaseLease(id); }
uint64_t SessionStore::MakeRoom(uint64_t bytes) { return impl_->MakeRoom(bytes); }
absl::Status SessionStore::CheckQuota(const std::string& ns, uint64_t bytes) const {
  return impl_->CheckQuota(ns, bytes);
}
std::pair<uint64_t, uint64_t> SessionStore::Scrub(uint64_t bytes) {
  return impl_->saver().Scrub(bytes);
}
uint64_t SessionStore::ChunksOf(const Digest& profile) const { return impl_->ChunksOf(profile); }
StoreUsage SessionStore::Usage() const { return impl_->Usage(); }

}  // namespace kvcask
