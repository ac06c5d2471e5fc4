// The client against a daemon that misbehaves: what a real one never does, a broken or hostile
// one may.
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>

#include "client/cc/client.h"
#include "client/cc/convert.h"
#include "codec/base/crc32c.h"
#include "kvcask/v1/cache.grpc.pb.h"
#include "kvcask/v1/info.grpc.pb.h"

namespace kvcask {
namespace {

constexpr uint64_t kCredit = 1000;

// One layer, one head, two elements: a token is 8 bytes of K and V in fp16.
Geometry Tiny() { return UniformGeometry(1, 1, 2, Rope()); }

v1::PutOpen TinyOpen() {
  v1::PutOpen open;
  open.mutable_session()->set_session_id("s");
  *open.mutable_geometry() = GeometryToProto(Tiny());
  open.set_dtype(v1::DTYPE_F16);
  open.set_token_count(512);
  return open;
}

class FakeCache final : public v1::CacheService::Service {
 public:
  grpc::Status Put(grpc::ServerContext*,
                   grpc::ServerReaderWriter<v1::PutResponse, v1::PutRequest>* stream) override {
    ++puts;
    if (failures_left-- > 0) return {grpc::StatusCode::UNAVAILABLE, "draining"};
    uint64_t received = 0, answered = 0;
    v1::PutRequest request;
    while (stream->Read(&request)) {
      v1::PutResponse response;
      if (request.has_open()) {
        last_open = request.open();
        response.mutable_opened()->set_credit_bytes(kCredit);
        stream->Write(response);
      } else if (request.has_data()) {
        const std::string& payload = request.data().payload();
        received += payload.size();
        max_in_flight = std::max(max_in_flight, received - answered);
        bytes += payload;
        crc_ok = crc_ok &&
                 request.data().crc32c() ==
                     Crc32c({reinterpret_cast<const uint8_t*>(payload.data()), payload.size()});
        // Answers late: only when the credit is used up.
        if (received - answered >= kCredit - 200) {
          answered = received;
          response.mutable_received()->set_payload_bytes(answered);
          stream->Write(response);
        }
      } else if (fail_commit) {
        return {grpc::StatusCode::UNAVAILABLE, "lost"};
      } else {
        response.mutable_committed()->set_version(1);
        stream->Write(response);
      }
    }
    return grpc::Status::OK;
  }

  grpc::Status Get(grpc::ServerContext*, const v1::GetRequest*,
                   grpc::ServerWriter<v1::GetResponse>* writer) override {
    for (const v1::GetResponse& r : answers) writer->Write(r);
    return grpc::Status::OK;
  }

  grpc::Status Lookup(grpc::ServerContext*, const v1::LookupRequest*,
                      v1::LookupResponse* response) override {
    ++lookups;
    if (failures_left-- > 0) return {grpc::StatusCode::UNAVAILABLE, "draining"};
    response->set_tokens(7);
    return grpc::Status::OK;
  }

  std::atomic<int> puts{0}, lookups{0}, failures_left{0};
  bool fail_commit = false, crc_ok = true;
  uint64_t max_in_flight = 0;
  std::string bytes;
  v1::PutOpen last_open;
  std::vector<v1::GetResponse> answers;
};

class FakeServiceTest : public testing::Test {
 protected:
  FakeServiceTest() {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    auto client = Client::Connect(absl::StrCat("127.0.0.1:", port));
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = std::make_unique<Client>(*std::move(client));
    for (size_t i = 0; i < run_.size(); ++i) run_[i] = static_cast<uint8_t>(i * 7 + i / 256);
    planes_[0] = {run_.data(), 0, 4, 2};
    planes_[1] = {run_.data() + 2048, 0, 4, 2};
  }
  RunSource Source(bool owned) {
    return {{Dtype::kF16, planes_, {}}, owned ? std::make_shared<int>(0) : nullptr};
  }
  std::string AllBytes() {  // as token-major rectangles of pages: K then V of each
    std::string out;
    for (int page = 0; page < 4; ++page) {
      for (int plane = 0; plane < 2; ++plane) {
        out.append(reinterpret_cast<const char*>(run_.data()) + plane * 2048 + page * 512, 512);
      }
    }
    return out;
  }

