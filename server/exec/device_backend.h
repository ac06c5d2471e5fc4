// Where codecs may run but on the CPU: what a device offers, and whether it still works.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "codec/api/codec.h"
#include "codec/cuda/device_coder.h"
#include "server/store/gpu_tier.h"

namespace kvcask {

// One device. Thread-safe.
class DeviceBackend {
 public:
  virtual ~DeviceBackend() = default;
  virtual std::string name() const = 0;    // "cuda"
  virtual std::string detail() const = 0;  // which device it is
  // Whether it has kernels for that codec.
  virtual bool Codes(CodecId id) const = 0;
  // Memory of the device for a GpuTier. RESOURCE_EXHAUSTED: it has not that much.
  virtual absl::StatusOr<std::unique_ptr<TierMemory>> MakeTierMemory(uint64_t bytes) = 0;
  // A coder of its own stream and buffers, of the codec that `cpu` is, which must outlive it. Null:
  // the device has no kernels for that codec, or not with such a profile.
  virtual absl::StatusOr<std::unique_ptr<DeviceCoder>> MakeCoder(const CodecEntry& entry,
                                                                 const CodecSpec& spec,
                                                                 const Codec& cpu) = 0;
};

// UNAVAILABLE says why there is none: no driver, no device, no cuBLAS, or a build without CUDA.
absl::StatusOr<std::unique_ptr<DeviceBackend>> FindCudaBackend();

// What all codecs of a device know of it. A fault in a kernel makes every later call of the
// process fail, so a device that is lost stays lost until the daemon is started again; everything
// is coded on the CPU from then on, and what is stored on the host is as it was. Thread-safe.
class DeviceState {
 public:
  bool lost() const { return lost_; }
  absl::Status why() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return why_;
  }
  // True the first time.
  bool Lose(const absl::Status& why) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (lost_) return false;
    why_ = why;
    lost_ = true;
    return true;
  }

  // Since the start.
  std::atomic<uint64_t> batches{0};         // that the device coded
  std::atomic<uint64_t> tiles{0};           // that it coded
  std::atomic<uint64_t> cpu_tiles{0};       // of its codecs, that the CPU coded
  std::atomic<uint64_t> short_of_memory{0};  // batches that the CPU took for that

 private:
  mutable std::mutex mutex_;
  absl::Status why_;
  std::atomic<bool> lost_{false};
};

}  // namespace kvcask
