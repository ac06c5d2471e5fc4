// CacheService.Get: decodes ahead of the reader, writes in order.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "server/rpc/serving.h"

namespace kvcask {

// The reactor owns itself until the call's end.
grpc::ServerWriteReactor<grpc::ByteBuffer>* NewGetCall(Serving* serving,
                                                       grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request);

}  // namespace kvcask
