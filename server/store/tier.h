// What keeps chunks and the records of sessions below host memory, across restarts.
//
// Two spaces: chunks, by number, written before anything refers to them; and records, small
// values by key, changed together or not at all. Whatever a record refers to was written
// before it: the manifest comes last.
//
// Used by server/store alone, which numbers chunks and never uses a number twice. DiskTier is
// the one that is kept on disk, FakeTier the tests'.
//
// Thread-safe.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "codec/base/unset_bytes.h"

namespace kvcask {

class Tier {
 public:
  struct Records {
    std::vector<std::pair<std::string, std::string>> puts;
    std::vector<std::string> deletes;
    std::vector<uint64_t> chunk_deletes;
  };

  virtual ~Tier() = default;

  // RESOURCE_EXHAUSTED: the disk is full; UNAVAILABLE: it fails. What was written may be there
  // or not, and may be written again.
  virtual absl::Status WriteChunk(uint64_t id, absl::Span<const uint8_t> bytes) = 0;
  // DATA_LOSS: it is not there or not what was written. UNAVAILABLE: try again.
  virtual absl::StatusOr<UnsetBytes> ReadChunk(uint64_t id) const = 0;
  // All or nothing. `sync`: it, and all writes before it, survive a power failure from here on.
  virtual absl::Status Apply(const Records& records, bool sync) = 0;
  virtual absl::Status Sync() = 0;
  // The records whose keys begin with `prefix`, in order, until `visit` fails.
  virtual absl::Status ForEach(
      absl::string_view prefix,
      const std::function<absl::Status(absl::string_view key, absl::string_view value)>& visit)
      const = 0;
};

}  // namespace kvcask
