#include "codec/format/chunk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "codec/base/crc32c.h"

namespace kvcask {
namespace {

struct Sample {
  ChunkHeader header;
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<EncodedTile> tiles;
};

Sample MakeSample(std::mt19937& rng, int tokens, int groups, bool profile, bool ids,
                  bool consecutive) {
  Sample s;
  s.header.codec = CodecId::kInt8;
  s.header.quality = Quality::kBalanced;
  s.header.dtype = Dtype::kF16;
  s.header.shard = {1, 2, 3, 9, 4, 8};
  for (auto& b : s.header.geometry) b = rng();
  if (profile) {
    s.header.profile.emplace();
    for (auto& b : *s.header.profile) b = rng();
  }
  s.header.token_begin = 128 * (rng() % 1000);
  s.header.tokens = tokens;
  for (int t = 0; t < tokens; ++t) {
    s.header.positions.push_back(consecutive ? 5000 + t : rng());
    if (ids) s.header.token_ids.push_back(rng());
  }
  for (int g = 0; g < groups; ++g) {
    s.bytes.emplace_back(rng() % 90);
    for (auto& b : s.bytes.back()) b = rng();
  }
  for (int g = 0; g < groups; ++g) {
    EncodedTile tile;
    tile.group = g;
    if (g != 2) {
      tile.token_begin = rng() % tokens;
      tile.tokens = tokens - tile.token_begin;
      tile.bytes = s.bytes[g];
    }
    tile.certificate.predicted_kld = g * 0.125 - 1;
    s.tiles.push_back(tile);
  }
  return s;
}

// A header's CRC made right again, to reach the checks behind it.
void FixHeaderCrc(std::vector<uint8_t>& chunk, size_t covered) {
  const uint32_t crc = Crc32c({chunk.data(), covered});
  std::memcpy(chunk.data() + covered, &crc, 4);
}

TEST(ChunkTest, WhatIsBuiltIsParsedBack) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  for (int i = 0; i < 200; ++i) {
    const int tokens = 1 + rng() % kPageTokens, groups = rng() % 6;
    const Sample s = MakeSample(rng, tokens, groups, rng() % 2, rng() % 2, rng() % 2);
    const std::vector<uint8_t> chunk = BuildChunk(s.header, s.tiles);
    size_t tile_bytes = 0;
    for (const auto& t : s.tiles) tile_bytes += t.bytes.size();
    EXPECT_LE(chunk.size(), ChunkOverheadBytes(groups, s.header) + tile_bytes);
    for (Verify verify : {Verify::kHeaderOnly, Verify::kAll}) {
      const auto view = ParseChunk(chunk, verify);
      ASSERT_TRUE(view.ok()) << view.status();
      EXPECT_EQ(view->header.codec, s.header.codec);
      EXPECT_EQ(view->header.quality, s.header.quality);
      EXPECT_EQ(view->header.dtype, s.header.dtype);
      EXPECT_EQ(view->header.shard.head_end, 8);
      EXPECT_EQ(view->header.shard.layer_begin, 3);
      EXPECT_EQ(view->header.geometry, s.header.geometry);
      EXPECT_EQ(view->header.profile, s.header.profile);
      EXPECT_EQ(view->header.token_begin, s.header.token_begin);
      EXPECT_EQ(view->header.tokens, tokens);
      EXPECT_EQ(view->header.positions, s.header.positions);
      EXPECT_EQ(view->header.token_ids, s.header.token_ids);
      ASSERT_EQ(view->tiles.size(), s.tiles.size());
      for (int g = 0; g < groups; ++g) {
        EXPECT_EQ(view->tiles[g].group, g);
        EXPECT_EQ(view->tiles[g].tokens, s.tiles[g].tokens);
        EXPECT_EQ(view->tiles[g].token_begin, s.tiles[g].token_begin);
        EXPECT_EQ(view->tiles[g].certificate.predicted_kld, g * 0.125 - 1);
        EXPECT_EQ(view->tiles[g].offset % 16, 0u);
        EXPECT_TRUE(std::equal(view->tile(g).begin(), view->tile(g).end(), s.tiles[g].bytes.begin(),
                               s.tiles[g].bytes.end()));
        EXPECT_TRUE(VerifyTile(*view, g).ok());
      }
    }
  }
}

TEST(ChunkTest, AChunkSealedInPlaceIsTheOneThatIsBuilt) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  for (int i = 0; i < 200; ++i) {
    const int tokens = 1 + rng() % kPageTokens, groups = rng() % 6;
    const Sample s = MakeSample(rng, tokens, groups, rng() % 2, rng() % 2, rng() % 2);
    std::vector<size_t> sizes;
    for (const auto& t : s.tiles) sizes.push_back(t.bytes.size());
    const ChunkLayout layout = LayOutChunk(s.header, sizes);
    ASSERT_EQ(layout.bytes, ChunkSize(s.header, sizes));
    std::vector<uint8_t> chunk(layout.bytes, 0xEE);  // as memory comes
    std::vector<PlacedTile> placed;
    for (size_t t = 0; t < s.tiles.size(); ++t) {
      const EncodedTile& tile = s.tiles[t];
      std::copy(tile.bytes.begin(), tile.bytes.end(), chunk.begin() + layout.tiles[t]);
      placed.push_back(
          {tile.token_begin, tile.tokens, sizes[t], Crc32c(tile.bytes), tile.certificate});
    }
    SealChunk(s.header, placed, absl::MakeSpan(chunk));
    EXPECT_EQ(chunk, BuildChunk(s.header, s.tiles));
    EXPECT_TRUE(ParseChunk(chunk, Verify::kAll).ok());
  }
}

