// A blocking face on one bidirectional stream of raw messages. It is what PutStream and
// GetStream are made of; programs use those.
//
// Belongs to one thread at a time, but Cancel may come from any.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/synchronization/mutex.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/client_callback.h>

#include <deque>
#include <memory>
#include <string>

namespace kvcask {

class RawCall final : private grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  // `method`: "/kvcask.v1.CacheService/Put". At most `read_ahead` messages are taken from
  // the network before Read asks for them; flow control holds back the rest.
  RawCall(std::shared_ptr<grpc::Channel> channel, const std::string& method,
          std::unique_ptr<grpc::ClientContext> context, size_t read_ahead);
  // Cancels a call that has not ended, and waits until gRPC has let go of it.
  ~RawCall() override;

  // Waits until the message before is on its way, then hands this one over. False when
  // the call has ended: Finish says why.
  bool Write(grpc::ByteBuffer message);
  // No more messages will be written.
  void WritesDone();
  // The next message; waits for it. False when there are no more.
  bool Read(grpc::ByteBuffer* message);
  // The same, but false at once when none has come yet.
  bool TryRead(grpc::ByteBuffer* message);
  // Discards what was not read and waits for the call's status. Later calls return it again.
  absl::Status Finish();
  void Cancel() { context_->TryCancel(); }

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnWritesDoneDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;
  void MaybeStartRead() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::unique_ptr<grpc::ClientContext> context_;
  const size_t read_ahead_;

  absl::Mutex mu_;
  std::deque<grpc::ByteBuffer> arrived_ ABSL_GUARDED_BY(mu_);
  grpc::ByteBuffer incoming_, outgoing_;  // gRPC's while reading_, writing_
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool read_ended_ ABSL_GUARDED_BY(mu_) = false;
  bool write_failed_ ABSL_GUARDED_BY(mu_) = false;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  grpc::Status status_ ABSL_GUARDED_BY(mu_);
  bool hold_removed_ = false;
};

}  // namespace kvcask
