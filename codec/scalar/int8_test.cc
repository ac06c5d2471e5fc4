#include "codec/scalar/int8.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/profile/profile.h"
#include "codec/testing/test_cache.h"
#include "codec/transform/rope.h"

namespace kvcask {
namespace {

using Means = std::map<std::string, std::vector<float>>;  // "mean.00.k" -> [heads][head_dim]

// Layers that differ in heads, dims and rope, one shared, one latent, one with rows so short
// that the raw form is shorter.
Geometry Mixed() {
  Geometry g = UniformGeometry(6, 2, 64, StandardRope(RopeStyle::kRotateHalf, 64, 1e4));
  g.layers[1].streams = {{StreamKind::kK, 3, 40}, {StreamKind::kV, 3, 21}};
  g.layers[1].rope = StandardRope(RopeStyle::kInterleaved, 24, 1e4);
  g.layers[1].rope.attention_scale = 1.5;
  g.layers[2] = LayerGeometry();
  g.layers[2].kind = LayerKind::kShared;
  g.layers[2].shared_with = 1;
  g.layers[3] = LayerGeometry();
  g.layers[3].kind = LayerKind::kLatent;
  g.layers[3].streams = {{StreamKind::kLatent, 1, 20}};
  g.layers[4].rope = Rope();
  g.layers[5].rope = Rope();
  g.layers[5].streams = {{StreamKind::kK, 2, 1}, {StreamKind::kV, 2, 2}};
  return g;
}

std::vector<uint8_t> ProfileFile(const Geometry& g, const Means& means,
                                 const std::string& codec = "int8") {
  std::vector<uint8_t> file;
  SafetensorsWriter writer([&](absl::Span<const uint8_t> b) {
    file.insert(file.end(), b.begin(), b.end());
    return absl::OkStatus();
  });
  writer.SetMetadata("kvcask.profile", "1");
  writer.SetMetadata("codec", codec);
  writer.SetMetadata("name", "test");
  writer.SetMetadata("model", "test");
  writer.SetMetadata("geometry", GeometryToJson(g));
  for (const auto& [name, mean] : means) {
    const int layer = std::stoi(name.substr(5, 2));
    const int heads = g.layers[layer].streams[0].heads;
    EXPECT_TRUE(
        writer.Declare(name, "F32", {heads, static_cast<int64_t>(mean.size()) / heads}).ok());
  }
  EXPECT_TRUE(writer.Begin().ok());
  for (const auto& [name, mean] : means) {
    const auto* p = reinterpret_cast<const uint8_t*>(mean.data());
    EXPECT_TRUE(writer.Write({p, mean.size() * 4}).ok());
  }
  EXPECT_TRUE(writer.Finish().ok());
  return file;
}

std::shared_ptr<const Profile> MakeProfile(const Geometry& g, const Means& means) {
  auto profile = Profile::Parse(ProfileFile(g, means));
  EXPECT_TRUE(profile.ok()) << profile.status();
  return *profile;
}

// The row that is coded: un-rotated and less its mean, where there is one.
std::vector<float> CodedRow(const Geometry& g, const Means& means, const TestCache& in, int layer,
                            int stream, int plane, int head, int token, uint32_t position) {
  const int dim = in.head_dim(plane);
  std::vector<float> x(dim);
  for (int d = 0; d < dim; ++d) x[d] = in.Get(plane, head, token, d);
  const auto mean = means.find(absl::StrFormat("mean.%02d.%s", layer, stream == 0 ? "k" : "v"));
  if (mean == means.end()) return x;
  const Rope& rope = g.layers[layer].rope;
  if (stream == 0) {
    const uint32_t one[] = {position};
    ApplyRope(rope, MakeRopeTable(rope, one, 0, RopeDirection::kUnrotate), 1, dim, x.data());
  }
  for (int d = 0; d < dim; ++d) x[d] -= mean->second[head * dim + d];
  return x;
}

// From FORMAT.md, by search and in plain loops.
uint16_t SlowScale(const std::vector<float>& x) {
  float largest = 0;
  for (float v : x) largest = std::max(largest, std::fabs(v));
  const float want = largest / 127;
  uint16_t h = 0;
  while (h < 0x7c00 && F16ToFloat(h) < want) ++h;
  return h;
}

std::vector<uint8_t> SlowTile(const Geometry& g, const Means& means, const TestCache& in, int layer,
                              const std::vector<uint32_t>& positions) {
  std::vector<uint8_t> scales, codes;
  for (int p = 0; p < in.planes(); ++p) {
    for (int h = 0; h < in.heads(p); ++h) {
      for (int t = 0; t < in.tokens(); ++t) {
        const auto x = CodedRow(g, means, in, layer, p, p, h, t, positions[t]);
        const uint16_t half = SlowScale(x);
        scales.push_back(half & 255);
        scales.push_back(half >> 8);
        const float inverse = half ? 1 / F16ToFloat(half) : 0;
        for (float v : x) codes.push_back(static_cast<uint8_t>(std::lrint(v * inverse)));
      }
    }
  }
  std::vector<uint8_t> tile = {1, 0, 0, 0};
  tile.insert(tile.end(), scales.begin(), scales.end());
  tile.insert(tile.end(), codes.begin(), codes.end());
  return tile;
}

class Int8Test : public testing::Test {
 protected:
  Int8Test() : seed_(std::random_device{}()), rng_(seed_), g_(Mixed()) { Use({}); }

