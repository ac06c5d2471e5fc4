// Pages as a tree: what sessions hold, each page once.
//
// A node is one chunk of one shard; its parent is the chunk of the page before. A session's
// chain is a pointer to its last node, so that a fork shares everything by pointing at the
// same one, and what a prefix costs is a difference of two sums. A node lives as long as a
// child, a chain or a hold needs it.
//
// Nodes whose page, and every page before it, has a prefix_id are listed by (form, prefix_id):
// commits of the same pages of the same form meet there, and lookups find them.
//
// Not thread-safe: the store's mutex guards it.
#pragma once

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <absl/types/span.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/store/session_store.h"

namespace kvcask {

struct ShardChain;
struct Form;

// A form's shard with its range (label). Nodes of one are interchangeable by prefix_id.
struct ShardForm {
  Form* form = nullptr;
  uint32_t shard = 0;
  std::string label;
};

// What pages of one kind have in common: the namespace and all traits.
struct Form {
  uint64_t ns = 0;
  uint64_t number = 0;  // never the same twice
  SessionTraits traits;
  uint64_t users = 0;  // sessions and nodes
  uint64_t chunks = 0;
  bool on_disk = false;  // the tier has its record
  std::vector<std::unique_ptr<ShardForm>> shards;
  // The sets of n shards that sessions were made of: what a prefix is looked for in.
  std::vector<std::vector<const ShardForm*>> partitions;
};

struct PageNode {
  PageNode* parent = nullptr;
  PageNode* jump = nullptr;  // an ancestor further up, for Ancestor
  PageNode* twin = nullptr;  // another listed node of the same name
  ShardChain* heads = nullptr;  // chains that end here
  const ShardForm* form = nullptr;
  ChunkRef chunk;  // null: not in host memory
  uint64_t id = 0;  // never the same twice; its name on disk
  // Of this node and all before it.
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  double kld_tokens = 0;  // sum of predicted_kld x tokens
  Digest prefix_id{};     // if named
  uint32_t page = 0;
  uint32_t refs = 0;           // children and chains
  uint32_t children = 0;
  uint32_t holds = 0;          // leases, pins, writes under way: it is not evicted
  uint32_t resident_children = 0;
  uint32_t host_slot = 0;      // 1 + its place among the host's leaves; 0: none
  uint32_t leaf_slot = 0;      // 1 + its place among the tree's leaves; 0: none
  uint32_t used_at = 0;        // the tree's clock at the last use
  float uses = 0;
  uint16_t tokens = 0;
  bool named = false;   // has a prefix_id
  bool listed = false;  // ... and so have all before it
  bool on_disk = false;
  bool lost = false;  // its bytes are gone for good

  uint64_t own_raw_bytes() const { return raw_bytes - (parent ? parent->raw_bytes : 0); }
  uint64_t own_stored_bytes() const { return stored_bytes - (parent ? parent->stored_bytes : 0); }
  double own_kld_tokens() const { return kld_tokens - (parent ? parent->kld_tokens : 0); }
};

// Things to be destroyed when the store's mutex has been let go.
using Graveyard = std::vector<std::shared_ptr<const void>>;

class PageTree {
 public:
  PageTree() = default;
  ~PageTree();
  PageTree(const PageTree&) = delete;

  // --- forms. Used ones live.
  Form* UseForm(uint64_t ns, const SessionTraits& traits);
  void ReleaseForm(Form* form);
  const ShardForm* InternShard(Form* form, uint32_t shard, const std::string& label);
  // As InternShard of a form of `traits`, if there is one; else null.
  const ShardForm* FindShard(uint64_t ns, const SessionTraits& traits, uint32_t shard,
                             const std::string& label) const;
  void AddPartition(Form* form, std::vector<const ShardForm*> shards);
  const std::vector<Form*>& FormsOf(uint64_t ns) const;

  // --- nodes
  // A listed child of `parent` that `chunk` may be replaced by; null: none.
  PageNode* FindTwin(const ShardForm* form, const PageNode* parent, const NewChunk& chunk) const;
  // A new node under `parent` (null: the first page), held by nobody yet.
  PageNode* Add(const ShardForm* form, PageNode* parent, const NewChunk& chunk, ChunkRef bytes);
  // As Add, for what a restart found on disk.
  PageNode* Restore(const ShardForm* form, PageNode* parent, const PageNode& like);
  void Ref(PageNode* node) { ++node->refs; }
  // The node, and what it alone kept alive, go when nothing needs them. Bytes freed, each
  // chunk's once. Ids of those that were on disk are appended to gone().
  uint64_t Unref(PageNode* node, Graveyard* dead);
  void Hold(PageNode* node) { ++node->holds; }
  uint64_t Unhold(PageNode* node, Graveyard* dead);
  // `chunk` is in host memory from now on, or not any more (null).
  void SetChunk(PageNode* node, ChunkRef chunk, Graveyard* dead);
  void MarkOnDisk(PageNode* node);
  // A node that is on disk is held until TakeLost's caller lets it go: its record must say so.
  void MarkLost(PageNode* node, Graveyard* dead);

