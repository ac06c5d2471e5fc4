// What a client may get wrong: each answers with its code and a text that says what was
// found, what was expected and where; and nothing of it is stored.
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <absl/time/time.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <limits>

#include "client/cc/raw_call.h"
#include "kvcask/v1/cache.grpc.pb.h"
#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

using absl::StatusCode;

class BadInputTest : public testing::Test {
 protected:
  // `texts` must all be in the message; nothing may be left.
  void ExpectRefused(const absl::Status& status, StatusCode code,
                     const std::vector<std::string>& texts) {
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& text : texts) {
      EXPECT_TRUE(absl::StrContains(status.message(), text))
          << "\"" << text << "\" is not in: " << status.message();
    }
    EXPECT_TRUE(Eventually([&] { return HoldsNothing(client_); }));
    EXPECT_EQ(client_.StatSession(Ref("s")).status().code(), StatusCode::kNotFound);
  }
  // An open that is refused.
  void ExpectOpenRefused(const v1::PutOpen& open, StatusCode code,
                         const std::vector<std::string>& texts) {
    ExpectRefused(client_.OpenPut(open).status(), code, texts);
  }
  // A good open (raw, 128 tokens), then these rectangles and a commit.
  void ExpectRunRefused(const std::vector<std::pair<v1::Rectangle, std::vector<uint8_t>>>& run,
                        StatusCode code, const std::vector<std::string>& texts,
                        const std::string& codec = "raw") {
    auto put = client_.OpenPut(OpenOf("s", codec, 0, 128));
    ASSERT_TRUE(put.ok()) << Describe(put.status());
    absl::Status status;
    for (const auto& [rectangle, payload] : run) {
      if (status.ok()) status = put->Write(rectangle, payload);
    }
    if (status.ok()) status = put->Commit(Seal()).status();
    ExpectRefused(status, code, texts);
  }
  // Messages as they are, then the end of the client's side.
  absl::Status Send(const std::vector<grpc::ByteBuffer>& messages) {
    RawCall call(grpc::CreateChannel(daemon_.unix_address(), grpc::InsecureChannelCredentials()),
                 "/kvcask.v1.CacheService/Put", std::make_unique<grpc::ClientContext>(), 64);
    for (const grpc::ByteBuffer& m : messages) {
      if (!call.Write(m)) break;
    }
    call.WritesDone();
    return call.Finish();
  }
  static grpc::ByteBuffer Message(const v1::PutOpen& open) {
    v1::PutRequest m;
    *m.mutable_open() = open;
    return FrameMessage(m);
  }
  static grpc::ByteBuffer Commit() {
    v1::PutRequest m;
    m.mutable_commit();
    return FrameMessage(m);
  }
  static grpc::ByteBuffer Data(const v1::Rectangle& r, bool good_crc = true) {
    const std::vector<uint8_t> bytes = ExampleBytes(r);
    v1::PutRequest m;
    *m.mutable_data()->mutable_rectangle() = r;
    m.mutable_data()->set_payload(bytes.data(), bytes.size());
    if (!good_crc) m.mutable_data()->set_crc32c(0x12345678);
    return FrameMessage(m);
  }
  static std::pair<v1::Rectangle, std::vector<uint8_t>> Good(const v1::Rectangle& r) {
    return {r, ExampleBytes(r)};
  }

  Daemon daemon_;
  Client client_ = daemon_.Connect();
};

TEST_F(BadInputTest, UnknownCodecsAndProfiles) {
  ExpectOpenRefused(OpenOf("s", "zip"), StatusCode::kUnimplemented,
                    {"unknown codec 'zip'", "raw", "int8"});
  v1::PutOpen open = OpenOf("s", "int8");
  open.mutable_codec()->set_profile_fingerprint(std::string(32, '\x5a'));
  ExpectOpenRefused(open, StatusCode::kNotFound, {"profile", "5a5a5a5a"});
  open.mutable_codec()->set_profile_fingerprint("short");
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"profile_fingerprint", "5 bytes", "32"});
  open = OpenOf("s", "raw");
  open.mutable_codec()->set_quality("compact");
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"raw", "quality", "compact"});
}