  void Use(const Means& means) {
    means_ = means;
    auto codec =
        MakeInt8Codec({g_, {0, 1, 0, 6, 0, 3}, means.empty() ? nullptr : MakeProfile(g_, means)});
    ASSERT_TRUE(codec.ok()) << codec.status();
    codec_ = *std::move(codec);
  }
  Means RandomMeans() {
    std::normal_distribution<float> normal(0, 50);
    Means means = {{"mean.00.k", std::vector<float>(2 * 64)},
                   {"mean.01.k", std::vector<float>(3 * 40)},
                   {"mean.01.v", std::vector<float>(3 * 21)},
                   {"mean.04.k", std::vector<float>(2 * 64)}};
    for (auto& m : means) {
      for (float& f : m.second) f = normal(rng_);
    }
    return means;
  }
  absl::Status TryEncode(int group, const TestCache& cache, const std::vector<uint32_t>& positions,
                         std::vector<uint8_t>* tile) {
    EncodeJob job;
    job.group = group;
    job.tokens = cache.tokens();
    job.source = cache.const_view();
    job.positions = positions;
    tile->assign(codec_->MaxTileBytes(group, job.tokens, cache.dtype()), 0xcc);
    job.destination = absl::MakeSpan(*tile);
    EXPECT_TRUE(codec_->Encode({&job, 1}, workspace_).ok());
    EXPECT_LE(job.bytes, tile->size());
    tile->resize(job.bytes);
    return job.status;
  }
  std::vector<uint8_t> Encode(int group, const TestCache& cache,
                              const std::vector<uint32_t>& positions) {
    std::vector<uint8_t> tile;
    const absl::Status s = TryEncode(group, cache, positions, &tile);
    EXPECT_TRUE(s.ok()) << s;
    return tile;
  }
  absl::Status Decode(int group, const std::vector<uint8_t>& tile, TestCache& out,
                      const std::vector<uint32_t>& positions, int token_begin, Dtype dtype,
                      int64_t offset = 0) {
    DecodeJob job;
    job.group = group;
    job.tokens = static_cast<int>(positions.size());
    job.source_dtype = dtype;
    job.tile = tile;
    job.positions = positions;
    job.token_begin = token_begin;
    job.token_end = token_begin + out.tokens();
    job.layer_begin = codec_->groups()[group].layer_begin;
    job.layer_end = codec_->groups()[group].layer_end;
    job.position_offset = offset;
    job.destination = out.view();
    EXPECT_TRUE(codec_->Decode({&job, 1}, workspace_).ok());
    return job.status;
  }
  int LayerOf(int group) const { return codec_->groups()[group].layer_begin; }

