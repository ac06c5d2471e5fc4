#include "server/exec/device_backend.h"

namespace kvcask {

absl::StatusOr<std::unique_ptr<DeviceBackend>> FindCudaBackend() {
  return absl::UnavailableError("this build has no CUDA backend");
}

}  // namespace kvcask
