#include "server/rpc/get_call.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/strings/str_cat.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include "codec/base/crc32c.h"
#include "proto/wire/kv_frame.h"
#include "server/pipeline/errors.h"
#include "server/pipeline/get_run.h"
#include "server/rpc/convert.h"

namespace kvcask {
namespace {

class GetCall : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                public std::enable_shared_from_this<GetCall> {
 public:
  GetCall(Serving* serving, grpc::CallbackServerContext* context)
      : serving_(serving), record_(serving, context, "Get") {}

  void Begin(const grpc::ByteBuffer* request) {
    self_ = shared_from_this();
    if (absl::Status s = serving_->CheckServing(); !s.ok()) return End(s);
    grpc::ProtoBufferReader reader(const_cast<grpc::ByteBuffer*>(request));
    if (!request_.ParseFromZeroCopyStream(&reader)) {
      return End(absl::InvalidArgumentError("a message that is not a GetRequest"));
    }
    // Opening reads every chunk's header: not on gRPC's thread.
    serving_->executor->Submit([self = self_] { self->Open(); });
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    if (!ok && !ending_) ending_ = absl::CancelledError("the client is gone");
    ahead_ -= out_bytes_;
    out_bytes_ = 0;
    Pump();
  }
  void OnCancel() override {
    End(absl::CancelledError("the call was cancelled or its deadline passed"));
  }
  void OnDone() override { self_.reset(); }

 private:
  struct Decoded {
    bool ready = false;
    std::vector<grpc::Slice> slices;
    uint32_t crc32c = 0;
  };

  void Open() {
    auto params = FromProto(request_);
    if (!params.ok()) return End(params.status());
    if (params->session) {
      record_.set_session(absl::StrCat(params->session->ns, "/", params->session->id));
    }
    auto run = serving_->pipeline->OpenGet(*params);
    if (!run.ok()) return End(run.status());

    uint64_t window = request_.window_bytes() == 0 ? serving_->config.get_window_bytes
                                                   : request_.window_bytes();
    window = std::min({window, serving_->config.get_window_bytes, (*run)->payload_bytes()});
    uint64_t largest = 0;
    for (const GetRectangle& r : (*run)->rectangles()) largest = std::max(largest, r.bytes);
    window = std::max(window, largest);  // one at least
    auto reservation = serving_->read_budget->Reserve(window, "decoding ahead of a reader");
    if (!reservation.ok()) {
      return End(WithReason(WithRetry(reservation.status(), absl::Milliseconds(200)), "OVER_BUDGET"));
    }
    v1::GetResponse header;
    *header.mutable_header() = HeaderOf(**run);

    absl::MutexLock lock(&mu_);
    run_ = *std::move(run);
    reservation_ = *std::move(reservation);
    window_ = window;
    decoded_.resize(run_->rectangles().size());
    first_ = FrameMessage(header);
    Pump();
  }

  // A chunk's own memory, which the slice keeps from going.
  static grpc::Slice Borrowed(absl::Span<const uint8_t> bytes,
                              const std::shared_ptr<const void>& owner) {
    return grpc::Slice(
        const_cast<uint8_t*>(bytes.data()), bytes.size(),
        [](void* p) { delete static_cast<std::shared_ptr<const void>*>(p); },
        new std::shared_ptr<const void>(owner));
  }

  // On an executor thread.
  void Decode(size_t i) {
    const GetRectangle& r = run_->rectangles()[i];
    {
      absl::MutexLock lock(&mu_);
      if (ending_) return;
    }
    std::vector<grpc::Slice> slices;
    uint32_t crc = 0;
    auto stored = run_->AsStored(r);
    if (!stored.ok()) return End(stored.status());
    if (*stored) {
      for (const auto& piece : (*stored)->pieces) {
        slices.push_back(Borrowed(piece, (*stored)->owner));
      }
      crc = (*stored)->crc32c;
    } else {
      slices.emplace_back(r.bytes);
      auto out = absl::MakeSpan(const_cast<uint8_t*>(slices[0].begin()), slices[0].size());
      absl::Status s = run_->Decode(r, out);
      if (!s.ok()) return End(s);
      if (request_.crc32c()) crc = Crc32c(out);
    }
    absl::MutexLock lock(&mu_);
    decoded_[i].slices = std::move(slices);
    decoded_[i].crc32c = crc;
    decoded_[i].ready = true;
    Pump();
  }

