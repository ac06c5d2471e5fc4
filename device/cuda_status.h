// CUDA's errors as Status.
#pragma once

#include <absl/status/status.h>
#include <absl/strings/str_cat.h>
#include <cuda_runtime.h>

namespace kvcask {

// RESOURCE_EXHAUSTED: out of device memory. UNAVAILABLE: no device, or no driver. INTERNAL:
// anything else; the context may be lost (a fault in a kernel poisons it for the process).
inline absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat("CUDA: ", what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    return absl::UnavailableError(message);
  }
  return absl::InternalError(message);
}

}  // namespace kvcask

#define KVCASK_CUDA(call)                                                                     \
  do {                                                                                        \
    if (absl::Status kvcask_status = ::kvcask::CudaStatus((call), #call); !kvcask_status.ok()) \
      return kvcask_status;                                                                   \
  } while (0)
