#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "codec/cuda/staged_coder.h"
#include "codec/fixed/cuda/fixed_cuda.h"
#include "codec/fklt/cuda/fklt_cuda.h"
#include "codec/scalar/cuda/int8_cuda.h"
#include "device/cublas.h"
#include "device/cuda_status.h"
#include "server/exec/device_backend.h"
#include "server/store/cuda_tier_memory.h"

namespace kvcask {
namespace {

class CudaBackend : public DeviceBackend {
 public:
  explicit CudaBackend(std::string detail) : detail_(std::move(detail)) {}
  std::string name() const override { return "cuda"; }
  std::string detail() const override { return detail_; }
  bool Codes(CodecId id) const override {
    return id == CodecId::kFklt || id == CodecId::kInt8 || HasFixedEngine(id);
  }

  absl::StatusOr<std::unique_ptr<TierMemory>> MakeTierMemory(uint64_t bytes) override {
    return MakeCudaTierMemory(bytes);
  }

  absl::StatusOr<std::unique_ptr<DeviceCoder>> MakeCoder(const CodecEntry& entry,
                                                         const CodecSpec& spec,
                                                         const Codec& cpu) override {
    absl::StatusOr<std::unique_ptr<CudaEngine>> engine = std::unique_ptr<CudaEngine>();
    if (entry.id == CodecId::kFklt) engine = fklt::MakeFkltEngine(spec);
    if (entry.id == CodecId::kInt8) engine = MakeInt8Engine(spec);
    if (HasFixedEngine(entry.id)) engine = MakeFixedEngine(entry.id, spec);
    if (!engine.ok()) return engine.status();
    if (*engine == nullptr) return std::unique_ptr<DeviceCoder>();
    return MakeStagedCoder(*std::move(engine), cpu);
  }

 private:
  const std::string detail_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceBackend>> FindCudaBackend() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    return absl::UnavailableError(absl::StrCat(
        "no device: ", error == cudaSuccess ? "none is there" : cudaGetErrorString(error)));
  }
  cudaDeviceProp p{};
  KVCASK_CUDA(cudaGetDeviceProperties(&p, 0));
  if (auto cublas = Cublas::Load(); !cublas.ok()) return cublas.status();
  return std::unique_ptr<DeviceBackend>(new CudaBackend(absl::StrFormat(
      "%s, %.0f GiB", p.name, static_cast<double>(p.totalGlobalMem) / (uint64_t{1} << 30))));
}

}  // namespace kvcask
