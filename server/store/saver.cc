#include "server/store/saver.h"

#include <absl/container/flat_hash_set.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <chrono>

#include "server/store/records.h"

namespace kvcask {
namespace {

constexpr absl::Duration kRetry = absl::Milliseconds(200);  // after a round that failed

PageRecord RecordOf(const PageNode& n) {
  PageRecord r;
  r.id = n.id;
  r.parent = n.parent == nullptr ? 0 : n.parent->id;
  r.form = n.form->form->number;
  r.shard = n.form->shard;
  r.label = n.form->label;
  r.tokens = n.tokens;
  r.own_raw_bytes = n.own_raw_bytes();
  r.own_stored_bytes = n.own_stored_bytes();
  r.own_kld_tokens = n.own_kld_tokens();
  r.named = n.named;
  r.lost = n.lost;
  r.prefix_id = n.prefix_id;
  return r;
}

SessionRecord RecordOf(const Session& s) {
  SessionRecord r;
  r.key = s.key;
  r.form = s.form == nullptr ? 0 : s.form->number;
  r.created = s.created;
  r.modified = s.modified;
  r.ttl = s.ttl;
  r.labels = s.labels;
  r.pinned = s.pinned;
  r.evicted_tokens = s.evicted_tokens;
  r.forked_from = s.forked_from;
  r.rewinds = s.rewinds;
  for (const auto& [index, chain] : s.shards) {
    r.shards.push_back({index, chain.form->label, chain.head == nullptr ? 0 : chain.head->id,
                        chain.tokens, chain.version, chain.sealed, chain.puts});
  }
  return r;
}

}  // namespace

struct Saver::Round {
  struct SavedSession {
    SessionKey key;
    uint64_t incarnation = 0;
    uint64_t change = 0;
  };
  absl::Status refused;  // it is not even tried
  std::vector<std::pair<std::string, std::string>> names;  // dirty ones taken
  std::vector<SavedSession> sessions;
  std::vector<std::pair<PageNode*, ChunkRef>> pages;  // to write; heads are held
  std::vector<PageNode*> held;
  std::vector<PageNode*> lost;  // on disk, where it is not known yet; held
  std::vector<Form*> forms;  // a page or session of this round uses each
  std::vector<uint64_t> gone, pending;
  Tier::Records records;
  std::vector<Done> waiters;
};

void Saver::Collect(Round* round) {
  StoreState& st = *state_;
  const auto fail = [&](absl::Status s) {
    round->refused = std::move(s);
    for (auto& [name, waiter] : st.waiters) round->waiters.push_back(std::move(waiter.done));
    st.waiters.clear();
  };
  // All that is held goes to the tier sooner or later: it must fit.
  if (const uint64_t limit = st.options.tier_bytes; limit != 0) {
    Graveyard dead;
    while (st.tree.bytes() > limit && st.options.evict && st.EvictOne(&dead) > 0) {
    }
    if (st.tree.bytes() > limit) {
      return fail(absl::ResourceExhaustedError(
          absl::StrCat("the disk budget of ", limit, " bytes is full (", st.tree.bytes(),
                       " bytes are held) and nothing more may be evicted")));
    }
  }
  absl::flat_hash_set<const PageNode*> taken;
  absl::flat_hash_set<const Form*> forms;
  round->names.assign(st.dirty.begin(), st.dirty.end());
  st.dirty.clear();
  for (const auto& name : round->names) {
    const auto [from, to] = st.waiters.equal_range(name);
    for (auto it = from; it != to; ++it) round->waiters.push_back(std::move(it->second.done));
    st.waiters.erase(from, to);
    const Session* session = st.Find({name.first, name.second});
    if (session == nullptr) {
      round->records.deletes.push_back(SessionRecordKey(name.first, name.second));
      continue;
    }
    round->sessions.push_back({session->key, session->incarnation, session->changes});
    if (Form* form = session->form; form != nullptr && !form->on_disk && forms.insert(form).second) {
      round->forms.push_back(form);
      ++form->users;  // until the round is settled
      round->records.puts.emplace_back(
          FormKey(form->number), Encode(FormRecord{form->number, session->key.ns, form->traits}));
    }
    for (const auto& [index, chain] : session->shards) {
      if (chain.head == nullptr) continue;
      bool any = false;
      for (PageNode* n = chain.head; n != nullptr && !n->on_disk && taken.insert(n).second;
           n = n->parent) {
        round->pages.emplace_back(n, n->chunk);
        round->records.puts.emplace_back(PageKey(n->id), Encode(RecordOf(*n)));
        any = true;
      }
      if (!any) continue;
      st.tree.Hold(chain.head);
      round->held.push_back(chain.head);
    }
    round->records.puts.emplace_back(SessionRecordKey(name.first, name.second),
                                     Encode(RecordOf(*session)));
  }
  round->lost = st.tree.TakeLost();
  for (const PageNode* n : round->lost) {
    round->records.puts.emplace_back(PageKey(n->id), Encode(RecordOf(*n)));
  }
  // Whoever referred to these on disk is among the sessions of this round, or was before.
  round->gone = st.tree.TakeGone();
  for (uint64_t id : round->gone) {
    round->records.deletes.push_back(PageKey(id));
    round->records.chunk_deletes.push_back(id);
  }
}

absl::Status Saver::Write(const Round& round) {
  Tier& tier = *state_->options.tier;
  if (!round.pending.empty()) {
    Tier::Records intent;
    intent.puts.emplace_back(kPendingKey, EncodeIds(round.pending));
    if (absl::Status s = tier.Apply(intent, false); !s.ok()) return s;
  }
  for (const auto& [node, chunk] : round.pages) {
    if (chunk == nullptr) continue;  // lost
    if (absl::Status s = tier.WriteChunk(node->id, chunk->bytes); !s.ok()) return s;
  }
  const bool sync = state_->options.sync == SyncPolicy::kCommit && !round.waiters.empty();
  return tier.Apply(round.records, sync);
}

void Saver::Settle(const Round& round, const absl::Status& status) {
  Graveyard dead;
  std::lock_guard<std::mutex> lock(state_->mutex);
  StoreState& st = *state_;
  if (status.ok()) {
    for (const auto& [node, chunk] : round.pages) st.tree.MarkOnDisk(node);
    for (PageNode* node : round.lost) st.tree.Unhold(node, &dead);
    for (Form* form : round.forms) form->on_disk = true;
    for (const Round::SavedSession& s : round.sessions) {
      Session* session = st.Find(s.key);
      if (session != nullptr && session->incarnation == s.incarnation) {
        session->saved_changes = s.change;
      }
    }
  } else {
    ++st.counters.tier_errors;
    st.dirty.insert(round.names.begin(), round.names.end());
    st.tree.PutBackGone(round.gone);
    st.tree.PutBackLost(round.lost);
  }
  for (PageNode* node : round.held) st.tree.Unhold(node, &dead);
  for (Form* form : round.forms) st.tree.ReleaseForm(form);
}

bool Saver::SaveRound(bool* failed) {
  *failed = false;
  std::lock_guard<std::mutex> one(saving_);
  Round round;
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    if (state_->dirty.empty() && !state_->tree.has_gone() && !state_->tree.has_lost()) {
      return false;
    }
    Collect(&round);
  }
  absl::Status status = round.refused;
  if (status.ok()) {
    absl::flat_hash_set<uint64_t> mine;
    for (const auto& [node, chunk] : round.pages) {
      round.pending.push_back(node->id);
      mine.insert(node->id);
    }
    for (uint64_t id : doubtful_) {
      if (mine.contains(id)) continue;
      round.pending.push_back(id);
      round.records.chunk_deletes.push_back(id);
    }
    if (!round.pending.empty()) round.records.deletes.push_back(kPendingKey);
    status = Write(round);
    doubtful_ = status.ok() ? std::vector<uint64_t>() : round.pending;
    Settle(round, status);
  } else {
    std::lock_guard<std::mutex> lock(state_->mutex);
    ++state_->counters.tier_errors;
  }
  *failed = !status.ok();
  if (status.ok() && state_->options.sync == SyncPolicy::kInterval) {
    for (Done& d : round.waiters) unsynced_.push_back(std::move(d));
  } else {
    for (Done& d : round.waiters) d(status);
  }
  return true;
}