TEST_F(BadInputTest, NamesAndIdentity) {
  v1::PutOpen open = OpenOf("", "raw");
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"session_id", "0 bytes", "1 to 256"});
  ExpectOpenRefused(OpenOf("a/b", "raw"), StatusCode::kInvalidArgument, {"session_id", "'/'"});
  ExpectOpenRefused(OpenOf(std::string(257, 'x'), "raw"), StatusCode::kInvalidArgument,
                    {"session_id", "257"});
  open = OpenOf("s", "raw");
  open.mutable_session()->set_namespace_("new\nline");
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"namespace", "\\n"});
  open = OpenOf("s", "raw");
  open.mutable_identity()->clear_model_id();
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"model_id", "1 to 512"});
  open = OpenOf("s", "raw");
  open.set_put_id(std::string(129, 'p'));
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"put_id", "129", "128"});
}

TEST_F(BadInputTest, Geometries) {
  v1::PutOpen open = OpenOf("s", "raw");
  open.clear_geometry();
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"geometry.layers", "found 0"});
  open = OpenOf("s", "raw");
  open.mutable_geometry()->mutable_layers(7)->mutable_streams(0)->set_heads(0);
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"layer 7", "heads"});
  open = OpenOf("s", "raw");
  open.mutable_geometry()->mutable_layers(2)->mutable_streams(1)->set_head_dim(5000);
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"layers[2]", "head_dim", "5000", "4096"});
  open = OpenOf("s", "raw");
  open.mutable_geometry()->mutable_layers(3)->mutable_rope()->set_dims(63);
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"layer 3", "63"});
  open = OpenOf("s", "raw");
  open.mutable_geometry()->mutable_layers(4)->mutable_rope()->set_scaling("longrope");
  ExpectOpenRefused(open, StatusCode::kUnimplemented, {"layers[4]", "longrope"});
  open = OpenOf("s", "raw");
  for (int i = 0; i < 1000; ++i) *open.mutable_geometry()->add_layers() = open.geometry().layers(0);
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"geometry.layers", "1030", "1024"});
}

TEST_F(BadInputTest, CountsDtypesAndShards) {
  v1::PutOpen open = OpenOf("s", "raw");
  open.set_token_count(0);
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"token_count", "found 0"});
  open = OpenOf("s", "raw");
  open.mutable_token_ids()->RemoveLast();
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"token_ids", "255", "256"});
  open = OpenOf("s", "raw");
  open.mutable_positions()->add_explicit_(3);
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"positions.explicit", "found 1", "256"});
  open = OpenOf("s", "raw");
  open.mutable_positions()->set_first_position(uint64_t{1} << 32);
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"first_position", "4294967296"});
  open = OpenOf("s", "raw", 10, 20);
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"token 10", "holds 0"});
  open = OpenOf("s", "raw");
  open.clear_dtype();
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"dtype", "BF16"});
  open.set_dtype(v1::DTYPE_F8_E4M3);
  ExpectOpenRefused(open, StatusCode::kUnimplemented, {"FP8"});
  open = OpenOf("s", "raw");
  open.mutable_shard()->set_index(2);
  open.mutable_shard()->set_count(2);
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"shard", "index 2 of 2"});
  open = OpenOf("s", "raw");
  open.mutable_shard()->set_layer_begin(5);
  open.mutable_shard()->set_layer_end(31);
  ExpectOpenRefused(open, StatusCode::kInvalidArgument, {"shard", "[5, 31)", "[0, 30)"});
}

TEST_F(BadInputTest, PayloadsOfAnotherSize) {
  auto [r, bytes] = Good(MakeRectangle(0, 30, 0, 128));
  bytes.pop_back();
  ExpectRunRefused({{r, bytes}}, StatusCode::kInvalidArgument,
                   {"payload has 2949119 bytes", "needs 2949120"});
  bytes.resize(bytes.size() + 2);
  ExpectRunRefused({{r, bytes}}, StatusCode::kInvalidArgument,
                   {"payload has 2949121 bytes", "needs 2949120"});
  ExpectRunRefused({{r, {}}}, StatusCode::kInvalidArgument, {"payload has 0 bytes"});
}

