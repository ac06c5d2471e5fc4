// What a session will take in the store, without encoding anything: exact to the byte for
// codecs of constant size, because a chunk's size follows from its shape. projection_test.cc
// holds it against real chunks.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <string>

#include "codec/api/codec.h"

namespace kvcask {

struct ProjectionSpec {
  Geometry model;
  std::string codec;    // of constant size: raw, int8, a preset of codec/fixed, recipe
  std::string setting;  // a lattice's Q, a recipe
  Dtype dtype = Dtype::kBf16;
  int64_t tokens = 0;
  int64_t first_position = 0;
  bool token_ids = false;  // sent with the run: kept, 4 bytes a token
  bool profile = false;    // one is named: its fingerprint is kept, and its means are taken off
  bool sealed = true;      // else an incomplete last page is kept raw
  // Sliding and chunked layers get only what their window holds at the session's end, as
  // engines keep it; else all tokens, as a whole cache file has them.
  bool windows_only = false;
};

struct Projection {
  uint64_t raw_bytes = 0;     // 2 x elements that are put
  uint64_t stored_bytes = 0;  // chunks, whole: headers, directories, tiles, padding, checksums
  uint64_t tile_bytes = 0;    // of them, tiles
  uint64_t exact_bytes = 0;   // of them, rows kept as received: sinks, tails, raw streams
  double ratio() const {
    return stored_bytes == 0 ? 0 : static_cast<double>(raw_bytes) / stored_bytes;
  }
};

// INVALID_ARGUMENT: an unknown codec or setting, a recipe that does not fit the model.
// UNIMPLEMENTED: a codec whose size depends on the data.
absl::StatusOr<Projection> Project(const ProjectionSpec& spec);

}  // namespace kvcask