void Saver::FinishWaiting(const absl::Status& status) {
  std::vector<Done> done;
  {
    std::lock_guard<std::mutex> one(saving_);
    done.swap(unsynced_);
  }
  for (Done& d : done) d(status);
}

bool Saver::Save() {
  if (state_->options.tier == nullptr) return false;
  bool failed = false;
  const bool any = SaveRound(&failed);
  bool waiting;
  {
    std::lock_guard<std::mutex> one(saving_);
    waiting = !unsynced_.empty();
  }
  if (waiting) FinishWaiting(state_->options.tier->Sync());
  return any && !failed;
}

void Saver::WhenDurable(const SessionKey& key, Done done) {
  if (state_->options.tier == nullptr) {
    return done(absl::UnimplementedError(
        "durability: this daemon has no disk tier (--disk-path); expected DURABILITY_MEMORY"));
  }
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->dirty.insert({key.ns, key.id});
  state_->waiters.insert({{key.ns, key.id}, {0, 0, std::move(done)}});
  if (state_->wake_saver) state_->wake_saver();
}

void Saver::Start() {
  if (state_->options.tier == nullptr) return;
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    // Called with the store's mutex held; takes the thread's for a moment.
    state_->wake_saver = [this] {
      std::lock_guard<std::mutex> l(mutex_);
      work_ = true;
      changed_.notify_one();
    };
  }
  work_ = true;
  thread_ = std::thread([this] { Run(); });
}

