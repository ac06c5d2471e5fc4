#include "server/store/cuda_tier_memory.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "device/cuda_status.h"
#include "device/memory.h"

namespace kvcask {
namespace {

constexpr uint64_t kBounceBytes = 8 << 20;

class CudaTierMemory : public TierMemory {
 public:
  explicit CudaTierMemory(uint64_t bytes) : bytes_(bytes) {}

  ~CudaTierMemory() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Allocate() {
    KVCASK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    // cudaMalloc aligns to 256 bytes, more than an arena asks for.
    if (absl::Status s = memory_.Reserve(std::max<uint64_t>(bytes_, 1)); !s.ok()) return s;
    return bounce_.Reserve(std::min(std::max<uint64_t>(bytes_, 1), kBounceBytes));
  }

  uint64_t size() const override { return bytes_; }
  uint8_t* data() override { return memory_.data(); }

  absl::Status Write(uint64_t at, absl::Span<const uint8_t> from) override {
    return Copy(memory_.data() + at, from.data(), from.size(), true);
  }
  absl::Status Read(uint64_t at, absl::Span<uint8_t> to) override {
    return Copy(to.data(), memory_.data() + at, to.size(), true);
  }
  // The tier moves under its own lock: one move at a time, and the bounce buffer is its alone. A
  // copy whose ends overlap is not defined, so pieces go by way of the buffer.
  absl::Status MoveDown(uint64_t to, uint64_t from, uint64_t bytes) override {
    uint8_t* const base = memory_.data();
    if (from - to >= bytes) return Copy(base + to, base + from, bytes, true);
    for (uint64_t done = 0; done < bytes;) {
      const uint64_t piece = std::min<uint64_t>(bytes - done, bounce_.size());
      absl::Status status = Copy(bounce_.data(), base + from + done, piece, false);
      status.Update(Copy(base + to + done, bounce_.data(), piece, false));
      if (!status.ok()) return status;
      done += piece;
    }
    return Copy(base, base, 0, true);
  }

 private:
  absl::Status Copy(void* to, const void* from, uint64_t bytes, bool wait) {
    KVCASK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
    if (wait) KVCASK_CUDA(cudaStreamSynchronize(stream_));
    return absl::OkStatus();
  }

  const uint64_t bytes_;
  cudaStream_t stream_ = nullptr;
  DeviceMemory memory_, bounce_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TierMemory>> MakeCudaTierMemory(uint64_t bytes) {
  int devices = 0;
  KVCASK_CUDA(cudaGetDeviceCount(&devices));
  if (devices == 0) return absl::UnavailableError("CUDA: no device");
  auto memory = std::make_unique<CudaTierMemory>(bytes);
  if (absl::Status s = memory->Allocate(); !s.ok()) return s;
  return std::unique_ptr<TierMemory>(std::move(memory));
}

}  // namespace kvcask
