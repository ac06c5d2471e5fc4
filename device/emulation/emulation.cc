#include <ucontext.h>

#include <csetjmp>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "device/emulation/cuda_runtime.h"

struct EmulatedStream {
  std::mutex mutex;
  std::deque<std::function<void()>> work;
};
struct EmulatedEvent {};

namespace kvcask::emulation {

Place place;

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr int kMaxThreads = 1024, kWarp = 32;

enum class State : uint8_t { kReady, kBlock, kWarp, kDone };

// Fibers are made once and run thread after thread.
struct Fiber {
  std::unique_ptr<uint8_t[]> stack;
  ucontext_t context;
  jmp_buf at;
  bool started = false;
  State state = State::kDone;
  unsigned thread = 0;
};

// Of one warp's votes and shuffles: two sets of slots, so that who is early at the next
// does not disturb who is late at this one.
struct Warp {
  int live = 0, arrived = 0;
  unsigned turn = 0;
  uint32_t slot[2][kWarp];
};

struct Machine {
  std::mutex mutex;  // one kernel at a time
  std::vector<std::unique_ptr<Fiber>> fibers;
  Warp warps[kMaxThreads / kWarp];
  const std::function<void()>* body = nullptr;
  Fiber* running = nullptr;
  int live = 0, at_barrier = 0, threads = 0;
  jmp_buf scheduler;
  ucontext_t first;
  std::vector<uint8_t> shared;
  std::minstd_rand rng{1};
};
Machine& machine() {
  static Machine* const m = new Machine();
  return *m;
}

std::mutex lost_mutex;
// A program of its own, a daemon under test, is told by its environment after how many launches.
const char* const lose_after = std::getenv("KVCASK_EMULATION_LOSES_AFTER");
cudaError_t lost = cudaSuccess,
            to_come = lose_after != nullptr ? cudaErrorIllegalAddress : cudaSuccess;
int launches_left = lose_after != nullptr ? std::atoi(lose_after) : 0;
uint64_t launches = 0;

cudaError_t Alive() {
  std::lock_guard<std::mutex> lock(lost_mutex);
  return lost;
}

[[noreturn]] void Broken(const char* what) {
  std::fprintf(stderr, "emulated kernel, block %u %u: %s\n", place.block.x, place.block.y, what);
  std::abort();
}

void ToScheduler() {
  Fiber* const f = machine().running;
  if (_setjmp(f->at) == 0) _longjmp(machine().scheduler, 1);
}

void FiberMain() {
  Machine& m = machine();
  while (true) {
    Fiber* const f = m.running;
    (*m.body)();
    f->state = State::kDone;
    ToScheduler();
  }
}

void Resume(Fiber* f) {
  Machine& m = machine();
  m.running = f;
  place.thread = dim3(f->thread, 0, 0);
  if (_setjmp(m.scheduler) != 0) return;
  if (f->started) _longjmp(f->at, 1);
  f->started = true;
  getcontext(&f->context);
  f->context.uc_stack.ss_sp = f->stack.get();
  f->context.uc_stack.ss_size = kStackBytes;
  f->context.uc_link = nullptr;
  makecontext(&f->context, FiberMain, 0);
  setcontext(&f->context);
}

void WakeBlock() {
  Machine& m = machine();
  m.at_barrier = 0;
  for (int i = 0; i < m.threads; ++i) {
    if (m.fibers[i]->state == State::kBlock) m.fibers[i]->state = State::kReady;
  }
}

void RunBlock(int threads) {
  Machine& m = machine();
  m.threads = m.live = threads;
  m.at_barrier = 0;
  for (int i = 0; i < threads; ++i) {
    m.fibers[i]->state = State::kReady;
    m.fibers[i]->thread = static_cast<unsigned>(i);
  }
  for (int w = 0; w * kWarp < threads; ++w) {
    m.warps[w].live = std::min(kWarp, threads - w * kWarp);
    m.warps[w].arrived = 0;
  }
  while (m.live > 0) {
    // Every ready thread once, from a place and in a direction of the moment.
    const unsigned start = m.rng() % threads;
    const bool down = m.rng() % 2 != 0;
    bool moved = false;
    for (int i = 0; i < threads; ++i) {
      const unsigned n = down ? start + threads - i : start + i;
      Fiber* const f = m.fibers[n % threads].get();
      if (f->state != State::kReady) continue;
      moved = true;
      Resume(f);
      if (f->state == State::kDone) {
        --m.live;
        Warp& w = m.warps[f->thread / kWarp];
        --w.live;
        if (w.live > 0 && w.arrived > 0) Broken("a lane ended while others wait for its vote");
        if (m.live > 0 && m.at_barrier == m.live) WakeBlock();  // ended threads count as there
      }
    }
    if (!moved) Broken("no thread can go on: barriers or votes that not all reach");
  }
}

}  // namespace

void SyncBlock() {
  Machine& m = machine();
  if (++m.at_barrier == m.live) {
    WakeBlock();
    return;
  }
  m.running->state = State::kBlock;
  ToScheduler();
}

