#include "server/rpc/serving.h"

#include <random>
#include <vector>

#include <absl/strings/str_format.h>

#include "server/clock/steady_now.h"
#include "server/log/log.h"
#include "server/pipeline/errors.h"
#include "server/rpc/errors.h"

namespace kvcask {
namespace {

// A client's header, bounded: it goes into logs.
std::string Header(const grpc::CallbackServerContext& c, const char* name) {
  auto it = c.client_metadata().find(name);
  if (it == c.client_metadata().end()) return "";
  return std::string(it->second.data(), std::min<size_t>(it->second.size(), 128));
}

std::string NewId() {
  thread_local std::mt19937_64 rng(std::random_device{}());
  return absl::StrFormat("%016x", rng());
}

}  // namespace

void Serving::EndIdlersSince(absl::Time before) {
  std::vector<std::shared_ptr<Idler>> idle;
  {
    absl::MutexLock lock(&idlers_mu);
    for (const auto& i : idlers) {
      if (i->last_activity() < before) idle.push_back(i);
    }
  }
  for (const auto& i : idle) i->EndIdle();
}

int Serving::AwaitCalls(absl::Time deadline) {
  absl::MutexLock lock(&calls_mu);
  const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(calls_mu) { return calls == 0; };
  calls_mu.AwaitWithDeadline(absl::Condition(&none), deadline);
  return calls;
}

absl::Status Serving::CheckServing() const {
  if (!draining) return absl::OkStatus();
  return WithReason(WithRetry(absl::UnavailableError("the daemon is draining"), absl::Seconds(1)),
                    "DRAINING");
}

CallRecord::CallRecord(Serving* serving, grpc::CallbackServerContext* context, const char* method)
    : serving_(serving), method_(method), start_(SteadyNow()) {
  {
    absl::MutexLock lock(&serving_->calls_mu);
    ++serving_->calls;
  }
  request_id_ = Header(*context, "x-request-id");
  if (request_id_.empty()) request_id_ = NewId();
  trace_ = Header(*context, "traceparent");
  peer_ = context->peer();
}

CallRecord::~CallRecord() {
  absl::MutexLock lock(&serving_->calls_mu);
  --serving_->calls;
}

grpc::Status CallRecord::Finish(const absl::Status& status) {
  const grpc::Status out = ToGrpc(status);
  if (finished_) return out;
  finished_ = true;
  const absl::Duration took = SteadyNow() - start_;
  serving_->metrics->Finished(method_, CodeName(out.error_code()), took);
  const bool ours = status.code() == absl::StatusCode::kInternal ||
                    status.code() == absl::StatusCode::kDataLoss;
  Log(ours           ? LogLevel::kError
      : status.ok()  ? LogLevel::kInfo
                     : LogLevel::kWarning,
      method_,
      {{"request", request_id_},
       {"session", session_},
       {"code", CodeName(out.error_code())},
       {"ms", absl::StrFormat("%.2f", absl::ToDoubleMilliseconds(took))},
       {"peer", peer_},
       {"trace", trace_},
       {"error", status.message()}});
  return out;
}

}  // namespace kvcask