void Saver::Run() {
  const absl::Duration interval = state_->options.sync_interval;
  bool failed = false, waiting = false;
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const auto ready = [&] { return stop_ || (work_ && !failed); };
      if (failed || waiting) {
        changed_.wait_for(lock, absl::ToChronoMilliseconds(failed ? kRetry : interval), ready);
      } else {
        changed_.wait(lock, ready);
      }
      if (stop_) break;
      work_ = false;
    }
    while (SaveRound(&failed) && !failed) {
    }
    {
      std::lock_guard<std::mutex> one(saving_);
      waiting = !unsynced_.empty();
    }
    // The steady clock's part: a jump of the wall clock must not hold up a sync.
    static const auto now = [] {
      return absl::UnixEpoch() +
             absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
    };
    if (waiting && now() - last_sync_ >= interval) {
      FinishWaiting(state_->options.tier->Sync());
      last_sync_ = now();
      waiting = false;
    }
  }
  Save();
}

void Saver::Stop() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->wake_saver = nullptr;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    changed_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
  // Nobody will save any more.
  std::vector<Done> left;
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    for (auto& [name, w] : state_->waiters) left.push_back(std::move(w.done));
    state_->waiters.clear();
  }
  for (Done& d : left) d(absl::UnavailableError("the daemon is stopping"));
}

