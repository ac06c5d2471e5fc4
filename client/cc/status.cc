#include "client/cc/status.h"

#include <absl/strings/cord.h>
#include <absl/strings/str_cat.h>
#include <google/protobuf/any.pb.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

namespace kvcask {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr char kDetailsUrl[] = "type.googleapis.com/google.rpc.Status";
constexpr char kErrorInfo[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kRetryInfo[] = "type.googleapis.com/google.rpc.RetryInfo";

// Calls field(number, bytes) for each length-delimited field of a message; skips others.
template <typename Field>
bool ForEachField(absl::string_view bytes, Field field) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()),
                      static_cast<int>(bytes.size()));
  while (const uint32_t tag = in.ReadTag()) {
    if (WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&in, tag)) return false;
      continue;
    }
    uint32_t size;
    std::string value;
    if (!in.ReadVarint32(&size) || !in.ReadString(&value, static_cast<int>(size))) return false;
    field(WireFormatLite::GetTagFieldNumber(tag), value);
  }
  return in.ConsumedEntireMessage();
}

// google.rpc.ErrorInfo: reason 1, domain 2, metadata 3 (a map: key 1, value 2).
void ReadErrorInfo(const std::string& bytes, ErrorDetails* details) {
  ForEachField(bytes, [&](int number, const std::string& value) {
    if (number == 1) details->reason = value;
    if (number == 2) details->domain = value;
    if (number != 3) return;
    std::string key, text;
    ForEachField(value, [&](int n, const std::string& v) { (n == 1 ? key : text) = v; });
    details->metadata[key] = text;
  });
}

// google.rpc.RetryInfo: retry_delay 1 (a Duration).
void ReadRetryInfo(const std::string& bytes, ErrorDetails* details) {
  ForEachField(bytes, [&](int number, const std::string& value) {
    google::protobuf::Duration delay;
    if (number != 1 || !delay.ParseFromString(value)) return;
    details->retry_after = absl::Seconds(delay.seconds()) + absl::Nanoseconds(delay.nanos());
  });
}

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  if (!status.error_details().empty()) {
    result.SetPayload(kDetailsUrl, absl::Cord(status.error_details()));
  }
  return result;
}

ErrorDetails DetailsOf(const absl::Status& status) {
  ErrorDetails details;
  const auto payload = status.GetPayload(kDetailsUrl);
  if (!payload) return details;
  // google.rpc.Status: code 1, message 2, details 3 (repeated Any).
  ForEachField(std::string(*payload), [&](int number, const std::string& value) {
    google::protobuf::Any any;
    if (number != 3 || !any.ParseFromString(value)) return;
    if (any.type_url() == kErrorInfo) ReadErrorInfo(any.value(), &details);
    if (any.type_url() == kRetryInfo) ReadRetryInfo(any.value(), &details);
  });
  return details;
}

std::string Describe(const absl::Status& status) {
  if (status.ok()) return "OK";
  std::string text = absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message());
  const ErrorDetails details = DetailsOf(status);
  if (!details.reason.empty()) absl::StrAppend(&text, "\n  reason: ", details.reason);
  for (const auto& [key, value] : details.metadata) {
    absl::StrAppend(&text, "\n  ", key, ": ", value);
  }
  if (details.retry_after) {
    absl::StrAppend(&text, "\n  retry after ", absl::FormatDuration(*details.retry_after));
  }
  return text;
}

absl::Status Annotate(const absl::Status& status, absl::string_view prefix) {
  if (status.ok()) return status;
  absl::Status result(status.code(), absl::StrCat(prefix, ": ", status.message()));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { result.SetPayload(url, payload); });
  return result;
}

}  // namespace kvcask
