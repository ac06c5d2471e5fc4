// How kernels are launched, and their dynamic shared memory named: the same source is compiled by
// nvcc and, for tests without a GPU, by the host's compiler against device/emulation.
//
//   KVCASK_LAUNCH(Kernel, grid, block, shared_bytes, stream, arguments...);
//   KVCASK_DYNAMIC_SHARED(bytes);   // in a kernel: uint8_t* bytes, aligned to 16
#pragma once

#include <cuda_runtime.h>

#ifdef KVCASK_CUDA_EMULATION

#define KVCASK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)              \
  ::kvcask::emulation::Launch((grid), (block), (shared_bytes), (stream), [=]() {   \
    kernel(__VA_ARGS__);                                                           \
  })
#define KVCASK_DYNAMIC_SHARED(name) uint8_t* const name = ::kvcask::emulation::DynamicShared()

#else

#define KVCASK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define KVCASK_DYNAMIC_SHARED(name) extern __shared__ __align__(16) uint8_t name[]

#endif