TEST_F(BadInputTest, RectanglesOutsideOrOverlapping) {
  const std::vector<uint8_t> some(768);
  const uint32_t top = std::numeric_limits<uint32_t>::max();
  ExpectRunRefused({{MakeRectangle(29, 2, 0, 1), some}}, StatusCode::kInvalidArgument,
                   {"layers [29, 31)", "[0, 30)"});
  ExpectRunRefused({{MakeRectangle(top, 1, 0, 1), some}}, StatusCode::kInvalidArgument,
                   {"layer_begin", "4294967295"});
  ExpectRunRefused({{MakeRectangle(0, 1, 127, 2), some}}, StatusCode::kInvalidArgument,
                   {"tokens [127, 129)", "[0, 128)"});
  ExpectRunRefused({{MakeRectangle(0, 1, std::numeric_limits<uint64_t>::max(), 1), some}},
                   StatusCode::kInvalidArgument, {"tokens", "[0, 128)"});
  ExpectRunRefused({{MakeRectangle(0, 1, 0, 0), some}}, StatusCode::kInvalidArgument, {"0 tokens"});
  v1::Rectangle heads = MakeRectangle(0, 1, 0, 1);
  heads.set_head_begin(2);
  heads.set_head_count(2);
  ExpectRunRefused({{heads, some}}, StatusCode::kInvalidArgument, {"heads [2, 4)", "[0, 3)"});
  v1::Rectangle latent = MakeRectangle(0, 1, 0, 1);
  latent.add_streams(v1::STREAM_KIND_LATENT);
  ExpectRunRefused({{latent, some}}, StatusCode::kInvalidArgument, {"no streams"});
  ExpectRunRefused({Good(MakeRectangle(0, 2, 0, 128)), Good(MakeRectangle(1, 1, 100, 28))},
                   StatusCode::kInvalidArgument, {"overlaps", "layer 1", "tokens [100, 128)"});
}

TEST_F(BadInputTest, RunsWithHoles) {
  ExpectRunRefused({Good(MakeRectangle(0, 29, 0, 128))}, StatusCode::kInvalidArgument,
                   {"incomplete", "layer 29"});
  ExpectRunRefused({Good(MakeRectangle(0, 30, 0, 60)), Good(MakeRectangle(0, 30, 61, 67))},
                   StatusCode::kInvalidArgument, {"incomplete", "layer 0"});
  ExpectRunRefused({}, StatusCode::kInvalidArgument, {"incomplete"});
}

TEST_F(BadInputTest, NumbersThatACodecCannotHold) {
  auto [r, bytes] = Good(MakeRectangle(0, 30, 0, 128));
  // Layer 0, V, head 2, token 5, element 9: bf16 NaN.
  const size_t at = ((size_t{1} * 3 + 2) * 128 + 5) * 64 + 9;
  bytes[2 * at] = 0xc0;
  bytes[2 * at + 1] = 0x7f;
  for (const char* codec :
       {"int8", "fp8", "int4", "turbo2", "turbo3", "turbo4", "k8v4", "4bit_nc", "k3v4_nc",
        "3bit_nc", "kivi2", "kivi4", "d4", "e8", "recipe"}) {
    SCOPED_TRACE(codec);
    ExpectRunRefused({{r, bytes}}, StatusCode::kInvalidArgument,
                     {"layer 0", "V", "head 2", "token 5"}, codec);
  }
}

TEST_F(BadInputTest, AChecksumThatIsWrong) {
  ExpectRefused(Send({Message(OpenOf("s", "raw", 0, 128)),
                      Data(MakeRectangle(0, 1, 0, 128), /*good_crc=*/false), Commit()}),
                StatusCode::kDataLoss, {"CRC32C", "12345678"});
}

TEST_F(BadInputTest, MessagesOutOfOrder) {
  const v1::PutOpen open = OpenOf("s", "raw", 0, 4);
  const v1::Rectangle all = MakeRectangle(0, 30, 0, 4);
  ExpectRefused(Send({Data(all)}), StatusCode::kInvalidArgument, {"data before open"});
  ExpectRefused(Send({Commit()}), StatusCode::kInvalidArgument, {"commit before open"});
  ExpectRefused(Send({Message(open), Message(open)}), StatusCode::kInvalidArgument,
                {"second open"});
  ExpectRefused(Send({Message(open), Data(all), Commit(), Commit()}), StatusCode::kInvalidArgument,
                {"after commit"});
  ExpectRefused(Send({Message(open), Data(all), Commit(), Data(all)}), StatusCode::kInvalidArgument,
                {"after commit"});
  ExpectRefused(Send({Message(open), Data(all)}), StatusCode::kInvalidArgument,
                {"without a commit"});
  ExpectRefused(Send({FrameMessage(v1::PutRequest())}), StatusCode::kInvalidArgument,
                {"neither open, data nor commit"});
}