absl::StatusOr<RestoreReport> Saver::Restore() {
  RestoreReport report;
  if (state_->options.tier == nullptr) return report;
  StoreState& st = *state_;
  const Tier& tier = *st.options.tier;
  const absl::Time now = st.options.now();
  std::lock_guard<std::mutex> lock(st.mutex);
  const auto problem = [&](std::string text) {
    if (report.problems.size() < 100) report.problems.push_back(std::move(text));
  };
  Tier::Records cleanup;
  uint64_t largest = 0;
  absl::flat_hash_map<uint64_t, Form*> forms;
  absl::Status s = tier.ForEach("f", [&](absl::string_view key, absl::string_view value) {
    auto record = DecodeForm(key, value);
    absl::StatusOr<std::shared_ptr<const void>> attachment = std::shared_ptr<const void>();
    if (record.ok() && st.options.attach) attachment = st.options.attach(record->traits);
    if (!record.ok() || !attachment.ok()) {
      problem(std::string((record.ok() ? attachment.status() : record.status()).message()));
      return absl::OkStatus();  // left as it is: what it needs may come back
    }
    record->traits.attachment = *std::move(attachment);
    auto& space = st.namespaces[record->ns];
    if (space.number == 0) space.number = st.tree.NextNumber();
    Form* form = st.tree.UseForm(space.number, record->traits);
    form->number = record->number;
    form->on_disk = true;
    largest = std::max(largest, record->number);
    forms[record->number] = form;
    return absl::OkStatus();
  });
  if (!s.ok()) return s;

  absl::flat_hash_map<uint64_t, PageNode*> pages;
  s = tier.ForEach("n", [&](absl::string_view key, absl::string_view value) {
    auto r = DecodePage(key, value);
    if (!r.ok()) {
      problem(std::string(r.status().message()));
      return absl::OkStatus();
    }
    largest = std::max(largest, r->id);
    const auto form = forms.find(r->form);
    const auto parent = pages.find(r->parent);
    if (form == forms.end() || (r->parent != 0 && parent == pages.end())) {
      ++report.dropped_chunks;
      if (form != forms.end()) {
        cleanup.deletes.push_back(std::string(key));
        cleanup.chunk_deletes.push_back(r->id);
      }
      return absl::OkStatus();
    }
    PageNode* up = r->parent == 0 ? nullptr : parent->second;
    PageNode like;
    like.id = r->id;
    like.tokens = r->tokens;
    like.raw_bytes = r->own_raw_bytes + (up ? up->raw_bytes : 0);
    like.stored_bytes = r->own_stored_bytes + (up ? up->stored_bytes : 0);
    like.kld_tokens = r->own_kld_tokens + (up ? up->kld_tokens : 0);
    like.named = r->named;
    like.lost = r->lost;
    like.prefix_id = r->prefix_id;
    pages[r->id] = st.tree.Restore(st.tree.InternShard(form->second, r->shard, r->label), up, like);
    return absl::OkStatus();
  });
  if (!s.ok()) return s;

  s = tier.ForEach("s", [&](absl::string_view key, absl::string_view value) {
    auto r = DecodeSession(key, value);
    bool good = r.ok() && (r->form == 0 || forms.count(r->form) > 0);
    for (size_t i = 0; good && i < r->shards.size(); ++i) {
      const SessionRecord::Shard& shard = r->shards[i];
      const auto head = pages.find(shard.head);
      good = r->form != 0 && (shard.head == 0 ? shard.tokens == 0 : head != pages.end());
      if (!good || shard.head == 0) continue;
      const uint64_t begin = head->second->page * st.page_tokens;
      good = shard.tokens > begin && shard.tokens <= begin + head->second->tokens &&
             head->second->form->form == forms[r->form];
    }
    if (!good) {
      ++report.dropped_sessions;
      problem(r.ok() ? absl::StrCat(NameOf(r->key), " refers to what is not there")
                     : std::string(r.status().message()));
      return absl::OkStatus();
    }
    auto& space = st.namespaces[r->key.ns];
    if (space.number == 0) space.number = st.tree.NextNumber();
    auto owned = std::make_unique<Session>();
    Session* session = owned.get();
    space.sessions[r->key.id] = std::move(owned);
    ++st.session_count;
    session->key = r->key;
    session->ns = space.number;
    session->incarnation = st.tree.NextNumber();
    session->created = r->created;
    session->modified = std::min(r->modified, now);  // the clock may have been put back
    session->ttl = r->ttl;
    session->labels = std::move(r->labels);
    session->evicted_tokens = r->evicted_tokens;
    session->forked_from = std::move(r->forked_from);
    session->rewinds = std::move(r->rewinds);
    session->changes = session->saved_changes = 1;
    if (r->form != 0) {
      session->form = forms[r->form];
      ++session->form->users;
    }
    Graveyard none;
    for (SessionRecord::Shard& from : r->shards) {
      ShardChain* chain = st.Shard(session, from.shard, from.label);
      chain->tokens = from.tokens;
      chain->version = from.version;
      chain->sealed = from.sealed;
      chain->puts = std::move(from.puts);
      SetHead(&st.tree, chain, from.head == 0 ? nullptr : pages[from.head], &none);
    }
    st.SetPinned(session, r->pinned);
    if (!r->pinned && session->expires() != absl::InfiniteFuture()) {
      st.expiry.insert({session->expires(), session});
    }
    ++report.sessions;
    return absl::OkStatus();
  });
  if (!s.ok()) return s;

  s = tier.ForEach(kPendingKey, [&](absl::string_view, absl::string_view value) {
    const auto ids = DecodeIds(value);
    if (!ids.ok()) return absl::OkStatus();
    for (uint64_t id : *ids) {
      largest = std::max(largest, id);
      if (pages.count(id) == 0) cleanup.chunk_deletes.push_back(id);
    }
    return absl::OkStatus();
  });
  if (!s.ok()) return s;
  cleanup.deletes.push_back(kPendingKey);
  st.tree.SkipNumbers(largest);

  // Pages that no session needs: their removal had not been saved.
  Graveyard none;
  const std::vector<PageNode*> leaves = st.tree.leaves();
  const uint64_t before = st.tree.chunks();
  for (PageNode* node : leaves) {
    if (node->refs > 0) continue;
    st.tree.Ref(node);
    st.tree.Unref(node, &none);
  }
  report.dropped_chunks += before - st.tree.chunks();
  for (auto& [number, form] : forms) {
    if (form->users == 1) cleanup.deletes.push_back(FormKey(number));
    st.tree.ReleaseForm(form);
  }
  for (auto it = st.namespaces.begin(); it != st.namespaces.end();) {
    it = it->second.sessions.empty() ? st.namespaces.erase(it) : std::next(it);
  }
  report.chunks = st.tree.chunks();
  if (absl::Status a = st.options.tier->Apply(cleanup, false); !a.ok()) return a;
  return report;
}

