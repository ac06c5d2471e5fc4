// A GpuTier's memory on the current CUDA device.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>

#include "server/store/gpu_tier.h"

namespace kvcask {

// `from` of Write and `to` of Read may be host memory or the device's. RESOURCE_EXHAUSTED: the
// device has not that much. UNAVAILABLE: no device.
absl::StatusOr<std::unique_ptr<TierMemory>> MakeCudaTierMemory(uint64_t bytes);

}  // namespace kvcask