TEST(ChunkTest, EveryFlippedBitIsSeen) {
  std::mt19937 rng(1);
  const Sample s = MakeSample(rng, 5, 3, true, true, true);
  const std::vector<uint8_t> good = BuildChunk(s.header, s.tiles);
  const size_t header = 96 + 32 + 4 + 5 * 4 + 3 * 16 + 4;
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::vector<uint8_t> bad = good;
    bad[bit / 8] ^= 1 << (bit % 8);
    const auto all = ParseChunk(bad, Verify::kAll);
    ASSERT_FALSE(all.ok()) << "bit " << bit;
    const absl::StatusCode code = all.status().code();
    ASSERT_TRUE(code == absl::StatusCode::kDataLoss ||
                (code == absl::StatusCode::kUnimplemented && bit / 8 >= 4 && bit / 8 < 8))
        << all.status();
    const auto quick = ParseChunk(bad, Verify::kHeaderOnly);
    if (bit / 8 < header) {
      ASSERT_FALSE(quick.ok()) << "bit " << bit << " of the header";
      continue;
    }
    if (!quick.ok() || bit / 8 >= bad.size() - 4) continue;  // padding; the last CRC itself
    int broken = 0;
    for (size_t g = 0; g < quick->tiles.size(); ++g) broken += !VerifyTile(*quick, g).ok();
    ASSERT_EQ(broken, 1) << "bit " << bit << " of the tiles";
  }
}

TEST(ChunkTest, EveryTruncationAndExtensionIsRefused) {
  std::mt19937 rng(2);
  const Sample s = MakeSample(rng, 128, 4, false, false, false);
  const std::vector<uint8_t> good = BuildChunk(s.header, s.tiles);
  for (size_t n = 0; n <= good.size() + 3; ++n) {
    if (n == good.size()) continue;
    std::vector<uint8_t> bad = good;
    bad.resize(n);
    EXPECT_EQ(ParseChunk(bad, Verify::kHeaderOnly).status().code(), absl::StatusCode::kDataLoss);
  }
}

