#include "proto/wire/kv_frame.h"

#include <gtest/gtest.h>

#include <random>

namespace kvcask {
namespace {

std::string Bytes(const grpc::ByteBuffer& b) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(b.Dump(&slices).ok());
  std::string s;
  for (const auto& x : slices) s.append(reinterpret_cast<const char*>(x.begin()), x.size());
  return s;
}
std::string Bytes(const Payload& p) {
  std::string s;
  for (const auto& x : p.pieces()) s.append(reinterpret_cast<const char*>(x.data()), x.size());
  return s;
}
// `s` cut into slices of at most `piece` bytes.
grpc::ByteBuffer Cut(const std::string& s, size_t piece) {
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < s.size(); i += piece) slices.emplace_back(s.substr(i, piece));
  return grpc::ByteBuffer(slices.data(), slices.size());
}
v1::KvData Head() {
  v1::KvData d;
  d.mutable_rectangle()->set_layer_count(30);
  d.mutable_rectangle()->set_token_begin(5000);
  d.set_crc32c(0xdeadbeef);
  return d;
}

TEST(KvFrame, GeneratedParserReadsWhatFrameDataWrites) {
  const grpc::Slice parts[2] = {grpc::Slice(std::string(1000, 'a')), grpc::Slice(std::string(7, 'b'))};
  v1::PutRequest m;
  ASSERT_TRUE(m.ParseFromString(Bytes(FrameData(Head(), parts))));
  EXPECT_EQ(m.data().payload(), std::string(1000, 'a') + std::string(7, 'b'));
  EXPECT_EQ(m.data().rectangle().token_begin(), 5000u);
}

TEST(KvFrame, UnframesAnyCutWithoutCopyingThePayload) {
  v1::PutRequest m;
  *m.mutable_data() = Head();
  m.mutable_data()->set_payload(std::string(5000, 'x'));
  const std::string wire = m.SerializeAsString();
  for (size_t piece : {1, 2, 3, 17, 100, 4096, 100000}) {
    v1::PutRequest out;
    Payload payload;
    const grpc::ByteBuffer buffer = Cut(wire, piece);
    ASSERT_TRUE(Unframe(buffer, &out, &payload).ok()) << piece;
    EXPECT_EQ(Bytes(payload), std::string(5000, 'x')) << piece;
    EXPECT_TRUE(out.data().payload().empty());
    EXPECT_EQ(out.data().crc32c(), 0xdeadbeefu);
  }
}

TEST(KvFrame, ReadsFieldsInAnyOrder) {
  // The payload first, then the rectangle: valid, if unusual.
  v1::KvData payload_only, rest = Head();
  payload_only.set_payload("hello");
  const std::string inner = payload_only.SerializeAsString() + rest.SerializeAsString();
  std::string wire = "\x7a";
  wire += static_cast<char>(inner.size());
  wire += inner;
  v1::PutRequest out;
  Payload payload;
  ASSERT_TRUE(Unframe(Cut(wire, 5), &out, &payload).ok());
  const Payload moved = std::move(payload);
  EXPECT_EQ(Bytes(moved), "hello");
  EXPECT_EQ(out.data().rectangle().layer_count(), 30u);
}

TEST(KvFrame, ReadsUnknownFieldsAndEmptyPayloads) {
  v1::PutRequest m, out;
  Payload payload;
  *m.mutable_data() = Head();
  ASSERT_TRUE(Unframe(FrameMessage(m), &out, &payload).ok());
  EXPECT_EQ(payload.size(), 0u);
  m.mutable_commit()->set_seal(true);
  ASSERT_TRUE(Unframe(FrameMessage(m), &out, &payload).ok());
  EXPECT_TRUE(out.commit().seal());
  std::string wire = m.SerializeAsString() + std::string("\xa0\x06\x01", 3);  // field 100
  ASSERT_TRUE(Unframe(Cut(wire, 2), &out, &payload).ok());
  EXPECT_TRUE(out.commit().seal());
}

TEST(KvFrame, RefusesNoiseWithoutReadingPastIt) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  v1::PutRequest m;
  *m.mutable_data() = Head();
  m.mutable_data()->set_payload("payload");
  const std::string wire = m.SerializeAsString();
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string noise = wire;
    for (int k = 0; k < 3; ++k) noise[rng() % noise.size()] = static_cast<char>(rng());
    noise.resize(rng() % (noise.size() + 1));
    v1::PutRequest out;
    Payload payload;
    const absl::Status s = Unframe(Cut(noise, 1 + rng() % 20), &out, &payload);
    if (!s.ok()) {
      EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
      ++refused;
    }
    EXPECT_LE(payload.size(), noise.size());
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace kvcask