  // Starts what may be decoded, writes what is next.
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (finished_) return;
    if (!ending_ && run_) {
      const auto rectangles = run_->rectangles();
      while (next_decode_ < rectangles.size() &&
             (ahead_ == 0 || ahead_ + rectangles[next_decode_].bytes <= window_)) {
        ahead_ += rectangles[next_decode_].bytes;
        serving_->executor->Submit([self = shared_from_this(), i = next_decode_] { self->Decode(i); });
        ++next_decode_;
      }
    }
    if (writing_) return;
    if (!ending_ && first_) {
      Write(*std::move(first_));
      first_.reset();
    } else if (!ending_ && run_ && next_write_ < decoded_.size()) {
      if (decoded_[next_write_].ready) WriteRectangle(next_write_++);
    } else if (!ending_ && run_ && !summarised_) {
      v1::GetResponse m;
      m.mutable_summary()->set_payload_bytes(run_->payload_bytes());
      m.mutable_summary()->set_rectangles(run_->rectangles().size());
      summarised_ = true;
      Write(FrameMessage(m));
    } else if (ending_ || summarised_) {
      finished_ = true;
      reservation_ = Reservation();
      Finish(record_.Finish(ending_.value_or(absl::OkStatus())));
    }
  }

  void Write(grpc::ByteBuffer buffer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    out_ = std::move(buffer);
    writing_ = true;
    StartWrite(&out_);
  }

  void WriteRectangle(size_t i) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const GetRectangle& r = run_->rectangles()[i];
    const GetRun::Place p = run_->PlaceOf(r);
    v1::KvData head;
    v1::Rectangle* to = head.mutable_rectangle();
    to->set_layer_begin(static_cast<uint32_t>(p.layer_begin));
    to->set_layer_count(static_cast<uint32_t>(p.layer_count));
    to->set_head_begin(static_cast<uint32_t>(p.head_begin));
    to->set_head_count(static_cast<uint32_t>(p.head_count));
    to->set_token_begin(p.token_begin);
    to->set_token_count(p.token_count);
    if (request_.crc32c()) head.set_crc32c(decoded_[i].crc32c);
    const std::vector<grpc::Slice> payload = std::move(decoded_[i].slices);
    decoded_[i].slices.clear();
    out_bytes_ = r.bytes;
    serving_->metrics->Sent(r.bytes);
    Write(FrameData(head, payload));
  }

  void End(const absl::Status& status) {
    absl::MutexLock lock(&mu_);
    if (ending_ || finished_) return;
    ending_ = status;
    Pump();
  }

  Serving* const serving_;
  CallRecord record_;
  std::shared_ptr<GetCall> self_;
  v1::GetRequest request_;
  std::shared_ptr<GetRun> run_;

  absl::Mutex mu_;
  Reservation reservation_ ABSL_GUARDED_BY(mu_);
  std::vector<Decoded> decoded_ ABSL_GUARDED_BY(mu_);
  std::optional<grpc::ByteBuffer> first_ ABSL_GUARDED_BY(mu_);
  grpc::ByteBuffer out_ ABSL_GUARDED_BY(mu_);
  uint64_t out_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of the rectangle being written
  uint64_t window_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t ahead_ ABSL_GUARDED_BY(mu_) = 0;      // decoded or being so, not written
  size_t next_decode_ ABSL_GUARDED_BY(mu_) = 0;
  size_t next_write_ ABSL_GUARDED_BY(mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool summarised_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> ending_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* NewGetCall(Serving* serving,
                                                       grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) {
  auto call = std::make_shared<GetCall>(serving, context);
  call->Begin(request);
  return call.get();
}

}  // namespace kvcask
