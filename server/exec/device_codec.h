// A codec that runs on a device, and on the CPU where the device leaves a job or is lost.
//
// Several batches are in flight, each with a coder (stream and buffers) of its own; a call waits
// for one. A bad job fails alone. A call never fails for the device's sake: the CPU does it again.
#pragma once

#include <absl/status/statusor.h>

#include <memory>

#include "server/exec/device_backend.h"

namespace kvcask {

inline constexpr int kBatchesInFlight = 2;

// The codec of `entry` and `spec`: on the device where it has kernels for it, else the CPU's own.
// Both must outlive the codec. A device that fails here costs only its part: the CPU's codec is
// the answer, and the state says what happened. `device` null: the CPU's.
absl::StatusOr<std::unique_ptr<Codec>> MakeCodecOn(DeviceBackend* device, DeviceState* state,
                                                   const CodecEntry& entry, const CodecSpec& spec);

}  // namespace kvcask
