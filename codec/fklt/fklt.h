// The flagship codec: the KLT in the Fisher metric, under one step size, entropy-coded.
// FORMAT.md beside this file is the specification; /codec/fklt/fklt_reference.h says the same
// in double precision.
//
// NaN and infinity are refused (INVALID_ARGUMENT names layer, stream, head, token, element).
// Quality kDefault is balanced. A tile whose certificate is over the profile's bound is coded
// finer, at last as received.
#pragma once

#include <memory>

#include <absl/status/statusor.h>

#include "codec/api/codec.h"
#include "codec/entropy/rans.h"

namespace kvcask {

// INVALID_ARGUMENT: no profile, or one that is not what FORMAT.md 2 asks for;
// FAILED_PRECONDITION: it is for another geometry, or a group of it crosses the shard's border.
absl::StatusOr<std::unique_ptr<Codec>> MakeFkltCodec(const CodecSpec& spec);

// The same on a path of the caller's choice, for tests and benchmarks.
absl::StatusOr<std::unique_ptr<Codec>> MakeFkltCodecOnPath(const CodecSpec& spec, RansPath path);

}  // namespace kvcask
