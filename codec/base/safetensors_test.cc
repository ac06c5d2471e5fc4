#include "codec/base/safetensors.h"

#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace kvcask {
namespace {

std::vector<uint8_t> File(const std::string& header, size_t data_bytes) {
  std::vector<uint8_t> file(8);
  for (int i = 0; i < 8; ++i) file[i] = static_cast<uint64_t>(header.size()) >> (8 * i);
  file.insert(file.end(), header.begin(), header.end());
  file.resize(file.size() + data_bytes);
  return file;
}

absl::StatusOr<SafetensorsHeader> Parse(const std::vector<uint8_t>& file) {
  return ParseSafetensorsHeader(file, file.size());
}

testing::AssertionResult Refused(const std::string& header, size_t data, const std::string& why) {
  const absl::Status s = Parse(File(header, data)).status();
  if (s.code() != absl::StatusCode::kInvalidArgument) {
    return testing::AssertionFailure() << "status " << s;
  }
  if (s.message().find(why) == absl::string_view::npos) {
    return testing::AssertionFailure() << "\"" << s.message() << "\" lacks \"" << why << "\"";
  }
  return testing::AssertionSuccess();
}

TEST(SafetensorsTest, WhatIsWrittenIsReadBack) {
  std::vector<uint8_t> file;
  SafetensorsWriter writer([&](absl::Span<const uint8_t> b) {
    file.insert(file.end(), b.begin(), b.end());
    return absl::OkStatus();
  });
  writer.SetMetadata("model", "a \"model\"\n\xc3\xa9");
  ASSERT_TRUE(writer.Declare("b", "F32", {2, 3}).ok());
  ASSERT_TRUE(writer.Declare("a", "BF16", {5}).ok());
  ASSERT_TRUE(writer.Declare("empty", "I32", {0, 7}).ok());
  EXPECT_FALSE(writer.Declare("a", "BF16", {5}).ok());
  EXPECT_FALSE(writer.Declare("c", "BF17", {5}).ok());
  EXPECT_FALSE(writer.Declare("c", "F32", {int64_t{1} << 62, 16}).ok());
  ASSERT_TRUE(writer.Begin().ok());
  std::vector<uint8_t> data(34);
  for (size_t i = 0; i < data.size(); ++i) data[i] = i;
  ASSERT_TRUE(writer.Write(absl::MakeConstSpan(data).first(11)).ok());
  EXPECT_EQ(writer.Finish().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(writer.Write(absl::MakeConstSpan(data).subspan(11)).ok());
  EXPECT_EQ(writer.Write({data.data(), 1}).code(), absl::StatusCode::kOutOfRange);
  ASSERT_TRUE(writer.Finish().ok());
  const auto header = Parse(file);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->data_offset % 8, 0u);
  EXPECT_EQ(header->metadata.at("model"), "a \"model\"\n\xc3\xa9");
  ASSERT_EQ(header->tensors.size(), 3u);
  const SafetensorsEntry& a = header->tensors.at("a");
  EXPECT_EQ(a.dtype, "BF16");
  EXPECT_EQ(a.shape, std::vector<int64_t>{5});
  ASSERT_EQ(a.bytes, 10u);
  EXPECT_EQ(file[a.offset], 24);  // after b's bytes
  EXPECT_EQ(header->tensors.at("b").shape, (std::vector<int64_t>{2, 3}));
}

TEST(SafetensorsTest, AHeaderThatIsTooLargeIsRefusedBeforeItIsRead) {
  std::vector<uint8_t> file(8);
  const uint64_t gib = uint64_t{1} << 30;
  std::memcpy(file.data(), &gib, 8);
  const absl::Status s = ParseSafetensorsHeader(file, uint64_t{1} << 40).status();
  EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(s.message().find("header of 1073741824 bytes at byte 0; expected at most 67108864"),
            absl::string_view::npos)
      << s;
  const uint64_t all = ~uint64_t{0};
  std::memcpy(file.data(), &all, 8);
  EXPECT_FALSE(Parse(file).ok());
  const uint64_t ten = 10;
  std::memcpy(file.data(), &ten, 8);
  EXPECT_NE(Parse(file).status().message().find("truncated"), absl::string_view::npos);
  EXPECT_FALSE(Parse({}).ok());
  EXPECT_FALSE(Parse({1, 2, 3}).ok());
}

TEST(SafetensorsTest, EveryOddityInTheHeaderIsNamed) {
  const std::string ok = R"("dtype":"U8","shape":[4],"data_offsets":[0,4])";
  EXPECT_TRUE(Parse(File("{\"t\":{" + ok + "}}  ", 4)).ok());
  EXPECT_TRUE(Refused("", 0, "not JSON"));
  EXPECT_TRUE(Refused("{\"t\":{" + ok + "}", 4, "not JSON"));
  EXPECT_TRUE(Refused("{\"t\":{" + ok + "}} x", 4, "not JSON"));
  EXPECT_TRUE(Refused("[1]", 4, "found an array, expected an object"));
  EXPECT_TRUE(Refused("{\"t\":3}", 4, "header entry \"t\": found a number"));
  EXPECT_TRUE(Refused("{\"t\":{" + ok + "},\"t\":{" + ok + "}}", 4, "\"t\" twice"));
  EXPECT_TRUE(Refused("{\"t\":{" + ok + ",\"x\":1}}", 4, "unknown key \"x\""));
  EXPECT_TRUE(Refused("{\"t\":{" + ok + ",\"dtype\":\"U8\"}}", 4, "\"dtype\" twice"));
  EXPECT_TRUE(Refused(R"({"t":{"dtype":"U8","shape":[4]}})", 4, "is missing"));
  EXPECT_TRUE(Refused(R"({"t":{"dtype":"Q8","shape":[4],"data_offsets":[0,4]}})", 4,
                      "unknown dtype \"Q8\""));
  EXPECT_TRUE(Refused(R"({"t":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}})", 4,
                      "negative number -4"));
  EXPECT_TRUE(
      Refused(R"({"t":{"dtype":"U8","shape":[4.5],"data_offsets":[0,4]}})", 4, "a fraction"));
  EXPECT_TRUE(Refused(R"({"t":{"dtype":"U8","shape":[[4]],"data_offsets":[0,4]}})", 4, "an array"));
  EXPECT_TRUE(Refused(R"({"t":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4]}})", 4,
                      "more than 8 dimensions"));
  EXPECT_TRUE(
      Refused(R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4, "not [begin, end]"));
  EXPECT_TRUE(Refused(R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4,8]}})", 4,
                      "more than two data_offsets"));
  EXPECT_TRUE(Refused(R"({"__metadata__":{"a":1}})", 4, "found a number, expected a string"));
  EXPECT_TRUE(Refused(R"({"__metadata__":{"a":"1","a":"2"}})", 4, "\"a\" twice"));
}

