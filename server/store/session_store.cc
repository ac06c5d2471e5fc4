#include "server/store/session_store.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <utility>

#include "server/store/chunk_table.h"
#include "server/store/prefix_index.h"
#include "server/store/session.h"

namespace kvcask {
namespace {

absl::Status NoSession(const SessionKey& key) {
  return absl::NotFoundError(absl::StrCat("no session '", absl::CHexEscape(key.id),
                                          "' in namespace '", absl::CHexEscape(key.ns), "'"));
}

// The chunks as they will be kept. Everything that allocates or copies bytes is here,
// before the mutex is taken.
std::vector<ChunkPtr> MakeChunks(CommitRequest& request) {
  std::vector<ChunkPtr> made;
  made.reserve(request.chunks.size());
  for (NewChunk& from : request.chunks) {
    auto chunk = std::make_shared<Chunk>();
    chunk->token_begin = from.token_begin;
    chunk->tokens = from.tokens;
    chunk->bytes = std::move(from.bytes);
    // The budget counts what is used, so no more than a little may lie idle.
    if (chunk->bytes.capacity() - chunk->bytes.size() > chunk->bytes.size() / 16 + 64) {
      chunk->bytes.shrink_to_fit();
    }
    chunk->raw_bytes = from.raw_bytes;
    chunk->predicted_kld = from.predicted_kld;
    chunk->pin = std::move(from.pin);
    chunk->prefix_id = from.prefix_id;
    chunk->key = from.key;
    chunk->reservation = request.reservation.Split(chunk->bytes.size());
    made.push_back(std::move(chunk));
  }
  return made;
}

}  // namespace

// std::mutex and not absl::Mutex: ThreadSanitizer sees through the former only, since the
// system's Abseil is not instrumented.
class SessionStore::Impl {
 public:
  Impl(int page_tokens, SessionStoreOptions options)
      : page_tokens_(page_tokens), options_(std::move(options)) {}

  absl::Status Create(const SessionKey& key, const SessionTraits* traits, absl::Duration ttl,
                      std::map<std::string, std::string> labels) {
    const absl::Time now = options_.now();
    std::lock_guard<std::mutex> lock(mutex_);
    if (Find(key) != nullptr) {
      return absl::AlreadyExistsError(absl::StrCat("session '", absl::CHexEscape(key.id),
                                                   "' exists in namespace '",
                                                   absl::CHexEscape(key.ns), "'"));
    }
    auto added = Add(key, now);
    if (!added.ok()) return added.status();
    Session& session = **added;
    if (traits != nullptr) SetTraits(session, *traits);
    session.labels = std::move(labels);
    Touch(session, now, ttl);
    return absl::OkStatus();
  }

  absl::StatusOr<ShardSnapshot> BeginWrite(const SessionKey& key, const SessionTraits& traits,
                                           uint32_t shard) const {
    if (shard >= traits.shard_count) {
      return absl::InvalidArgumentError(absl::StrCat("shard ", shard, " of ", traits.shard_count,
                                                     ": expected less than the count"));
    }
    std::lock_guard<std::mutex> lock(mutex_);
    ShardSnapshot snapshot;
    const Session* session = Find(key);
    if (session == nullptr) return snapshot;
    if (auto s = CheckTraits(*session, traits); !s.ok()) return s;
    if (auto s = CheckUnsealed(*session, shard); !s.ok()) return s;
    snapshot.incarnation = session->incarnation;
    const auto it = session->shards.find(shard);
    if (it == session->shards.end()) return snapshot;
    const ShardChain& chain = it->second;
    snapshot.version = chain.version;
    snapshot.tokens = chain.tokens;
    if (const ChunkPtr* tail = chain.tail(page_tokens_)) snapshot.tail = *tail;
    const uint64_t whole_pages = chain.tokens / page_tokens_;
    if (whole_pages > 0) snapshot.last_prefix_id = chain.chunks[whole_pages - 1]->prefix_id;
    return snapshot;
  }

  std::optional<CommitResult> FindPut(const SessionKey& key, uint32_t shard,
                                      const std::string& put_id) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const Session* session = Find(key);
    return session == nullptr ? std::nullopt : FindPut(*session, shard, put_id);
  }

