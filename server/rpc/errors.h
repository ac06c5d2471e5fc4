// absl::Status to and from what travels: grpc::Status with google.rpc details.
#pragma once

#include <absl/status/status.h>
#include <grpcpp/support/status.h>

namespace kvcask {

// Code and text; a google.rpc.Status in the details with ErrorInfo {reason, domain
// "kvcask"} and, where waiting helps, RetryInfo.
grpc::Status ToGrpc(const absl::Status& status);

// "OK", "DATA_LOSS", ...
const char* CodeName(grpc::StatusCode code);

}  // namespace kvcask
