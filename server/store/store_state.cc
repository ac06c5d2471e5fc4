#include "server/store/store_state.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <algorithm>

#include "server/store/eviction.h"

namespace kvcask {
namespace {

constexpr int kCandidates = 64;  // leaves compared for one eviction

absl::Status Lost(const StoreState& state, const SessionKey& name, const PageNode& node) {
  const uint64_t begin = node.page * state.page_tokens;
  return absl::DataLossError(absl::StrCat("tokens ", begin, " to ", begin + node.tokens, " of ",
                                          NameOf(name),
                                          " are lost: their chunk was found corrupt"));
}

}  // namespace

absl::Status NoSession(const SessionKey& key) {
  return absl::NotFoundError(absl::StrCat("no session '", absl::CHexEscape(key.id),
                                          "' in namespace '", absl::CHexEscape(key.ns), "'"));
}

StoreState::StoreState(uint64_t page, SessionStoreOptions o)
    : page_tokens(page), options(std::move(o)), random(1) {}

StoreState::~StoreState() {
  Graveyard dead;
  for (PageNode* node : tree.TakeLost()) tree.Unhold(node, &dead);
  while (!leases.empty()) DropLease(std::string(leases.begin()->first), &dead);
  while (!namespaces.empty()) {
    Remove(namespaces.begin()->second.sessions.begin()->second.get(), &dead);
  }
}

Session* StoreState::Find(const SessionKey& key) const {
  const auto space = namespaces.find(key.ns);
  if (space == namespaces.end()) return nullptr;
  const auto it = space->second.sessions.find(key.id);
  return it == space->second.sessions.end() ? nullptr : it->second.get();
}

absl::StatusOr<Session*> StoreState::Add(const SessionKey& key, absl::Time now) {
  if (session_count >= options.max_sessions) {
    return absl::ResourceExhaustedError(absl::StrCat("there are ", session_count,
                                                     " sessions, the limit is ",
                                                     options.max_sessions));
  }
  const NamespaceQuota quota = options.quota ? options.quota(key.ns) : NamespaceQuota{};
  const auto found = namespaces.find(key.ns);
  const uint64_t here = found == namespaces.end() ? 0 : found->second.sessions.size();
  if (quota.max_sessions != 0 && here >= quota.max_sessions) {
    return absl::ResourceExhaustedError(
        absl::StrCat("namespace '", absl::CHexEscape(key.ns), "' holds ", here,
                     " sessions, its quota is ", quota.max_sessions, " sessions"));
  }
  Namespace& space = namespaces[key.ns];
  if (space.number == 0) space.number = tree.NextNumber();
  auto session = std::make_unique<Session>();
  session->key = key;
  session->ns = space.number;
  session->incarnation = tree.NextNumber();
  session->created = session->modified = now;
  ++session_count;
  return (space.sessions[key.id] = std::move(session)).get();
}

uint64_t StoreState::Remove(Session* session, Graveyard* dead) {
  SetPinned(session, false);
  expiry.erase({session->expires(), session});
  uint64_t freed = 0;
  for (auto& [index, chain] : session->shards) freed += SetHead(&tree, &chain, nullptr, dead);
  if (session->form != nullptr) tree.ReleaseForm(session->form);
  --session_count;
  const auto space = namespaces.find(session->key.ns);
  const auto it = space->second.sessions.find(session->key.id);
  MarkDirty(session);
  dead->push_back(std::shared_ptr<Session>(std::move(it->second)));
  space->second.sessions.erase(it);
  if (space->second.sessions.empty()) namespaces.erase(space);
  return freed;
}

void StoreState::SetTraits(Session* session, const SessionTraits& traits) {
  session->form = tree.UseForm(session->ns, traits);
}

void StoreState::Touch(Session* session, absl::Time now, std::optional<absl::Duration> ttl) {
  expiry.erase({session->expires(), session});
  session->modified = now;
  if (ttl) session->ttl = *ttl;
  if (session->expires() != absl::InfiniteFuture()) expiry.insert({session->expires(), session});
  MarkDirty(session);
}

void StoreState::MarkLost(PageNode* node, Graveyard* dead) {
  tree.MarkLost(node, dead);
  if (wake_saver) wake_saver();
}

void StoreState::MarkDirty(Session* session) {
  if (options.tier == nullptr) return;
  ++session->changes;
  dirty.insert({session->key.ns, session->key.id});
  if (wake_saver) wake_saver();
}

ShardChain* StoreState::Shard(Session* session, uint32_t shard, const std::string& label) {
  ShardChain& chain = session->shards[shard];
  chain.session = session;
  chain.form = tree.InternShard(session->form, shard, label);
  if (session->shards.size() == session->form->traits.shard_count) {
    std::vector<const ShardForm*> partition;
    for (const auto& [i, c] : session->shards) partition.push_back(c.form);
    tree.AddPartition(session->form, std::move(partition));
  }
  return &chain;
}

void StoreState::SetPinned(Session* session, bool pinned) {
  if (session->pinned == pinned) return;
  expiry.erase({session->expires(), session});
  session->pinned = pinned;
  if (session->expires() != absl::InfiniteFuture()) expiry.insert({session->expires(), session});
  Graveyard none;  // the chains' references keep the nodes
  for (auto& [index, chain] : session->shards) {
    if (chain.head == nullptr) continue;
    if (pinned) {
      tree.Hold(chain.head);
    } else {
      tree.Unhold(chain.head, &none);
    }
  }
}

uint64_t StoreState::Cut(Session* session, uint64_t tokens, Graveyard* dead) {
  uint64_t freed = 0;
  for (auto& [index, chain] : session->shards) {
    if (chain.tokens > tokens) {
      PageNode* head =
          tokens == 0 ? nullptr : PageTree::Ancestor(chain.head, (tokens - 1) / page_tokens);
      chain.tokens = tokens;
      freed += SetHead(&tree, &chain, head, dead);
    }
    chain.sealed = false;
    ++chain.version;
  }
  return freed;
}

uint64_t StoreState::NamespaceNumber(const std::string& ns) const {
  const auto space = namespaces.find(ns);
  return space == namespaces.end() ? 0 : space->second.number;
}

std::vector<PageNode*> StoreState::Nodes(const ShardChain& chain, uint64_t begin,
                                         uint64_t end) const {
  const uint64_t first = begin / page_tokens, last = (end - 1) / page_tokens;
  std::vector<PageNode*> nodes(last - first + 1);
  PageNode* node = PageTree::Ancestor(chain.head, last);
  for (size_t i = nodes.size(); i-- > 0; node = node->parent) nodes[i] = node;
  return nodes;
}

std::vector<StoreState::Held> StoreState::FindHeld(const std::string& ns,
                                                   absl::Span<const Digest> ids) const {
  std::vector<Held> held;
  const uint64_t number = NamespaceNumber(ns);
  for (const Form* form : tree.FormsOf(number)) {
    Held best;
    for (const auto& partition : form->partitions) {
      auto nodes = tree.FindLongest(partition, ids);
      if (nodes.empty()) continue;
      const uint64_t tokens = (uint64_t{nodes[0]->page} + 1) * page_tokens;
      if (tokens > best.tokens) best = {form, std::move(nodes), tokens};
    }
    if (best.tokens > 0) held.push_back(std::move(best));
  }
  std::sort(held.begin(), held.end(), [](const Held& a, const Held& b) {
    if (a.tokens != b.tokens) return a.tokens > b.tokens;
    const SessionTraits &x = a.form->traits, &y = b.form->traits;
    return std::tie(x.codec, x.quality, a.form->number) <
           std::tie(y.codec, y.quality, b.form->number);
  });
  return held;
}

uint64_t StoreState::HostBytes(const PageNode* node) const {
  if (node == nullptr) return 0;
  if (tree.absent_chunks() == 0) return node->stored_bytes;
  uint64_t bytes = 0;
  for (; node != nullptr; node = node->parent) {
    if (node->chunk != nullptr) bytes += node->own_stored_bytes();
  }
  return bytes;
}

absl::StatusOr<Lease> StoreState::AddLease(std::vector<PageNode*> nodes, uint64_t tokens,
                                           absl::Duration duration) {
  if (leases.size() >= options.max_leases) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there are ", leases.size(), " leases, the limit is ", options.max_leases));
  }
  Lease lease;
  lease.id = absl::StrFormat("%08x%08x%08x%08x", secure_random(), secure_random(),
                             secure_random(), secure_random());
  lease.tokens = tokens;
  lease.expires = options.now() + std::clamp(duration, absl::ZeroDuration(), options.max_lease);
  for (PageNode* node : nodes) tree.Hold(node);
  lease_expiry.insert({lease.expires, lease.id});
  leases[lease.id] = {std::move(nodes), tokens, lease.expires};
  return lease;
}

