// The gRPC server: listeners, health, reflection, drain.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "server/rpc/serving.h"

namespace kvcask {

// Call first in main, before anything of gRPC: sets up malloc, gRPC and Abseil for bulk
// transfers (the reasons are in the source).
void InitRuntime();

class GrpcServer {
 public:
  // Listens on config.listen. Errors name the address: INVALID_ARGUMENT for one that is
  // malformed or not loopback without TLS or --insecure, UNAVAILABLE for one in use.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(Serving* serving);
  virtual ~GrpcServer() = default;

  // As clients may use them: "unix:/path", "127.0.0.1:43210".
  virtual std::vector<std::string> addresses() const = 0;
  // What gRPC's health service says of "kvcask.device" from here on; who never calls this has none.
  // Readiness does not depend on it: without its device the daemon serves from the CPU.
  virtual void SetDeviceHealth(bool good) = 0;
  // No new calls; those under way may end until `deadline`, then they are cancelled.
  virtual void Drain(absl::Time deadline) = 0;
};

}  // namespace kvcask
