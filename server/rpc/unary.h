// How unary calls run: on an executor thread, with a record of the call.
#pragma once

#include <absl/status/status.h>
#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>
#include <grpcpp/server_context.h>

#include <memory>
#include <string>
#include <utility>

#include "kvcask/v1/cache.pb.h"
#include "server/rpc/serving.h"

namespace kvcask {

// Runs `work` on an executor thread and finishes the call with what it returns.
template <typename Work>
grpc::ServerUnaryReactor* RunUnary(Serving* serving, grpc::CallbackServerContext* context,
                                   const char* method, const std::string& session, Work work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  auto record = std::make_shared<CallRecord>(serving, context, method);
  record->set_session(session);
  serving->executor->Submit([reactor, record, work = std::move(work)] {
    const absl::Status status = work();
    reactor->Finish(record->Finish(status));
  });
  return reactor;
}

// For logs: bounded and escaped.
inline std::string NameOf(const v1::SessionRef& r) {
  return absl::CHexEscape(
      absl::StrCat(r.namespace_().substr(0, 64), "/", r.session_id().substr(0, 256)));
}

}  // namespace kvcask