  const uint32_t seed_;
  std::mt19937 rng_;
  const Geometry g_;
  Means means_;
  std::unique_ptr<Codec> codec_;
  Workspace workspace_;
};

constexpr int kShortGroup = 4;  // of layer 5

TEST_F(Int8Test, WritesTheBytesOfTheSlowReferenceFromEveryLayoutAndDtype) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const Means& means : {Means(), RandomMeans()}) {
    Use(means);
    for (Dtype dtype : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
      for (Layout layout : kAllLayouts) {
        for (int group = 0; group < kShortGroup; ++group) {
          const int layer = LayerOf(group), tokens = 1 + rng_() % 40;
          SCOPED_TRACE(absl::StrCat(DtypeName(dtype), " ", LayoutName(layout), " layer ", layer,
                                    " tokens ", tokens));
          const auto positions = PositionsFrom(5000, tokens);
          TestCache in(g_, layer, layer + 1, tokens, dtype, layout);
          in.FillRandom(rng_, std::ldexp(1.f, static_cast<int>(rng_() % 12) - 6));
          for (int d = 0; d < in.head_dim(0); ++d) in.Set(0, 0, 0, d, 0);  // a row of zeros
          ASSERT_EQ(Encode(group, in, positions), SlowTile(g_, means, in, layer, positions));
        }
      }
    }
  }
}

TEST_F(Int8Test, DecodingGivesTheBitsOfTheSlowReferenceInEveryLayoutAndDtype) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (Dtype dtype : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
    for (Layout layout : kAllLayouts) {
      for (int group = 0; group < kShortGroup; ++group) {
        const int layer = LayerOf(group), tokens = 1 + rng_() % kPageTokens;
        SCOPED_TRACE(absl::StrCat(DtypeName(dtype), " ", LayoutName(layout), " layer ", layer));
        const auto positions = PositionsFrom(0, tokens);
        TestCache in(g_, layer, layer + 1, tokens, Dtype::kBf16, Layout::kContiguous);
        in.FillRandom(rng_);
        const auto tile = Encode(group, in, positions);
        const int begin = rng_() % tokens, end = begin + 1 + rng_() % (tokens - begin);
        TestCache out(g_, layer, layer + 1, end - begin, dtype, layout);
        const absl::Status s = Decode(group, tile, out, positions, begin, Dtype::kBf16);
        ASSERT_TRUE(s.ok()) << s;
        ASSERT_TRUE(out.PaddingIntact());
        size_t rows = 0;
        for (int p = 0; p < in.planes(); ++p) rows += in.heads(p) * tokens;
        size_t row = 0, code = 4 + rows * 2;
        for (int p = 0; p < in.planes(); ++p) {
          for (int h = 0; h < in.heads(p); ++h) {
            for (int t = 0; t < tokens; ++t, ++row) {
              const uint16_t half = tile[4 + 2 * row] | tile[5 + 2 * row] << 8;
              for (int d = 0; d < in.head_dim(p); ++d, ++code) {
                if (t < begin || t >= end) continue;
                uint8_t want[4];
                StoreElement(static_cast<int8_t>(tile[code]) * F16ToFloat(half), dtype, want);
                ASSERT_EQ(std::memcmp(want, out.At(p, h, t - begin, d), DtypeSize(dtype)), 0);
              }
            }
          }
        }
        ASSERT_EQ(code, tile.size());
      }
    }
  }
}

TEST_F(Int8Test, TheErrorIsWithinTheStatedBound) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const Means& means : {Means(), RandomMeans()}) {
    Use(means);
    for (int round = 0; round < 40; ++round) {
      const int group = round % kShortGroup, layer = LayerOf(group), tokens = 1 + rng_() % 60;
      const float magnitude = std::ldexp(1.f, static_cast<int>(rng_() % 28) - 20);
      const auto positions = PositionsFrom(rng_() % 1000000, tokens);
      TestCache in(g_, layer, layer + 1, tokens, Dtype::kBf16, Layout::kContiguous);
      in.FillRandom(rng_, magnitude);
      if (round % 3 == 0) in.Set(0, 0, 0, 1, 1000 * magnitude);  // an outlier
      TestCache out(g_, layer, layer + 1, tokens, Dtype::kF32, Layout::kContiguous);
      const auto tile = Encode(group, in, positions);
      ASSERT_EQ(tile[0], 1);
      const absl::Status s = Decode(group, tile, out, positions, 0, Dtype::kBf16);
      ASSERT_TRUE(s.ok()) << s;
      for (int p = 0; p < in.planes(); ++p) {
        const bool turned = p == 0 && means.count(absl::StrFormat("mean.%02d.k", layer)) &&
                            g_.layers[layer].rope.style != RopeStyle::kNone;
        const double factor = turned ? std::sqrt(2.0) * g_.layers[layer].rope.attention_scale : 1;
        for (int h = 0; h < in.heads(p); ++h) {
          for (int t = 0; t < tokens; ++t) {
            const auto coded = CodedRow(g_, means, in, layer, p, p, h, t, positions[t]);
            double largest = 0, in_largest = 0;
            for (float v : coded) largest = std::max<double>(largest, std::fabs(v));
            for (int d = 0; d < in.head_dim(p); ++d) {
              in_largest = std::max<double>(in_largest, std::fabs(in.Get(p, h, t, d)));
            }
            const double scale = largest / 127 * (1 + 0x1p-10) + 0x1p-24;
            // fp32's own roundings where rows are turned and moved by a mean.
            const double slack = means.empty() ? 0 : 16 * 0x1p-23 * (in_largest + largest + 300);
            for (int d = 0; d < in.head_dim(p); ++d) {
              ASSERT_LE(std::fabs(static_cast<double>(out.Get(p, h, t, d)) - in.Get(p, h, t, d)),
                        factor * (0.5 + 0x1p-15) * scale + slack)
                  << "plane " << p << " token " << t << " element " << d;
            }
          }
        }
      }
    }
  }
}

