#include "codec/builtin_codecs.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>

#include "codec/testing/test_cache.h"

namespace kvcask {
namespace {

TEST(BuiltinCodecsTest, NamesAndIdsAreUniqueAndFound) {
  std::set<std::string> names;
  std::set<CodecId> ids;
  for (const CodecEntry& entry : BuiltinCodecs()) {
    EXPECT_TRUE(names.insert(entry.name).second) << entry.name;
    EXPECT_TRUE(ids.insert(entry.id).second) << entry.name;
    EXPECT_EQ(FindCodec(entry.name), &entry);
    EXPECT_EQ(FindCodec(entry.id), &entry);
    EXPECT_NE(std::string(entry.description), "");
  }
  EXPECT_TRUE(names.count("raw") && names.count("int8"));
  EXPECT_EQ(FindCodec("RAW"), nullptr);
  EXPECT_EQ(FindCodec(static_cast<CodecId>(0)), nullptr);
}

TEST(BuiltinCodecsTest, CodecsThatNeedAProfileSaySoWithoutOne) {
  const Geometry g = UniformGeometry(2, 2, 8, Rope());
  for (const CodecEntry& entry : BuiltinCodecs()) {
    const auto codec = entry.make({g, {0, 1, 0, 2, 0, 2}, nullptr});
    EXPECT_EQ(codec.ok(), !entry.needs_profile) << entry.name << ": " << codec.status();
    if (!codec.ok()) continue;
    EXPECT_EQ((*codec)->id(), entry.id) << entry.name;
  }
}

// What the service relies on, of every codec that a geometry is enough for.
TEST(BuiltinCodecsTest, GroupsCoverTheLayersAndTilesKeepTheirBound) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  const Geometry g = UniformGeometry(5, 3, 16, StandardRope(RopeStyle::kRotateHalf, 16, 1e4));
  for (const CodecEntry& entry : BuiltinCodecs()) {
    if (entry.needs_profile) continue;
    SCOPED_TRACE(entry.name);
    auto codec = entry.make({g, {0, 1, 0, 5, 0, 3}, nullptr});
    ASSERT_TRUE(codec.ok()) << codec.status();
    Workspace workspace;
    int covered = 0;
    for (size_t i = 0; i < (*codec)->groups().size(); ++i) {
      const Group group = (*codec)->groups()[i];
      EXPECT_EQ(group.layer_begin, covered) << "in order and without a gap";
      covered = group.layer_end;
      for (int tokens : {1, 127, kPageTokens}) {
        TestCache in(g, group.layer_begin, group.layer_end, tokens, Dtype::kBf16,
                     Layout::kPagedNhd);
        in.FillRandom(rng);
        const auto positions = PositionsFrom(0, tokens);
        EncodeJob job;
        job.group = static_cast<int>(i);
        job.tokens = tokens;
        job.source = in.const_view();
        job.positions = positions;
        // A guard behind the bound.
        const size_t bound = (*codec)->MaxTileBytes(job.group, tokens, Dtype::kBf16);
        std::vector<uint8_t> memory(bound + 64, 0xa5);
        job.destination = absl::MakeSpan(memory).first(bound);
        ASSERT_TRUE((*codec)->Encode({&job, 1}, workspace).ok());
        ASSERT_TRUE(job.status.ok()) << job.status;
        EXPECT_LE(job.bytes, bound);
        EXPECT_EQ(std::vector<uint8_t>(64, 0xa5),
                  std::vector<uint8_t>(memory.begin() + bound, memory.end()));
      }
    }
    EXPECT_EQ(covered, 5);
  }
}

}  // namespace
}  // namespace kvcask
