// Elements that a tile keeps as they were received (raw tiles, sinks): [member][token][dim], in
// the dtype of the cache. FORMAT.md 3.
//
// Thread-safe: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include <absl/types/span.h>

#include "codec/api/codec.h"
#include "codec/fklt/group_coder.h"

namespace kvcask::fklt {

// A run of consecutive tokens of a tile, and the number of its first among its kind (coded or
// kept as received).
struct TokenRun {
  int begin = 0, end = 0;
  int index = 0;
};

// The runs of tokens that are sinks, or that are not.
std::vector<TokenRun> ListRuns(absl::Span<const uint32_t> positions, uint32_t sinks,
                               bool want_sinks);
int CountTokens(absl::Span<const TokenRun> runs);

// Copies the runs' elements of the source to `out`; returns the bytes.
size_t KeepReceived(const GroupCoder& group, const ConstKvView& source,
                    absl::Span<const TokenRun> runs, uint8_t* out);

// Writes those of the runs' elements that the job wants into its destination. `bytes` are those
// of KeepReceived for the same runs.
void RestoreReceived(const GroupCoder& group, absl::Span<const uint8_t> bytes,
                     absl::Span<const TokenRun> runs, const DecodeJob& job, float* scratch);

// The part of `run` that the job wants, or an empty run.
TokenRun Clip(const TokenRun& run, const DecodeJob& job);
// The plane of a member in the job's destination, -1 where it is not wanted.
int WantedPlane(const GroupCoder& group, const MemberPlace& member, const DecodeJob& job);

}  // namespace kvcask::fklt