TEST(ChunkTest, FieldsAreCheckedEvenWhereTheCrcIsRight) {
  std::mt19937 rng(3);
  const Sample s = MakeSample(rng, 5, 3, false, false, true);
  const std::vector<uint8_t> good = BuildChunk(s.header, s.tiles);
  const size_t directory = 96 + 4, covered = directory + 3 * 16;
  ASSERT_TRUE(ParseChunk(good, Verify::kAll).ok());
  const auto refused = [&](size_t at, std::vector<uint8_t> bytes, absl::StatusCode code) {
    std::vector<uint8_t> bad = good;
    std::copy(bytes.begin(), bytes.end(), bad.begin() + at);
    FixHeaderCrc(bad, covered);
    const absl::Status status = ParseChunk(bad, Verify::kHeaderOnly).status();
    return status.code() == code ? testing::AssertionSuccess()
                                 : testing::AssertionFailure() << "byte " << at << ": " << status;
  };
  const auto loss = absl::StatusCode::kDataLoss, unknown = absl::StatusCode::kUnimplemented;
  EXPECT_TRUE(refused(0, {'X'}, loss));
  EXPECT_TRUE(refused(4, {9}, unknown)) << "version";
  EXPECT_TRUE(refused(6, {77}, unknown)) << "codec";
  EXPECT_TRUE(refused(6, {0}, unknown)) << "codec";
  EXPECT_TRUE(refused(8, {4}, loss)) << "quality";
  EXPECT_TRUE(refused(9, {0}, loss)) << "dtype";
  EXPECT_TRUE(refused(10, {8}, loss)) << "flags";
  EXPECT_TRUE(refused(11, {0}, loss)) << "no tokens";
  EXPECT_TRUE(refused(11, {129}, loss)) << "tokens";
  EXPECT_TRUE(refused(12, {255, 255, 255, 255}, loss)) << "groups";
  EXPECT_TRUE(refused(12, {2}, loss)) << "fewer groups";
  EXPECT_TRUE(refused(16, {1}, loss)) << "not a page";
  EXPECT_TRUE(refused(24, {255, 255, 255, 255, 255, 255, 255, 255}, loss)) << "size";
  EXPECT_TRUE(refused(32, {2}, loss)) << "shard index";
  EXPECT_TRUE(refused(44, {1, 0, 0, 0}, loss)) << "layer range";
  EXPECT_TRUE(refused(52, {0, 0, 1, 0}, loss)) << "head range";
  EXPECT_TRUE(refused(56, {1}, loss)) << "reserved";
  EXPECT_TRUE(refused(96, {0xff, 0xff, 0xff, 0xff}, loss)) << "positions wrap";
  EXPECT_TRUE(refused(directory, {5}, loss)) << "tile tokens";
  EXPECT_TRUE(refused(directory + 2, {1}, loss)) << "reserved";
  EXPECT_TRUE(refused(directory + 4, {255, 255, 255, 255}, loss)) << "tile bytes";
  EXPECT_TRUE(refused(directory + 12, {0, 0, 0xc0, 0x7f}, loss)) << "certificate NaN";
  EXPECT_TRUE(refused(directory + 2 * 16 + 4, {1}, loss)) << "bytes without tokens";
}

TEST(ChunkTest, ConsecutivePositionsCostFourBytes) {
  std::mt19937 rng(4);
  Sample s = MakeSample(rng, 128, 0, false, false, true);
  const size_t few = BuildChunk(s.header, {}).size();
  s.header.positions[127] += 1;
  EXPECT_EQ(BuildChunk(s.header, {}).size(), few + 127 * 4);
}

TEST(ChunkTest, PositionsThatCouldBeShorterAreNoChunk) {
  std::mt19937 rng(5);
  Sample s = MakeSample(rng, 3, 0, false, false, true);
  s.header.positions = {7, 8, 10};
  std::vector<uint8_t> chunk = BuildChunk(s.header, {});
  chunk[96 + 8] = 9;
  FixHeaderCrc(chunk, 96 + 12);
  EXPECT_EQ(ParseChunk(chunk, Verify::kHeaderOnly).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace kvcask
