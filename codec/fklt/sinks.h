// Sinks in 10 bits an element (FORMAT.md 3.7): each sub-vector of each sink, un-rotated and
// centred, in steps of its own.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/status.h>
#include <absl/types/span.h>

#include <cstddef>
#include <cstdint>

#include "codec/fklt/fklt_profile.h"

namespace kvcask::fklt {

// Bytes of `sinks` tokens of a group.
size_t SinkBytes(const GroupModel& group, int sinks);

// Quantises x - mu, `centred` [sinks][D], finite and within fp16's range, to SinkBytes at `out`.
// Returns sum of 1/2 |L^T error|^2 over the sinks: what it costs in nats, at sensitivity 1.
double QuantiseSinks(const GroupModel& group, int sinks, const float* centred, uint8_t* out);

// The inverse: x [sinks][D], keys un-rotated. `bytes` are SinkBytes. DATA_LOSS: unused bits are
// set.
absl::Status DequantiseSinks(const GroupModel& group, int sinks, absl::Span<const uint8_t> bytes,
                             float* x);

}  // namespace kvcask::fklt