TEST_F(BadInputTest, BytesThatAreNoMessage) {
  const std::string noise = "\xff\xff\xff\xff\xff noise";
  const grpc::Slice slice(noise);
  ExpectRefused(Send({grpc::ByteBuffer(&slice, 1)}), StatusCode::kInvalidArgument, {});
  // A data field that says it is longer than the message.
  const grpc::Slice cut(std::string("\x7a\xff\xff\xff\x7f\x0a\x02"));
  ExpectRefused(Send({Message(OpenOf("s", "raw", 0, 128)), grpc::ByteBuffer(&cut, 1)}),
                StatusCode::kInvalidArgument, {});
}

TEST_F(BadInputTest, NamesThatAreNotUtf8AreRefusedWithoutALineOfALibraryInTheLog) {
  v1::PutOpen open = OpenOf("s", "raw", 0, 128);
  open.mutable_identity()->set_model_id("not UTF-8");
  v1::PutRequest request;
  *request.mutable_open() = open;
  std::string bytes = request.SerializeAsString();
  bytes.replace(bytes.find("not UTF-8"), 3, "\xff\xfe\xff");
  const grpc::Slice slice(bytes);
  ExpectRefused(Send({grpc::ByteBuffer(&slice, 1)}), StatusCode::kInvalidArgument, {});
  for (absl::string_view line : absl::StrSplit(daemon_.Log(), '\n', absl::SkipEmpty())) {
    absl::Time time;
    EXPECT_TRUE(absl::ParseTime(absl::RFC3339_full, line.substr(0, line.find(' ')), &time, nullptr))
        << line;
  }
}

TEST_F(BadInputTest, PayloadLocationsThatAreNotThereYet) {
  v1::PutRequest m;
  *m.mutable_data()->mutable_rectangle() = MakeRectangle(0, 1, 0, 1);
  m.mutable_data()->mutable_shared_memory()->set_name("/segment");
  ExpectRefused(Send({Message(OpenOf("s", "raw", 0, 128)), FrameMessage(m)}),
                StatusCode::kUnimplemented, {"location", "inline"});
}

TEST_F(BadInputTest, WhatDoesNotFitTheSession) {
  ASSERT_TRUE(PutExample(client_, OpenOf("held", "raw", 0, 128), false).ok());
  const auto refused = [&](const v1::PutOpen& open, StatusCode code, const std::string& text) {
    const absl::Status s = client_.OpenPut(open).status();
    EXPECT_EQ(s.code(), code) << s;
    EXPECT_TRUE(absl::StrContains(s.message(), text)) << text << " is not in: " << s.message();
  };
  v1::PutOpen open = OpenOf("held", "raw", 128, 256);
  open.mutable_identity()->set_model_id("another");
  refused(open, StatusCode::kFailedPrecondition, "another");
  refused(OpenOf("held", "int8", 128, 256), StatusCode::kFailedPrecondition, "int8");
  open = OpenOf("held", "raw", 128, 256);
  open.mutable_geometry()->mutable_layers()->RemoveLast();
  refused(open, StatusCode::kFailedPrecondition, "geometry");
  open = OpenOf("held", "raw", 128, 256);
  open.set_dtype(v1::DTYPE_F16);
  refused(open, StatusCode::kFailedPrecondition, "f16");
  refused(OpenOf("held", "raw", 0, 128), StatusCode::kAlreadyExists, "holds 128");
  refused(OpenOf("held", "raw", 200, 256), StatusCode::kInvalidArgument, "holds 128");
  ASSERT_TRUE(PutExample(client_, OpenOf("held", "raw", 128, 200), true).ok());
  refused(OpenOf("held", "raw", 200, 256), StatusCode::kFailedPrecondition, "sealed");
  const auto stat = client_.StatSession(Ref("held"));
  ASSERT_TRUE(stat.ok());
  EXPECT_EQ(stat->tokens(), 200u);
}

