#include "server/store/reader.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <mutex>

#include "server/store/session.h"

namespace kvcask {
namespace {

absl::Status NoPrefix(const std::string& ns, absl::Span<const Digest> ids) {
  return absl::NotFoundError(absl::StrCat("no prefix of these ", ids.size(),
                                          " pages is held in namespace '", absl::CHexEscape(ns),
                                          "'"));
}

}  // namespace

absl::StatusOr<ReadPlan> Reader::OpenRead(const SessionKey& key, uint64_t begin, uint64_t end) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  const Session* session = state_->Find(key);
  if (session == nullptr) return NoSession(key);
  ReadPlan plan;
  plan.stat = session->Stat(state_->page_tokens);
  std::vector<std::pair<const ShardForm*, PageNode*>> shards;
  for (const auto& [index, chain] : session->shards) shards.emplace_back(chain.form, chain.head);
  return Open(std::move(plan), shards, session->visible_tokens(), begin, end, &lock);
}

std::vector<HeldPrefix> Reader::Lookup(const std::string& ns, absl::Span<const Digest> ids) const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  std::vector<HeldPrefix> out;
  for (const StoreState::Held& h : state_->FindHeld(ns, ids)) {
    const SessionTraits& t = h.form->traits;
    const bool had = std::any_of(out.begin(), out.end(), [&](const HeldPrefix& p) {
      return p.codec == t.codec && p.quality == t.quality;  // a longer one, of other traits
    });
    if (had) continue;
    HeldPrefix p;
    p.codec = t.codec;
    p.quality = t.quality;
    p.tokens = h.tokens;
    for (const PageNode* n : h.nodes) {
      p.stored_bytes += n->stored_bytes;
      p.raw_bytes += n->raw_bytes;
      p.host_bytes += state_->HostBytes(n);
    }
    out.push_back(std::move(p));
  }
  return out;
}

absl::StatusOr<ReadPlan> Reader::OpenPrefix(const std::string& ns, absl::Span<const Digest> ids,
                                            uint64_t begin, uint64_t end) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  const auto held = state_->FindHeld(ns, ids);
  if (held.empty()) return NoPrefix(ns, ids);
  const Form* form = held[0].form;
  ReadPlan plan;
  plan.stat.key = {ns, "(prefix)"};
  plan.stat.traits = form->traits;
  plan.stat.tokens = held[0].tokens;
  std::vector<std::pair<const ShardForm*, PageNode*>> shards;
  for (PageNode* n : held[0].nodes) {
    plan.stat.raw_bytes += n->raw_bytes;
    plan.stat.stored_bytes += n->stored_bytes;
    shards.emplace_back(n->form, n);
  }
  return Open(std::move(plan), shards, held[0].tokens, begin, end, &lock);
}

absl::StatusOr<Lease> Reader::LeaseSession(const SessionKey& key, absl::Duration duration) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  Session* session = state_->Find(key);
  if (session == nullptr) return NoSession(key);
  std::vector<PageNode*> nodes;
  for (const auto& [index, chain] : session->shards) {
    if (chain.head != nullptr) nodes.push_back(chain.head);
  }
  return state_->AddLease(std::move(nodes), session->visible_tokens(), duration);
}

absl::StatusOr<Lease> Reader::LeasePrefix(const std::string& ns, absl::Span<const Digest> ids,
                                          absl::Duration duration) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  auto held = state_->FindHeld(ns, ids);
  if (held.empty()) return NoPrefix(ns, ids);
  for (PageNode* n : held[0].nodes) state_->tree.Touch(n);
  return state_->AddLease(std::move(held[0].nodes), held[0].tokens, duration);
}

absl::StatusOr<Lease> Reader::RenewLease(const std::string& id, absl::Duration duration) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  const auto it = state_->leases.find(id);
  if (it == state_->leases.end()) {
    return absl::NotFoundError("no such lease: it was released, or it expired");
  }
  state_->lease_expiry.erase({it->second.expires, id});
  it->second.expires =
      state_->options.now() + std::clamp(duration, absl::ZeroDuration(), state_->options.max_lease);
  state_->lease_expiry.insert({it->second.expires, id});
  return Lease{id, it->second.expires, it->second.tokens};
}

bool Reader::ReleaseLease(const std::string& id) {
  Graveyard dead;
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->leases.find(id) == state_->leases.end()) return false;
  state_->DropLease(id, &dead);
  return true;
}

// A plan of [begin, end) of chains that hold `tokens`. `lock` is let go.
absl::StatusOr<ReadPlan> Reader::Open(
    ReadPlan plan, const std::vector<std::pair<const ShardForm*, PageNode*>>& shards,
    uint64_t tokens, uint64_t begin, uint64_t end, std::unique_lock<std::mutex>* lock) {
  const uint64_t last = end == 0 ? tokens : end;
  if (begin >= last || last > tokens) {
    return absl::OutOfRangeError(
        absl::StrCat("tokens ", begin, " to ", end == 0 ? "the end" : absl::StrCat(end),
                     begin >= last ? ": an empty range; " : ": ", "session '",
                     absl::CHexEscape(plan.stat.key.id), "' has ", tokens, " visible tokens"));
  }
  plan.token_begin = begin;
  plan.token_end = last;
  std::vector<std::vector<PageNode*>> nodes;
  bool all_here = true;
  for (const auto& [form, head] : shards) {
    ShardChain chain;
    chain.head = head;
    nodes.push_back(state_->Nodes(chain, begin, last));
    state_->tree.Touch(nodes.back().back());
    ReadPlan::Shard shard;
    shard.shard = form->shard;
    shard.label = form->label;
    for (const PageNode* n : nodes.back()) {
      all_here = all_here && n->chunk != nullptr;
      shard.chunks.push_back(n->chunk);
    }
    plan.shards.push_back(std::move(shard));
  }
  if (all_here) {
    lock->unlock();
    return plan;
  }
  // A hold of the last keeps those before it.
  for (const auto& list : nodes) state_->tree.Hold(list.back());
  lock->unlock();
  absl::Status status;
  for (size_t i = 0; i < nodes.size() && status.ok(); ++i) {
    auto chunks = Fetch(state_, plan.stat.key, nodes[i]);
    status = chunks.status();
    if (status.ok()) plan.shards[i].chunks = *std::move(chunks);
  }
  Graveyard dead;
  lock->lock();
  for (const auto& list : nodes) state_->tree.Unhold(list.back(), &dead);
  lock->unlock();
  if (!status.ok()) return status;
  return plan;
}

}  // namespace kvcask