TEST_F(Int8Test, AMeanSavesTheKeysThatHaveABias) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  // Keys as Qwen2.5's: channel biases in the hundreds before RoPE, signal of about 1.
  const auto positions = PositionsFrom(5000, 64);
  Means means = {{"mean.00.k", std::vector<float>(2 * 64)}};
  std::normal_distribution<float> bias(0, 200), signal(0, 1);
  for (float& f : means["mean.00.k"]) f = bias(rng_);
  const Rope& rope = g_.layers[0].rope;
  TestCache in(g_, 0, 1, 64, Dtype::kF32, Layout::kContiguous);
  in.FillRandom(rng_);
  const RopeTable table = MakeRopeTable(rope, positions, 0, RopeDirection::kRotate);
  for (int h = 0; h < 2; ++h) {
    std::vector<float> rows(64 * 64);
    for (int i = 0; i < 64 * 64; ++i) rows[i] = means["mean.00.k"][h * 64 + i % 64] + signal(rng_);
    ApplyRope(rope, table, 64, 64, rows.data());
    for (int i = 0; i < 64 * 64; ++i) in.Set(0, h, i / 64, i % 64, rows[i]);
  }
  double error[2] = {0, 0};
  for (int with = 0; with < 2; ++with) {
    Use(with ? means : Means());
    TestCache out(g_, 0, 1, 64, Dtype::kF32, Layout::kContiguous);
    ASSERT_TRUE(Decode(0, Encode(0, in, positions), out, positions, 0, Dtype::kF32).ok());
    for (int i = 0; i < 64 * 64; ++i) {
      error[with] += std::fabs(out.Get(0, 1, i / 64, i % 64) - in.Get(0, 1, i / 64, i % 64));
    }
  }
  EXPECT_LT(error[1] * 20, error[0]);
}

TEST_F(Int8Test, AnOffsetMovesKeysWithAndWithoutAMean) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const Means& means : {Means(), RandomMeans()}) {
    Use(means);
    for (int group : {0, 1}) {
      const int layer = LayerOf(group);
      const Rope& rope = g_.layers[layer].rope;
      const auto positions = PositionsFrom(5000, 30);
      TestCache in(g_, layer, layer + 1, 30, Dtype::kF32, Layout::kContiguous);
      in.FillRandom(rng_);
      TestCache same(g_, layer, layer + 1, 30, Dtype::kF32, Layout::kContiguous);
      TestCache moved(g_, layer, layer + 1, 30, Dtype::kF32, Layout::kTransposedK);
      const auto tile = Encode(group, in, positions);
      ASSERT_TRUE(Decode(group, tile, same, positions, 0, Dtype::kF32).ok());
      ASSERT_TRUE(Decode(group, tile, moved, positions, 0, Dtype::kF32, -4990).ok());
      const int dim = in.head_dim(0);
      const RopeTable shift = MakeRopeShift(rope, -4990);
      for (int t = 0; t < 30; ++t) {
        std::vector<float> row(dim);
        for (int d = 0; d < dim; ++d) row[d] = same.Get(0, 1, t, d);
        ApplyRope(rope, shift, 1, dim, row.data());
        for (int d = 0; d < dim; ++d) ASSERT_NEAR(moved.Get(0, 1, t, d), row[d], 3e-4);
        for (int d = 0; d < in.head_dim(1); ++d) {
          ASSERT_EQ(moved.Get(1, 1, t, d), same.Get(1, 1, t, d)) << "values do not turn";
        }
      }
      TestCache out(g_, layer, layer + 1, 30, Dtype::kF32, Layout::kContiguous);
      EXPECT_EQ(Decode(group, tile, out, positions, 0, Dtype::kF32, -5001).code(),
                absl::StatusCode::kInvalidArgument);
    }
  }
}