  v1::GetResponse Header(uint64_t tokens) {
    v1::GetResponse r;
    v1::GetHeader* h = r.mutable_header();
    *h->mutable_geometry() = GeometryToProto(Tiny());
    h->set_dtype(v1::DTYPE_F16);
    h->mutable_tokens()->set_end(tokens);
    h->mutable_layers()->set_end(1);
    h->set_payload_bytes(tokens * 8);
    return r;
  }
  v1::GetResponse Data(uint32_t tokens, const std::string& payload) {
    v1::GetResponse r;
    r.mutable_data()->mutable_rectangle()->set_layer_count(1);
    r.mutable_data()->mutable_rectangle()->set_token_count(tokens);
    r.mutable_data()->set_payload(payload);
    return r;
  }
  v1::GetResponse Summary(uint64_t bytes, uint64_t rectangles) {
    v1::GetResponse r;
    r.mutable_summary()->set_payload_bytes(bytes);
    r.mutable_summary()->set_rectangles(rectangles);
    return r;
  }
  absl::Status Drain() {
    auto stream = client_->OpenGet(v1::GetRequest());
    if (!stream.ok()) return stream.status();
    for (;;) {
      auto piece = stream->Next();
      if (!piece.ok()) return piece.status();
      if (!piece->has_value()) return absl::OkStatus();
    }
  }

