// From prefix_ids to sessions: which sessions of a namespace hold, visible and whole, the
// page that a prefix_id names, by form (codec and quality).
//
// Not thread-safe: the store's mutex guards it.
#pragma once

#include <absl/container/flat_hash_map.h>
#include <absl/types/span.h>

#include <cstdint>
#include <list>
#include <tuple>

#include "server/store/session_store.h"

namespace kvcask {

struct Session;

class PrefixIndex {
 public:
  // One session's hold of one page; lies in the session. Links of one key form a list.
  struct Link {
    Session* session = nullptr;
    uint32_t page = 0;
    uint64_t stored_bytes = 0;  // of this page and all before, all shards
    Link* next = nullptr;
    Link* previous = nullptr;
  };
  struct Page {
    uint64_t ns;
    uint32_t form;
    Digest prefix_id;
  };

  void Add(const Page& page, Link* link);
  void Remove(const Page& page, Link* link);
  // The link of the last of `prefix_ids` that some session holds in `form`; null: it holds
  // not even the first. By bisection, since who holds a page holds all before it.
  const Link* FindLongest(uint64_t ns, uint32_t form, absl::Span<const Digest> prefix_ids) const;

 private:
  using Key = std::tuple<uint64_t, uint32_t, Digest>;
  absl::flat_hash_map<Key, Link*> first_;
};

}  // namespace kvcask
