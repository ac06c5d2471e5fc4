// What our device code uses of CUDA, on the CPU: for tests of kernels where there is no GPU. On the
// include path instead of CUDA's own header, so that the very sources that nvcc compiles run here.
//
// A block's threads are fibers of one thread of the machine. They run until they meet a barrier or
// a warp's vote or shuffle, in an order that differs from one round to the next; a block whose
// threads wait for different things ends the program and says so. What is enqueued on a stream runs
// when somebody waits for the stream: memory that was let go of too early shows. What this
// cannot show: races inside a warp, speed, what another machine's rounding does.
//
// Thread-safe as CUDA is; one kernel runs at a time.
#pragma once

#define KVCASK_CUDA_EMULATION 1

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__ static
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __restrict__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorIllegalAddress = 700,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
constexpr unsigned cudaStreamNonBlocking = 1, cudaHostRegisterDefault = 0;
struct cudaDeviceProp {
  char name[64];
  size_t totalGlobalMem;
};
using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;

namespace kvcask::emulation {

void Launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            std::function<void()> thread);
void Enqueue(cudaStream_t stream, std::function<void()> work);
// What was enqueued on any stream and has not run.
int64_t Waiting();
uint8_t* DynamicShared();
// From the n-th launch on, every call fails with `error`, as on a device whose context is lost; no
// launch: cudaSuccess ends that. KVCASK_EMULATION_LOSES_AFTER=n in the environment does the same.
void LoseDevice(cudaError_t error, int launches = 0);
// Launches so far.
uint64_t Launches();

// Of the thread that runs.
void SyncBlock();
uint32_t Exchange(uint32_t value, int from_lane);  // every live lane of the warp calls it
uint32_t Ballot(bool vote);

struct Place {
  dim3 thread, block, threads, blocks;
};
extern Place place;

}  // namespace kvcask::emulation

#define threadIdx (::kvcask::emulation::place.thread)
#define blockIdx (::kvcask::emulation::place.block)
#define blockDim (::kvcask::emulation::place.threads)
#define gridDim (::kvcask::emulation::place.blocks)

inline void __syncthreads() { kvcask::emulation::SyncBlock(); }
inline void __syncwarp(unsigned = ~0u) { kvcask::emulation::Ballot(false); }
inline unsigned __ballot_sync(unsigned, bool p) { return kvcask::emulation::Ballot(p); }
inline bool __any_sync(unsigned, bool p) { return kvcask::emulation::Ballot(p) != 0; }
inline bool __all_sync(unsigned, bool p) { return kvcask::emulation::Ballot(!p) == 0; }
template <typename T>
T __shfl_sync(unsigned, T v, int lane) {
  static_assert(sizeof(T) <= 4);
  uint32_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  bits = kvcask::emulation::Exchange(bits, lane & 31);
  std::memcpy(&v, &bits, sizeof(T));
  return v;
}
template <typename T>
T __shfl_up_sync(unsigned mask, T v, int d) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return __shfl_sync(mask, v, lane >= d ? lane - d : lane);
}
// The lanes whose v is this one's.
inline unsigned __match_any_sync(unsigned mask, int v) {
  unsigned same = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (__shfl_sync(mask, v, lane) == v) same |= 1u << lane;
  }
  return same;
}
template <typename T>
T __shfl_down_sync(unsigned mask, T v, int d) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return __shfl_sync(mask, v, lane + d < 32 ? lane + d : lane);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int d) {
  return __shfl_sync(mask, v, static_cast<int>(threadIdx.x % 32) ^ d);
}
// Two fibers never run at once.
template <typename T>
T atomicAdd(T* p, T v) {
  const T old = *p;
  *p = old + v;
  return old;
}
template <typename T>
T atomicOr(T* p, T v) {
  const T old = *p;
  *p = old | v;
  return old;
}
template <typename T>
T atomicMax(T* p, T v) {
  const T old = *p;
  *p = std::max(old, v);
  return old;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r = r << 1 | (v >> i & 1);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline int __clz(unsigned v) { return v == 0 ? 32 : __builtin_clz(v); }
template <typename T>
T __ldg(const T* p) {
  return *p;
}
inline float __uint_as_float(unsigned u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned u;
  std::memcpy(&u, &f, 4);
  return u;
}
// Rounded each by itself: never contracted into a fused multiply-add.
inline float __fmul_rn(float a, float b) {
  volatile float r = a * b;
  return r;
}
inline float __fadd_rn(float a, float b) {
  volatile float r = a + b;
  return r;
}
// Towards zero. The sum of two floats' doubles is exact where their exponents are near.
inline float __fadd_rz(float a, float b) {
  const double exact = static_cast<double>(a) + static_cast<double>(b);
  const float r = static_cast<float>(exact);
  return std::fabs(static_cast<double>(r)) > std::fabs(exact) ? std::nextafter(r, 0.0f) : r;
}
inline float __fmul_rz(float a, float b) {
  const double exact = static_cast<double>(a) * b;
  const float r = static_cast<float>(exact);
  return std::fabs(static_cast<double>(r)) > std::fabs(exact) ? std::nextafter(r, 0.0f) : r;
}
inline float __fsub_rn(float a, float b) { return __fadd_rn(a, -b); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float v) { return std::sqrt(v); }
inline int __float2int_rn(float v) { return static_cast<int>(std::lrintf(v)); }
using std::isfinite;
using std::max;
using std::min;

cudaError_t cudaMalloc(void** p, size_t bytes);
cudaError_t cudaMallocHost(void** p, size_t bytes);
cudaError_t cudaFree(void* p);
cudaError_t cudaFreeHost(void* p);
cudaError_t cudaHostRegister(void* p, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void* p);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
template <typename F>
cudaError_t cudaFuncSetAttribute(F, cudaFuncAttribute, int) {
  return cudaSuccess;
}
cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
