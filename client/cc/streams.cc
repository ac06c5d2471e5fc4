#include "client/cc/streams.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <cstring>

#include "client/cc/convert.h"
#include "client/cc/rectangles.h"
#include "client/cc/status.h"
#include "codec/base/crc32c.h"

namespace kvcask {
namespace {

absl::Status UnexpectedMessage(const char* found, const char* expected) {
  return absl::InternalError(
      absl::StrCat("the daemon sent ", found, " where ", expected, " was expected"));
}

bool Parse(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message) {
  grpc::ByteBuffer copy(buffer);  // of references; the reader wants a mutable one
  if (!copy.Valid()) return message->ParseFromArray(nullptr, 0);
  grpc::ProtoBufferReader reader(&copy);
  return reader.status().ok() && message->ParseFromZeroCopyStream(&reader);
}

// The piece's own memory; one reference to `owner`, which gRPC drops with the slice.
grpc::Slice BorrowedSlice(ConstBytes piece, const std::shared_ptr<const void>& owner) {
  auto* held = new std::shared_ptr<const void>(owner);
  return grpc::Slice(
      const_cast<uint8_t*>(piece.data()), piece.size(),
      [](void* p) { delete static_cast<std::shared_ptr<const void>*>(p); }, held);
}

// Reads a sequence of pieces as one run of bytes.
class PieceReader {
 public:
  explicit PieceReader(absl::Span<const ConstBytes> pieces) : pieces_(pieces) {}
  // The next n bytes are there: sizes were checked before.
  void Copy(uint8_t* dst, size_t n) {
    while (n > 0) {
      const size_t k = std::min(n, pieces_[i_].size() - at_);
      std::memcpy(dst, pieces_[i_].data() + at_, k);
      dst += k;
      n -= k;
      at_ += k;
      if (at_ == pieces_[i_].size()) {
        ++i_;
        at_ = 0;
      }
    }
  }

