// Memory that grows to the largest size asked for and is kept: in the steady state nothing is
// allocated, and so nothing synchronises.
//
// One thread at a time.
#pragma once

#include <absl/status/status.h>

#include <cstddef>
#include <cstdint>

namespace kvcask {

// On the current device. What was in it is lost when it grows; growing waits for the device.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory();

  // RESOURCE_EXHAUSTED when the device has not that much.
  absl::Status Reserve(size_t bytes);
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Page-locked host memory: copies to and from a device run beside kernels, and kernels can read
// and write it.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory();

  absl::Status Reserve(size_t bytes);
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Cuts one piece of memory into typed, aligned parts. Run once over nothing to learn the size, once
// to cut.
class Cutter {
 public:
  explicit Cutter(uint8_t* memory = nullptr) : memory_(memory) {}
  template <typename T>
  T* Take(size_t n) {
    at_ = (at_ + 255) & ~size_t{255};
    T* p = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at_);
    at_ += n * sizeof(T);
    return p;
  }
  size_t used() const { return at_; }

 private:
  uint8_t* memory_;
  size_t at_ = 0;
};

}  // namespace kvcask
