#include "client/cc/wire.h"

#include <cstring>

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>

namespace kvcask {
namespace {

using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

enum WireType : uint32_t { kVarint = 0, kLengthDelimited = 2, kFixed32 = 5 };
constexpr uint32_t Tag(int field, WireType type) {
  return static_cast<uint32_t>(field) << 3 | type;
}

constexpr int kDataField = v1::PutRequest::kDataFieldNumber;
static_assert(kDataField == v1::GetResponse::kDataFieldNumber, "the two encode data alike");

size_t LengthDelimitedHeaderSize(int field, size_t size) {
  return CodedOutputStream::VarintSize32(Tag(field, kLengthDelimited)) +
         CodedOutputStream::VarintSize64(size);
}

uint8_t* WriteLengthDelimitedHeader(int field, size_t size, uint8_t* p) {
  p = CodedOutputStream::WriteTagToArray(Tag(field, kLengthDelimited), p);
  return CodedOutputStream::WriteVarint64ToArray(size, p);
}

// One reference to `owner`, dropped by gRPC with the slice.
grpc::Slice BorrowedSlice(ConstBytes piece, const std::shared_ptr<const void>& owner) {
  auto* held = new std::shared_ptr<const void>(owner);
  return grpc::Slice(
      const_cast<uint8_t*>(piece.data()), piece.size(),
      [](void* p) { delete static_cast<std::shared_ptr<const void>*>(p); }, held);
}

bool ParseSubmessage(CodedInputStream* in, google::protobuf::MessageLite* message) {
  uint32_t size;
  if (!in->ReadVarint32(&size)) return false;
  const auto limit = in->PushLimit(static_cast<int>(size));
  if (!message->MergeFromCodedStream(in) || !in->ConsumedEntireMessage()) return false;
  in->PopLimit(limit);
  return true;
}

// The fields of a KvData up to the pushed limit. The payload's place is noted, not read.
bool ParseKvData(CodedInputStream* in, v1::KvData* data, uint64_t* offset, uint64_t* size) {
  bool has_payload = false;
  while (const uint32_t tag = in->ReadTag()) {
    switch (tag) {
      case Tag(v1::KvData::kRectangleFieldNumber, kLengthDelimited):
        if (!ParseSubmessage(in, data->mutable_rectangle())) return false;
        break;
      case Tag(v1::KvData::kCrc32CFieldNumber, kFixed32): {
        uint32_t crc;
        if (!in->ReadLittleEndian32(&crc)) return false;
        data->set_crc32c(crc);
        break;
      }
      case Tag(v1::KvData::kSharedMemoryFieldNumber, kLengthDelimited):
        if (!ParseSubmessage(in, data->mutable_shared_memory())) return false;
        break;
      case Tag(v1::KvData::kCudaIpcFieldNumber, kLengthDelimited):
        if (!ParseSubmessage(in, data->mutable_cuda_ipc())) return false;
        break;
      case Tag(v1::KvData::kPayloadFieldNumber, kLengthDelimited): {
        uint32_t length;
        if (has_payload || !in->ReadVarint32(&length)) return false;
        has_payload = true;
        *offset = in->CurrentPosition();
        *size = length;
        if (!in->Skip(static_cast<int>(length))) return false;
        break;
      }
      default:
        return false;
    }
  }
  return in->ConsumedEntireMessage();
}

}  // namespace

grpc::ByteBuffer SerializeToByteBuffer(const google::protobuf::MessageLite& message) {
  grpc::Slice slice(message.ByteSizeLong());
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return grpc::ByteBuffer(&slice, 1);
}

bool ParseFromByteBuffer(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message) {
  grpc::ByteBuffer copy(buffer);  // references; the reader wants a mutable one
  if (!copy.Valid()) return message->ParseFromArray(nullptr, 0);
  grpc::ProtoBufferReader reader(&copy);
  return reader.status().ok() && message->ParseFromZeroCopyStream(&reader);
}

grpc::ByteBuffer MakeDataMessage(const v1::Rectangle& rectangle, std::optional<uint32_t> crc32c,
                                 absl::Span<const ConstBytes> pieces,
                                 std::shared_ptr<const void> owner) {
  size_t payload_bytes = 0;
  for (ConstBytes p : pieces) payload_bytes += p.size();

  v1::KvData fields;
  *fields.mutable_rectangle() = rectangle;
  if (crc32c) fields.set_crc32c(*crc32c);
  const size_t fields_bytes = fields.ByteSizeLong();
  const size_t data_bytes =
      fields_bytes + LengthDelimitedHeaderSize(v1::KvData::kPayloadFieldNumber, payload_bytes) +
      payload_bytes;

  grpc::Slice head(LengthDelimitedHeaderSize(kDataField, data_bytes) + data_bytes - payload_bytes);
  uint8_t* p = const_cast<uint8_t*>(head.begin());
  p = WriteLengthDelimitedHeader(kDataField, data_bytes, p);
  p = fields.SerializeWithCachedSizesToArray(p);
  WriteLengthDelimitedHeader(v1::KvData::kPayloadFieldNumber, payload_bytes, p);

  std::vector<grpc::Slice> slices;
  slices.reserve(pieces.size() + 1);
  slices.push_back(std::move(head));
  for (ConstBytes piece : pieces) {
    if (!piece.empty()) slices.push_back(BorrowedSlice(piece, owner));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

bool ParseDataOnly(const grpc::ByteBuffer& buffer, DataMessage* out) {
  grpc::ByteBuffer copy(buffer);
  if (!copy.Valid()) return false;
  uint64_t offset = 0, size = 0;
  {
    grpc::ProtoBufferReader reader(&copy);
    if (!reader.status().ok()) return false;
    CodedInputStream in(&reader);
    if (in.ReadTag() != Tag(kDataField, kLengthDelimited)) return false;
    uint32_t length;
    if (!in.ReadVarint32(&length)) return false;
    const auto limit = in.PushLimit(static_cast<int>(length));
    if (!ParseKvData(&in, &out->data, &offset, &size)) return false;
    in.PopLimit(limit);
    if (in.ReadTag() != 0 || !in.ConsumedEntireMessage()) return false;
  }
  if (!copy.Dump(&out->slices).ok()) return false;
  out->payload_bytes = size;
  uint64_t begin = 0;  // of the slice, in the message
  for (const grpc::Slice& s : out->slices) {
    const uint64_t end = begin + s.size();
    const uint64_t from = std::max(begin, offset), to = std::min(end, offset + size);
    if (from < to) out->payload.emplace_back(s.begin() + (from - begin), to - from);
    begin = end;
  }
  return true;
}

}  // namespace kvcask
