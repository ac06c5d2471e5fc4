// A tier in a folder on disk: RocksDB, with chunks in blob files.
//
// The engine's log is written before anything is acknowledged to the saver, so a killed
// process loses nothing; `sync` adds fsync against a failing machine. Every chunk has a
// CRC32C of its own over its number and bytes, besides the engine's, which is checked at each
// read. One process at a time (the engine's lock file). The folder is made, for its owner
// only.
//
// After a write that failed (a full disk, an error that passes or stays) the engine is not used
// for writes any more: the next one first tries the disk with a file of its own, and if that goes
// well opens the engine anew, from its log. Until then writes are refused and reads go on. A Sync
// that comes after a failed write is refused, since what it was asked for may be in the log's lost
// end.
//
// Thread-safe.
#pragma once

#include <absl/status/statusor.h>

#include <memory>
#include <string>

#include "server/store/tier.h"

namespace rocksdb {
class FileSystem;
}

namespace kvcask {

struct DiskTierOptions {
  std::string path;
  uint64_t cache_bytes = 32 << 20;  // of the engine's own: indexes, not chunks
  // Set when the end of the engine's log was damaged and what it held is lost.
  std::string* warning = nullptr;
  // Null: the machine's. Others are for tests of disks that fail or are slow.
  std::shared_ptr<rocksdb::FileSystem> files = nullptr;
};

// UNAVAILABLE: the folder cannot be used, or another process does (the text says); DATA_LOSS:
// what is there is damaged beyond opening.
absl::StatusOr<std::unique_ptr<Tier>> OpenDiskTier(const DiskTierOptions& options);

}  // namespace kvcask
