// Bulk messages without the copy that a protobuf `bytes` field costs: PutRequest and
// GetResponse, whose `data` (field 15) holds a KvData whose `payload` (field 15) comes
// last. What Frame writes, any generated parser reads; what Unframe is given may be any
// valid encoding: where the fast form is not met it falls back to the generated parser.
//
// Shared by both ends. Thread-safe: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/types/span.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include "kvcask/v1/cache.pb.h"

namespace kvcask {

// A payload as it arrived: pieces of the transport's own memory, kept alive by this.
class Payload {
 public:
  absl::Span<const absl::Span<const uint8_t>> pieces() const { return pieces_; }
  uint64_t size() const { return size_; }

 private:
  friend class PayloadBuilder;
  std::vector<grpc::Slice> slices_;
  std::string copy_;  // of the fallback
  std::vector<absl::Span<const uint8_t>> pieces_;
  uint64_t size_ = 0;
};

// Message: v1::PutRequest or v1::GetResponse. On success, when message->has_data(), the
// payload is in `payload` and message->data().payload() is empty. INVALID_ARGUMENT: not a
// message of this kind. `payload` may be moved.
template <typename Message>
absl::Status Unframe(const grpc::ByteBuffer& buffer, Message* message, Payload* payload);

// The encoding of Message{data: KvData{head's fields, payload}}; the payload's slices are
// referenced, not copied. `head` must have no payload.
grpc::ByteBuffer FrameData(const v1::KvData& head, absl::Span<const grpc::Slice> payload);

// Any other message, by its own encoding.
template <typename Message>
grpc::ByteBuffer FrameMessage(const Message& message) {
  grpc::Slice slice(message.ByteSizeLong());
  message.SerializeToArray(const_cast<uint8_t*>(slice.begin()), static_cast<int>(slice.size()));
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace kvcask
