#include "server/rpc/errors.h"

#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include "kvcask/v1/errors.pb.h"
#include "server/pipeline/errors.h"

namespace kvcask {
namespace {

constexpr size_t kMaxText = 4096;  // headers are bounded; so is what an error quotes

void AddDetail(const google::protobuf::Message& m, const char* name, v1::RpcStatus* to) {
  auto* any = to->add_details();
  any->set_type_url(std::string("type.googleapis.com/google.rpc.") + name);
  any->set_value(m.SerializeAsString());
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const auto code = static_cast<grpc::StatusCode>(status.code());
  const std::string text(status.message().substr(0, kMaxText));
  v1::RpcStatus rich;
  rich.set_code(code);
  rich.set_message(text);
  if (const std::string reason = ReasonOf(status); !reason.empty()) {
    v1::ErrorInfo info;
    info.set_reason(reason);
    info.set_domain("kvcask");
    AddDetail(info, "ErrorInfo", &rich);
  }
  if (const auto retry = RetryOf(status)) {
    v1::RetryInfo info;
    const int64_t ms = absl::ToInt64Milliseconds(*retry);
    info.mutable_retry_delay()->set_seconds(ms / 1000);
    info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(ms % 1000) * 1000000);
    AddDetail(info, "RetryInfo", &rich);
  }
  if (rich.details_size() == 0) return grpc::Status(code, text);
  return grpc::Status(code, text, rich.SerializeAsString());
}

const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {
      "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
      "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
      "UNAUTHENTICATED"};
  return code >= 0 && code <= 16 ? kNames[code] : "UNKNOWN";
}

}  // namespace kvcask
