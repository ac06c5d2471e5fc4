#include "proto/wire/kv_frame.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include <absl/strings/str_cat.h>

namespace kvcask {

using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

// Fills a Payload; the only one that may.
class PayloadBuilder {
 public:
  static void Reference(std::vector<grpc::Slice> slices, uint64_t skip, Payload* p) {
    p->slices_ = std::move(slices);
    for (const grpc::Slice& s : p->slices_) {
      const uint64_t drop = std::min<uint64_t>(skip, s.size());
      skip -= drop;
      if (drop < s.size()) p->pieces_.emplace_back(s.begin() + drop, s.size() - drop);
      p->size_ += s.size() - drop;
    }
  }
  static void Own(std::string bytes, Payload* p) {
    // A short string lives inside the object and would move with it.
    bytes.reserve(std::max<size_t>(bytes.size(), 64));
    p->copy_ = std::move(bytes);
    p->size_ = p->copy_.size();
    if (p->size_ > 0) {
      p->pieces_.emplace_back(reinterpret_cast<const uint8_t*>(p->copy_.data()), p->copy_.size());
    }
  }
};

namespace {

constexpr uint32_t kBytesTag15 = (15 << 3) | 2;  // both `data` and `payload`
static_assert(v1::PutRequest::kDataFieldNumber == 15, "framing");
static_assert(v1::GetResponse::kDataFieldNumber == 15, "framing");
static_assert(v1::KvData::kPayloadFieldNumber == 15, "framing");

constexpr size_t kMaxHead = 4096;  // of a data message's fields before its payload

// Reads `buffer` as one data message in the fast form: where its head lies and where its
// payload begins.
struct FastForm {
  size_t head_begin = 0, head_end = 0, payload_begin = 0;
};
bool FindFastForm(const uint8_t* bytes, size_t have, size_t total, FastForm* f) {
  CodedInputStream in(bytes, static_cast<int>(have));
  uint64_t length;
  if (in.ReadTag() != kBytesTag15 || !in.ReadVarint64(&length)) return false;
  if (length != total - in.CurrentPosition()) return false;
  f->head_begin = in.CurrentPosition();
  while (true) {
    f->head_end = in.CurrentPosition();
    const uint32_t tag = in.ReadTag();
    if (tag == 0) return false;
    if (tag == kBytesTag15) {
      if (!in.ReadVarint64(&length)) return false;
      f->payload_begin = in.CurrentPosition();
      return length == total - f->payload_begin;  // the last field
    }
    switch (tag & 7) {
      case 0:
        if (!in.ReadVarint64(&length)) return false;
        break;
      case 1:
        if (!in.Skip(8)) return false;
        break;
      case 2:
        if (!in.ReadVarint64(&length) || length > have || !in.Skip(static_cast<int>(length))) {
          return false;
        }
        break;
      case 5:
        if (!in.Skip(4)) return false;
        break;
      default:
        return false;
    }
  }
}

// The slices as one stream for the generated parser.
class SliceStream : public google::protobuf::io::ZeroCopyInputStream {
 public:
  explicit SliceStream(const std::vector<grpc::Slice>& slices) : slices_(slices) {}
  bool Next(const void** data, int* size) override {
    if (backed_up_ > 0) {
      *data = slices_[index_ - 1].end() - backed_up_;
      *size = static_cast<int>(backed_up_);
      count_ += static_cast<int64_t>(backed_up_);
      backed_up_ = 0;
      return true;
    }
    while (index_ < slices_.size() && slices_[index_].size() == 0) ++index_;
    if (index_ == slices_.size()) return false;
    const grpc::Slice& s = slices_[index_++];
    *data = s.begin();
    *size = static_cast<int>(s.size());
    count_ += *size;
    return true;
  }
  void BackUp(int count) override {
    backed_up_ = static_cast<size_t>(count);
    count_ -= count;
  }
  bool Skip(int count) override {
    const void* data;
    int size;
    while (count > 0 && Next(&data, &size)) {
      if (size > count) {
        BackUp(size - count);
        return true;
      }
      count -= size;
    }
    return count == 0;
  }
  int64_t ByteCount() const override { return count_; }

 private:
  const std::vector<grpc::Slice>& slices_;
  size_t index_ = 0;
  size_t backed_up_ = 0;
  int64_t count_ = 0;
};

}  // namespace

template <typename Message>
absl::Status Unframe(const grpc::ByteBuffer& buffer, Message* message, Payload* payload) {
  message->Clear();
  *payload = Payload();
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) return absl::InternalError("no bytes in the message");
  size_t total = 0;
  for (const grpc::Slice& s : slices) total += s.size();

  // The head is short, but may straddle slices.
  uint8_t head[kMaxHead];
  const uint8_t* first = slices.empty() ? head : slices[0].begin();
  size_t have = slices.empty() ? 0 : std::min(slices[0].size(), kMaxHead);
  if (have < std::min(total, kMaxHead)) {
    have = 0;
    for (const grpc::Slice& s : slices) {
      const size_t k = std::min(kMaxHead - have, s.size());
      if (k > 0) std::memcpy(head + have, s.begin(), k);
      have += k;
    }
    first = head;
  }
  FastForm f;
  if (FindFastForm(first, have, total, &f)) {
    if (!message->mutable_data()->ParseFromArray(first + f.head_begin,
                                                 static_cast<int>(f.head_end - f.head_begin))) {
      return absl::InvalidArgumentError("a data message whose fields cannot be read");
    }
    PayloadBuilder::Reference(std::move(slices), f.payload_begin, payload);
    return absl::OkStatus();
  }
  SliceStream stream(slices);
  if (!message->ParseFromZeroCopyStream(&stream)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a message of ", total, " bytes that is not a ", message->GetTypeName()));
  }
  if (message->has_data()) {
    PayloadBuilder::Own(std::move(*message->mutable_data()->mutable_payload()), payload);
    message->mutable_data()->clear_payload();
  }
  return absl::OkStatus();
}

template absl::Status Unframe(const grpc::ByteBuffer&, v1::PutRequest*, Payload*);
template absl::Status Unframe(const grpc::ByteBuffer&, v1::GetResponse*, Payload*);

grpc::ByteBuffer FrameData(const v1::KvData& head, absl::Span<const grpc::Slice> payload) {
  uint64_t payload_bytes = 0;
  for (const grpc::Slice& s : payload) payload_bytes += s.size();
  const size_t head_bytes = head.ByteSizeLong();
  const uint64_t inner = head_bytes + 1 + CodedOutputStream::VarintSize64(payload_bytes) + payload_bytes;
  const size_t size = 1 + CodedOutputStream::VarintSize64(inner) + (inner - payload_bytes);
  grpc::Slice first(size);
  uint8_t* p = const_cast<uint8_t*>(first.begin());
  *p++ = static_cast<uint8_t>(kBytesTag15);
  p = CodedOutputStream::WriteVarint64ToArray(inner, p);
  p = head.SerializeWithCachedSizesToArray(p);
  *p++ = static_cast<uint8_t>(kBytesTag15);
  CodedOutputStream::WriteVarint64ToArray(payload_bytes, p);
  std::vector<grpc::Slice> slices;
  slices.reserve(payload.size() + 1);
  slices.push_back(std::move(first));
  slices.insert(slices.end(), payload.begin(), payload.end());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace kvcask
