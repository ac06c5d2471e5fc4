// How kernels are launched, and their dynamic shared memory named: the same source is compiled by
// nvcc and, for tests without a GPU, by the host's compiler against device/emulation.
//
//   KVCASK_LAUNCH(Kernel, grid, block, shared_bytes, stream, arguments...);
//   KVCASK_DYNAMIC_SHARED(bytes);   // in a kernel: uint8_t* bytes, aligned to 16
//
// Of small batches, launches and what a kernel does before it looks at the last one's results take
// as long as the rest. KVCASK_LAUNCH_EARLY, with the same arguments, lets a kernel begin when all
// blocks of the kernel before it on the stream have called LetNextBegin() or ended; until it has
// called AwaitLast(), it must use nothing that an earlier kernel writes, nor write what one uses.
// Every thread that goes on calls that, also where it needs nothing: the kernel after it relies on
// the end of all before (CUDA's programming guide: programmatic dependent launch).
#pragma once

#include <cuda_runtime.h>

#ifdef KVCASK_CUDA_EMULATION

#define KVCASK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)              \
  ::kvcask::emulation::Launch((grid), (block), (shared_bytes), (stream), [=]() {   \
    kernel(__VA_ARGS__);                                                           \
  })
#define KVCASK_LAUNCH_EARLY KVCASK_LAUNCH
#define KVCASK_DYNAMIC_SHARED(name) uint8_t* const name = ::kvcask::emulation::DynamicShared()

namespace kvcask {
inline void LetNextBegin() {}
inline void AwaitLast() {}
}  // namespace kvcask

#else

#define KVCASK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define KVCASK_LAUNCH_EARLY(kernel, grid, block, shared_bytes, stream, ...) \
  ::kvcask::LaunchEarly(kernel, (grid), (block), (shared_bytes), (stream), __VA_ARGS__)
#define KVCASK_DYNAMIC_SHARED(name) extern __shared__ __align__(16) uint8_t name[]

#ifdef __CUDACC__
namespace kvcask {

template <typename... Parameters, typename... Arguments>
void LaunchEarly(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                 cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);  // cudaGetLastError has the error
}

__device__ __forceinline__ void LetNextBegin() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
__device__ __forceinline__ void AwaitLast() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

}  // namespace kvcask
#endif

#endif