std::pair<uint64_t, uint64_t> Saver::Scrub(uint64_t bytes) {
  if (state_->options.tier == nullptr) return {0, 0};
  const Tier& tier = *state_->options.tier;
  std::lock_guard<std::mutex> one(saving_);
  if (scrub_ids_.empty()) {
    (void)tier.ForEach("n", [&](absl::string_view key, absl::string_view value) {
      if (const auto r = DecodePage(key, value); r.ok() && !r->lost) scrub_ids_.push_back(r->id);
      return absl::OkStatus();
    });
    std::reverse(scrub_ids_.begin(), scrub_ids_.end());
  }
  uint64_t checked = 0, corrupt = 0, read = 0;
  while (!scrub_ids_.empty() && (checked == 0 || read < bytes)) {
    const uint64_t id = scrub_ids_.back();
    scrub_ids_.pop_back();
    const auto chunk = tier.ReadChunk(id);
    ++checked;
    read += chunk.ok() ? chunk->size() : 4096;
    if (!absl::IsDataLoss(chunk.status())) continue;
    // Rare: so no index from ids to pages is kept.
    Graveyard dead;
    ChunkRef good;
    {
      std::lock_guard<std::mutex> lock(state_->mutex);
      PageNode* node = state_->tree.FindId(id);
      if (node == nullptr) continue;  // it went meanwhile
      good = node->chunk;
      if (good == nullptr) state_->MarkLost(node, &dead);
    }
    ++corrupt;
    // Host memory still has it: it is written again.
    if (good != nullptr) (void)state_->options.tier->WriteChunk(id, good->bytes);
  }
  return {checked, corrupt};
}

}  // namespace kvcask
