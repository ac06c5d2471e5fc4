#include "server/store/chunk_table.h"

#include <utility>

#include "server/store/session.h"

namespace kvcask {
namespace {

bool Interchangeable(const Chunk& a, const Chunk& b) {
  return a.token_begin == b.token_begin && a.tokens == b.tokens && a.raw_bytes == b.raw_bytes &&
         a.prefix_id == b.prefix_id;
}

uintptr_t Address(const Session* session) { return reinterpret_cast<uintptr_t>(session); }

}  // namespace

ChunkPtr ChunkTable::Hold(uint64_t ns, ChunkPtr fresh, Session* session) {
  ChunkPtr chunk = std::move(fresh);
  if (chunk->key) {
    const auto [it, is_new] = by_key_.try_emplace(Key(ns, *chunk->key), chunk);
    if (is_new) {
      chunk->listed = true;
    } else if (Interchangeable(*it->second, *chunk)) {
      chunk = it->second;
    }  // else: kept beside it, unlisted and unshared
  }
  const uint64_t bytes = chunk->bytes.size();
  if (chunk->holders == 0) {
    ++chunks_;
    bytes_ += bytes;
    session->unique_bytes += bytes;
  } else if (chunk->holders == 1) {
    reinterpret_cast<Session*>(chunk->holders_xor)->unique_bytes -= bytes;
  }
  ++chunk->holders;
  chunk->holders_xor ^= Address(session);
  return chunk;
}

uint64_t ChunkTable::Release(uint64_t ns, ChunkPtr chunk, Session* session, Graveyard* dead) {
  const uint64_t bytes = chunk->bytes.size();
  --chunk->holders;
  chunk->holders_xor ^= Address(session);
  uint64_t freed = 0;
  if (chunk->holders == 0) {
    session->unique_bytes -= bytes;
    --chunks_;
    bytes_ -= bytes;
    freed = bytes;
    if (chunk->listed) {
      by_key_.erase(Key(ns, *chunk->key));
      chunk->listed = false;
    }
  } else if (chunk->holders == 1) {
    reinterpret_cast<Session*>(chunk->holders_xor)->unique_bytes += bytes;
  }
  dead->push_back(std::move(chunk));
  return freed;
}

}  // namespace kvcask