namespace {

// All live lanes of the warp give a value; returns the slots of all.
const uint32_t* Meet(uint32_t value) {
  Machine& m = machine();
  const unsigned thread = m.running->thread;
  Warp& w = m.warps[thread / kWarp];
  uint32_t* const slots = w.slot[w.turn & 1];
  if (w.arrived == 0) std::fill(slots, slots + kWarp, 0);
  slots[thread % kWarp] = value;
  if (++w.arrived == w.live) {
    w.arrived = 0;
    ++w.turn;
    const int first = static_cast<int>(thread / kWarp) * kWarp;
    for (int i = first; i < std::min(first + kWarp, m.threads); ++i) {
      if (m.fibers[i]->state == State::kWarp) m.fibers[i]->state = State::kReady;
    }
  } else {
    m.running->state = State::kWarp;
    ToScheduler();
  }
  return slots;
}

}  // namespace

uint32_t Exchange(uint32_t value, int from_lane) { return Meet(value)[from_lane]; }

uint32_t Ballot(bool vote) {
  const uint32_t* const slots = Meet(vote);
  uint32_t mask = 0;
  for (int i = 0; i < kWarp; ++i) mask |= slots[i] << i;
  return mask;
}

uint8_t* DynamicShared() {
  uint8_t* const p = machine().shared.data();
  return p + (16 - reinterpret_cast<uintptr_t>(p) % 16) % 16;
}

namespace {
std::atomic<int64_t> waiting{0};
}  // namespace

int64_t Waiting() { return waiting; }

void Enqueue(cudaStream_t stream, std::function<void()> work) {
  ++waiting;
  std::lock_guard<std::mutex> lock(stream->mutex);
  stream->work.push_back(std::move(work));
}

void Launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            std::function<void()> thread) {
  {
    std::lock_guard<std::mutex> lock(lost_mutex);
    ++launches;
    if (to_come != cudaSuccess && launches_left-- <= 0) lost = to_come;
    if (lost != cudaSuccess) return;
  }
  if (block.x > kMaxThreads || block.y != 1 || block.z != 1) Broken("a block of another shape");
  Enqueue(stream, [grid, block, shared_bytes, thread = std::move(thread)] {
    Machine& m = machine();
    std::lock_guard<std::mutex> lock(m.mutex);
    while (m.fibers.size() < block.x) {
      m.fibers.push_back(std::make_unique<Fiber>());
      m.fibers.back()->stack.reset(new uint8_t[kStackBytes]);
    }
    m.shared.assign(shared_bytes + 16, 0xa5);
    m.body = &thread;
    place.threads = block;
    place.blocks = grid;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          place.block = dim3(x, y, z);
          RunBlock(static_cast<int>(block.x));
        }
      }
    }
  });
}

void LoseDevice(cudaError_t error, int after) {
  std::lock_guard<std::mutex> lock(lost_mutex);
  to_come = error;
  launches_left = after;
  if (error == cudaSuccess || after == 0) lost = error;
}

uint64_t Launches() {
  std::lock_guard<std::mutex> lock(lost_mutex);
  return launches;
}

}  // namespace kvcask::emulation

using kvcask::emulation::Alive;

cudaError_t cudaMalloc(void** p, size_t bytes) {
  if (Alive() != cudaSuccess) return Alive();
  *p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*p == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*p, 0xcd, bytes);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaMalloc(p, bytes); }
cudaError_t cudaFree(void* p) {
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
cudaError_t cudaHostRegister(void*, size_t, unsigned) { return Alive(); }
cudaError_t cudaHostUnregister(void*) { return cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (Alive() == cudaSuccess && bytes > 0) std::memcpy(to, from, bytes);
  return Alive();
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  if (Alive() == cudaSuccess && bytes > 0) {
    kvcask::emulation::Enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  }
  return Alive();
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  if (Alive() == cudaSuccess) {
    kvcask::emulation::Enqueue(stream, [=] {
      for (size_t i = 0; i < height; ++i) {
        std::memcpy(static_cast<uint8_t*>(to) + i * to_pitch,
                    static_cast<const uint8_t*>(from) + i * from_pitch, width);
      }
    });
  }
  return Alive();
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  if (Alive() == cudaSuccess) {
    kvcask::emulation::Enqueue(stream, [=] { std::memset(p, value, bytes); });
  }
  return Alive();
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (Alive() == cudaSuccess) *stream = new EmulatedStream();
  return Alive();
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  while (true) {
    std::function<void()> work;
    {
      std::lock_guard<std::mutex> lock(stream->mutex);
      if (stream->work.empty()) return Alive();
      work = std::move(stream->work.front());
      stream->work.pop_front();
    }
    if (Alive() == cudaSuccess) work();
    --kvcask::emulation::waiting;
  }
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  if (Alive() == cudaSuccess) *event = new EmulatedEvent();
  return Alive();
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return Alive(); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  *ms = 0;
  return Alive();
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return Alive(); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return Alive();
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return Alive();
}
cudaError_t cudaSetDevice(int) { return Alive(); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = cudaDeviceProp{"emulated on the CPU", size_t{1} << 30};
  return Alive();
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 4;
  return Alive();
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 30;
  return Alive();
}
cudaError_t cudaGetLastError() { return Alive(); }
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess                 ? "cudaSuccess"
         : error == cudaErrorIllegalAddress   ? "cudaErrorIllegalAddress"
         : error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
                                              : "cudaError";
}
const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
