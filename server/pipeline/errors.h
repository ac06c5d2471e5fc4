// What a Status tells a client beyond its text: a reason that programs can match, and when
// to try again. Kept as payloads of absl::Status; server/rpc turns them into
// google.rpc.ErrorInfo and google.rpc.RetryInfo.
//
// Thread-safe: pure functions.
#pragma once

#include <optional>
#include <string>

#include <absl/status/status.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>

namespace kvcask {

// `status` with a reason in UPPER_SNAKE_CASE ("OVER_BUDGET"). OK stays OK.
absl::Status WithReason(absl::Status status, absl::string_view reason);
absl::Status WithRetry(absl::Status status, absl::Duration after);

std::string ReasonOf(const absl::Status& status);  // "" when none was set
std::optional<absl::Duration> RetryOf(const absl::Status& status);

}  // namespace kvcask