TEST_F(BadInputTest, GetsOfWhatIsNotThere) {
  ASSERT_TRUE(PutExample(client_, OpenOf("held", "raw", 0, 128)).ok());
  const auto refused = [&](const v1::GetRequest& request, StatusCode code,
                           const std::string& text) {
    const absl::Status s = client_.OpenGet(request).status();
    EXPECT_EQ(s.code(), code) << s;
    EXPECT_TRUE(absl::StrContains(s.message(), text)) << text << " is not in: " << s.message();
  };
  refused(RequestOf("nobody"), StatusCode::kNotFound, "nobody");
  refused(RequestOf("held", 128, 0), StatusCode::kOutOfRange, "128");
  refused(RequestOf("held", 0, 129), StatusCode::kOutOfRange, "128");
  refused(RequestOf("held", 9, 5), StatusCode::kInvalidArgument, "[9, 5)");
  refused(RequestOf("held", uint64_t(-1), 0), StatusCode::kOutOfRange, "128");
  refused(RequestOf("held", 0, 0, 30, 0), StatusCode::kOutOfRange, "[0, 30)");
  refused(RequestOf("held", 0, 0, 3, 31), StatusCode::kOutOfRange, "[0, 30)");
  refused(v1::GetRequest(), StatusCode::kInvalidArgument, "neither a session nor a prefix");
  v1::GetRequest request = RequestOf("held");
  request.set_position_offset(int64_t{1} << 40);
  refused(request, StatusCode::kInvalidArgument, "position_offset");
  request = RequestOf("held");
  request.set_position_offset(-1);  // token 0 would be at position -1
  const absl::Status before_zero = Fetch(client_, request).status();
  EXPECT_EQ(before_zero.code(), StatusCode::kInvalidArgument) << before_zero;
  EXPECT_TRUE(absl::StrContains(before_zero.message(), "offset -1")) << before_zero;
}

TEST_F(BadInputTest, Profiles) {
  const std::string noise = "this is no profile";
  const auto added =
      client_.AddProfile({reinterpret_cast<const uint8_t*>(noise.data()), noise.size()});
  EXPECT_EQ(added.status().code(), StatusCode::kInvalidArgument) << added.status();
  const auto profiles = client_.ListProfiles();
  ASSERT_TRUE(profiles.ok());
  EXPECT_TRUE(profiles->empty());
  EXPECT_EQ(client_.GetProfile("0123456789abcdef").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(client_.RemoveProfile("0123456789abcdef").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(client_.GetProfile("xyz").status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client_); }));
}

