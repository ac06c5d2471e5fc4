// Bytes that must never change within a version of the format: FORMAT.md's revision 1.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <string>

#include "codec/fklt/fklt.h"
#include "codec/fklt/fklt_reference.h"
#include "codec/fklt/golden_tiles.h"
#include "codec/format/chunk.h"
#include "codec/testing/test_cache.h"

namespace kvcask::fklt {
namespace {

std::vector<uint8_t> ReadTestdata(const std::string& name) {
  std::ifstream in("codec/fklt/testdata/" + name, std::ios::binary);
  EXPECT_TRUE(in.good()) << name;
  return {std::istreambuf_iterator<char>(in), {}};
}

std::shared_ptr<const FkltProfile> TinyProfile() {
  auto file = Profile::Parse(ReadTestdata("tiny_profile.safetensors"));
  EXPECT_TRUE(file.ok()) << file.status();
  auto profile = FkltProfile::Read(*file);
  EXPECT_TRUE(profile.ok()) << profile.status();
  return *profile;
}

std::vector<RansPath> Paths() {
  std::vector<RansPath> paths;
  for (RansPath path : kAllRansPaths) {
    if (RansPathAvailable(path)) paths.push_back(path);
  }
  return paths;
}

TEST(GoldenTest, EveryPathWritesTheGoldenBytes) {
  const auto profile = TinyProfile();
  for (int i = 0; i < kGoldenTiles; ++i) {
    const std::vector<uint8_t> want = ReadTestdata("golden_v1_" + std::to_string(i) + ".tile");
    for (RansPath path : Paths()) {
      GoldenTile tile = MakeGoldenTile(*profile, i);
      EXPECT_EQ(WriteGoldenTile(*profile, tile, path), want) << i << " " << RansPathName(path);
    }
  }
}

TEST(GoldenTest, EveryPathReadsTheGoldenIntegers) {
  const auto profile = TinyProfile();
  for (int i = 0; i < kGoldenTiles; ++i) {
    const std::vector<uint8_t> bytes = ReadTestdata("golden_v1_" + std::to_string(i) + ".tile");
    const GoldenTile want = MakeGoldenTile(*profile, i);
    const absl::Span<const uint8_t> coded =
        absl::MakeConstSpan(bytes).first(bytes.size() - want.sinks.size());
    for (RansPath path : Paths()) {
      TileHeader header;
      ASSERT_TRUE(ReadTileHeader(bytes, 1, &header).ok());
      EXPECT_EQ(header.mode, want.sink_tokens > 0 ? kCodedSinksMode : kCodedMode);
      EXPECT_EQ(header.step_limit_shift, want.header.step_limit_shift);
      GoldenTile got;
      got.symbol_classes.resize(want.symbol_classes.size());
      got.symbols.resize(want.symbols.size());
      const absl::Status status =
          ReadTile(coded, header, ModelOf(*profile), want.tokens, &got.layout, &got.classes,
                   got.symbol_classes.data(), got.symbols.data(), path);
      ASSERT_TRUE(status.ok()) << i << ": " << status;
      ASSERT_EQ(got.layout.symbols(), want.layout.symbols());
      for (int r = 0; r < want.layout.rows(); ++r) {
        for (int p = 0; p < want.layout.count(r); ++p) {
          const size_t at = want.layout.offset(r) + p;
          ASSERT_EQ(got.symbols[at], want.symbols[at]) << i << " row " << r << " place " << p;
        }
      }
    }
    const auto reference = ReferenceParse(*profile, profile->groups[0], coded, want.tokens);
    ASSERT_TRUE(reference.ok()) << i << ": " << reference.status();
    for (int t = 0; t < want.tokens; ++t) {
      EXPECT_EQ(reference->amplitude[t], want.classes.amplitude[t]);
      EXPECT_EQ(reference->step[t], want.classes.step[t]);
    }
  }
}

TEST(GoldenTest, EveryPathDecodesTheGoldenChunk) {
  const auto profile = TinyProfile();
  const std::vector<uint8_t> bytes = ReadTestdata("golden_v1.chunk");
  EXPECT_EQ(MakeGoldenChunk(*profile), bytes);
  const auto chunk = ParseChunk(bytes, Verify::kAll);
  ASSERT_TRUE(chunk.ok()) << chunk.status();
  const GroupModel& g = profile->groups[0];
  const GoldenTile want = MakeGoldenTile(*profile, kGoldenTileWithSinks);
  const absl::Span<const uint8_t> tile = chunk->tile(0);
  const size_t split = tile.size() - want.sinks.size();
  const auto parsed = ReferenceParse(*profile, g, tile.first(split), want.tokens);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  Matrix x = ReferenceSinks(g, want.sink_tokens, tile.subspan(split));
  for (std::vector<double>& v : ReferenceDecode(*profile, g, *parsed)) x.push_back(std::move(v));
  const Geometry& geometry = profile->file->geometry();
  for (RansPath path : Paths()) {
    auto codec = MakeFkltCodecWith({geometry, {0, 1, 0, 2, 0, 2}, profile->file}, {path, 0});
    ASSERT_TRUE(codec.ok()) << codec.status();
    TestCache back(geometry, 0, 2, kMaxTokens, Dtype::kF32, Layout::kContiguous);
    DecodeJob job;
    job.tokens = job.token_end = kMaxTokens;
    job.tile = tile;
    job.positions = chunk->header.positions;
    job.layer_end = 2;
    job.destination = back.view();
    Workspace workspace;
    ASSERT_TRUE((*codec)->Decode({&job, 1}, workspace).ok());
    ASSERT_TRUE(job.status.ok()) << job.status;
    for (const Member& m : g.members) {
      const int plane = 2 * m.layer + (m.stream == StreamKind::kV);
      for (int t = 0; t < kMaxTokens; ++t) {
        const double* const v = &x[t][m.offset];
        for (int i = 0; i < 16; ++i) {
          double want_value = v[i];
          if (m.stream == StreamKind::kK) {
            const double angle = t * geometry.layers[m.layer].rope.inv_freq[i % 8];
            want_value = i < 8 ? v[i] * std::cos(angle) - v[i + 8] * std::sin(angle)
                               : v[i - 8] * std::sin(angle) + v[i] * std::cos(angle);
          }
          ASSERT_NEAR(back.Get(plane, m.head, t, i), want_value, 1e-4 * (1 + std::fabs(want_value)))
              << RansPathName(path) << " token " << t << " plane " << plane << " element " << i;
        }
      }
    }
  }
}

// Golden errors: what must be refused, whoever reads it.
TEST(GoldenTest, BrokenTilesAreRefused) {
  const auto profile = TinyProfile();
  const std::vector<uint8_t> good = ReadTestdata("golden_v1_0.tile");
  struct Case {
    const char* what;
    size_t at;
    uint8_t value;
  };
  const Case cases[] = {{"mode 3", 0, 3},         {"step limit 512 >> 3", 1, 0xcc},
                        {"kcap 9", 1, 0x0f},      {"another step limit", 1, 0x8c},
                        {"table set 1", 1, 0x1c}, {"step 2^(4080/8)", 3, 0x0f},
                        {"groups", 4, 1},         {"groups", 5, 0xff},
                        {"an exponent", 6, 0xff}};
  for (const Case& c : cases) {
    std::vector<uint8_t> bad = good;
    bad[c.at] = c.value;
    TileHeader header;
    absl::Status status = ReadTileHeader(bad, 1, &header);
    if (status.ok()) {
      GoldenTile got;
      got.symbol_classes.resize(SymbolLayout::MaxSymbols(128, 128));
      got.symbols.resize(got.symbol_classes.size());
      status = ReadTile(bad, header, ModelOf(*profile), 128, &got.layout, &got.classes,
                        got.symbol_classes.data(), got.symbols.data());
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << c.what << ": " << status;
  }
}

// Every bit of a chunk, one after the other.
TEST(GoldenTest, NoFlippedBitOfTheChunkIsAccepted) {
  const std::vector<uint8_t> good = ReadTestdata("golden_v1.chunk");
  ASSERT_TRUE(ParseChunk(good, Verify::kAll).ok());
  std::vector<uint8_t> bad = good;
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    bad[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    ASSERT_FALSE(ParseChunk(bad, Verify::kAll).ok()) << "bit " << bit;
    bad[bit / 8] = good[bit / 8];
  }
}

// What a tile says of its own sizes is never believed before it is compared.
TEST(GoldenTest, ForgedSizesAndEndsAreRefused) {
  const auto profile = TinyProfile();
  auto read = [&](const std::vector<uint8_t>& bytes, int tokens) {
    TileHeader header;
    if (absl::Status s = ReadTileHeader(bytes, 1, &header); !s.ok()) return s;
    GoldenTile got;
    got.symbol_classes.resize(SymbolLayout::MaxSymbols(tokens, 128));
    got.symbols.resize(got.symbol_classes.size());
    return ReadTile(bytes, header, ModelOf(*profile), tokens, &got.layout, &got.classes,
                    got.symbol_classes.data(), got.symbols.data());
  };
  auto expect_lost = [&](const std::vector<uint8_t>& bytes, int tokens, const char* message) {
    const absl::Status status = read(bytes, tokens);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << message << ": " << status;
    EXPECT_NE(status.message().find(message), absl::string_view::npos) << status;
  };
  // Two segments (tile 6): the size of the first is at byte 6.
  const std::vector<uint8_t> two = ReadTestdata("golden_v1_6.tile");
  ASSERT_TRUE(read(two, 128).ok());
  std::vector<uint8_t> bad = two;
  bad[6] = bad[7] = 0xff;  // 131,070 bytes
  expect_lost(bad, 128, "segment 0 of 131070 bytes");
  bad = two;
  bad[6] = bad[7] = 0;
  expect_lost(bad, 128, "segment 0 of 0 bytes");
  bad = two;
  ++bad[6];  // a word more for the first, a word less for the second
  expect_lost(bad, 128, "lanes do not end in their initial state");
  for (int groups : {0xffff, 0x8000, 513}) {
    bad = two;
    bad[4] = static_cast<uint8_t>(groups);
    bad[5] = static_cast<uint8_t>(groups >> 8);
    EXPECT_EQ(read(bad, 128).code(), absl::StatusCode::kDataLoss) << groups;
  }
  bad = {1, 0x86, 0, 0, 0xff, 0xff};  // 512 segments and no sizes
  expect_lost(bad, 128, "groups of symbols");
  // One segment: words missing, too many, an odd byte; a state that is not the first one.
  const std::vector<uint8_t> one = ReadTestdata("golden_v1_0.tile");
  ASSERT_TRUE(read(one, 128).ok());
  bad = one;
  bad.resize(bad.size() - 2);
  expect_lost(bad, 128, "ends early");
  bad = one;
  bad.resize(bad.size() + 2);
  expect_lost(bad, 128, "lanes do not end in their initial state");
  bad = one;
  bad.push_back(0);
  expect_lost(bad, 128, "broken lane states");
  // Read as a tile of fewer or more tokens, it has the wrong number of symbols.
  for (int tokens : {1, 127}) {
    EXPECT_EQ(read(one, tokens).code(), absl::StatusCode::kDataLoss) << tokens;
  }
  for (size_t cut = 0; cut < 64; ++cut) {
    EXPECT_EQ(read({one.begin(), one.begin() + cut}, 128).code(), absl::StatusCode::kDataLoss);
  }
}

TEST(TileLayoutTest, StepsAreTheNearestFloats) {
  for (int n = 0; n < 8; ++n) {
    EXPECT_EQ(EighthOctave(n), static_cast<float>(std::exp2(n / 8.0))) << n;
  }
  for (int i = kMinStepExponent; i <= kMaxStepExponent; ++i) {
    for (int k = -kMaxStepClass; k <= kMaxStepClass; ++k) {
      const int n = i - 4 * k;
      EXPECT_EQ(StepOf(i, k), std::ldexp(EighthOctave(n & 7), n >> 3)) << i << " " << k;
    }
  }
}

TEST(TileLayoutTest, ClassesAreTheRoundedLogarithm) {
  for (int e = -3200; e <= 3200; ++e) {
    const double exact = std::floor(2.5 * e / 16 + .5) + 16;
    EXPECT_EQ(CoordinateClass(e, 0), std::max(0.0, std::min(39.0, exact))) << e;
  }
}

}  // namespace
}  // namespace kvcask::fklt