 private:
  absl::Span<const ConstBytes> pieces_;
  size_t i_ = 0, at_ = 0;
};

std::string NameOf(const v1::Rectangle& r) {
  return absl::StrCat("rectangle of layers [", r.layer_begin(), ", ",
                      uint64_t{r.layer_begin()} + r.layer_count(), "), tokens [", r.token_begin(),
                      ", ", r.token_begin() + r.token_count(), ")");
}

}  // namespace

// ---- PutStream

absl::StatusOr<PutStream> PutStream::Open(std::unique_ptr<RawCall> call, const v1::PutOpen& open) {
  PutStream stream(std::move(call));
  v1::PutRequest request;
  *request.mutable_open() = open;
  grpc::ByteBuffer answer;
  if (!stream.call_->Write(FrameMessage(request)) || !stream.call_->Read(&answer)) {
    return stream.Failed();
  }
  v1::PutResponse response;
  if (!Parse(answer, &response)) return UnexpectedMessage("noise", "opened");
  if (response.has_committed()) {
    stream.committed_ = response.committed();
  } else if (response.has_opened()) {
    stream.opened_ = response.opened();
  } else {
    return UnexpectedMessage("another message", "opened");
  }
  return stream;
}

absl::Status PutStream::Failed() {
  const absl::Status status = call_->Finish();
  if (!status.ok()) return status;
  return absl::InternalError("the daemon ended the put without an error and without a commit");
}

absl::Status PutStream::Take(const grpc::ByteBuffer& message) {
  v1::PutResponse response;
  if (!Parse(message, &response)) return UnexpectedMessage("noise", "received");
  if (response.has_received()) {
    received_ = response.received();
  } else if (response.has_committed()) {
    committed_ = response.committed();
  } else {
    return UnexpectedMessage("another message", "received or committed");
  }
  return absl::OkStatus();
}

absl::Status PutStream::Write(const v1::Rectangle& rectangle, absl::Span<const ConstBytes> pieces,
                              std::shared_ptr<const void> owner) {
  uint64_t bytes = 0;
  for (ConstBytes p : pieces) bytes += p.size();

  uint32_t crc = 0;
  ConstBytes copied;
  if (owner == nullptr) {
    auto copy = std::make_shared<std::vector<uint8_t>>(bytes);
    uint8_t* to = copy->data();
    for (ConstBytes p : pieces) {
      crc = Crc32cCopy(to, p.data(), p.size(), crc);
      to += p.size();
    }
    copied = *copy;
    pieces = absl::MakeConstSpan(&copied, 1);
    owner = std::move(copy);
  } else {
    for (ConstBytes p : pieces) crc = Crc32cExtend(crc, p);
  }

  grpc::ByteBuffer answer;
  while (call_->TryRead(&answer)) {
    if (absl::Status s = Take(answer); !s.ok()) return s;
  }
  while (sent_bytes_ > received_bytes() &&
         sent_bytes_ - received_bytes() + bytes > opened_.credit_bytes()) {
    if (!call_->Read(&answer)) return Failed();
    if (absl::Status s = Take(answer); !s.ok()) return s;
  }
  v1::KvData head;
  *head.mutable_rectangle() = rectangle;
  head.set_crc32c(crc);
  std::vector<grpc::Slice> slices;
  slices.reserve(pieces.size());
  for (ConstBytes p : pieces) {
    if (!p.empty()) slices.push_back(BorrowedSlice(p, owner));
  }
  if (!call_->Write(FrameData(head, slices))) return Failed();
  sent_bytes_ += bytes;
  return absl::OkStatus();
}

absl::StatusOr<v1::PutCommitted> PutStream::Commit(const v1::PutCommit& commit) {
  if (!replayed()) {
    v1::PutRequest request;
    *request.mutable_commit() = commit;
    if (!call_->Write(FrameMessage(request))) return Failed();
  }
  call_->WritesDone();
  grpc::ByteBuffer answer;
  while (!committed_) {
    if (!call_->Read(&answer)) return Failed();
    if (absl::Status s = Take(answer); !s.ok()) return s;
  }
  if (absl::Status s = call_->Finish(); !s.ok()) return s;
  return *committed_;
}

// ---- GetStream

absl::StatusOr<GetStream> GetStream::Open(std::unique_ptr<RawCall> call,
                                          const v1::GetRequest& request) {
  GetStream stream(std::move(call));
  if (stream.call_->Write(FrameMessage(request))) stream.call_->WritesDone();
  grpc::ByteBuffer answer;
  if (!stream.call_->Read(&answer)) {
    const absl::Status status = stream.call_->Finish();
    return status.ok() ? absl::InternalError("the daemon ended the get without a header") : status;
  }
  v1::GetResponse response;
  if (!Parse(answer, &response) || !response.has_header()) {
    return UnexpectedMessage("another message", "the header");
  }
  stream.header_ = std::move(*response.mutable_header());
  auto geometry = GeometryFromProto(stream.header_.geometry());
  if (!geometry.ok()) return Annotate(geometry.status(), "the geometry of the answer");
  stream.geometry_ = std::make_unique<const Geometry>(*std::move(geometry));
  const auto dtype = DtypeFromProto(stream.header_.dtype());
  if (!dtype.ok()) return Annotate(dtype.status(), "the answer");
  stream.dtype_ = *dtype;
  return stream;
}

absl::Status GetStream::CheckEnd(const v1::GetSummary& summary) const {
  if (summary.payload_bytes() == received_bytes_ && summary.rectangles() == rectangles_ &&
      header_.payload_bytes() == received_bytes_) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrFormat(
      "received %u bytes in %u rectangles; the summary says %u in %u, the header %u bytes",
      received_bytes_, rectangles_, summary.payload_bytes(), summary.rectangles(),
      header_.payload_bytes()));
}

