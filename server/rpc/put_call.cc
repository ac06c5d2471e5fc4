#include "server/rpc/put_call.h"

#include <atomic>
#include <deque>
#include <memory>
#include <optional>
#include <utility>

#include <absl/base/thread_annotations.h>
#include <absl/strings/str_cat.h>

#include "proto/wire/kv_frame.h"
#include "server/clock/steady_now.h"
#include "server/pipeline/errors.h"
#include "server/pipeline/put_run.h"
#include "server/rpc/convert.h"

namespace kvcask {
namespace {

// Reads are handled one at a time on gRPC's threads; acks are queued and written behind
// them. The run is committed when the client has closed its side after `commit`, so that
// whatever follows a commit is refused before anything is stored.
class PutCall : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                public Idler,
                public std::enable_shared_from_this<PutCall> {
 public:
  PutCall(Serving* serving, grpc::CallbackServerContext* context)
      : serving_(serving), context_(context), record_(serving, context, "Put") {}

  void Begin() {
    self_ = shared_from_this();
    Touch();
    {
      absl::MutexLock lock(&serving_->idlers_mu);
      serving_->idlers.insert(self_);
    }
    if (absl::Status s = serving_->CheckServing(); !s.ok()) return End(s);
    StartRead(&in_);
  }

  absl::Time last_activity() const override {
    return absl::FromUnixNanos(activity_.load(std::memory_order_relaxed));
  }
  void EndIdle() override {
    {
      absl::MutexLock lock(&mu_);
      if (committing_) return;
    }
    End(WithReason(absl::DeadlineExceededError(
                       absl::StrCat("nothing came for ",
                                    absl::FormatDuration(serving_->config.idle_put_timeout),
                                    "; the run was dropped")),
                   "IDLE"),
        "idle");
  }

  void OnReadDone(bool ok) override {
    Touch();
    if (!ok) return OnReadsClosed();
    v1::PutRequest message;
    Payload payload;
    absl::Status s = Unframe(in_, &message, &payload);
    in_.Clear();
    if (s.ok()) s = Handle(message, payload);
    if (!s.ok()) return End(s, "error");
    {
      absl::MutexLock lock(&mu_);
      if (ending_) return;
    }
    StartRead(&in_);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) End(absl::CancelledError("the client is gone"), "cancelled");
    Pump(true);  // after a failed write too, or the call would never finish
  }

  void OnCancel() override {
    End(absl::CancelledError("the call was cancelled or its deadline passed"), "cancelled");
  }

  void OnDone() override {
    {
      absl::MutexLock lock(&serving_->idlers_mu);
      serving_->idlers.erase(self_);
    }
    self_.reset();  // deletes this, unless a commit under way still holds it
  }

 private:
  void Touch() { activity_.store(absl::ToUnixNanos(SteadyNow()), std::memory_order_relaxed); }

  absl::Status Handle(const v1::PutRequest& m, const Payload& payload) {
    if (replaying_) return absl::OkStatus();  // the answer is on its way
    if (commit_) return Order("a message after commit");
    switch (m.message_case()) {
      case v1::PutRequest::kOpen:
        return Open(m.open());
      case v1::PutRequest::kData:
        return Data(m.data(), payload);
      case v1::PutRequest::kCommit:
        if (!run_) return Order("commit before open");
        if (m.commit().durability() != v1::DURABILITY_MEMORY &&
            (m.commit().durability() != v1::DURABILITY_DISK ||
             serving_->config.disk_path.empty())) {
          return WithReason(
              absl::UnimplementedError(absl::StrCat(
                  "durability: found ", static_cast<int>(m.commit().durability()),
                  serving_->config.disk_path.empty()
                      ? ", this daemon has no disk tier (--disk-path); expected DURABILITY_MEMORY"
                      : ", expected DURABILITY_MEMORY or DURABILITY_DISK")),
              "FIELD");
        }
        commit_ = m.commit();
        return absl::OkStatus();
      default:
        return Order("a message that is neither open, data nor commit");
    }
  }

  static absl::Status Order(absl::string_view what) {
    return WithReason(absl::InvalidArgumentError(absl::StrCat(
                          "found ", what, ", expected open, then data, then one commit")),
                      "MESSAGE_ORDER");
  }

  absl::Status Open(const v1::PutOpen& open) {
    if (run_) return Order("a second open");
    auto params = FromProto(open);
    if (!params.ok()) return params.status();
    record_.set_session(absl::StrCat(params->session.ns, "/", params->session.id));
    const SessionKey key = params->session;
    auto run = serving_->pipeline->OpenPut(*std::move(params));
    if (!run.ok()) return run.status();
    run_ = *std::move(run);
    v1::PutResponse r;
    if (run_->replayed()) {
      *r.mutable_committed() = ToProto(*run_->replayed());
      if (serving_->config.disk_path.empty()) {
        Send(r);
        End(absl::OkStatus());
        return absl::OkStatus();
      }
      replaying_ = true;
      // Whether the first one had to be durable is not known: so it is made so.
      serving_->store->WhenDurable(key, [self = shared_from_this(), r](absl::Status s) {
        if (s.ok()) self->Send(r);
        self->End(WithReason(s, "DURABILITY"), s.ok() ? "" : "error");
      });
      return absl::OkStatus();
    }
    {
      absl::MutexLock lock(&mu_);
      abortable_ = run_;
    }
    r.mutable_opened()->set_credit_bytes(serving_->config.put_credit_bytes);
    r.mutable_opened()->set_shard_tokens(run_->before().tokens);
    r.mutable_opened()->set_version(run_->before().version);
    Send(r);
    return absl::OkStatus();
  }

