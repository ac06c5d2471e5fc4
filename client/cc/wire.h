// The raw path for bulk data: PutRequest and GetResponse messages that carry KvData, made
// and read as grpc::ByteBuffer, so that payloads are neither copied into a std::string nor
// out of one. The bytes are the ordinary protobuf encoding: any generated parser reads what
// is made here, and everything a generated serialiser makes is read here.
//
// Thread-safe: values and pure functions.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>
#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include "kvcask/v1/cache.pb.h"

namespace kvcask {

using ConstBytes = absl::Span<const uint8_t>;

// The encoding of any message, in one slice.
grpc::ByteBuffer SerializeToByteBuffer(const google::protobuf::MessageLite& message);
// False: not an encoding of that message.
bool ParseFromByteBuffer(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message);

// Messages whose field 15 is `KvData data`: PutRequest and GetResponse encode it alike.
// The payload is the concatenation of `pieces`, whose memory the buffer refers to:
// `owner` is held until gRPC has let go of the last of them.
grpc::ByteBuffer MakeDataMessage(const v1::Rectangle& rectangle, std::optional<uint32_t> crc32c,
                                 absl::Span<const ConstBytes> pieces,
                                 std::shared_ptr<const void> owner);

// A KvData whose payload stayed where gRPC received it.
struct DataMessage {
  v1::KvData data;                   // all but the payload
  std::vector<grpc::Slice> slices;   // keep the payload's memory alive
  std::vector<ConstBytes> payload;   // in order
  uint64_t payload_bytes = 0;
};

// Reads a message of the same form, with its fields in any valid order. Sets *data when
// field 15 is there, and *rest from the whole message otherwise. INVALID_ARGUMENT: it is not
// a message of this form.
// `Message`: v1::PutRequest or v1::GetResponse.
template <typename Message>
absl::Status ParseDataMessage(const grpc::ByteBuffer& buffer, std::optional<DataMessage>* data,
                              Message* rest);

// What ParseDataMessage tries first: true when `buffer` holds one `data` field and nothing
// else. No copy of the payload.
bool ParseDataOnly(const grpc::ByteBuffer& buffer, DataMessage* out);

// ---- implementation

template <typename Message>
absl::Status ParseDataMessage(const grpc::ByteBuffer& buffer, std::optional<DataMessage>* data,
                              Message* rest) {
  data->reset();
  rest->Clear();
  DataMessage fast;
  if (ParseDataOnly(buffer, &fast)) {
    *data = std::move(fast);
    return absl::OkStatus();
  }
  // Small messages, and rare but valid encodings: fields given twice, unknown fields.
  if (!ParseFromByteBuffer(buffer, rest)) {
    return absl::InvalidArgumentError("the message is not a valid " + rest->GetTypeName());
  }
  if (!rest->has_data()) return absl::OkStatus();
  DataMessage& d = data->emplace();
  d.data = std::move(*rest->mutable_data());
  rest->Clear();
  std::string payload = std::move(*d.data.mutable_payload());
  d.data.clear_payload();
  d.payload_bytes = payload.size();
  d.slices.emplace_back(payload.data(), payload.size());
  d.payload.emplace_back(d.slices[0].begin(), d.slices[0].size());
  return absl::OkStatus();
}

}  // namespace kvcask
