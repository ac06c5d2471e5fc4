// CacheService.Put: one stream, one run.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "server/rpc/serving.h"

namespace kvcask {

// The reactor owns itself until the call's end.
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* NewPutCall(
    Serving* serving, grpc::CallbackServerContext* context);

}  // namespace kvcask
