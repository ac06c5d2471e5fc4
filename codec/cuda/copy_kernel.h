// Small copies between page-locked host memory and the device, for batches whose time is that of
// launches: a kernel of one block takes less time than the copy engine, and what follows may begin
// early (device/launch.h).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace kvcask {

// Enqueues the copy; pieces over 16 KiB go to the copy engine. Both addresses aligned to 16; either
// may be of page-locked host memory.
cudaError_t CopyPiece(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                      cudaStream_t stream);

}  // namespace kvcask
