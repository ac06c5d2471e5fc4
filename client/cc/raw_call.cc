#include "client/cc/raw_call.h"

#include <grpcpp/generic/generic_stub.h>

#include <utility>

#include "client/cc/status.h"

namespace kvcask {

RawCall::RawCall(std::shared_ptr<grpc::Channel> channel, const std::string& method,
                 std::unique_ptr<grpc::ClientContext> context, size_t read_ahead)
    : context_(std::move(context)), read_ahead_(read_ahead) {
  grpc::GenericStub(std::move(channel))
      .PrepareBidiStreamingCall(context_.get(), method, grpc::StubOptions(), this);
  AddHold();  // operations are started from outside gRPC's own threads until Finish
  {
    absl::MutexLock lock(&mu_);
    MaybeStartRead();
  }
  StartCall();
}

RawCall::~RawCall() {
  {
    absl::MutexLock lock(&mu_);
    if (!done_ && !read_ended_) context_->TryCancel();
  }
  Finish().IgnoreError();
}

bool RawCall::Write(grpc::ByteBuffer message) {
  absl::MutexLock lock(&mu_);
  const auto can_write = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return !writing_ || write_failed_ || read_ended_;
  };
  mu_.Await(absl::Condition(&can_write));
  if (write_failed_ || read_ended_ || writing_) return false;
  outgoing_.Swap(&message);
  writing_ = true;
  StartWrite(&outgoing_);
  return true;
}

void RawCall::WritesDone() {
  absl::MutexLock lock(&mu_);
  const auto can_write = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return !writing_ || write_failed_ || read_ended_;
  };
  mu_.Await(absl::Condition(&can_write));
  if (write_failed_ || read_ended_ || writing_) return;
  writing_ = true;
  StartWritesDone();
}

bool RawCall::Read(grpc::ByteBuffer* message) {
  absl::MutexLock lock(&mu_);
  const auto has_news = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return !arrived_.empty() || read_ended_;
  };
  mu_.Await(absl::Condition(&has_news));
  if (arrived_.empty()) return false;
  message->Swap(&arrived_.front());
  arrived_.pop_front();
  MaybeStartRead();
  return true;
}

bool RawCall::TryRead(grpc::ByteBuffer* message) {
  absl::MutexLock lock(&mu_);
  if (arrived_.empty()) return false;
  message->Swap(&arrived_.front());
  arrived_.pop_front();
  MaybeStartRead();
  return true;
}

absl::Status RawCall::Finish() {
  if (!hold_removed_) {
    hold_removed_ = true;
    {
      absl::MutexLock lock(&mu_);
      draining_ = true;
      arrived_.clear();
      MaybeStartRead();
    }
    RemoveHold();
  }
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&done_));
  return FromGrpc(status_);
}

void RawCall::MaybeStartRead() {
  if (reading_ || read_ended_ || (!draining_ && arrived_.size() >= read_ahead_)) return;
  reading_ = true;
  incoming_.Clear();
  StartRead(&incoming_);
}

void RawCall::OnReadDone(bool ok) {
  absl::MutexLock lock(&mu_);
  reading_ = false;
  if (!ok) {
    read_ended_ = true;
    return;
  }
  if (!draining_) {
    arrived_.emplace_back();
    arrived_.back().Swap(&incoming_);
  }
  MaybeStartRead();
}

void RawCall::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mu_);
  outgoing_.Clear();
  writing_ = false;
  if (!ok) write_failed_ = true;
}

void RawCall::OnWritesDoneDone(bool) {
  absl::MutexLock lock(&mu_);
  writing_ = false;
}

void RawCall::OnDone(const grpc::Status& status) {
  absl::MutexLock lock(&mu_);
  status_ = status;
  done_ = true;
}

}  // namespace kvcask
