// Host memory to a CUDA engine and back: page-locked buffers, one copy each way, on the engine's
// own stream. Two coders have two streams: one's copies run beside the other's kernels.
#pragma once

#include <memory>

#include "codec/cuda/device_coder.h"
#include "codec/cuda/engine.h"

namespace kvcask {

// `cpu` is the same codec on the CPU: its geometry, groups and sizes are used. It must outlive the
// coder.
std::unique_ptr<DeviceCoder> MakeStagedCoder(std::unique_ptr<CudaEngine> engine, const Codec& cpu);

}  // namespace kvcask