  absl::StatusOr<CommitResult> Commit(CommitRequest request) {
    if (auto s = CheckRun(request, page_tokens_); !s.ok()) return s;
    std::vector<ChunkPtr> chunks = MakeChunks(request);
    const absl::Time now = options_.now();
    Graveyard dead;
    std::lock_guard<std::mutex> lock(mutex_);
    Session* session = Find(request.session);
    if (session != nullptr) {
      if (const auto before = FindPut(*session, request.shard, request.put_id)) {
        if (before->token_begin == request.token_begin && before->tokens == request.tokens) {
          return *before;
        }
        return absl::AlreadyExistsError(absl::StrCat("put_id '", absl::CHexEscape(request.put_id),
                                                     "' was used for tokens ", before->token_begin,
                                                     " to ", before->token_begin + before->tokens));
      }
      if (auto s = CheckCommit(*session, request, page_tokens_); !s.ok()) return s;
    } else {
      // An empty session stands for the one that is not there: the same rules hold.
      Session none;
      none.key = request.session;
      if (auto s = CheckCommit(none, request, page_tokens_); !s.ok()) return s;
      auto added = Add(request.session, now);
      if (!added.ok()) return added.status();
      session = *added;
    }
    return Apply(*session, request, std::move(chunks), now, &dead);
  }