  absl::Status Data(const v1::KvData& data, const Payload& payload) {
    if (!run_) return Order("data before open");
    if (data.location_case() != v1::KvData::LOCATION_NOT_SET) {
      return WithReason(absl::UnimplementedError(
                            "data.location: shared memory and CUDA IPC are not supported yet, "
                            "expected an inline payload"),
                        "FIELD");
    }
    auto rectangle = FromProto(data.rectangle());
    if (!rectangle.ok()) return rectangle.status();
    std::optional<uint32_t> crc;
    if (data.has_crc32c()) crc = data.crc32c();
    if (absl::Status s = run_->Add(*rectangle, payload.pieces(), crc); !s.ok()) return s;
    serving_->metrics->Received(payload.size());
    absl::MutexLock lock(&mu_);
    ack_ = true;
    PumpLocked();
    return absl::OkStatus();
  }

  // The client closed its side, or is gone.
  void OnReadsClosed() {
    if (context_->IsCancelled()) {
      return End(absl::CancelledError("the client is gone"), "cancelled");
    }
    if (replaying_) return;
    if (!commit_) {
      return End(WithReason(absl::InvalidArgumentError(
                                "the stream ended without a commit; nothing was stored"),
                            "MESSAGE_ORDER"),
                 "incomplete");
    }
    {
      absl::MutexLock lock(&mu_);
      if (ending_) return;
      committing_ = true;
    }
    const bool durable = commit_->durability() == v1::DURABILITY_DISK;
    run_->Commit(commit_->seal(), durable, [self = shared_from_this()](absl::StatusOr<CommitResult> r) {
      if (r.ok()) {
        v1::PutResponse out;
        *out.mutable_committed() = ToProto(*r);
        self->Send(out);
      }
      self->End(r.status(), "error");
    });
  }

  void Send(const v1::PutResponse& r) {
    absl::MutexLock lock(&mu_);
    if (ending_) return;
    out_queue_.push_back(FrameMessage(r));
    PumpLocked();
  }

  // Ends the call with `status` once what is queued is written. The first call counts.
  void End(const absl::Status& status, absl::string_view abort_reason = "") {
    std::shared_ptr<PutRun> abort;
    {
      absl::MutexLock lock(&mu_);
      if (ending_) return;
      ending_ = status;
      if (!status.ok()) {
        out_queue_.clear();
        ack_ = false;
        abort = std::move(abortable_);
      }
      abortable_.reset();
    }
    if (abort) {
      abort->Abort();
      serving_->metrics->PutAborted(abort_reason);
    }
    Pump(false);
  }

  void Pump(bool write_done) {
    absl::MutexLock lock(&mu_);
    if (write_done) writing_ = false;
    PumpLocked();
  }

  void PumpLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || finished_) return;
    if (out_queue_.empty() && ack_ && run_) {
      const PutRun::Progress p = run_->progress();
      v1::PutResponse r;
      r.mutable_received()->set_payload_bytes(p.payload_bytes);
      r.mutable_received()->set_stored_bytes(p.stored_bytes);
      out_queue_.push_back(FrameMessage(r));
      ack_ = false;
    }
    if (!out_queue_.empty()) {
      out_ = std::move(out_queue_.front());
      out_queue_.pop_front();
      writing_ = true;
      StartWrite(&out_);
      return;
    }
    if (ending_) {
      finished_ = true;
      Finish(record_.Finish(*ending_));
    }
  }

  Serving* const serving_;
  grpc::CallbackServerContext* const context_;
  CallRecord record_;
  std::shared_ptr<PutCall> self_;
  std::atomic<int64_t> activity_{0};
  grpc::ByteBuffer in_;
  std::shared_ptr<PutRun> run_;          // reads' thread
  std::optional<v1::PutCommit> commit_;  // reads' thread
  bool replaying_ = false;               // reads' thread

  absl::Mutex mu_;
  std::deque<grpc::ByteBuffer> out_queue_ ABSL_GUARDED_BY(mu_);
  grpc::ByteBuffer out_ ABSL_GUARDED_BY(mu_);
  bool ack_ ABSL_GUARDED_BY(mu_) = false;  // progress to be told
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool committing_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> ending_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<PutRun> abortable_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* NewPutCall(
    Serving* serving, grpc::CallbackServerContext* context) {
  auto call = std::make_shared<PutCall>(serving, context);
  call->Begin();
  return call.get();
}

}  // namespace kvcask
