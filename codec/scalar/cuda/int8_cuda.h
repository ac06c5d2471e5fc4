// `int8` on a GPU: the CPU's bytes, bit for bit, and the CPU's elements.
//
// Left to the CPU: profiles (means), tiles in raw form, elements that are not finite, keys asked
// for at another position, tiles that are none (its message says why).
#pragma once

#include <absl/status/statusor.h>

#include <memory>

#include "codec/cuda/engine.h"

namespace kvcask {

// Null where the spec has a profile. UNAVAILABLE: no device.
absl::StatusOr<std::unique_ptr<CudaEngine>> MakeInt8Engine(const CodecSpec& spec);

}  // namespace kvcask
