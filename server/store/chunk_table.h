// Chunks by key, each once in a namespace, counted by the chains that hold them.
//
// Not thread-safe: the store's mutex guards it.
#pragma once

#include <absl/container/flat_hash_map.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "server/store/session_store.h"

namespace kvcask {

struct Session;

// A chunk and what the store keeps beside it. Readers see StoredChunk only.
struct Chunk : StoredChunk {
  std::optional<Digest> prefix_id;
  std::optional<Digest> key;
  // Guarded by the store's mutex.
  uint32_t holders = 0;       // chains that hold it
  uintptr_t holders_xor = 0;  // of their sessions' addresses: with one holder, its own
  bool listed = false;        // in the table, under key
};
using ChunkPtr = std::shared_ptr<Chunk>;

// Things to be destroyed when the store's mutex has been let go.
using Graveyard = std::vector<std::shared_ptr<const void>>;

class ChunkTable {
 public:
  // The chunk that stands for `fresh` in namespace `ns`: one of the same key, tokens and
  // raw_bytes, or `fresh` itself. `session` holds it once more.
  ChunkPtr Hold(uint64_t ns, ChunkPtr fresh, Session* session);
  // `session` lets one hold of it go. The bytes that nobody holds any more: all or none.
  uint64_t Release(uint64_t ns, ChunkPtr chunk, Session* session, Graveyard* dead);

  uint64_t chunks() const { return chunks_; }
  uint64_t bytes() const { return bytes_; }

 private:
  using Key = std::tuple<uint64_t, Digest>;
  absl::flat_hash_map<Key, ChunkPtr> by_key_;
  uint64_t chunks_ = 0;  // held by at least one
  uint64_t bytes_ = 0;
};

}  // namespace kvcask
