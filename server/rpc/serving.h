// What every call needs: the parts of the server, and a record of the call for logs and
// metrics.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <string>

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>
#include <grpcpp/server_context.h>

#include "server/admission/byte_budget.h"
#include "server/config/config.h"
#include "server/exec/device_backend.h"
#include "server/exec/executor.h"
#include "server/metrics/metrics.h"
#include "server/pipeline/pipeline.h"
#include "server/pipeline/profile_registry.h"
#include "server/store/gpu_chunks.h"
#include "server/store/session_store.h"

namespace kvcask {

// A call that the sweeper may end because its client went silent.
class Idler {
 public:
  virtual ~Idler() = default;
  virtual absl::Time last_activity() const = 0;
  virtual void EndIdle() = 0;
};

// Borrowed parts, which outlive the server. Thread-safe.
struct Serving {
  Config config;
  std::string version, commit;
  std::string cuda_detail;              // the device, or why there is none in use
  DeviceBackend* device = nullptr;      // null: codecs run on the CPU
  DeviceState* device_state = nullptr;  // of the device
  // Where codecs run now: "cuda", or "cpu" where there is no device or it is lost.
  std::string backend() const {
    return device != nullptr && !device_state->lost() ? device->name() : "cpu";
  }
  std::string metrics_address;  // host:port; "": off
  absl::Time started;
  SessionStore* store = nullptr;
  GpuChunks* gpu = nullptr;  // null: no copies of chunks on a device
  ByteBudget* budget = nullptr;       // of what is kept
  ByteBudget* read_budget = nullptr;  // of what is decoded ahead of readers
  ProfileRegistry* profiles = nullptr;
  Pipeline* pipeline = nullptr;
  Executor* executor = nullptr;
  Metrics* metrics = nullptr;
  std::atomic<bool> draining{false};
  absl::Mutex calls_mu;
  int calls ABSL_GUARDED_BY(calls_mu) = 0;  // under way, their last byte not sent
  // Waits until none is under way, or `deadline`. How many are left.
  int AwaitCalls(absl::Time deadline);

  absl::Mutex idlers_mu;
  std::set<std::shared_ptr<Idler>> idlers;
  // Ends calls that were silent since `before`.
  void EndIdlersSince(absl::Time before);

  // UNAVAILABLE with a retry hint while the daemon drains.
  absl::Status CheckServing() const;
};

// From a call's first moment to its last: counts it, then logs and measures it. Finish
// once.
class CallRecord {
 public:
  CallRecord(Serving* serving, grpc::CallbackServerContext* context, const char* method);
  ~CallRecord();

  void set_session(const std::string& session) { session_ = session; }
  const std::string& request_id() const { return request_id_; }
  // Logs, measures and converts.
  grpc::Status Finish(const absl::Status& status);

 private:
  Serving* const serving_;
  const char* const method_;
  const absl::Time start_;
  std::string request_id_, trace_, session_, peer_;
  bool finished_ = false;
};

}  // namespace kvcask
