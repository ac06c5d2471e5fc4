// Between this project's values (codec/base) and the contract's messages.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/statusor.h>

#include "codec/base/dtype.h"
#include "codec/base/geometry.h"
#include "kvcask/v1/geometry.pb.h"

namespace kvcask {

v1::Geometry GeometryToProto(const Geometry& geometry);
// INVALID_ARGUMENT: a kind, style or scaling that this library does not know, or a geometry
// that Validate refuses. For what a daemon answers.
absl::StatusOr<Geometry> GeometryFromProto(const v1::Geometry& geometry);

v1::Dtype DtypeToProto(Dtype dtype);
absl::StatusOr<Dtype> DtypeFromProto(v1::Dtype dtype);

}  // namespace kvcask