  absl::StatusOr<ReadPlan> OpenRead(const SessionKey& key, uint64_t begin, uint64_t end) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const Session* session = Find(key);
    if (session == nullptr) return NoSession(key);
    return Plan(*session, session->visible_tokens(), begin, end);
  }

  std::vector<HeldPrefix> Lookup(const std::string& ns, absl::Span<const Digest> ids) const {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<HeldPrefix> held;
    for (const PrefixIndex::Link* link : FindHeld(ns, ids)) {
      const SessionTraits& traits = *link->session->traits;
      held.push_back({traits.codec, traits.quality, TokensOf(*link), link->stored_bytes});
    }
    return held;
  }

  absl::StatusOr<ReadPlan> OpenPrefix(const std::string& ns, absl::Span<const Digest> ids,
                                      uint64_t begin, uint64_t end) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto held = FindHeld(ns, ids);
    if (held.empty()) {
      return absl::NotFoundError(absl::StrCat("no prefix of these ", ids.size(),
                                              " pages is held in namespace '", absl::CHexEscape(ns),
                                              "'"));
    }
    return Plan(*held[0]->session, TokensOf(*held[0]), begin, end);
  }

  absl::StatusOr<SessionStat> Stat(const SessionKey& key) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const Session* session = Find(key);
    if (session == nullptr) return NoSession(key);
    return session->Stat();
  }

  std::vector<SessionStat> List(const std::string& ns, const std::string& after, int limit) const {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<SessionStat> stats;
    const auto space = namespaces_.find(ns);
    if (space == namespaces_.end()) return stats;
    const auto& sessions = space->second.sessions;
    // "" is before every id, the empty one too.
    auto it = after.empty() ? sessions.begin() : sessions.upper_bound(after);
    for (; it != sessions.end() && static_cast<int>(stats.size()) < limit; ++it) {
      stats.push_back(it->second->Stat());
    }
    return stats;
  }

  absl::StatusOr<uint64_t> Delete(const SessionKey& key) {
    Graveyard dead;
    std::lock_guard<std::mutex> lock(mutex_);
    Session* session = Find(key);
    if (session == nullptr) return NoSession(key);
    return Remove(session, &dead);
  }

  int Expire(absl::Time now) {
    constexpr int kBatch = 64;  // sessions; others get the mutex in between
    int expired = 0;
    while (true) {
      Graveyard dead;
      std::lock_guard<std::mutex> lock(mutex_);
      for (int i = 0; i < kBatch; ++i) {
        if (expiry_.empty() || expiry_.begin()->first > now) return expired;
        Remove(expiry_.begin()->second, &dead);
        ++expired;
      }
    }
  }

  StoreUsage Usage() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return {session_count_, table_.chunks(), table_.bytes()};
  }

 private:
  struct Namespace {
    uint64_t number = 0;
    std::map<std::string, std::shared_ptr<Session>> sessions;
  };

  // --- all below: mutex_ is held

  Session* Find(const SessionKey& key) const {
    const auto space = namespaces_.find(key.ns);
    if (space == namespaces_.end()) return nullptr;
    const auto it = space->second.sessions.find(key.id);
    return it == space->second.sessions.end() ? nullptr : it->second.get();
  }

  absl::StatusOr<Session*> Add(const SessionKey& key, absl::Time now) {
    if (session_count_ >= options_.max_sessions) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "there are ", session_count_, " sessions, the limit is ", options_.max_sessions));
    }
    Namespace& space = namespaces_[key.ns];
    if (space.sessions.empty()) space.number = ++next_number_;
    auto session = std::make_shared<Session>();
    session->key = key;
    session->ns = space.number;
    session->incarnation = ++next_number_;
    session->created = session->modified = now;
    ++session_count_;
    return (space.sessions[key.id] = std::move(session)).get();
  }

  uint64_t Remove(Session* session, Graveyard* dead) {
    expiry_.erase({session->expires(), session});
    const auto& first_chain = session->shards.begin();
    for (auto& link : session->indexed) {
      index_.Remove({session->ns, session->form, *first_chain->second.chunks[link.page]->prefix_id},
                    &link);
    }
    uint64_t freed = 0;
    for (auto& [index, chain] : session->shards) {
      for (ChunkPtr& chunk : chain.chunks) {
        freed += table_.Release(session->ns, std::move(chunk), session, dead);
      }
    }
    --session_count_;
    const auto space = namespaces_.find(session->key.ns);
    const auto it = space->second.sessions.find(session->key.id);
    dead->push_back(std::move(it->second));
    space->second.sessions.erase(it);
    if (space->second.sessions.empty()) namespaces_.erase(space);
    return freed;
  }

  void SetTraits(Session& session, const SessionTraits& traits) {
    session.traits = traits;
    session.form = InternForm(traits.codec, traits.quality);
  }

  // Moves the session in the order of expiry.
  void Touch(Session& session, absl::Time now, std::optional<absl::Duration> ttl) {
    expiry_.erase({session.expires(), &session});
    session.modified = now;
    if (ttl) session.ttl = *ttl;
    if (session.expires() != absl::InfiniteFuture()) expiry_.insert({session.expires(), &session});
  }

  uint32_t InternForm(const std::string& codec, const std::string& quality) {
    const auto form = std::make_pair(codec, quality);
    const auto it = std::find(forms_.begin(), forms_.end(), form);
    if (it != forms_.end()) return static_cast<uint32_t>(it - forms_.begin());
    forms_.push_back(form);
    return static_cast<uint32_t>(forms_.size() - 1);
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
  CommitResult Apply(Session& session, CommitRequest& request, std::vector<ChunkPtr> chunks,
                     absl::Time now, Graveyard* dead) {
    if (!session.traits) SetTraits(session, request.traits);
    ShardChain& chain = session.shards[request.shard];

    uint64_t replaced_raw = 0;
    if (!chunks.empty() && chain.tail(page_tokens_) != nullptr) {
      ChunkPtr tail = std::move(chain.chunks.back());
      chain.chunks.pop_back();
      chain.Count(*tail, -1);
      replaced_raw = tail->raw_bytes;
      table_.Release(session.ns, std::move(tail), &session, dead);
    }
    CommitResult result;
    double kld_tokens = 0;
    uint64_t chunk_tokens = 0;
    for (ChunkPtr& fresh : chunks) {
      ChunkPtr chunk = table_.Hold(session.ns, fresh, &session);
      chain.Count(*chunk, +1);
      result.raw_bytes += chunk->raw_bytes;
      result.stored_bytes += chunk->bytes.size();
      kld_tokens += std::max(0.0, chunk->predicted_kld) * chunk->tokens;
      chunk_tokens += chunk->tokens;
      chain.chunks.push_back(std::move(chunk));
      dead->push_back(std::move(fresh));  // if it was not taken, its bytes go later
    }
    if (replaced_raw > 0) {
      const StoredChunk& first = *chain.chunks[request.token_begin / page_tokens_];
      const uint64_t share = std::min(replaced_raw, first.raw_bytes);
      result.raw_bytes -= share;
      if (first.raw_bytes > 0) {
        result.stored_bytes -= static_cast<uint64_t>(static_cast<double>(first.bytes.size()) *
                                                     share / first.raw_bytes);
      }
    }
    if (chunk_tokens > 0) result.predicted_kld = kld_tokens / chunk_tokens;

    chain.label = request.shard_label;
    chain.tokens = request.token_begin + request.tokens;
    chain.sealed = request.seal;
    ++chain.version;
    if (!request.labels.empty()) session.labels = std::move(request.labels);
    Touch(session, now, request.ttl);
    IndexPages(session);

    result.version = chain.version;
    result.shard_tokens = chain.tokens;
    result.visible_tokens = session.visible_tokens();
    result.token_begin = request.token_begin;
    result.tokens = request.tokens;
    if (!request.put_id.empty()) {
      chain.puts.emplace_back(std::move(request.put_id), result);
      if (chain.puts.size() > kRememberedPuts) chain.puts.pop_front();
    }
    return result;
  }

  // Enters the pages that have become visible, as far as all before them have ids.
  void IndexPages(Session& session) {
    const uint64_t pages = session.visible_tokens() / page_tokens_;
    while (session.indexed.size() < pages) {
      const uint64_t page = session.indexed.size();
      const auto& prefix_id = session.shards.begin()->second.chunks[page]->prefix_id;
      if (!prefix_id) return;
      uint64_t stored = page == 0 ? 0 : session.indexed.back().stored_bytes;
      for (const auto& [index, chain] : session.shards) stored += chain.chunks[page]->bytes.size();
      PrefixIndex::Link link;
      link.session = &session;
      link.page = static_cast<uint32_t>(page);
      link.stored_bytes = stored;
      session.indexed.push_back(link);
      index_.Add({session.ns, session.form, *prefix_id}, &session.indexed.back());
    }
  }

  uint64_t TokensOf(const PrefixIndex::Link& link) const {
    return (uint64_t{link.page} + 1) * page_tokens_;
  }

  // One link for each form that is held, longest first.
  std::vector<const PrefixIndex::Link*> FindHeld(const std::string& ns,
                                                 absl::Span<const Digest> ids) const {
    std::vector<const PrefixIndex::Link*> held;
    const auto space = namespaces_.find(ns);
    if (space == namespaces_.end()) return held;
    for (uint32_t form = 0; form < forms_.size(); ++form) {
      const auto* link = index_.FindLongest(space->second.number, form, ids);
      if (link != nullptr) held.push_back(link);
    }
    std::sort(held.begin(), held.end(), [](const auto* a, const auto* b) {
      if (a->page != b->page) return a->page > b->page;
      const SessionTraits &x = *a->session->traits, &y = *b->session->traits;
      return std::tie(x.codec, x.quality) < std::tie(y.codec, y.quality);
    });
    return held;
  }

  absl::StatusOr<ReadPlan> Plan(const Session& session, uint64_t tokens, uint64_t begin,
                                uint64_t end) const {
    const uint64_t last = end == 0 ? tokens : end;
    if (begin >= last || last > tokens) {
      return absl::OutOfRangeError(
          absl::StrCat("tokens ", begin, " to ", end == 0 ? "the end" : absl::StrCat(end),
                       begin >= last ? ": an empty range; " : ": ", "session '",
                       absl::CHexEscape(session.key.id), "' has ", tokens, " visible tokens"));
    }
    ReadPlan plan;
    plan.stat = session.Stat();
    plan.token_begin = begin;
    plan.token_end = last;
    for (const auto& [index, chain] : session.shards) {
      ReadPlan::Shard shard;
      shard.shard = index;
      shard.label = chain.label;
      const auto first = chain.chunks.begin();
      shard.chunks.assign(first + begin / page_tokens_, first + (last - 1) / page_tokens_ + 1);
      plan.shards.push_back(std::move(shard));
    }
    return plan;
  }

  const uint64_t page_tokens_;
  const SessionStoreOptions options_;

  mutable std::mutex mutex_;
  std::map<std::string, Namespace> namespaces_;  // those that hold sessions
  uint64_t session_count_ = 0;
  uint64_t next_number_ = 0;  // namespaces' numbers and incarnations: never used twice
  std::vector<std::pair<std::string, std::string>> forms_;  // codec and quality, ever seen
  std::set<std::pair<absl::Time, Session*>> expiry_;        // sessions with a ttl
  ChunkTable table_;
  PrefixIndex index_;
};

SessionStore::SessionStore(int page_tokens, SessionStoreOptions options)
    : impl_(std::make_unique<Impl>(page_tokens, std::move(options))) {}
SessionStore::~SessionStore() = default;

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
  return impl_->OpenRead(key, begin, end);
}
std::vector<HeldPrefix> SessionStore::Lookup(const std::string& ns,
                                             absl::Span<const Digest> prefix_ids) const {
  return impl_->Lookup(ns, prefix_ids);
}
absl::StatusOr<ReadPlan> SessionStore::OpenPrefix(const std::string& ns,
                                                  absl::Span<const Digest> prefix_ids,
                                                  uint64_t begin, uint64_t end) const {
  return impl_->OpenPrefix(ns, prefix_ids, begin, end);
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
StoreUsage SessionStore::Usage() const { return impl_->Usage(); }

}  // namespace kvcask