  // The node of `page` at or above `node`. O(log pages).
  static PageNode* Ancestor(PageNode* node, uint64_t page);
  // The last node of the longest run of leading pages, none of them lost, held by all shards of
  // `partition`, for each of them; empty: not even the first. By bisection, since who holds a
  // page whole holds all before it.
  std::vector<PageNode*> FindLongest(absl::Span<const ShardForm* const> partition,
                                     absl::Span<const Digest> prefix_ids) const;
  // By its id; looks at every node.
  PageNode* FindId(uint64_t id) const;
  // Bytes that go when one reference to `node` does.
  static uint64_t BytesAlone(const PageNode* node);

  // --- use
  void Touch(PageNode* node);
  uint32_t clock() const { return clock_; }

  // Leaves of what is in host memory, and of the tree itself: what eviction chooses from.
  const std::vector<PageNode*>& host_leaves() const { return host_leaves_; }
  const std::vector<PageNode*>& leaves() const { return leaves_; }

  uint64_t chunks() const { return chunks_; }
  uint64_t bytes() const { return bytes_; }            // each chunk once, wherever it is
  uint64_t host_bytes() const { return host_bytes_; }  // in host memory
  uint64_t disk_bytes() const { return disk_bytes_; }
  uint64_t disk_chunks() const { return disk_chunks_; }
  uint64_t absent_chunks() const { return chunks_ - host_chunks_; }  // not in host memory
  uint64_t lost_chunks() const { return lost_chunks_; }
  uint64_t ns_bytes(uint64_t ns) const;
  // Ids of nodes that were on disk and are no more needed; taken by the caller.
  std::vector<uint64_t> TakeGone() { return std::exchange(gone_, {}); }
  void PutBackGone(const std::vector<uint64_t>& ids) {
    gone_.insert(gone_.end(), ids.begin(), ids.end());
  }
  bool has_gone() const { return !gone_.empty(); }
  // Nodes whose records on disk do not say yet that they are lost; each is held.
  std::vector<PageNode*> TakeLost() { return std::exchange(newly_lost_, {}); }
  void PutBackLost(const std::vector<PageNode*>& nodes) {
    newly_lost_.insert(newly_lost_.end(), nodes.begin(), nodes.end());
  }
  bool has_lost() const { return !newly_lost_.empty(); }

  // Numbers that are never used twice, across restarts too.
  uint64_t NextNumber() { return ++last_number_; }
  void SkipNumbers(uint64_t upto) { last_number_ = std::max(last_number_, upto); }

 private:
  struct Name {
    const ShardForm* form;
    const Digest* prefix_id;
  };
  static Name NameOf(const PageNode* n) { return {n->form, &n->prefix_id}; }
  struct NameHash {
    using is_transparent = void;
    size_t operator()(const PageNode* n) const { return (*this)(NameOf(n)); }
    size_t operator()(const Name& n) const;
  };
  struct NameEq {
    using is_transparent = void;
    static bool Same(const Name& a, const Name& b) {
      return a.form == b.form && *a.prefix_id == *b.prefix_id;
    }
    bool operator()(const PageNode* a, const PageNode* b) const {
      return Same(NameOf(a), NameOf(b));
    }
    bool operator()(const PageNode* a, const Name& b) const { return Same(NameOf(a), b); }
    bool operator()(const Name& a, const PageNode* b) const { return Same(a, NameOf(b)); }
  };
  PageNode* Find(const ShardForm* form, const Digest& prefix_id) const;
  // One of those of the name of which no page before it is lost, nor itself. While any is lost it
  // looks at all before it.
  PageNode* FindWhole(const ShardForm* form, const Digest& prefix_id) const;
  void Link(PageNode* node, PageNode* parent);
  void List(PageNode* node);
  void Unlist(PageNode* node);
  void Free(PageNode* node, Graveyard* dead);
  void SetSlot(PageNode* node, uint32_t PageNode::*slot, std::vector<PageNode*>* list, bool in);
  void UpdateSlots(PageNode* node);

  absl::flat_hash_set<PageNode*, NameHash, NameEq> listed_;
  absl::flat_hash_map<uint64_t, std::vector<Form*>> forms_;  // by namespace
  absl::flat_hash_map<uint64_t, uint64_t> ns_bytes_;
  std::vector<PageNode*> host_leaves_, leaves_;
  std::vector<uint64_t> gone_;
  std::vector<PageNode*> newly_lost_;
  uint64_t chunks_ = 0, bytes_ = 0, host_chunks_ = 0, host_bytes_ = 0, disk_bytes_ = 0;
  uint64_t disk_chunks_ = 0, lost_chunks_ = 0;
  uint64_t last_number_ = 0;
  uint32_t clock_ = 0;
};

}  // namespace kvcask
