#include "server/store/page_tree.h"

#include <algorithm>
#include <cstring>


namespace kvcask {
namespace {

bool SameTraits(const SessionTraits& a, const SessionTraits& b) {
  return a.model_id == b.model_id && a.extra_key == b.extra_key && a.codec == b.codec &&
         a.quality == b.quality && a.dtype == b.dtype && a.geometry == b.geometry &&
         a.profile == b.profile && a.first_position == b.first_position &&
         a.shard_count == b.shard_count;
}

}  // namespace

// Prefix ids are keyed hashes: any eight of their bytes are as good as random.
size_t PageTree::NameHash::operator()(const Name& n) const {
  uint64_t h;
  std::memcpy(&h, n.prefix_id->data(), sizeof h);
  return h ^ (reinterpret_cast<uintptr_t>(n.form) * 0x9E3779B97F4A7C15u);
}

PageTree::~PageTree() {
  for (auto& [ns, forms] : forms_) {
    for (Form* f : forms) delete f;
  }
}

Form* PageTree::UseForm(uint64_t ns, const SessionTraits& traits) {
  std::vector<Form*>& forms = forms_[ns];
  for (Form* f : forms) {
    if (!SameTraits(f->traits, traits)) continue;
    ++f->users;
    return f;
  }
  auto* form = new Form;
  form->ns = ns;
  form->number = NextNumber();
  form->traits = traits;
  form->users = 1;
  forms.push_back(form);
  return form;
}

void PageTree::ReleaseForm(Form* form) {
  if (--form->users > 0) return;
  const auto it = forms_.find(form->ns);
  it->second.erase(std::find(it->second.begin(), it->second.end(), form));
  if (it->second.empty()) forms_.erase(it);
  delete form;
}

const ShardForm* PageTree::InternShard(Form* form, uint32_t shard, const std::string& label) {
  for (const auto& s : form->shards) {
    if (s->shard == shard && s->label == label) return s.get();
  }
  form->shards.push_back(std::make_unique<ShardForm>(ShardForm{form, shard, label}));
  return form->shards.back().get();
}

const ShardForm* PageTree::FindShard(uint64_t ns, const SessionTraits& traits, uint32_t shard,
                                     const std::string& label) const {
  for (const Form* f : FormsOf(ns)) {
    if (!SameTraits(f->traits, traits)) continue;
    for (const auto& s : f->shards) {
      if (s->shard == shard && s->label == label) return s.get();
    }
  }
  return nullptr;
}

void PageTree::AddPartition(Form* form, std::vector<const ShardForm*> shards) {
  auto& all = form->partitions;
  if (std::find(all.begin(), all.end(), shards) == all.end()) all.push_back(std::move(shards));
}

const std::vector<Form*>& PageTree::FormsOf(uint64_t ns) const {
  static const auto& none = *new std::vector<Form*>;
  const auto it = forms_.find(ns);
  return it == forms_.end() ? none : it->second;
}

PageNode* PageTree::Find(const ShardForm* form, const Digest& prefix_id) const {
  const auto it = listed_.find(Name{form, &prefix_id});
  return it == listed_.end() ? nullptr : *it;
}

PageNode* PageTree::FindWhole(const ShardForm* form, const Digest& prefix_id) const {
  PageNode* node = Find(form, prefix_id);
  if (lost_chunks_ == 0) return node;
  for (; node != nullptr; node = node->twin) {
    const PageNode* n = node;
    while (n != nullptr && !n->lost) n = n->parent;
    if (n == nullptr) return node;
  }
  return nullptr;
}

PageNode* PageTree::FindTwin(const ShardForm* form, const PageNode* parent,
                             const NewChunk& chunk) const {
  if (!chunk.prefix_id) return nullptr;
  for (PageNode* n = Find(form, *chunk.prefix_id); n != nullptr; n = n->twin) {
    // Sliding layers may have left out other tokens: then it is not the same page.
    if (n->parent == parent && n->tokens == chunk.tokens && !n->lost &&
        n->own_raw_bytes() == chunk.raw_bytes) {
      return n;
    }
  }
  return nullptr;
}

void PageTree::Link(PageNode* node, PageNode* parent) {
  node->parent = parent;
  if (parent != nullptr) {
    Ref(parent);
    ++parent->children;
    UpdateSlots(parent);
    node->page = parent->page + 1;
    // Jumps of the skew-binary numbers: any ancestor is O(log pages) steps away.
    const PageNode* far = parent->jump;
    const bool merge = far != nullptr && far->jump != nullptr &&
                       parent->page - far->page == far->page - far->jump->page;
    node->jump = merge ? far->jump : parent;
  }
  ++node->form->form->users;
  ++node->form->form->chunks;
  ++chunks_;
}

PageNode* PageTree::Add(const ShardForm* form, PageNode* parent, const NewChunk& from,
                        ChunkRef chunk) {
  auto* node = new PageNode;
  node->form = form;
  node->id = NextNumber();
  node->tokens = static_cast<uint16_t>(from.tokens);
  Link(node, parent);
  const uint64_t size = chunk->bytes.size();
  node->raw_bytes = from.raw_bytes + (parent ? parent->raw_bytes : 0);
  node->stored_bytes = size + (parent ? parent->stored_bytes : 0);
  node->kld_tokens = std::max(0.0, from.predicted_kld) * from.tokens +
                     (parent ? parent->kld_tokens : 0);
  bytes_ += size;
  ns_bytes_[form->form->ns] += size;
  if (from.prefix_id) {
    node->named = true;
    node->prefix_id = *from.prefix_id;
    List(node);
  }
  Graveyard none;
  SetChunk(node, std::move(chunk), &none);
  Touch(node);
  return node;
}

PageNode* PageTree::Restore(const ShardForm* form, PageNode* parent, const PageNode& like) {
  auto* node = new PageNode(like);
  node->form = form;
  Link(node, parent);
  const uint64_t size = node->own_stored_bytes();
  bytes_ += size;
  disk_bytes_ += size;
  ++disk_chunks_;
  node->on_disk = true;
  ns_bytes_[form->form->ns] += size;
  if (node->lost) ++lost_chunks_;
  if (node->named) List(node);
  Touch(node);
  UpdateSlots(node);
  return node;
}

void PageTree::List(PageNode* node) {
  if (node->parent != nullptr && !node->parent->listed) return;
  node->listed = true;
  const auto [it, is_new] = listed_.insert(node);
  if (is_new) return;
  node->twin = (*it)->twin;
  (*it)->twin = node;
}

void PageTree::Unlist(PageNode* node) {
  node->listed = false;
  const auto it = listed_.find(NameOf(node));
  PageNode* first = *it;
  if (first != node) {
    while (first->twin != node) first = first->twin;
    first->twin = node->twin;
    return;
  }
  PageNode* next = node->twin;
  listed_.erase(it);
  if (next != nullptr) listed_.insert(next);
}

uint64_t PageTree::Unref(PageNode* node, Graveyard* dead) {
  uint64_t freed = 0;
  --node->refs;
  while (node != nullptr && node->refs == 0 && node->holds == 0) {
    PageNode* parent = node->parent;
    freed += node->own_stored_bytes();
    Free(node, dead);
    if (parent != nullptr) {
      --parent->refs;
      --parent->children;
    }
    node = parent;
  }
  if (node != nullptr) UpdateSlots(node);
  return freed;
}

uint64_t PageTree::Unhold(PageNode* node, Graveyard* dead) {
  --node->holds;
  if (node->refs > 0 || node->holds > 0) return 0;
  ++node->refs;
  return Unref(node, dead);
}

void PageTree::Free(PageNode* node, Graveyard* dead) {
  const uint64_t size = node->own_stored_bytes();
  if (node->listed) Unlist(node);
  if (node->chunk != nullptr) SetChunk(node, nullptr, dead);
  SetSlot(node, &PageNode::leaf_slot, &leaves_, false);
  SetSlot(node, &PageNode::host_slot, &host_leaves_, false);
  if (node->on_disk) {
    gone_.push_back(node->id);
    disk_bytes_ -= size;
    --disk_chunks_;
  }
  if (node->lost) --lost_chunks_;
  bytes_ -= size;
  --chunks_;
  const auto ns = ns_bytes_.find(node->form->form->ns);
  if ((ns->second -= size) == 0) ns_bytes_.erase(ns);
  Form* form = node->form->form;
  --form->chunks;
  delete node;
  ReleaseForm(form);
}

void PageTree::SetChunk(PageNode* node, ChunkRef chunk, Graveyard* dead) {
  const bool was = node->chunk != nullptr, is = chunk != nullptr;
  if (was) {
    host_bytes_ -= node->chunk->bytes.size();
    --host_chunks_;
    dead->push_back(std::move(node->chunk));
  }
  if (is) {
    host_bytes_ += chunk->bytes.size();
    ++host_chunks_;
  }
  node->chunk = std::move(chunk);
  if (was != is && node->parent != nullptr) {
    node->parent->resident_children += is ? 1 : -1;
    UpdateSlots(node->parent);
  }
  UpdateSlots(node);
}

void PageTree::MarkOnDisk(PageNode* node) {
  if (node->on_disk) return;
  node->on_disk = true;
  disk_bytes_ += node->own_stored_bytes();
  ++disk_chunks_;
}

void PageTree::MarkLost(PageNode* node, Graveyard* dead) {
  if (node->lost) return;
  node->lost = true;
  ++lost_chunks_;
  if (node->chunk != nullptr) SetChunk(node, nullptr, dead);
  if (!node->on_disk) return;  // it is written as lost
  Hold(node);
  newly_lost_.push_back(node);
}

void PageTree::SetSlot(PageNode* node, uint32_t PageNode::*slot, std::vector<PageNode*>* list,
                       bool in) {
  uint32_t& at = node->*slot;
  if (in == (at != 0)) return;
  if (in) {
    list->push_back(node);
    at = static_cast<uint32_t>(list->size());
    return;
  }
  PageNode* last = list->back();
  (*list)[at - 1] = last;
  last->*slot = at;
  list->pop_back();
  at = 0;
}

void PageTree::UpdateSlots(PageNode* node) {
  SetSlot(node, &PageNode::host_slot, &host_leaves_,
          node->chunk != nullptr && node->resident_children == 0);
  SetSlot(node, &PageNode::leaf_slot, &leaves_, node->children == 0);
}

PageNode* PageTree::Ancestor(PageNode* node, uint64_t page) {
  while (node != nullptr && node->page > page) {
    node = node->jump != nullptr && node->jump->page >= page ? node->jump : node->parent;
  }
  return node;
}

std::vector<PageNode*> PageTree::FindLongest(absl::Span<const ShardForm* const> partition,
                                             absl::Span<const Digest> prefix_ids) const {
  std::vector<PageNode*> best;
  size_t held = 0, beyond = prefix_ids.size() + 1;  // the answer lies in [held, beyond)
  while (beyond - held > 1) {
    const size_t pages = held + (beyond - held) / 2;
    std::vector<PageNode*> found;
    for (const ShardForm* form : partition) {
      PageNode* node = FindWhole(form, prefix_ids[pages - 1]);
      if (node == nullptr || node->page != pages - 1) break;
      found.push_back(node);
    }
    if (found.size() == partition.size()) {
      best = std::move(found);
      held = pages;
    } else {
      beyond = pages;
    }
  }
  return best;
}

PageNode* PageTree::FindId(uint64_t id) const {
  for (PageNode* leaf : leaves_) {
    for (PageNode* n = leaf; n != nullptr && n->id >= id; n = n->parent) {
      if (n->id == id) return n;
    }
  }
  return nullptr;
}

uint64_t PageTree::BytesAlone(const PageNode* node) {
  const PageNode* n = node;
  while (n != nullptr && n->refs == 1) n = n->parent;
  return (node ? node->stored_bytes : 0) - (n ? n->stored_bytes : 0);
}

void PageTree::Touch(PageNode* node) {
  ++clock_;
  ++node->uses;
  node->used_at = clock_;
}

uint64_t PageTree::ns_bytes(uint64_t ns) const {
  const auto it = ns_bytes_.find(ns);
  return it == ns_bytes_.end() ? 0 : it->second;
}

}  // namespace kvcask
