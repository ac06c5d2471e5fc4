// The shipped profile on the shipped cache of a real model: bytes against their ideal code length,
// certificates and values against double arithmetic.
#include <absl/strings/str_format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>

#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/fklt/fklt.h"
#include "codec/fklt/fklt_reference.h"
#include "codec/fklt/tile.h"
#include "codec/format/chunk.h"
#include "codec/testing/test_cache.h"

namespace kvcask::fklt {
namespace {

std::vector<uint8_t> ReadExample(const std::string& name) {
  std::ifstream in("examples/" + name, std::ios::binary);
  EXPECT_TRUE(in.good()) << name;
  return {std::istreambuf_iterator<char>(in), {}};
}

// SmolLM2-135M, one-layer groups, 256 tokens from position 0.
class RealCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    if (codec_ != nullptr) return;  // reading the profile is most of the work
    auto file = Profile::Parse(ReadExample("smollm2-135m-layer.fklt.profile.safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *file;
    auto profile = FkltProfile::Read(file_);
    ASSERT_TRUE(profile.ok()) << profile.status();
    profile_ = *profile;
    cache_ = ReadExample("smollm2-135m-book-256.safetensors");
    auto header = ParseSafetensorsHeader(cache_, cache_.size());
    ASSERT_TRUE(header.ok()) << header.status();
    header_ = *header;
    const Geometry& g = file_->geometry();
    spec_ = {
        g, {0, 1, 0, static_cast<int>(g.layers.size()), 0, g.layers[0].streams[0].heads}, file_};
    auto codec = MakeFkltCodec(spec_);
    ASSERT_TRUE(codec.ok()) << codec.status();
    codec_ = *std::move(codec);
  }

  // Planes of one layer from a token on; group n is layer n.
  std::vector<ConstPlaneView> Planes(int layer, int first_token) const {
    std::vector<ConstPlaneView> planes;
    for (const char* stream : {"k", "v"}) {
      const auto& t = header_.tensors.at(absl::StrFormat("%s.%02d", stream, layer));
      ConstPlaneView v;
      const int64_t tokens = t.shape[1], dim = t.shape[2];
      v.dim_stride = 2;
      v.token_stride = 2 * dim;
      v.head_stride = 2 * dim * tokens;
      v.data = cache_.data() + t.offset + first_token * v.token_stride;
      planes.push_back(v);
    }
    return planes;
  }

  struct Tile {
    std::vector<uint8_t> bytes;
    double predicted = 0;
  };
  Tile Encode(int layer, int first_token, int tokens, Quality quality) const {
    const std::vector<ConstPlaneView> planes = Planes(layer, first_token);
    const std::vector<uint32_t> positions = PositionsFrom(first_token, tokens);
    Tile out;
    out.bytes.resize(codec_->MaxTileBytes(layer, tokens, Dtype::kBf16));
    EncodeJob job;
    job.group = layer;
    job.tokens = tokens;
    job.source.planes = planes;
    job.positions = positions;
    job.quality = quality;
    job.destination = absl::MakeSpan(out.bytes);
    Workspace workspace;
    EXPECT_TRUE(codec_->Encode({&job, 1}, workspace).ok());
    EXPECT_TRUE(job.status.ok()) << job.status;
    out.bytes.resize(job.bytes);
    out.predicted = job.certificate.predicted_kld;
    return out;
  }

  // Bytes that an ideal coder would need for a tile without sinks, under the same tables.
  double IdealBytes(int layer, int tokens, const std::vector<uint8_t>& tile) const {
    const GroupModel& g = profile_->groups[layer];
    const TileModel model{g.sigma, profile_->table_sets, profile_->active_threshold};
    const size_t most = SymbolLayout::MaxSymbols(tokens, g.dimensions);
    std::vector<uint8_t> classes(most);
    std::vector<int16_t> symbols(most);
    TileHeader header;
    SymbolLayout layout;
    TokenClasses token_classes;
    EXPECT_TRUE(ReadTileHeader(tile, 4, &header).ok());
    EXPECT_EQ(header.mode, kCodedMode);
    const absl::Status status = ReadTile(tile, header, model, tokens, &layout, &token_classes,
                                         classes.data(), symbols.data());
    EXPECT_TRUE(status.ok()) << status;
    double bits = 0;
    for (size_t j = 0; j < layout.symbols(); ++j) {
      if (classes[j] == kAbsentClass) continue;
      bits += profile_->table_sets[header.table_set].Cost(classes[j], symbols[j]);
    }
    return bits / 8;
  }

  int layers() const { return static_cast<int>(profile_->groups.size()); }

  static inline std::shared_ptr<const Profile> file_;
  static inline std::shared_ptr<const FkltProfile> profile_;
  static inline std::vector<uint8_t> cache_;
  static inline SafetensorsHeader header_;
  static inline CodecSpec spec_;
  static inline std::unique_ptr<Codec> codec_;
};

TEST_F(RealCacheTest, WholePagesAreWithinFourPercentOfTheirIdealLength) {
  for (Quality quality : {Quality::kNearLossless, Quality::kBalanced, Quality::kCompact}) {
    double ideal = 0, small_worst = 0;
    std::vector<Tile> tiles;
    std::vector<EncodedTile> encoded;
    for (int layer = 0; layer < layers(); ++layer) {
      tiles.push_back(Encode(layer, 128, 128, quality));
      const double least = IdealBytes(layer, 128, tiles.back().bytes);
      const double over = tiles.back().bytes.size() / least - 1;
      EXPECT_GT(over, 0);
      EXPECT_LT(over, tiles.back().bytes.size() < 2048 ? .09 : .04) << "layer " << layer;
      small_worst = std::max(small_worst, over);
      ideal += least;
    }
    for (int layer = 0; layer < layers(); ++layer) {
      encoded.push_back({layer, 0, 128, tiles[layer].bytes, {tiles[layer].predicted}});
    }
    ChunkHeader header;
    header.codec = CodecId::kFklt;
    header.quality = quality;
    header.shard = spec_.shard;
    header.profile = file_->fingerprint();
    header.tokens = 128;
    header.positions = PositionsFrom(128, 128);
    // As the daemon stores it: header, directory and checksums too.
    const double stored = static_cast<double>(BuildChunk(header, encoded).size());
    printf("%s: %.0f bytes of a page, %.2f %% over the ideal %.0f; worst tile %.2f %%\n",
           std::string(QualityName(quality)).c_str(), stored, 100 * (stored / ideal - 1), ideal,
           100 * small_worst);
    EXPECT_LT(stored, 1.04 * ideal);
  }
}

TEST_F(RealCacheTest, SmallTilesAreWithinNinePercentOfTheirIdealLength) {
  double worst = 0, bytes = 0, ideal = 0;
  int tiles = 0;
  for (int layer = 0; layer < layers(); layer += 4) {
    for (int tokens : {8, 16, 24, 32}) {
      for (Quality quality : {Quality::kBalanced, Quality::kCompact}) {
        const Tile tile = Encode(layer, 128, tokens, quality);
        if (tile.bytes.size() < 128 || tile.bytes.size() >= 2048) continue;
        const double least = IdealBytes(layer, tokens, tile.bytes);
        worst = std::max(worst, tile.bytes.size() / least - 1);
        bytes += tile.bytes.size();
        ideal += least;
        ++tiles;
        EXPECT_LT(tile.bytes.size(), 1.09 * least)
            << "layer " << layer << ", " << tokens << " tokens, " << QualityName(quality);
      }
    }
  }
  ASSERT_GT(tiles, 20);
  printf("%d tiles of 128 to 2,047 bytes: %.2f %% over the ideal, worst %.2f %%\n", tiles,
         100 * (bytes / ideal - 1), 100 * worst);
}

// What shadow mode watches: chunks, all layers of a page, of all presets.
TEST_F(RealCacheTest, PagesMeasureWhatTheyAreCertifiedFor) {
  for (const Quality quality : {Quality::kNearLossless, Quality::kBalanced, Quality::kCompact}) {
    for (int first : {0, 128}) {
      double certified = 0, measured = 0, lowest = 1e9, highest = 0;
      const std::vector<uint32_t> positions = PositionsFrom(first, 128);
      for (int layer = 0; layer < 30; ++layer) {
        const Tile tile = Encode(layer, first, 128, quality);
        TestCache back(file_->geometry(), layer, layer + 1, 128, Dtype::kF32, Layout::kContiguous);
        DecodeJob job;
        job.group = layer;
        job.tokens = job.token_end = 128;
        job.tile = tile.bytes;
        job.positions = positions;
        job.layer_begin = layer;
        job.layer_end = layer + 1;
        job.destination = back.view();
        Workspace workspace;
        ASSERT_TRUE(codec_->Decode({&job, 1}, workspace).ok());
        ASSERT_TRUE(job.status.ok()) << job.status;
        const std::vector<ConstPlaneView> planes = Planes(layer, first);
        EncodeJob put;
        put.group = layer;
        put.tokens = 128;
        put.source.planes = planes;
        put.positions = positions;
        put.quality = quality;
        const double kld = codec_->MeasureKld(put, back.const_view());
        certified += tile.predicted;
        measured += kld;
        lowest = std::min(lowest, kld / tile.predicted);
        highest = std::max(highest, kld / tile.predicted);
      }
      printf("%s page at %d: measured/certified %.4f, of single tiles %.3f to %.3f\n",
             std::string(QualityName(quality)).c_str(), first, measured / certified, lowest,
             highest);
      EXPECT_NEAR(measured / certified, 1, .05);
    }
  }
}

TEST_F(RealCacheTest, ValuesAndCertificatesAreThoseOfDoubleArithmetic) {
  for (int layer : {0, 13, 29}) {
    SCOPED_TRACE(testing::Message() << "layer " << layer);
    constexpr int kFirst = 128, kTokens = 64;
    const GroupModel& g = profile_->groups[layer];
    const Tile tile = Encode(layer, kFirst, kTokens, Quality::kBalanced);
    const auto parsed = ReferenceParse(*profile_, g, tile.bytes, kTokens);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    const Rope& rope = file_->geometry().layers[layer].rope;
    auto turn = [&](double position, std::vector<double>* x) {
      for (const Member& m : g.members) {
        if (m.stream != StreamKind::kK) continue;
        const int half = rope.dims / 2;
        for (int i = 0; i < half; ++i) {
          const double angle = position * rope.inv_freq[i];
          double& a = (*x)[m.offset + i];
          double& b = (*x)[m.offset + i + half];
          const double turned = a * std::cos(angle) - b * std::sin(angle);
          b = a * std::sin(angle) + b * std::cos(angle);
          a = turned;
        }
      }
    };
    const std::vector<ConstPlaneView> planes = Planes(layer, kFirst);
    Matrix y;
    for (int t = 0; t < kTokens; ++t) {
      std::vector<double> x(g.dimensions);
      for (const Member& m : g.members) {
        const ConstPlaneView& p = planes[m.stream == StreamKind::kV];
        for (int d = 0; d < m.head_dim; ++d) {
          x[m.offset + d] =
              LoadElement(p.data + m.head * p.head_stride + t * p.token_stride + d * p.dim_stride,
                          Dtype::kBf16);
        }
      }
      turn(-(kFirst + t), &x);
      y.push_back(ReferenceForward(g, x));
    }
    const double certificate =
        ReferenceCertificate(*profile_, g, 1, kTokens, y, ReferenceDequantise(*profile_, *parsed));
    EXPECT_NEAR(tile.predicted, certificate, .2 * certificate);

    TestCache back(file_->geometry(), layer, layer + 1, kTokens, Dtype::kF32, Layout::kPadded);
    const std::vector<uint32_t> positions = PositionsFrom(kFirst, kTokens);
    DecodeJob job;
    job.group = layer;
    job.tokens = job.token_end = kTokens;
    job.tile = tile.bytes;
    job.positions = positions;
    job.layer_begin = layer;
    job.layer_end = layer + 1;
    job.destination = back.view();
    Workspace workspace;
    ASSERT_TRUE(codec_->Decode({&job, 1}, workspace).ok());
    ASSERT_TRUE(job.status.ok()) << job.status;
    const Matrix decoded = ReferenceDecode(*profile_, g, *parsed);
    for (int t = 0; t < kTokens; ++t) {
      std::vector<double> x = decoded[t];
      double largest = 0;
      for (double v : x) largest = std::max(largest, std::fabs(v));
      turn(kFirst + t, &x);
      for (const Member& m : g.members) {
        for (int d = 0; d < m.head_dim; ++d) {
          ASSERT_NEAR(back.Get(m.stream == StreamKind::kV, m.head, t, d), x[m.offset + d],
                      1e-4 * (1 + largest))
              << "token " << t << " element " << d;
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvcask::fklt
