// Put and Get as streams that a program drives rectangle by rectangle. Client opens them;
// see client.h for the whole-run calls most programs want.
//
// Each belongs to one thread at a time, but Cancel may come from any. Destroying one that
// has not ended cancels it: a put without its commit leaves nothing behind.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "client/cc/raw_call.h"
#include "codec/base/geometry.h"
#include "codec/base/views.h"
#include "kvcask/v1/cache.pb.h"
#include "proto/wire/kv_frame.h"

namespace kvcask {

using ConstBytes = absl::Span<const uint8_t>;

class PutStream {
 public:
  // Sends `open` and waits for its answer. Used by Client::OpenPut.
  static absl::StatusOr<PutStream> Open(std::unique_ptr<RawCall> call, const v1::PutOpen& open);

  // Set when put_id was committed before: nothing needs to be written; Commit returns it.
  bool replayed() const { return committed_.has_value(); }
  const v1::PutOpened& opened() const { return opened_; }

  // Sends one rectangle, whose elements are the concatenation of `pieces`. Waits while more
  // than opened().credit_bytes would be unanswered. Without an owner the pieces are copied;
  // with one they are not, and must stay as they are until `owner` is released. The CRC32C
  // of the payload goes with it.
  // An error is the call's: the put has failed and nothing of it is kept.
  absl::Status Write(const v1::Rectangle& rectangle, absl::Span<const ConstBytes> pieces,
                     std::shared_ptr<const void> owner = nullptr);
  absl::Status Write(const v1::Rectangle& rectangle, ConstBytes payload,
                     std::shared_ptr<const void> owner = nullptr) {
    return Write(rectangle, absl::MakeConstSpan(&payload, 1), std::move(owner));
  }

  // Commits and waits for the answer. After UNAVAILABLE or DEADLINE_EXCEEDED from here the
  // run may be committed or not: ask again with the same put_id.
  absl::StatusOr<v1::PutCommitted> Commit(const v1::PutCommit& commit);

  void Cancel() { call_->Cancel(); }

  uint64_t sent_bytes() const { return sent_bytes_; }
  uint64_t received_bytes() const { return received_.payload_bytes(); }  // answered
  uint64_t stored_bytes() const { return received_.stored_bytes(); }

 private:
  explicit PutStream(std::unique_ptr<RawCall> call) : call_(std::move(call)) {}
  absl::Status Take(const grpc::ByteBuffer& message);
  absl::Status Failed();  // the call's status; never OK

  std::unique_ptr<RawCall> call_;
  v1::PutOpened opened_;
  v1::PutReceived received_;
  std::optional<v1::PutCommitted> committed_;
  uint64_t sent_bytes_ = 0;
};

// One rectangle of a Get, where gRPC received it.
class KvPiece {
 public:
  const v1::Rectangle& rectangle() const { return data_.rectangle(); }
  absl::Span<const ConstBytes> payload() const { return payload_.pieces(); }
  uint64_t payload_bytes() const { return payload_.size(); }

  // Copies the elements into `destination`, whose first plane is the first of layer
  // `layer_begin`, whose token 0 is the session's `token_begin` and which holds `tokens`
  // tokens; heads are the model's. INVALID_ARGUMENT: another dtype, or the rectangle is not
  // inside it; then nothing was written.
  absl::Status CopyTo(const KvView& destination, int layer_begin, uint64_t token_begin,
                      uint64_t tokens) const;

 private:
  friend class GetStream;
  v1::KvData data_;  // all but the payload
  Payload payload_;
  Dtype dtype_ = Dtype::kBf16;
  const Geometry* geometry_ = nullptr;  // of the stream
};

class GetStream {
 public:
  // Sends the request and waits for the header. Used by Client::OpenGet.
  static absl::StatusOr<GetStream> Open(std::unique_ptr<RawCall> call,
                                        const v1::GetRequest& request);

  const v1::GetHeader& header() const { return header_; }
  const Geometry& geometry() const { return *geometry_; }
  Dtype dtype() const { return dtype_; }

  // The next rectangle, or none after the last. Its size was compared with what it says that
  // it covers, and its checksum, where there is one, was verified (DATA_LOSS). The piece
  // refers to this stream's geometry. At the end, the bytes received were compared with the
  // summary and the header.
  absl::StatusOr<std::optional<KvPiece>> Next();

  void Cancel() { call_->Cancel(); }
  uint64_t received_bytes() const { return received_bytes_; }

 private:
  explicit GetStream(std::unique_ptr<RawCall> call) : call_(std::move(call)) {}
  absl::Status CheckEnd(const v1::GetSummary& summary) const;

  std::unique_ptr<RawCall> call_;
  v1::GetHeader header_;
  std::unique_ptr<const Geometry> geometry_;
  Dtype dtype_ = Dtype::kBf16;
  uint64_t received_bytes_ = 0;
  uint64_t rectangles_ = 0;
  bool ended_ = false;
};

}  // namespace kvcask