TEST_F(Int8Test, WhatIsNotFiniteIsRefusedByItsPlace) {
  for (const Means& means : {Means(), RandomMeans()}) {
    Use(means);
    for (Dtype dtype : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
      TestCache in(g_, 1, 2, 20, dtype, Layout::kTransposedK);
      in.FillRandom(rng_);
      in.Set(1, 2, 17, 5, -std::numeric_limits<float>::infinity());
      std::vector<uint8_t> tile;
      absl::Status s = TryEncode(1, in, PositionsFrom(5000, 20), &tile);
      EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_NE(s.message().find("layer 1, V, head 2, token 17 (position 5017), element 5 is -Inf"),
                absl::string_view::npos)
          << s;
      in.Set(0, 0, 3, 39, std::nanf(""));
      s = TryEncode(1, in, PositionsFrom(5000, 20), &tile);
      EXPECT_NE(s.message().find("layer 1, K, head 0, token 3 (position 5003), element 39 is NaN"),
                absl::string_view::npos)
          << s;
      EXPECT_TRUE(tile.empty());
    }
  }
  Use({});
  TestCache tiny(g_, 5, 6, 3, Dtype::kBf16, Layout::kContiguous);
  tiny.FillRandom(rng_);
  tiny.Set(1, 1, 2, 1, std::nanf(""));
  std::vector<uint8_t> tile;
  EXPECT_EQ(TryEncode(kShortGroup, tiny, PositionsFrom(0, 3), &tile).code(),
            absl::StatusCode::kInvalidArgument)
      << "in raw form, too";
}

TEST_F(Int8Test, WhatNoScaleCanCarryIsKeptRaw) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const Means& means : {Means(), RandomMeans()}) {
    Use(means);
    for (float huge : {8.4e6f, 3e38f}) {
      TestCache in(g_, 0, 1, 20, Dtype::kF32, Layout::kPagedNhd);
      in.FillRandom(rng_);
      for (int d = 0; d < 64; ++d) in.Set(0, 1, 3, d, huge);
      const auto positions = PositionsFrom(5000, 20);
      const auto tile = Encode(0, in, positions);
      EXPECT_EQ(tile[0], 0);
      TestCache out(g_, 0, 1, 20, Dtype::kF32, Layout::kPagedHnd);
      ASSERT_TRUE(Decode(0, tile, out, positions, 0, Dtype::kF32).ok());
      EXPECT_EQ(FirstDifference(in, out), "");
    }
  }
}

TEST_F(Int8Test, RowsThatAreShorterRawAreKeptRaw) {
  TestCache in(g_, 5, 6, 128, Dtype::kBf16, Layout::kContiguous);
  in.FillRandom(rng_);
  const auto positions = PositionsFrom(0, 128);
  const auto tile = Encode(kShortGroup, in, positions);
  EXPECT_EQ(tile.size(), 4u + 128 * 2 * 3 * 2);
  TestCache out(g_, 5, 6, 128, Dtype::kBf16, Layout::kContiguous);
  ASSERT_TRUE(Decode(kShortGroup, tile, out, positions, 0, Dtype::kBf16).ok());
  EXPECT_EQ(FirstDifference(in, out), "");
}

