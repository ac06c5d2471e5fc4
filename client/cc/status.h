// gRPC's results as absl::Status, with what the daemon attached to them
// (google.rpc.ErrorInfo and RetryInfo) made readable.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/status.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <grpcpp/support/status.h>

#include <map>
#include <optional>
#include <string>

namespace kvcask {

// What google.rpc.Status details tell of an error.
struct ErrorDetails {
  std::string reason;  // ErrorInfo.reason, "OVER_BUDGET"; "" without
  std::string domain;  // ErrorInfo.domain, "kvcask"
  std::map<std::string, std::string> metadata;
  std::optional<absl::Duration> retry_after;  // RetryInfo.retry_delay
};

// Code and message of `status`; its details travel as a payload, see DetailsOf.
// OK for OK.
absl::Status FromGrpc(const grpc::Status& status);

// The details that came with a status of FromGrpc; empty when there were none or they were
// not readable (they are advice, so bad ones are no error).
ErrorDetails DetailsOf(const absl::Status& status);

// One or more lines for a person: "RESOURCE_EXHAUSTED: <message>", then reason, metadata
// and "retry after 250ms" where they are known.
std::string Describe(const absl::Status& status);

// `status` with `prefix` and ": " before its message; keeps code and details.
absl::Status Annotate(const absl::Status& status, absl::string_view prefix);

}  // namespace kvcask
