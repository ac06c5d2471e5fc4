#include "codec/fklt/fklt_profile.h"

#include <cstring>
#include <functional>
#include <limits>

#include <gtest/gtest.h>

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
      {"group.1.mu", [](RawProfile* r) { r->tensors["group.1.mu"].shape = {4, 8}; }},
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