TEST_F(Int8Test, ADamagedTileIsDataLossOrADifferentNumberNeverACrash) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const auto positions = PositionsFrom(0, 9);
  TestCache in(g_, 0, 1, 9, Dtype::kBf16, Layout::kContiguous);
  in.FillRandom(rng_);
  const auto good = Encode(0, in, positions);
  const auto code_of = [&](const std::vector<uint8_t>& tile) {
    TestCache out(g_, 0, 1, 9, Dtype::kBf16, Layout::kPadded);
    const absl::Status s = Decode(0, tile, out, positions, 0, Dtype::kBf16);
    EXPECT_TRUE(out.PaddingIntact());
    return s.code();
  };
  for (size_t n = 0; n < good.size() + 4; n += n < 100 || n + 9 > good.size() ? 1 : 9) {
    if (n == good.size()) continue;
    std::vector<uint8_t> bad = good;
    bad.resize(n);
    ASSERT_EQ(code_of(bad), absl::StatusCode::kDataLoss) << n;
  }
  for (size_t byte : {0, 1, 2, 3}) {
    std::vector<uint8_t> bad = good;
    bad[byte] ^= 0x80;
    EXPECT_EQ(code_of(bad), absl::StatusCode::kDataLoss);
  }
  std::vector<uint8_t> bad = good;
  bad[0] = 0;  // a raw form of the wrong size
  EXPECT_EQ(code_of(bad), absl::StatusCode::kDataLoss);
  for (uint8_t high : {0x7c, 0x7e, 0x80, 0xff}) {
    bad = good;
    bad[4 + 1] = high;
    EXPECT_EQ(code_of(bad), absl::StatusCode::kDataLoss) << "scale that is no positive number";
  }
  for (int i = 0; i < 500; ++i) {
    bad = good;
    for (int n = 0; n < 8; ++n) bad[rng_() % bad.size()] = rng_();
    code_of(bad);
  }
}

TEST_F(Int8Test, AShardUsesItsPartOfTheMeans) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Geometry model = UniformGeometry(3, 4, 16, Rope());
  Means means = {{"mean.02.v", std::vector<float>(4 * 16)}};
  for (int i = 0; i < 64; ++i) means["mean.02.v"][i] = 1000.f * i;
  auto codec = MakeInt8Codec({model, {1, 2, 1, 3, 2, 4}, MakeProfile(model, means)});
  ASSERT_TRUE(codec.ok()) << codec.status();
  codec_ = *std::move(codec);
  const Geometry shard = codec_->geometry();
  ASSERT_EQ(codec_->groups().size(), 2u);
  TestCache in(shard, 1, 2, 5, Dtype::kF32, Layout::kContiguous);
  for (int p = 0; p < 2; ++p) {
    for (int h = 0; h < 2; ++h) {
      for (int t = 0; t < 5; ++t) {
        for (int d = 0; d < 16; ++d) in.Set(p, h, t, d, 1000.f * ((h + 2) * 16 + d));
      }
    }
  }
  const auto positions = PositionsFrom(0, 5);
  TestCache out(shard, 1, 2, 5, Dtype::kF32, Layout::kContiguous);
  ASSERT_TRUE(Decode(1, Encode(1, in, positions), out, positions, 0, Dtype::kF32).ok());
  for (int h = 0; h < 2; ++h) {
    for (int d = 0; d < 16; ++d) EXPECT_EQ(out.Get(1, h, 3, d), in.Get(1, h, 3, d)) << "exact";
  }
  EXPECT_NE(out.Get(0, 0, 3, 5), in.Get(0, 0, 3, 5)) << "keys have no mean here";
}

TEST_F(Int8Test, AProfileThatDoesNotFitIsRefusedWithTheReason) {
  const auto status_of = [&](std::vector<uint8_t> file) {
    auto profile = Profile::Parse(std::move(file));
    EXPECT_TRUE(profile.ok()) << profile.status();
    return MakeInt8Codec({g_, {0, 1, 0, 6, 0, 3}, *profile}).status();
  };
  Geometry other = g_;
  other.layers[4].streams[1].heads = 5;
  absl::Status s = status_of(ProfileFile(other, {}));
  EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(s.message().find("layer 4: stream 1 heads 5 in the profile, 2 in the data"),
            absl::string_view::npos)
      << s;
  s = status_of(ProfileFile(g_, {}, "raw"));
  EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(s.message().find("codec raw; expected int8 or fklt"), absl::string_view::npos) << s;
  s = status_of(ProfileFile(g_, {{"mean.00.k", std::vector<float>(2 * 63)}}));
  EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(s.message().find("mean.00.k is not F32 [2, 64]"), absl::string_view::npos) << s;
  s = status_of(ProfileFile(g_, {{"mean.00.k", std::vector<float>(2 * 64, std::nanf(""))}}));
  EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvcask
