// What tests of CUDA engines share.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "codec/api/codec.h"
#include "codec/testing/test_cache.h"

namespace kvcask {

// KVCASK_SEED or a new one; printed once, with the device.
inline uint32_t Seed() {
  static const uint32_t seed = [] {
    const char* given = std::getenv("KVCASK_SEED");
    const uint32_t s =
        given != nullptr ? static_cast<uint32_t>(std::atoll(given)) : std::random_device{}();
    cudaDeviceProp p{};
    const cudaError_t e = cudaGetDeviceProperties(&p, 0);
    std::printf("seed %u, backend cuda: %s\n", s,
                e == cudaSuccess ? p.name : cudaGetErrorString(e));
    return s;
  }();
  return seed;
}

// A cache that the device can reach.
class Reachable {
 public:
  Reachable(const Geometry& g, const Group& group, int tokens, Dtype dtype, Layout layout)
      : cache_(g, group.layer_begin, group.layer_end, tokens, dtype, layout) {
    EXPECT_EQ(
        cudaHostRegister(cache_.memory().data(), cache_.memory().size(), cudaHostRegisterDefault),
        cudaSuccess);
  }
  ~Reachable() { cudaHostUnregister(cache_.memory().data()); }
  Reachable(const Reachable&) = delete;
  Reachable& operator=(const Reachable&) = delete;
  TestCache& operator*() { return cache_; }
  TestCache* operator->() { return &cache_; }

 private:
  TestCache cache_;
};

// Page-locked bytes.
class ReachableBytes {
 public:
  explicit ReachableBytes(size_t bytes) {
    EXPECT_EQ(cudaMallocHost(reinterpret_cast<void**>(&data_), bytes + 1), cudaSuccess);
  }
  ~ReachableBytes() { cudaFreeHost(data_); }
  ReachableBytes(const ReachableBytes&) = delete;
  ReachableBytes& operator=(const ReachableBytes&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_ = nullptr;
};

}  // namespace kvcask
