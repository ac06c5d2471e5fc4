// Chunks kept as files: the proof that today's program reads and writes what yesterday's did,
// to the byte. After a new version, keep the old files and write the new beside them:
//   KVCASK_UPDATE_GOLDEN=$PWD/codec/format/testdata bazel-run this test, and say why in the
//   change log of FORMAT.md.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "codec/builtin_codecs.h"
#include "codec/format/chunk.h"
#include "codec/testing/test_cache.h"

namespace kvcask {
namespace {

constexpr int kTokens = 5;
constexpr int kSlidingBegin = 2;  // the first token that layer 1 still holds
constexpr uint32_t kFirstPosition = 5000;

Geometry GoldenGeometry() {
  Geometry g = UniformGeometry(2, 2, 8, Rope());
  g.layers[0].rope.style = RopeStyle::kRotateHalf;
  g.layers[0].rope.dims = 8;
  g.layers[0].rope.inv_freq = {1, 0.5, 0.25, 0.125};
  g.layers[1].kind = LayerKind::kSliding;
  g.layers[1].window = 3;
  return g;
}

// Multiples of 1/32 from a congruential sequence: exact in bf16, the same everywhere.
void Fill(TestCache& cache) {
  uint32_t x = 12345;
  for (int p = 0; p < cache.planes(); ++p) {
    for (int h = 0; h < cache.heads(p); ++h) {
      for (int t = 0; t < cache.tokens(); ++t) {
        for (int d = 0; d < cache.head_dim(p); ++d) {
          x = x * 1664525 + 1013904223;
          cache.Set(p, h, t, d, static_cast<float>(static_cast<int>(x >> 25) - 64) / 32);
        }
      }
    }
  }
}

struct Golden {
  std::unique_ptr<Codec> codec;
  std::vector<uint8_t> chunk;
};

Golden Make(const char* name) {
  const Geometry g = GoldenGeometry();
  Golden golden;
  auto codec = FindCodec(name)->make({g, {0, 1, 0, 2, 0, 2}, nullptr});
  EXPECT_TRUE(codec.ok()) << codec.status();
  golden.codec = *std::move(codec);
  ChunkHeader header;
  header.codec = golden.codec->id();
  header.shard = {0, 1, 0, 2, 0, 2};
  header.geometry = g.ComputeFingerprint();
  header.token_begin = 384;
  header.tokens = kTokens;
  header.positions = PositionsFrom(kFirstPosition, kTokens);
  header.token_ids = {17, 4, 90000, 0, 2};
  std::vector<std::vector<uint8_t>> bytes(2);
  std::vector<EncodedTile> tiles(2);
  Workspace workspace;
  for (int layer = 0; layer < 2; ++layer) {
    const int begin = layer == 1 ? kSlidingBegin : 0;
    TestCache cache(g, layer, layer + 1, kTokens - begin, Dtype::kBf16, Layout::kContiguous);
    Fill(cache);
    EncodeJob job;
    job.group = layer;
    job.tokens = cache.tokens();
    job.source = cache.const_view();
    job.positions = absl::MakeConstSpan(header.positions).subspan(begin);
    bytes[layer].resize(golden.codec->MaxTileBytes(layer, job.tokens, Dtype::kBf16));
    job.destination = absl::MakeSpan(bytes[layer]);
    EXPECT_TRUE(golden.codec->Encode({&job, 1}, workspace).ok());
    EXPECT_TRUE(job.status.ok()) << job.status;
    tiles[layer] = {layer, begin, job.tokens, job.destination.first(job.bytes), job.certificate};
  }
  golden.chunk = BuildChunk(header, tiles);
  return golden;
}

std::vector<uint8_t> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Decodes a tile into a cache of its own; the status tells what went wrong.
absl::Status DecodeTile(const Codec& codec, const ChunkView& chunk, int i, TestCache& out) {
  const TileEntry& tile = chunk.tiles[i];
  DecodeJob job;
  job.group = i;
  job.tokens = tile.tokens;
  job.source_dtype = chunk.header.dtype;
  job.tile = chunk.tile(i);
  job.positions =
      absl::MakeConstSpan(chunk.header.positions).subspan(tile.token_begin, tile.tokens);
  job.token_end = tile.tokens;
  job.layer_begin = i;
  job.layer_end = i + 1;
  job.destination = out.view();
  Workspace workspace;
  absl::Status s = codec.Decode({&job, 1}, workspace);
  return s.ok() ? job.status : s;
}

class GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  std::string path() const { return std::string("codec/format/testdata/") + GetParam() + ".chunk"; }
};

TEST_P(GoldenTest, TheSameChunkIsWrittenToTheByte) {
  const Golden golden = Make(GetParam());
  if (const char* directory = std::getenv("KVCASK_UPDATE_GOLDEN")) {
    std::ofstream(std::string(directory) + "/" + GetParam() + ".chunk", std::ios::binary)
        .write(reinterpret_cast<const char*>(golden.chunk.data()), golden.chunk.size());
  }
  const std::vector<uint8_t> kept = ReadFile(path());
  ASSERT_FALSE(kept.empty()) << path();
  EXPECT_EQ(golden.chunk, kept);
}

TEST_P(GoldenTest, TheKeptChunkDecodesToWhatWasPut) {
  const Golden golden = Make(GetParam());
  const std::vector<uint8_t> kept = ReadFile(path());
  const auto chunk = ParseChunk(kept, Verify::kAll);
  ASSERT_TRUE(chunk.ok()) << chunk.status();
  EXPECT_EQ(chunk->header.token_begin, 384u);
  EXPECT_EQ(chunk->header.positions, PositionsFrom(kFirstPosition, kTokens));
  EXPECT_EQ(chunk->header.token_ids[2], 90000u);
  EXPECT_EQ(chunk->header.geometry, GoldenGeometry().ComputeFingerprint());
  ASSERT_EQ(chunk->tiles.size(), 2u);
  EXPECT_EQ(chunk->tiles[1].token_begin, kSlidingBegin);
  for (int i = 0; i < 2; ++i) {
    const Geometry g = GoldenGeometry();
    TestCache want(g, i, i + 1, chunk->tiles[i].tokens, Dtype::kBf16, Layout::kContiguous);
    TestCache got(g, i, i + 1, chunk->tiles[i].tokens, Dtype::kBf16, Layout::kContiguous);
    Fill(want);
    const absl::Status s = DecodeTile(*golden.codec, *chunk, i, got);
    ASSERT_TRUE(s.ok()) << s;
    if (FindCodec(GetParam())->lossless) {
      EXPECT_EQ(FirstDifference(want, got), "");
      continue;
    }
    for (int p = 0; p < 2; ++p) {
      for (int t = 0; t < want.tokens(); ++t) {
        for (int d = 0; d < 8; ++d) {
          // Magnitudes up to 2: half a step of 2 / 127, and bf16's rounding.
          EXPECT_NEAR(got.Get(p, 1, t, d), want.Get(p, 1, t, d), 1.01 / 127 + 0x1p-8);
        }
      }
    }
  }
}

TEST_P(GoldenTest, NoFlippedBitDecodesSilently) {
  const Golden golden = Make(GetParam());
  const Geometry g = GoldenGeometry();
  for (size_t bit = 0; bit < golden.chunk.size() * 8; ++bit) {
    std::vector<uint8_t> bad = golden.chunk;
    bad[bit / 8] ^= 1 << (bit % 8);
    ASSERT_FALSE(ParseChunk(bad, Verify::kAll).ok()) << "bit " << bit;
    // A reader that wants single tiles checks the header and these tiles only.
    const auto chunk = ParseChunk(bad, Verify::kHeaderOnly);
    if (!chunk.ok()) continue;
    for (int i = 0; i < 2; ++i) {
      if (!VerifyTile(*chunk, i).ok()) continue;
      TestCache want(g, i, i + 1, chunk->tiles[i].tokens, Dtype::kBf16, Layout::kContiguous);
      TestCache got(g, i, i + 1, chunk->tiles[i].tokens, Dtype::kBf16, Layout::kContiguous);
      const auto good = ParseChunk(golden.chunk, Verify::kAll);
      ASSERT_TRUE(DecodeTile(*golden.codec, *good, i, want).ok());
      ASSERT_TRUE(DecodeTile(*golden.codec, *chunk, i, got).ok());
      ASSERT_EQ(FirstDifference(want, got), "") << "bit " << bit;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryCodec, GoldenTest, testing::Values("raw", "int8"));

}  // namespace
}  // namespace kvcask