void StoreState::DropLease(const std::string& id, Graveyard* dead) {
  const auto it = leases.find(id);
  lease_expiry.erase({it->second.expires, id});
  for (PageNode* node : it->second.nodes) tree.Unhold(node, dead);
  leases.erase(it);
}

namespace {

// The least valuable of some of `leaves` that `may_go`; null: none of them. All are looked at
// when few are, or when a sample holds none.
template <typename MayGo>
PageNode* PickVictim(const PageTree& tree, const std::vector<PageNode*>& leaves,
                     std::minstd_rand* random, MayGo may_go) {
  PageNode* victim = nullptr;
  double least = 0;
  const auto look = [&](PageNode* node) {
    if (!may_go(node)) return;
    const double score =
        EvictionScore(node->tokens, node->own_stored_bytes(), node->uses,
                      tree.clock() - node->used_at);
    if (victim != nullptr && (score > least || (score == least && node->id > victim->id))) return;
    victim = node;
    least = score;
  };
  if (leaves.size() > 2 * kCandidates) {
    for (int i = 0; i < kCandidates; ++i) look(leaves[(*random)() % leaves.size()]);
  }
  if (victim == nullptr) {
    for (PageNode* node : leaves) look(node);
  }
  return victim;
}

}  // namespace

uint64_t StoreState::Demote(Graveyard* dead) {
  PageNode* victim = PickVictim(tree, tree.host_leaves(), &random, [](PageNode* n) {
    return n->on_disk && n->holds == 0 && n->chunk.use_count() == 1;
  });
  if (victim == nullptr) return 0;
  const uint64_t bytes = victim->chunk->bytes.size();
  if (victim->parent != nullptr) {
    // The parent is a leaf from here on and must not look older than what it led to.
    victim->parent->used_at = std::max(victim->parent->used_at, victim->used_at);
    victim->parent->uses = std::max(victim->parent->uses, victim->uses);
  }
  tree.SetChunk(victim, nullptr, dead);
  ++counters.demoted_chunks;
  return bytes;
}