TEST(SafetensorsTest, TensorsMustLieInTheFileAndApart) {
  EXPECT_TRUE(Refused(R"({"t":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}})", 4,
                      "data_offsets give 4 bytes; expected 16"));
  EXPECT_TRUE(Refused(R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}})", 4,
                      "leave the file; expected at most 4"));
  EXPECT_TRUE(Refused(R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551611,)"
                      R"(18446744073709551615]}})",
                      4, "leave the file"));
  EXPECT_TRUE(Refused(R"({"t":{"dtype":"F32","shape":[4611686018427387904,4,4],)"
                      R"("data_offsets":[0,0]}})",
                      4, "overflows 64 bits"));
  EXPECT_TRUE(Refused(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                      R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
                      8, "overlap"));
}

TEST(SafetensorsTest, NestingAndRandomDamageNeverCrash) {
  EXPECT_FALSE(Parse(File(std::string(1 << 20, '['), 0)).ok());
  EXPECT_FALSE(Parse(File("{\"t\":" + std::string(1 << 20, '{'), 0)).ok());
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  const std::vector<uint8_t> good = File(
      R"({"__metadata__":{"k":"v"},"t":{"dtype":"U8","shape":[2,2],"data_offsets":[0,4]}})", 4);
  for (int i = 0; i < 20000; ++i) {
    std::vector<uint8_t> bad = good;
    for (int n = rng() % 3 + 1; n > 0; --n) bad[rng() % bad.size()] = rng();
    bad.resize(rng() % 4 ? bad.size() : rng() % bad.size());
    const auto header = Parse(bad);
    if (!header.ok()) continue;
    for (const auto& t : header->tensors) {
      ASSERT_LE(t.second.offset + t.second.bytes, bad.size());
    }
  }
}

}  // namespace
}  // namespace kvcask
