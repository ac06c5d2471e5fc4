#include "codec/cuda/copy_kernel.h"

#include <cstdint>

#include "device/launch.h"

namespace kvcask {
namespace {

constexpr size_t kMost = 16 << 10;
constexpr int kThreads = 512;

__global__ void CopyKernel(uint8_t* to, const uint8_t* from, int bytes) {
  LetNextBegin();
  AwaitLast();
  const int whole = bytes / 16;
  for (int i = threadIdx.x; i < whole; i += kThreads) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  }
  for (int i = 16 * whole + threadIdx.x; i < bytes; i += kThreads) to[i] = from[i];
}

}  // namespace

cudaError_t CopyPiece(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                      cudaStream_t stream) {
  if (bytes > kMost) return cudaMemcpyAsync(to, from, bytes, kind, stream);
  KVCASK_LAUNCH_EARLY(CopyKernel, 1, kThreads, 0, stream, static_cast<uint8_t*>(to),
                      static_cast<const uint8_t*>(from), static_cast<int>(bytes));
  return cudaGetLastError();
}

}  // namespace kvcask
