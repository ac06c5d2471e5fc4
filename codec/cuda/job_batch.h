// The jobs of a batch on their way to a device, and its verdicts back: what kernels are told
// (Items, one for each tile or each part of one), the jobs' views and tiles, in one piece of memory
// that is the same on either side, with one copy each way. Nothing is allocated once the
// largest batch was seen.
//
//   Begin, (AddJob, Add...)..., Cut, (Place...)..., Send, kernels, Receive, wait for the stream,
//   Failed
//
// An Item is copied as it is. One thread at a time.
#pragma once

#include <absl/status/status.h>
#include <absl/types/span.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "codec/cuda/device_plane.h"
#include "device/cuda_status.h"
#include "device/memory.h"
#include "device/timer.h"

namespace kvcask {

// A job's view, on the device.
struct DeviceView {
  const DevicePlane* planes;
  const int64_t* pages;  // null: one page
};

template <typename Item>
class JobBatch {
 public:
  void Begin() {
    items_.clear();
    job_of_.clear();
    planes_ = pages_ = tile_bytes_ = 0;
    plane_ = page_ = tile_byte_ = 0;
  }
  // Room for a job's view and, where the tile is copied to the device, for the tile.
  template <typename View>
  void AddJob(const View& view, size_t tile_bytes = 0) {
    planes_ += view.planes.size();
    pages_ += view.pages.offsets.size();
    tile_bytes_ += Up(tile_bytes);
  }
  // An item of job number `job` of the call.
  void Add(const Item& item, size_t job) {
    items_.push_back(item);
    job_of_.push_back(job);
  }
  bool empty() const { return items_.empty(); }
  size_t size() const { return items_.size(); }
  Item& operator[](size_t i) { return items_[i]; }
  const Item& operator[](size_t i) const { return items_[i]; }
  size_t job_of(size_t i) const { return job_of_[i]; }

  absl::Status Cut() {
    auto cut = [&](Cutter c, Parts* parts) {
      parts->items = c.Take<Item>(items_.size());
      parts->planes = c.Take<DevicePlane>(planes_);
      parts->pages = c.Take<int64_t>(pages_);
      parts->failed = c.Take<int>(items_.size());
      parts->tiles = c.Take<uint8_t>(tile_bytes_);
      return c.used();
    };
    used_ = cut(Cutter(), &host_);
    absl::Status status = staging_.Reserve(used_);
    status.Update(inputs_.Reserve(used_));
    if (!status.ok()) return status;
    cut(Cutter(staging_.data()), &host_);
    cut(Cutter(inputs_.data()), &device_);
    return absl::OkStatus();
  }
  // In the order of AddJob, what it made room for.
  template <typename View>
  DeviceView Place(const View& view) {
    const DeviceView placed{device_.planes + plane_,
                            view.pages.offsets.empty() ? nullptr : device_.pages + page_};
    for (const auto& p : view.planes) {
      host_.planes[plane_++] = {const_cast<uint8_t*>(p.data), p.head_stride, p.token_stride,
                                p.dim_stride};
    }
    for (int64_t offset : view.pages.offsets) host_.pages[page_++] = offset;
    return placed;
  }
  // Where on the device the tile will be: an address aligned to 16.
  uint8_t* PlaceTile(absl::Span<const uint8_t> tile) {
    uint8_t* const placed = device_.tiles + tile_byte_;
    std::memcpy(host_.tiles + tile_byte_, tile.data(), tile.size());
    tile_byte_ += Up(tile.size());
    return placed;
  }

  absl::Status Send(cudaStream_t stream) {
    std::copy(items_.begin(), items_.end(), host_.items);
    std::fill(host_.failed, host_.failed + items_.size(), 0);
    timer_.Begin(stream);
    KVCASK_CUDA(
        cudaMemcpyAsync(inputs_.data(), staging_.data(), used_, cudaMemcpyHostToDevice, stream));
    return absl::OkStatus();
  }
  const Item* device_items() const { return device_.items; }
  int* device_failed() const { return device_.failed; }  // of each item, 0 at first
  absl::Status Receive(cudaStream_t stream) {
    KVCASK_CUDA(cudaMemcpyAsync(host_.failed, device_.failed, items_.size() * sizeof(int),
                                cudaMemcpyDeviceToHost, stream));
    timer_.End(stream);
    return absl::OkStatus();
  }
  // From Send to Receive, of the device's time. Negative: unknown.
  double DeviceSeconds() const { return timer_.Seconds(); }
  bool Failed(size_t i) const { return host_.failed[i] != 0; }

 private:
  struct Parts {
    Item* items;
    DevicePlane* planes;
    int64_t* pages;
    int* failed;
    uint8_t* tiles;
  };
  static size_t Up(size_t n) { return (n + 15) / 16 * 16; }

  std::vector<Item> items_;
  std::vector<size_t> job_of_;
  size_t planes_ = 0, pages_ = 0, tile_bytes_ = 0, used_ = 0;
  size_t plane_ = 0, page_ = 0, tile_byte_ = 0;  // placed so far
  DeviceMemory inputs_;
  PinnedMemory staging_;
  Parts host_{}, device_{};
  DeviceTimer timer_;
};

}  // namespace kvcask
