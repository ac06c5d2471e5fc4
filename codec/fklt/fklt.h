// The flagship codec: the KLT in the Fisher metric, under one step size, entropy-coded.
// FORMAT.md beside this file is the specification; /codec/fklt/fklt_reference.h says the same
// in double precision.
//
// NaN and infinity are refused (INVALID_ARGUMENT names layer, stream, head, token, element).
// Quality kDefault is balanced. A tile whose certificate is over the profile's bound is coded
// finer, at last as received.
#pragma once

#include <absl/status/statusor.h>

#include <memory>

#include "codec/api/codec.h"
#include "codec/entropy/rans.h"

namespace kvcask {

// INVALID_ARGUMENT: no profile, or one that is not what FORMAT.md 2 asks for;
// FAILED_PRECONDITION: it is for another geometry, or a group of it crosses the shard's border.
absl::StatusOr<std::unique_ptr<Codec>> MakeFkltCodec(const CodecSpec& spec);

// What doesn't change what a tile means, for tests and benchmarks.
struct FkltOptions {
  RansPath path = RansPath::kBest;
  // Lanes of at most 512 >> this steps, 0..2: shorter chains of dependent steps for a GPU, more
  // bytes (FORMAT.md 3.1).
  int step_limit_shift = 0;
};
absl::StatusOr<std::unique_ptr<Codec>> MakeFkltCodecWith(const CodecSpec& spec,
                                                         const FkltOptions& options);

}  // namespace kvcask
