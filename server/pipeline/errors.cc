#include "server/pipeline/errors.h"

#include <absl/strings/cord.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>

namespace kvcask {
namespace {
constexpr char kReason[] = "kvcask/reason";
constexpr char kRetryMs[] = "kvcask/retry_ms";
}  // namespace

absl::Status WithReason(absl::Status status, absl::string_view reason) {
  if (!status.ok()) status.SetPayload(kReason, absl::Cord(reason));
  return status;
}

absl::Status WithRetry(absl::Status status, absl::Duration after) {
  if (!status.ok()) {
    status.SetPayload(kRetryMs, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(after))));
  }
  return status;
}

std::string ReasonOf(const absl::Status& status) {
  auto p = status.GetPayload(kReason);
  return p ? std::string(*p) : "";
}

std::optional<absl::Duration> RetryOf(const absl::Status& status) {
  auto p = status.GetPayload(kRetryMs);
  int64_t ms = 0;
  if (!p || !absl::SimpleAtoi(std::string(*p), &ms)) return std::nullopt;
  return absl::Milliseconds(ms);
}

}  // namespace kvcask
