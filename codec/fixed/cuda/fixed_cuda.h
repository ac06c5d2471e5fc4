// int4, turbo2, turbo3 and turbo4 on a GPU: the CPU's bytes, bit for bit, and the CPU's elements.
//
// Left to the CPU: profiles (means), tiles whose streams are coded otherwise than these codecs
// do (each tile says how it is), raw form, elements that are not finite or beyond a half, keys
// asked for at another position, tiles that are none (its message says why).
#pragma once

#include <absl/status/statusor.h>

#include <memory>

#include "codec/cuda/engine.h"

namespace kvcask {

// True for the codecs that have kernels.
bool HasFixedEngine(CodecId id);

// Null where the codec has none, or the spec a profile. UNAVAILABLE: no device.
absl::StatusOr<std::unique_ptr<CudaEngine>> MakeFixedEngine(CodecId id, const CodecSpec& spec);

}  // namespace kvcask