absl::StatusOr<std::optional<KvPiece>> GetStream::Next() {
  if (ended_) return std::nullopt;
  grpc::ByteBuffer message;
  if (!call_->Read(&message)) {
    ended_ = true;
    const absl::Status status = call_->Finish();
    return status.ok() ? absl::DataLossError("the daemon ended the get without a summary") : status;
  }
  v1::GetResponse response;
  KvPiece piece;
  if (absl::Status s = Unframe(message, &response, &piece.payload_); !s.ok()) {
    return Annotate(s, "the daemon's answer");
  }
  if (!response.has_data()) {
    if (!response.has_summary()) return UnexpectedMessage("another message", "data or the summary");
    ended_ = true;
    if (absl::Status s = CheckEnd(response.summary()); !s.ok()) return s;
    if (absl::Status s = call_->Finish(); !s.ok()) return s;
    return std::nullopt;
  }

  piece.data_ = std::move(*response.mutable_data());
  piece.dtype_ = dtype_;
  piece.geometry_ = geometry_.get();
  const v1::KvData& d = piece.data_;
  if (d.location_case() != v1::KvData::LOCATION_NOT_SET) {
    return absl::UnimplementedError("the payload is not inline");
  }
  const auto planes = PlanesOf(*geometry_, d.rectangle());
  if (!planes.ok()) return planes.status();
  if (d.rectangle().token_count() > piece.payload_bytes()) {  // so the product can't overflow
    return absl::DataLossError(
        absl::StrCat(NameOf(d.rectangle()), ": only ", piece.payload_bytes(), " bytes of payload"));
  }
  const int64_t expected = RectangleBytes(*planes, d.rectangle().token_count(), dtype_);
  if (static_cast<uint64_t>(expected) != piece.payload_bytes()) {
    return absl::DataLossError(absl::StrCat(NameOf(d.rectangle()), ": ", piece.payload_bytes(),
                                            " bytes of payload, expected ", expected));
  }
  if (d.has_crc32c()) {
    uint32_t crc = 0;
    for (ConstBytes p : piece.payload()) crc = Crc32cExtend(crc, p);
    if (crc != d.crc32c()) {
      return absl::DataLossError(absl::StrFormat("%s: CRC32C %08x of what arrived, %08x was sent",
                                                 NameOf(d.rectangle()), crc, d.crc32c()));
    }
  }
  received_bytes_ += piece.payload_bytes();
  ++rectangles_;
  return std::optional<KvPiece>(std::move(piece));
}

// ---- KvPiece

absl::Status KvPiece::CopyTo(const KvView& destination, int layer_begin, uint64_t token_begin,
                             uint64_t tokens) const {
  const v1::Rectangle& r = rectangle();
  if (destination.dtype != dtype_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the destination is ", DtypeName(destination.dtype), ", the data ", DtypeName(dtype_)));
  }
  const auto planes = PlanesOf(*geometry_, r);
  if (!planes.ok()) return planes.status();
  const int first = FirstPlane(*geometry_, layer_begin);
  if (r.token_begin() < token_begin || r.token_begin() - token_begin > tokens ||
      r.token_count() > tokens - (r.token_begin() - token_begin) || planes->front().plane < first ||
      planes->back().plane - first >= static_cast<int>(destination.planes.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat(NameOf(r), " is not inside the destination: layers from ", layer_begin,
                     ", tokens [", token_begin, ", ", token_begin + tokens, ")"));
  }
  const size_t element = DtypeSize(dtype_);
  const int64_t t0 = static_cast<int64_t>(r.token_begin() - token_begin);
  const int64_t count = r.token_count();
  PieceReader in(payload());
  for (const RectanglePlane& p : *planes) {
    const int plane = p.plane - first;
    const PlaneView& to = destination.planes[plane];
    const size_t row = p.head_dim * element;
    const bool dense = to.dim_stride == static_cast<int64_t>(element);
    const bool one_run =
        dense && destination.pages.offsets.empty() && to.token_stride == static_cast<int64_t>(row);
    for (int h = p.head_begin; h < p.head_end; ++h) {
      if (one_run) {
        in.Copy(destination.At(plane, h, t0, 0), row * count);
        continue;
      }
      for (int64_t t = t0; t < t0 + count; ++t) {
        if (dense) {
          in.Copy(destination.At(plane, h, t, 0), row);
        } else {
          for (int d = 0; d < p.head_dim; ++d) in.Copy(destination.At(plane, h, t, d), element);
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvcask
