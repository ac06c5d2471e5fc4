// What a few lines of PTX say better than the compiler: for inner loops that are bound by the
// number of their instructions. The host's compiler gets plain C++ instead.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "device/launch.h"

namespace kvcask {

// Keeps the compiler from taking apart, at each use, the sums that went into p.
template <typename T>
__device__ __forceinline__ T* Opaque(T* p) {
#ifndef KVCASK_CUDA_EMULATION
  asm volatile("" : "+l"(p));
#endif
  return p;
}

// Two that lie one after another, at an address aligned to 4.
__device__ __forceinline__ float2 LoadTwo(const __half* p) {
#ifdef KVCASK_CUDA_EMULATION
  return make_float2(__half2float(p[0]), __half2float(p[1]));
#else
  return __half22float2(*reinterpret_cast<const __half2*>(p));
#endif
}

// *to = bits, in global memory, where `there`; without a branch.
__device__ __forceinline__ void StoreIf(bool there, void* to, uint16_t bits) {
#ifdef KVCASK_CUDA_EMULATION
  if (there) *static_cast<uint16_t*>(to) = bits;
#else
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %0, 0; @p st.global.u16 [%1], %2; }" ::"r"(
                   static_cast<uint32_t>(there)),
               "l"(__cvta_generic_to_global(to)), "h"(bits)
               : "memory");
#endif
}

// Asks for the line that p is in, to be in the L2 cache. p may be any address of an allocation.
__device__ __forceinline__ void PrefetchL2(const void* p) {
#ifndef KVCASK_CUDA_EMULATION
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p)));
#else
  (void)p;
#endif
}

// A block's dynamic shared memory by 32-bit addresses: where addresses are sums, generic pointers
// cost an addition each. Loads by U8, U32 and U64 depend on their address alone, for the compiler:
// they are for what does not change after a barrier. U16, Ordered64 and Store64 keep their order.
class SharedSpace {
 public:
#ifdef KVCASK_CUDA_EMULATION
  __device__ explicit SharedSpace(uint8_t* memory) : memory_(memory) {}
  __device__ uint32_t begin() const { return 0; }
  __device__ uint32_t U8(uint32_t at) const { return memory_[at]; }
  __device__ uint32_t U16(uint32_t at) const {
    return *reinterpret_cast<const uint16_t*>(memory_ + at);
  }
  __device__ uint32_t U32(uint32_t at) const {
    return *reinterpret_cast<const uint32_t*>(memory_ + at);
  }
  __device__ uint2 U64(uint32_t at) const { return *reinterpret_cast<const uint2*>(memory_ + at); }
  __device__ uint2 Ordered64(uint32_t at) const { return U64(at); }
  __device__ void Store64(uint32_t at, uint2 v) { *reinterpret_cast<uint2*>(memory_ + at) = v; }

 private:
  uint8_t* memory_;
#else
  __device__ __forceinline__ explicit SharedSpace(uint8_t* memory)
      : begin_(static_cast<uint32_t>(__cvta_generic_to_shared(memory))) {}
  // Of the memory's first byte.
  __device__ __forceinline__ uint32_t begin() const { return begin_; }
  __device__ __forceinline__ static uint32_t U8(uint32_t at) {
    uint32_t v;
    asm("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
  }
  __device__ __forceinline__ static uint32_t U16(uint32_t at) {
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at));
    return v;
  }
  __device__ __forceinline__ static uint32_t U32(uint32_t at) {
    uint32_t v;
    asm("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
  }
  __device__ __forceinline__ static uint2 U64(uint32_t at) {
    uint2 v;
    asm("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    return v;
  }
  __device__ __forceinline__ static uint2 Ordered64(uint32_t at) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    return v;
  }
  __device__ __forceinline__ static void Store64(uint32_t at, uint2 v) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(v.x), "r"(v.y) : "memory");
  }

 private:
  uint32_t begin_;
#endif
};

}  // namespace kvcask