TEST_F(BadInputTest, SessionIdsOfAllSorts) {
  ExpectOpenRefused(OpenOf(std::string(10000, 'x'), "raw"), StatusCode::kInvalidArgument,
                    {"session_id", "10000 bytes", "1 to 256"});
  for (const std::string& id : {std::string("bell\a"), std::string("nul\0l", 5),
                                std::string("esc\033[2J"), std::string("del\x7f")}) {
    const absl::Status status = client_.OpenPut(OpenOf(id, "raw")).status();
    ExpectRefused(status, StatusCode::kInvalidArgument, {"session_id"});
    for (const char c : status.message()) {  // the text can be shown
      EXPECT_TRUE(c >= 32 && c < 127) << static_cast<int>(c);
    }
  }
  EXPECT_EQ(client_.StatSession(Ref(std::string(10000, 'x'))).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(client_.DeleteSession(Ref(""), true).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(BadInputTest, PayloadsForOtherHeadsDimsAndDtypes) {
  // The bytes are those of the example; the open says that its model is another.
  const v1::Rectangle all = MakeRectangle(0, 30, 0, 128);
  const std::vector<uint8_t> bytes = ExampleBytes(all);
  const auto refused = [&](const v1::PutOpen& open, const std::string& needs) {
    auto put = client_.OpenPut(open);
    ASSERT_TRUE(put.ok()) << Describe(put.status());
    absl::Status status = put->Write(all, bytes);
    if (status.ok()) status = put->Commit(Seal()).status();
    ExpectRefused(status, StatusCode::kInvalidArgument, {"payload has 2949120 bytes", needs});
  };
  v1::PutOpen open = OpenOf("s", "raw", 0, 128);
  for (v1::Layer& layer : *open.mutable_geometry()->mutable_layers()) {
    for (v1::Stream& stream : *layer.mutable_streams()) stream.set_head_dim(128);
  }
  refused(open, "needs 5898240");
  open = OpenOf("s", "raw", 0, 128);
  open.mutable_geometry()->mutable_layers(3)->mutable_streams(1)->set_heads(4);
  refused(open, "needs 2965504");
  open = OpenOf("s", "raw", 0, 128);
  open.set_dtype(v1::DTYPE_F32);
  refused(open, "needs 5898240");
  open = OpenOf("s", "raw", 0, 128);
  open.mutable_shard()->set_count(2);
  open.mutable_shard()->set_layer_end(29);
  auto put = client_.OpenPut(open);
  ASSERT_TRUE(put.ok());
  absl::Status status = put->Write(all, bytes);
  if (status.ok()) status = put->Commit(Seal()).status();
  ExpectRefused(status, StatusCode::kInvalidArgument, {"layers [0, 30)", "[0, 29)"});
}

TEST_F(BadInputTest, InfinitiesAndNansByCodec) {
  const v1::Rectangle r = MakeRectangle(0, 30, 0, 128);
  const size_t at = ((size_t{2} * 3 + 1) * 128 + 7) * 64 + 3;  // layer 1, K, head 1, token 7
  for (const uint16_t bits : {0x7f80, 0xff80, 0x7fc0, 0xffff}) {
    std::vector<uint8_t> bytes = ExampleBytes(r);
    bytes[2 * at] = static_cast<uint8_t>(bits);
    bytes[2 * at + 1] = static_cast<uint8_t>(bits >> 8);
    ExpectRunRefused({{r, bytes}}, StatusCode::kInvalidArgument,
                     {"layer 1", "K", "head 1", "token 7"}, "int8");
    // raw keeps every bit.
    auto put = client_.OpenPut(OpenOf("kept", "raw", 0, 128));
    ASSERT_TRUE(put.ok());
    ASSERT_TRUE(put->Write(r, bytes).ok());
    ASSERT_TRUE(put->Commit(Seal()).ok());
    const auto got = Fetch(client_, RequestOf("kept"));
    ASSERT_TRUE(got.ok()) << Describe(got.status());
    EXPECT_EQ(got->planes[2][2 * ((size_t{1} * 128 + 7) * 64 + 3)], static_cast<uint8_t>(bits));
    ASSERT_TRUE(client_.DeleteSession(Ref("kept"), false).ok());
  }
}

TEST_F(BadInputTest, MessagesOverTheLimit) {
  const auto info = client_.GetServerInfo();
  ASSERT_TRUE(info.ok());
  // One message, larger than the daemon takes: refused before it is held in memory.
  Daemon small({"--max-message", "1MiB"});
  Client client = small.Connect();
  auto put = client.OpenPut(OpenOf("s", "raw", 0, 128));
  ASSERT_TRUE(put.ok()) << Describe(put.status());
  const v1::Rectangle r = MakeRectangle(0, 30, 0, 128);
  absl::Status status = put->Write(r, ExampleBytes(r));
  if (status.ok()) status = put->Commit(Seal()).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "1048576")) << status;
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client); }));
  EXPECT_TRUE(client.GetServerInfo().ok());  // the connection stays
}

TEST_F(BadInputTest, FieldsInAnyOrderAndUnknownOnesAreRead) {
  const v1::Rectangle all = MakeRectangle(0, 30, 0, 4);
  const std::vector<uint8_t> bytes = ExampleBytes(all);
  // data { payload, an unknown field, the rectangle }: payload first, so not the fast form.
  v1::KvData head;
  *head.mutable_rectangle() = all;
  v1::KvData tail;
  tail.set_payload(bytes.data(), bytes.size());
  const std::string unknown("\xa2\x06\x03new", 6);  // field 100
  const std::string inner = tail.SerializeAsString() + unknown + head.SerializeAsString();
  std::string data = "\x7a";
  for (uint64_t n = inner.size();; n >>= 7) {
    data.push_back(static_cast<char>(n >= 128 ? (n & 127) | 128 : n));
    if (n < 128) break;
  }
  data += inner + unknown;
  const grpc::Slice slice(data);
  v1::PutOpen open = OpenOf("ordered", "raw", 0, 4);
  ASSERT_TRUE(Send({Message(open), grpc::ByteBuffer(&slice, 1), Commit()}).ok());
  const auto got = Fetch(client_, RequestOf("ordered"));
  ASSERT_TRUE(got.ok()) << Describe(got.status());
  EXPECT_EQ(DifferenceFromExample(*got), "");
}

