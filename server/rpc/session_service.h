// kvcask.v1.SessionService over the store.
#pragma once

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>

#include "server/rpc/serving.h"

namespace kvcask {

// `serving` outlives it.
std::unique_ptr<grpc::Service> NewSessionService(Serving* serving);

}  // namespace kvcask
