#include "codec/profile/profile.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>

#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"

namespace kvcask {
namespace {

std::map<std::string, std::string> GoodMetadata() {
  const Geometry g = UniformGeometry(2, 2, 4, StandardRope(RopeStyle::kRotateHalf, 4, 1e4));
  return {{"kvcask.profile", "1"},
          {"codec", "int8"},
          {"name", "tiny"},
          {"model", "tiny-llama"},
          {"geometry", GeometryToJson(g)},
          {"further", "kept"}};
}

std::vector<uint8_t> File(const std::map<std::string, std::string>& metadata) {
  std::vector<uint8_t> file;
  SafetensorsWriter writer([&](absl::Span<const uint8_t> b) {
    file.insert(file.end(), b.begin(), b.end());
    return absl::OkStatus();
  });
  for (const auto& [key, value] : metadata) writer.SetMetadata(key, value);
  EXPECT_TRUE(writer.Declare("mean.00.k", "F32", {2, 4}).ok());
  EXPECT_TRUE(writer.Begin().ok());
  std::vector<uint8_t> data(32);
  for (size_t i = 0; i < data.size(); ++i) data[i] = i;
  EXPECT_TRUE(writer.Write(data).ok());
  EXPECT_TRUE(writer.Finish().ok());
  return file;
}

TEST(ProfileTest, TellsWhatTheFileHolds) {
  const std::vector<uint8_t> file = File(GoodMetadata());
  const auto profile = Profile::Parse(file);
  ASSERT_TRUE(profile.ok()) << profile.status();
  const Profile& p = **profile;
  EXPECT_EQ(p.codec(), "int8");
  EXPECT_EQ(p.name(), "tiny");
  EXPECT_EQ(p.model(), "tiny-llama");
  EXPECT_EQ(p.geometry().layers.size(), 2u);
  EXPECT_EQ(p.size_bytes(), file.size());
  EXPECT_EQ(p.metadata().at("further"), "kept");
  const Profile::Tensor* t = p.Find("mean.00.k");
  ASSERT_NE(t, nullptr);
  EXPECT_EQ(t->dtype, "F32");
  EXPECT_EQ(t->shape, (std::vector<int64_t>{2, 4}));
  ASSERT_EQ(t->bytes.size(), 32u);
  EXPECT_EQ(t->bytes[31], 31);
  EXPECT_EQ(p.Find("mean.01.k"), nullptr);
}

TEST(ProfileTest, ItsNameIsTheHashOfItsBytes) {
  std::vector<uint8_t> file = File(GoodMetadata());
  const auto a = Profile::Parse(file), b = Profile::Parse(file);
  file.back() ^= 1;
  const auto c = Profile::Parse(file);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  EXPECT_EQ((*a)->fingerprint(), (*b)->fingerprint());
  EXPECT_NE((*a)->fingerprint(), (*c)->fingerprint());
}

TEST(ProfileTest, EveryMissingOrWrongKeyIsNamed) {
  for (const std::string key : {"kvcask.profile", "codec", "name", "model", "geometry"}) {
    auto metadata = GoodMetadata();
    metadata.erase(key);
    const absl::Status missing = Profile::Parse(File(metadata)).status();
    EXPECT_EQ(missing.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(missing.message().find("metadata has no \"" + key + "\""), absl::string_view::npos)
        << missing;
    metadata[key] = "";
    EXPECT_EQ(Profile::Parse(File(metadata)).status().code(), absl::StatusCode::kInvalidArgument);
  }
  auto metadata = GoodMetadata();
  metadata["kvcask.profile"] = "7";
  EXPECT_EQ(Profile::Parse(File(metadata)).status().code(), absl::StatusCode::kUnimplemented);
  metadata = GoodMetadata();
  metadata["name"] = std::string(513, 'x');
  EXPECT_EQ(Profile::Parse(File(metadata)).status().code(), absl::StatusCode::kInvalidArgument);
  metadata = GoodMetadata();
  metadata["geometry"] = R"({"layers":[{"rope":{"scaling":"longrope"}}]})";
  EXPECT_EQ(Profile::Parse(File(metadata)).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(ProfileTest, TheFuzzCorpusBeginsWithProfilesThatParse) {
  for (const std::string name : {"int8", "cache"}) {
    std::ifstream in("codec/profile/testdata/" + name + ".profile", std::ios::binary);
    const auto profile = Profile::Parse({std::istreambuf_iterator<char>(in), {}});
    ASSERT_TRUE(profile.ok()) << name << ": " << profile.status();
    EXPECT_EQ((*profile)->geometry().layers.size(), 5u);
  }
}

TEST(ProfileTest, EveryTruncationIsRefused) {
  const std::vector<uint8_t> good = File(GoodMetadata());
  for (size_t n = 0; n < good.size(); n += n < 40 ? 1 : 7) {
    EXPECT_FALSE(Profile::Parse({good.begin(), good.begin() + n}).ok()) << n;
  }
}

}  // namespace
}  // namespace kvcask
