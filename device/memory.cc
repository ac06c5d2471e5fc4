#include "device/memory.h"

#include <algorithm>

#include "device/cuda_status.h"

namespace kvcask {

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) cudaFree(data_);
}

absl::Status DeviceMemory::Reserve(size_t bytes) {
  if (bytes <= size_) return absl::OkStatus();
  if (data_ != nullptr) cudaFree(data_);
  data_ = nullptr;
  const size_t size = std::max(bytes, size_ + size_ / 2);
  size_ = 0;
  KVCASK_CUDA(cudaMalloc(reinterpret_cast<void**>(&data_), size));
  size_ = size;
  return absl::OkStatus();
}

PinnedMemory::~PinnedMemory() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

absl::Status PinnedMemory::Reserve(size_t bytes) {
  if (bytes <= size_) return absl::OkStatus();
  if (data_ != nullptr) cudaFreeHost(data_);
  data_ = nullptr;
  const size_t size = std::max(bytes, size_ + size_ / 2);
  size_ = 0;
  KVCASK_CUDA(cudaMallocHost(reinterpret_cast<void**>(&data_), size));
  size_ = size;
  return absl::OkStatus();
}

}  // namespace kvcask
