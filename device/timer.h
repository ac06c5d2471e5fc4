// The device's time between two points of a stream.
//
// One thread at a time.
#pragma once

#include <cuda_runtime.h>

namespace kvcask {

class DeviceTimer {
 public:
  DeviceTimer() = default;
  DeviceTimer(const DeviceTimer&) = delete;
  DeviceTimer& operator=(const DeviceTimer&) = delete;
  ~DeviceTimer() {
    if (begin_ != nullptr) cudaEventDestroy(begin_);
    if (end_ != nullptr) cudaEventDestroy(end_);
  }

  void Begin(cudaStream_t stream) { Record(&begin_, stream); }
  void End(cudaStream_t stream) { Record(&end_, stream); }
  // Negative: unknown, or the stream has not come to the end yet.
  double Seconds() const {
    float ms = 0;
    if (begin_ == nullptr || end_ == nullptr ||
        cudaEventElapsedTime(&ms, begin_, end_) != cudaSuccess) {
      return -1;
    }
    return ms * 1e-3;
  }

 private:
  static void Record(cudaEvent_t* event, cudaStream_t stream) {
    if (*event == nullptr && cudaEventCreate(event) != cudaSuccess) {
      *event = nullptr;
      return;
    }
    cudaEventRecord(*event, stream);
  }

  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace kvcask
