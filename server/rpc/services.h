// The gRPC services of proto/kvcask/v1, over the parts in Serving.
#pragma once

#include <memory>
#include <vector>

#include <grpcpp/impl/codegen/service_type.h>

#include "server/rpc/serving.h"

namespace kvcask {

inline constexpr uint64_t kMaxProfilePiece = 4 << 20;

// Cache, Session, Profile and Info. `serving` must outlive them.
std::vector<std::unique_ptr<grpc::Service>> NewServices(Serving* serving);

}  // namespace kvcask