TEST_F(BadInputTest, AFloodOfTinyMessages) {
  // 960 rectangles, each 4 tokens of one layer: 3 kB.
  auto put = client_.OpenPut(OpenOf("tiny", "raw", 0, 128));
  ASSERT_TRUE(put.ok());
  for (uint32_t layer = 0; layer < 30; ++layer) {
    for (uint32_t t = 0; t < 128; t += 4) {
      v1::Rectangle r = MakeRectangle(layer, 1, t, 4);
      ASSERT_TRUE(put->Write(r, ExampleBytes(r)).ok());
    }
  }
  ASSERT_TRUE(put->Commit(Seal()).ok());
  const auto got = Fetch(client_, RequestOf("tiny"));
  ASSERT_TRUE(got.ok());
  EXPECT_EQ(DifferenceFromExample(*got), "");
  ASSERT_TRUE(client_.DeleteSession(Ref("tiny"), false).ok());
  // Empty ones: the first is refused, the other 9,999 are not waited for.
  std::vector<grpc::ByteBuffer> flood = {Message(OpenOf("s", "raw", 0, 128))};
  flood.resize(10000, FrameMessage(v1::PutRequest()));
  ExpectRefused(Send(flood), StatusCode::kInvalidArgument, {"neither open, data nor commit"});
}

TEST_F(BadInputTest, AReplayedPutIdWithAnotherRun) {
  v1::PutOpen open = OpenOf("held", "raw", 0, 64);
  open.set_put_id("once");
  ASSERT_TRUE(PutExample(client_, open, false).ok());
  const auto again = PutExample(client_, open, false);
  ASSERT_TRUE(again.ok()) << Describe(again.status());
  EXPECT_TRUE(again->replayed());
  EXPECT_EQ(again->shard_tokens(), 64u);
  const auto stat = client_.StatSession(Ref("held"));
  ASSERT_TRUE(stat.ok());
  EXPECT_EQ(stat->tokens(), 64u);
}

TEST_F(BadInputTest, ProfilesThatLieAboutTheirSizes) {
  const auto send = [&](uint64_t size, const std::vector<std::string>& pieces) {
    v1::AddProfileRequest r;
    r.mutable_open()->set_size_bytes(size);
    std::vector<grpc::ByteBuffer> messages = {FrameMessage(r)};
    for (const std::string& piece : pieces) {
      r.set_data(piece);
      messages.push_back(FrameMessage(r));
    }
    RawCall call(grpc::CreateChannel(daemon_.unix_address(), grpc::InsecureChannelCredentials()),
                 "/kvcask.v1.ProfileService/AddProfile", std::make_unique<grpc::ClientContext>(),
                 64);
    for (const grpc::ByteBuffer& m : messages) {
      if (!call.Write(m)) break;
    }
    call.WritesDone();
    return call.Finish();
  };
  // A safetensors header as long as it says, of what it says: {} and tensors.
  const auto file = [](const std::string& json, size_t data) {
    std::string f(8, '\0');
    for (int i = 0; i < 8; ++i) f[i] = static_cast<char>(uint64_t{json.size()} >> (8 * i));
    return f + json + std::string(data, '\0');
  };
  const std::string lying =
      R"({"mean":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}})";
  struct Case {
    uint64_t size;
    std::vector<std::string> pieces;
    const char* text;
  };
  const std::string whole = file(lying, 16);
  std::string long_header = file("{}", 0);
  long_header[7] = '\x7f';
  for (const Case& c : std::vector<Case>{
           {0, {}, "size_bytes: found 0"},
           {std::numeric_limits<uint64_t>::max(), {}, "size_bytes: found 18446744073709551615"},
           {100, {"short"}, "after 5 of 100 bytes"},
           {4, {"longer"}, "more data came than size_bytes, 4"},
           {8u << 20, {std::string((4 << 20) + 1, 'x')}, "data: found 4194305"},
           {whole.size(), {whole}, ""},
           {long_header.size(), {long_header}, ""}}) {
    const absl::Status status = send(c.size, c.pieces);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), c.text)) << c.text << ": " << status;
    EXPECT_FALSE(status.message().empty());
    EXPECT_TRUE(Eventually([&] { return HoldsNothing(client_); }));
  }
  const auto profiles = client_.ListProfiles();
  ASSERT_TRUE(profiles.ok());
  EXPECT_TRUE(profiles->empty());
}

}  // namespace
}  // namespace kvcask