namespace {

bool MayGo(const PageNode* n) {
  return n->holds == 0 && (n->chunk == nullptr || n->chunk.use_count() == 1);
}

// No shard of a session that ends here goes on. (Taking the end of a short shard away cuts the
// others to it: with a first page, attention sinks and all, the session would go.)
bool EndsItsSessions(const PageNode* n) {
  for (const ShardChain* c = n->heads; c != nullptr; c = c->next) {
    for (const auto& [index, chain] : c->session->shards) {
      if (chain.head != nullptr && chain.head->page > n->page) return false;
    }
  }
  return true;
}

}  // namespace

uint64_t StoreState::EvictOne(Graveyard* dead) {
  PageNode* victim = PickVictim(tree, tree.leaves(), &random, [](PageNode* n) {
    return MayGo(n) && EndsItsSessions(n);
  });
  // What goes on is held, so that is all that may go.
  if (victim == nullptr) victim = PickVictim(tree, tree.leaves(), &random, MayGo);
  if (victim == nullptr) return 0;
  const uint64_t bytes = victim->own_stored_bytes();
  if (PageNode* p = victim->parent) {
    p->used_at = std::max(p->used_at, victim->used_at);
    p->uses = std::max(p->uses, victim->uses);
  }
  const uint64_t keep = victim->page * page_tokens;
  ++counters.evicted_chunks;
  counters.evicted_bytes += bytes;
  while (victim->heads != nullptr) {
    ShardChain* chain = victim->heads;
    Session* session = chain->session;
    const bool last = chain->next == nullptr && victim->refs == 1;
    session->evicted_tokens += session->visible_tokens() - std::min(session->visible_tokens(), keep);
    Cut(session, keep, dead);
    if (keep == 0) {
      Remove(session, dead);
    } else {
      MarkDirty(session);
    }
    if (last) break;  // the node is gone
  }
  return bytes;
}

absl::StatusOr<std::vector<ChunkRef>> Fetch(StoreState* state, const SessionKey& name,
                                            const std::vector<PageNode*>& nodes) {
  std::vector<ChunkRef> chunks(nodes.size());
  std::vector<size_t> absent;
  {
    std::lock_guard<std::mutex> lock(state->mutex);
    for (size_t i = 0; i < nodes.size(); ++i) {
      if (nodes[i]->lost) return Lost(*state, name, *nodes[i]);
      chunks[i] = nodes[i]->chunk;
      if (chunks[i] == nullptr) absent.push_back(i);
    }
  }
  for (size_t i : absent) {
    PageNode* node = nodes[i];  // held, and what is read of it never changes
    auto bytes = state->options.tier->ReadChunk(node->id);
    if (bytes.ok() && bytes->size() != node->own_stored_bytes()) {
      bytes = absl::DataLossError("a chunk of another size");
    }
    if (absl::IsDataLoss(bytes.status())) {
      Graveyard dead;
      std::lock_guard<std::mutex> lock(state->mutex);
      state->MarkLost(node, &dead);
      return Lost(*state, name, *node);
    }
    if (!bytes.ok()) return bytes.status();
    auto chunk = std::make_shared<StoredChunk>();
    chunk->token_begin = node->page * state->page_tokens;
    chunk->tokens = node->tokens;
    chunk->bytes = *std::move(bytes);
    if (state->options.budget != nullptr) {
      auto reservation = state->options.budget->Reserve(chunk->bytes.size(), "a chunk from disk");
      for (int tries = 0; !reservation.ok() && tries < 64; ++tries) {
        Graveyard dead;
        {
          std::lock_guard<std::mutex> lock(state->mutex);
          if (state->Demote(&dead) == 0) break;
        }
        dead.clear();
        reservation = state->options.budget->Reserve(chunk->bytes.size(), "a chunk from disk");
      }
      if (!reservation.ok()) return reservation.status();
      chunk->reservation = *std::move(reservation);
    }
    Graveyard dead;
    std::lock_guard<std::mutex> lock(state->mutex);
    ++state->counters.promoted_chunks;
    if (node->chunk == nullptr) state->tree.SetChunk(node, std::move(chunk), &dead);
    chunks[i] = node->chunk;  // or another reader's
    dead.push_back(std::move(chunk));
  }
  return chunks;
}

}  // namespace kvcask
