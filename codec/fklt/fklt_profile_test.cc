#include "codec/fklt/fklt_profile.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>

#include "codec/fklt/fklt.h"
#include "codec/fklt/synthetic_profile.h"

namespace kvcask::fklt {
namespace {

RawProfile Good() {
  SyntheticOptions o;
  o.geometry = UniformGeometry(2, 2, 8, StandardRope(RopeStyle::kRotateHalf, 8, 10000));
  o.partition = LayerGroups(o.geometry, 1);
  return MakeSyntheticProfile(o);
}

absl::Status ReadRaw(const RawProfile& raw) {
  auto file = Profile::Parse(raw.Serialize());
  if (!file.ok()) return file.status();
  return FkltProfile::Read(*file).status();
}

template <typename T>
void Poke(RawProfile* raw, const std::string& name, size_t index, T value) {
  std::memcpy(raw->tensors.at(name).bytes.data() + index * sizeof(T), &value, sizeof(T));
}

TEST(FkltProfileTest, AGoodProfileIsReadWhole) {
  const auto profile = FkltProfile::Read(ParseOrDie(Good()));
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ((*profile)->groups.size(), 2u);
  EXPECT_EQ((*profile)->groups[1].dimensions, 32);
  EXPECT_EQ((*profile)->groups[1].members[3].stream, StreamKind::kV);
  EXPECT_EQ((*profile)->groups[1].leading(), 32);
  EXPECT_EQ((*profile)->sinks, 4u);
}

TEST(FkltProfileTest, EveryBrokenRuleIsRefusedByName) {
  struct Case {
    const char* tensor;  // that the message must name
    std::function<void(RawProfile*)> damage;
  };
  const uint16_t half_nan = 0x7e00, half_one = 0x3c00, half_zero = 0;
  const std::vector<Case> cases = {
      {"fklt.groups", [](RawProfile* r) { r->tensors.erase("fklt.groups"); }},
      {"fklt.groups", [](RawProfile* r) { Poke(r, "fklt.groups", 0, 0); }},
      {"group.2.members", [](RawProfile* r) { Poke(r, "fklt.groups", 0, 3); }},
      {"in no group", [](RawProfile* r) { Poke(r, "fklt.groups", 0, 1); }},
      {"fklt.steps", [](RawProfile* r) { Poke(r, "fklt.steps", 1, 601); }},
      {"fklt.preset_table_set", [](RawProfile* r) { Poke(r, "fklt.preset_table_set", 2, 1); }},
      {"fklt.tables.1.shape", [](RawProfile* r) { Poke(r, "fklt.table_sets", 0, 2); }},
      {"fklt.kappa", [](RawProfile* r) { Poke(r, "fklt.kappa", 1, NAN); }},
      {"fklt.kappa", [](RawProfile* r) { Poke(r, "fklt.kappa", 1, -1.0f); }},
      {"fklt.kappa", [](RawProfile* r) { r->tensors["fklt.kappa"].dtype = "I32"; }},
      {"fklt.rounding", [](RawProfile* r) { Poke(r, "fklt.rounding", 0, .7f); }},
      {"fklt.l_scale_log2", [](RawProfile* r) { Poke(r, "fklt.l_scale_log2", 0, 65); }},
      {"group.0.members", [](RawProfile* r) { Poke(r, "group.0.members", 0, 2); }},
      {"group.0.members", [](RawProfile* r) { Poke(r, "group.0.members", 1, 3); }},
      {"group.0.members", [](RawProfile* r) { Poke(r, "group.0.members", 2, -1); }},
      {"two places", [](RawProfile* r) { Poke(r, "group.0.members", 2, 1); }},
      {"group.1.mu", [half_nan](RawProfile* r) { Poke(r, "group.1.mu", 3, half_nan); }},
      {"group.1.mu",
       [](RawProfile* r) {
         r->tensors["group.1.mu"].shape = {4, 8};
       }},
      {"group.1.L", [half_zero](RawProfile* r) { Poke(r, "group.1.L", 2, half_zero); }},
      {"group.1.L", [](RawProfile* r) { Poke(r, "group.1.L", 0, uint16_t{0xbc00}); }},
      {"group.1.L", [half_nan](RawProfile* r) { Poke(r, "group.1.L", 1, half_nan); }},
      {"group.0.U", [half_nan](RawProfile* r) { Poke(r, "group.0.U", 100, half_nan); }},
      {"group.0.U", [half_one](RawProfile* r) { Poke(r, "group.0.U", 100, half_one); }},
      {"group.0.U",
       [](RawProfile* r) {  // two rows alike: singular
         uint8_t* u = r->tensors.at("group.0.U").bytes.data();
         std::memcpy(u + 64, u, 64);
       }},
      {"group.0.sigma", [](RawProfile* r) { Poke(r, "group.0.sigma", 5, int16_t{1000}); }},
      {"group.0.sigma", [](RawProfile* r) { Poke(r, "group.0.sigma", 31, int16_t{-2000}); }},
      {"group.0.sensitivity", [](RawProfile* r) { Poke(r, "group.0.sensitivity", 1, INFINITY); }},
      {"group.0.sensitivity",
       [](RawProfile* r) {
         RawTensor& t = r->tensors["group.0.sensitivity"];
         t.shape = {4};
         t.bytes.resize(16);
       }},
      {"group.0.certificate", [](RawProfile* r) { Poke(r, "group.0.certificate", 0, -1.0f); }},
      {"table 0", [](RawProfile* r) { Poke(r, "fklt.tables.0.freq", 0, int16_t{99}); }},
      {"fklt.tables.0.freq", [](RawProfile* r) { Poke(r, "fklt.tables.0.freq", 0, int16_t{-1}); }},
      {"table 7", [](RawProfile* r) { Poke(r, "fklt.tables.0.shape", 22, int16_t{300}); }},
      {"centroids", [](RawProfile* r) { Poke(r, "fklt.tables.0.centroids", 4, 1.0f); }},
  };
  for (const Case& c : cases) {
    RawProfile raw = Good();
    c.damage(&raw);
    const absl::Status status = ReadRaw(raw);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
        << c.tensor << " (case " << &c - cases.data() << "): " << status;
    EXPECT_NE(status.message().find(c.tensor), absl::string_view::npos)
        << "expected " << c.tensor << " in: " << status;
  }
}

// The file with another shape of one tensor in its header.
std::vector<uint8_t> WithShape(const RawProfile& raw, const std::string& name,
                               const std::string& shape) {
  const std::vector<uint8_t> file = raw.Serialize();
  uint64_t size;
  std::memcpy(&size, file.data(), 8);
  const size_t data = 8 + size;
  std::string header(file.begin() + 8, file.begin() + 8 + size);
  const size_t begin = header.find("[", header.find("\"shape\"", header.find("\"" + name + "\"")));
  header.replace(begin, header.find("]", begin) + 1 - begin, shape);
  size = header.size();
  std::vector<uint8_t> out(8);
  std::memcpy(out.data(), &size, 8);
  out.insert(out.end(), header.begin(), header.end());
  out.insert(out.end(), file.begin() + data, file.end());
  return out;
}

TEST(FkltProfileTest, ShapesThatOverflowAreRefused) {
  const RawProfile raw = Good();
  for (const char* name : {"group.0.U", "group.0.L", "group.0.members", "fklt.tables.0.freq"}) {
    for (const char* shape : {"[4294967296,4294967296]",  // 2^64 elements: none in 64 bits
                              "[2147483648,2]",           // none in 32 bits
                              "[9223372036854775807]", "[4611686018427387920,4]", "[65536,65537]",
                              "[18446744073709551615]", "[-1,-1]"}) {
      const auto file = Profile::Parse(WithShape(raw, name, shape));
      EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << name << " " << shape;
    }
  }
  // The means of the test do not make a good file bad.
  const auto same = Profile::Parse(WithShape(raw, "group.0.U", "[32,32]"));
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_TRUE(FkltProfile::Read(*same).ok());
}

TEST(FkltProfileTest, AMetricThatCannotBeInvertedIsRefused) {
  SyntheticOptions o;
  o.geometry = UniformGeometry(1, 1, 8, StandardRope(RopeStyle::kRotateHalf, 8, 10000));
  o.partition = LayerGroups(o.geometry, 1);
  o.f16_metric = false;
  RawProfile raw = MakeSyntheticProfile(o);
  for (size_t i = 0, row = 0; row < 8; i += ++row + 1) {
    Poke(&raw, "group.0.L", i, 1e-38f);                // positive, with an inverse that fits
    if (row == 5) Poke(&raw, "group.0.L", i, 1e-45f);  // and one that overflows
  }
  CodecSpec spec;
  spec.profile = ParseOrDie(raw);
  spec.model = o.geometry;
  spec.shard = {0, 1, 0, 1, 0, 1};
  const absl::Status status = MakeFkltCodec(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_NE(status.message().find("can't be inverted"), absl::string_view::npos) << status;
}

TEST(FkltProfileTest, AnUnknownVersionIsNotInvalidButUnknown) {
  RawProfile raw = Good();
  Poke(&raw, "fklt.version", 0, 1);
  EXPECT_EQ(ReadRaw(raw).code(), absl::StatusCode::kUnimplemented);
}

TEST(FkltProfileTest, AnotherGeometryIsRefusedByTheNumberThatDiffers) {
  CodecSpec spec;
  spec.profile = ParseOrDie(Good());
  spec.model = UniformGeometry(2, 2, 16, StandardRope(RopeStyle::kRotateHalf, 16, 10000));
  spec.shard = {0, 1, 0, 2, 0, 2};
  const absl::Status status = MakeFkltCodec(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("layer 0: head_dim 16; the profile has 8"),
            absl::string_view::npos)
      << status;
  spec.profile = nullptr;
  EXPECT_EQ(MakeFkltCodec(spec).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvcask::fklt