  FakeCache service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Client> client_;
  std::vector<uint8_t> run_ = std::vector<uint8_t>(4096);
  ConstPlaneView planes_[2];
};

TEST_F(FakeServiceTest, PutNeverExceedsItsCreditAndSendsEveryByte) {
  for (const bool owned : {false, true}) {
    service_.bytes.clear();
    PutRunOptions options;
    options.message_bytes = 1024;
    const auto put = client_->PutRun(TinyOpen(), Source(owned), {}, options);
    ASSERT_TRUE(put.ok()) << put.status();
    EXPECT_EQ(service_.bytes, AllBytes());
    EXPECT_TRUE(service_.crc_ok);
    // A message larger than the credit goes alone.
    EXPECT_LE(service_.max_in_flight, std::max<uint64_t>(kCredit, 1024));
  }
}

TEST_F(FakeServiceTest, StridedSourcesAreGathered) {
  std::vector<uint8_t> wide(512 * 12);  // tokens 12 bytes apart
  for (int t = 0; t < 512; ++t) std::copy_n(run_.data() + t * 4, 4, wide.data() + t * 12);
  planes_[0] = {wide.data(), 0, 12, 2};
  const auto put = client_->PutRun(TinyOpen(), Source(true), {});
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_EQ(service_.bytes, AllBytes());
}

TEST_F(FakeServiceTest, ReadsAreRetriedWhenTheDaemonIsUnavailable) {
  service_.failures_left = 2;
  const auto found = client_->Lookup(v1::LookupRequest());
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->tokens(), 7u);
  EXPECT_EQ(service_.lookups, 3);
}

TEST_F(FakeServiceTest, RetriesEnd) {
  service_.failures_left = 1000;
  EXPECT_EQ(client_->Lookup(v1::LookupRequest()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(service_.lookups, 4);
}

TEST_F(FakeServiceTest, APutIsRetriedBeforeItsCommit) {
  service_.failures_left = 1;
  const auto put = client_->PutRun(TinyOpen(), Source(true), {});
  EXPECT_TRUE(put.ok()) << put.status();
  EXPECT_EQ(service_.puts, 2);
}

TEST_F(FakeServiceTest, APutThatMayBeCommittedIsRetriedOnlyWithAPutId) {
  service_.fail_commit = true;
  EXPECT_EQ(client_->PutRun(TinyOpen(), Source(true), {}).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(service_.puts, 1);
  v1::PutOpen open = TinyOpen();
  open.set_put_id("once");
  EXPECT_FALSE(client_->PutRun(open, Source(true), {}).ok());
  EXPECT_EQ(service_.puts, 5);
  EXPECT_EQ(service_.last_open.put_id(), "once");
}

TEST_F(FakeServiceTest, AGoodGetIsRead) {
  service_.answers = {Header(4), Data(4, std::string(32, 'x')), Summary(32, 1)};
  EXPECT_TRUE(Drain().ok()) << Drain();
}

TEST_F(FakeServiceTest, AGetThatEndsEarlyIsDataLoss) {
  service_.answers = {Header(4), Data(4, std::string(32, 'x'))};
  EXPECT_EQ(Drain().code(), absl::StatusCode::kDataLoss) << Drain();
  service_.answers = {Header(4), Summary(0, 0)};
  EXPECT_EQ(Drain().code(), absl::StatusCode::kDataLoss) << Drain();
  service_.answers = {Header(4), Data(4, std::string(32, 'x')), Summary(32, 2)};
  EXPECT_EQ(Drain().code(), absl::StatusCode::kDataLoss) << Drain();
}

TEST_F(FakeServiceTest, APayloadOfTheWrongSizeOrChecksumIsDataLoss) {
  service_.answers = {Header(4), Data(4, std::string(31, 'x')), Summary(31, 1)};
  EXPECT_EQ(Drain().code(), absl::StatusCode::kDataLoss) << Drain();
  service_.answers = {Header(4), Data(UINT32_MAX, std::string(32, 'x')), Summary(32, 1)};
  EXPECT_EQ(Drain().code(), absl::StatusCode::kDataLoss) << Drain();
  v1::GetResponse data = Data(4, std::string(32, 'x'));
  data.mutable_data()->set_crc32c(1);
  service_.answers = {Header(4), data, Summary(32, 1)};
  EXPECT_EQ(Drain().code(), absl::StatusCode::kDataLoss) << Drain();
}

TEST_F(FakeServiceTest, AnAnswerOutOfOrderOrOfAnotherWorldIsRefused) {
  service_.answers = {Data(4, std::string(32, 'x'))};
  EXPECT_EQ(Drain().code(), absl::StatusCode::kInternal) << Drain();
  service_.answers = {};
  EXPECT_EQ(Drain().code(), absl::StatusCode::kInternal) << Drain();
  service_.answers = {Header(4), Header(4)};
  EXPECT_EQ(Drain().code(), absl::StatusCode::kInternal) << Drain();
  v1::GetResponse header = Header(4);
  header.mutable_header()->mutable_geometry()->mutable_layers(0)->set_kind(
      static_cast<v1::Layer::Kind>(9));
  service_.answers = {header};
  EXPECT_EQ(Drain().code(), absl::StatusCode::kInvalidArgument) << Drain();
  v1::GetResponse data = Data(4, std::string(32, 'x'));
  data.mutable_data()->mutable_rectangle()->set_layer_begin(7);
  service_.answers = {Header(4), data};
  EXPECT_EQ(Drain().code(), absl::StatusCode::kInvalidArgument) << Drain();
}

TEST_F(FakeServiceTest, APieceIsNotCopiedOutsideItsDestination) {
  service_.answers = {Header(4), Data(4, std::string(32, 'x')), Summary(32, 1)};
  auto stream = client_->OpenGet(v1::GetRequest());
  ASSERT_TRUE(stream.ok());
  auto piece = stream->Next();
  ASSERT_TRUE(piece.ok() && piece->has_value());
  std::vector<uint8_t> memory(64, 0);
  // Token-major with dims apart: element (t, d) of K at t * 12 + d * 4, of V 2 bytes later.
  const PlaneView planes[2] = {{memory.data(), 0, 12, 4}, {memory.data() + 2, 0, 12, 4}};
  const KvView view = {Dtype::kF16, planes, {}};
  EXPECT_EQ((*piece)->CopyTo(view, 0, 0, 3).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*piece)->CopyTo(view, 0, 1, 4).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*piece)->CopyTo({Dtype::kF32, planes, {}}, 0, 0, 4).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(memory, std::vector<uint8_t>(64, 0));
  ASSERT_TRUE((*piece)->CopyTo(view, 0, 0, 4).ok());
  for (size_t i = 0; i < 64; ++i) {
    const bool inside = i < 48 && i % 12 < 8;
    EXPECT_EQ(memory[i], inside ? 'x' : 0) << i;
  }
}

}  // namespace
}  // namespace kvcask
