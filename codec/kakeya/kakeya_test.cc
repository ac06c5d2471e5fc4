#include "codec/kakeya/kakeya.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>

#include "codec/kakeya/calibration.h"
#include "codec/kakeya/params.h"
#include "codec/kakeya/test_profile.h"
#include "codec/testing/test_cache.h"
#include "codec/transform/rope.h"

namespace kvcask {
namespace {

using kakeya::Params;
using kakeya::ParamsFromJson;
using kakeya::ParamsToJson;
using kakeya::PresetParams;

using Tensor = kakeya::TestTensor;
using Tensors = kakeya::TestTensors;
using kakeya::MakeTestProfile;

Geometry Mixed() {
  Geometry g = UniformGeometry(5, 2, 32, StandardRope(RopeStyle::kRotateHalf, 32, 1e4));
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
  return g;
}

class KakeyaTest : public testing::Test {
 protected:
  KakeyaTest() : seed_(std::random_device{}()), rng_(seed_), g_(Mixed()) {}

  static CodecSpec Whole(const Geometry& g, std::shared_ptr<const Profile> profile = nullptr) {
    return {g, {0, 1, 0, static_cast<int>(g.layers.size()), 0, 3}, std::move(profile)};
  }
  void Use(absl::StatusOr<std::unique_ptr<Codec>> codec) {
    ASSERT_TRUE(codec.ok()) << codec.status();
    codec_ = *std::move(codec);
  }
  // The codec with a profile: whatever parameters, and a factor for every key head.
  void UseParams(const std::string& params) {
    Use(MakeKakeya13PplCodec(Whole(g_, MakeTestProfile(g_, params, RandomTensors()))));
  }
  Tensors RandomTensors() {
    Tensors out;
    for (int layer : {0, 1, 4}) {
      const StreamGeometry& s = g_.layers[layer].streams[0];
      Tensor t{{s.heads, s.head_dim, s.head_dim}, {}};
      std::normal_distribution<float> normal(0, .3f);
      for (int h = 0; h < s.heads; ++h) {
        for (int i = 0; i < s.head_dim; ++i) {
          for (int j = 0; j < s.head_dim; ++j) {
            t.numbers.push_back(i == j  ? .5f + std::fabs(normal(rng_)) * 5
                                : j < i ? normal(rng_) * .2f
                                        : 0);
          }
        }
      }
      out[absl::StrCat("layer_", layer, "_chol")] = t;
    }
    out["centroids_k_b3"] = {{8}, {-2.2f, -1.3f, -.7f, -.2f, .2f, .7f, 1.3f, 2.2f}};
    out["centroids_v_b2"] = {{4}, {-1.5f, -.4f, .4f, 1.5f}};
    return out;
  }
  absl::Status TryEncode(int group, const TestCache& in, const std::vector<uint32_t>& positions,
                         std::vector<uint8_t>* tile) {
    EncodeJob job;
    job.group = group;
    job.tokens = in.tokens();
    job.source = in.const_view();
    job.positions = positions;
    tile->assign(codec_->MaxTileBytes(group, in.tokens(), in.dtype()), 0xcc);
    job.destination = absl::MakeSpan(*tile);
    EXPECT_TRUE(codec_->Encode({&job, 1}, workspace_).ok());
    EXPECT_LE(job.bytes, tile->size());
    tile->resize(job.bytes);
    return job.status;
  }
  std::vector<uint8_t> Encode(int group, const TestCache& in,
                              const std::vector<uint32_t>& positions) {
    std::vector<uint8_t> tile;
    const absl::Status s = TryEncode(group, in, positions, &tile);
    EXPECT_TRUE(s.ok()) << s;
    return tile;
  }
  absl::Status Decode(int group, const std::vector<uint8_t>& tile, TestCache& out,
                      const std::vector<uint32_t>& positions, int begin, Dtype dtype,
                      int64_t offset = 0) {
    DecodeJob job;
    job.group = group;
    job.tokens = static_cast<int>(positions.size());
    job.source_dtype = dtype;
    job.tile = tile;
    job.positions = positions;
    job.token_begin = begin;
    job.token_end = begin + out.tokens();
    job.layer_begin = codec_->groups()[group].layer_begin;
    job.layer_end = codec_->groups()[group].layer_end;
    job.position_offset = offset;
    job.destination = out.view();
    EXPECT_TRUE(codec_->Decode({&job, 1}, workspace_).ok());
    return job.status;
  }
  int LayerOf(int group) const { return codec_->groups()[group].layer_begin; }
  // Rows that have something in common, so that coding is shorter than raw.
  void Fill(TestCache& c) {
    std::normal_distribution<float> normal;
    for (int p = 0; p < c.planes(); ++p) {
      for (int h = 0; h < c.heads(p); ++h) {
        std::vector<float> mix(4 * c.head_dim(p)), mean(c.head_dim(p));
        for (float& x : mix) x = normal(rng_);
        for (float& x : mean) x = 3 * normal(rng_);
        for (int t = 0; t < c.tokens(); ++t) {
          float along[4];
          for (float& a : along) a = normal(rng_);
          for (int d = 0; d < c.head_dim(p); ++d) {
            float x = mean[d] + .1f * normal(rng_);
            for (int k = 0; k < 4; ++k) x += along[k] * mix[k * c.head_dim(p) + d];
            c.Set(p, h, t, d, x);
          }
        }
      }
    }
  }
  double RelativeError(const TestCache& a, const TestCache& b, int plane) {
    double error = 0, power = 0;
    for (int h = 0; h < a.heads(plane); ++h) {
      for (int t = 0; t < a.tokens(); ++t) {
        for (int d = 0; d < a.head_dim(plane); ++d) {
          const double x = a.Get(plane, h, t, d);
          error += std::pow(x - b.Get(plane, h, t, d), 2), power += x * x;
        }
      }
    }
    return std::sqrt(error / power);
  }

  const uint32_t seed_;
  std::mt19937 rng_;
  const Geometry g_;
  std::unique_ptr<Codec> codec_;
  Workspace workspace_;
};

// Four bits, every axis kept: what comes back is near, whatever was switched on.
constexpr const char* kNear[] = {
    R"({"preset": "kakeya-1.2", "k": {"bits": 4, "variance_ratio": 1},
        "v": {"bits": 4, "variance_ratio": 1}})",
    R"({"preset": "kakeya-1.2", "rows": "per_head", "unrotate_keys": true, "sink_tokens": 4,
        "k": {"bits": 4, "variance_ratio": 1, "outlier_threshold": 1.5},
        "v": {"bits": 4, "variance_ratio": 1, "share_basis": true, "norm_correction": true}})",
    R"({"preset": "kakeya-1.2", "rows": "per_head", "unrotate_keys": true, "whiten_keys": true,
        "k": {"bits": 4, "variance_ratio": 1, "skeleton": "f32"},
        "v": {"bits": 4, "variance_ratio": 1, "skeleton": "f16"}})",
    R"({"preset": "kakeya-1.0", "k": {"sparse_count": 40, "variance_ratio": 1},
        "v": {"sparse_count": 40, "variance_ratio": 1}})",
};

TEST_F(KakeyaTest, EveryLayoutDtypeAndRangeDecodesAsTheWholeTileDoes) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const char* params : kNear) {
    UseParams(params);
    for (Dtype dtype : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
      for (Layout layout : {Layout::kPadded, Layout::kPagedNhd, Layout::kTransposedK}) {
        for (int group = 0; group < 4; ++group) {
          const int layer = LayerOf(group), tokens = 100 + rng_() % 29;
          SCOPED_TRACE(absl::StrCat(params, " ", DtypeName(dtype), " ", LayoutName(layout),
                                    " layer ", layer));
          const auto positions = PositionsFrom(rng_() % 2 ? 0 : 5000, tokens);
          TestCache in(g_, layer, layer + 1, tokens, dtype, layout);
          Fill(in);
          const auto tile = Encode(group, in, positions);
          TestCache whole(g_, layer, layer + 1, tokens, Dtype::kF32, Layout::kContiguous);
          ASSERT_TRUE(Decode(group, tile, whole, positions, 0, dtype).ok());
          for (int p = 0; p < in.planes(); ++p) ASSERT_LT(RelativeError(in, whole, p), .15);
          const int begin = rng_() % tokens, end = begin + 1 + rng_() % (tokens - begin);
          TestCache part(g_, layer, layer + 1, end - begin, dtype, layout);
          ASSERT_TRUE(Decode(group, tile, part, positions, begin, dtype).ok());
          ASSERT_TRUE(part.PaddingIntact());
          for (int p = 0; p < in.planes(); ++p) {
            for (int h = 0; h < in.heads(p); ++h) {
              for (int t = begin; t < end; ++t) {
                for (int d = 0; d < in.head_dim(p); ++d) {
                  uint8_t want[4];
                  StoreElement(whole.Get(p, h, t, d), dtype, want);
                  ASSERT_EQ(std::memcmp(want, part.At(p, h, t - begin, d), DtypeSize(dtype)), 0);
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST_F(KakeyaTest, PresetsShrinkAPageAndOfMoreBitsMakeLessError) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Geometry g = UniformGeometry(1, 4, 64, StandardRope(RopeStyle::kRotateHalf, 64, 1e4));
  TestCache in(g, 0, 1, 128, Dtype::kBf16, Layout::kContiguous);
  in.FillRandom(rng_);  // of full rank
  const auto positions = PositionsFrom(0, 128);
  std::map<std::string, double> error, ratio;
  for (auto [name, make] : std::map<std::string, decltype(&MakeKakeya10Codec)>{
           {"1.0", MakeKakeya10Codec}, {"1.2", MakeKakeya12Codec}, {"1.3", MakeKakeya13Codec}}) {
    Use(make({g, {0, 1, 0, 1, 0, 4}, nullptr}));
    const auto tile = Encode(0, in, positions);
    ratio[name] = 128. * 4 * 64 * 2 * 2 / tile.size();
    TestCache out(g, 0, 1, 128, Dtype::kF32, Layout::kContiguous);
    ASSERT_TRUE(Decode(0, tile, out, positions, 0, Dtype::kBf16).ok());
    error[name] = RelativeError(in, out, 1);
    EXPECT_GT(ratio[name], 1.5) << name;
  }
  EXPECT_GT(ratio["1.3"], ratio["1.2"]);
  EXPECT_LT(error["1.2"], error["1.3"]);
}

TEST_F(KakeyaTest, BoundaryLayersSinksAndStreamsLeftOutComeBackBitForBit) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  UseParams(R"({"preset": "kakeya-1.2", "raw_layers": [0], "sink_tokens": 6,
                "k": {"coded": false}})");
  for (int group : {0, 1, 3}) {
    const int layer = LayerOf(group);
    const auto positions = PositionsFrom(2, 120);  // 2..5 are sinks
    TestCache in(g_, layer, layer + 1, 120, Dtype::kBf16, Layout::kPagedNhd);
    Fill(in);
    TestCache out(g_, layer, layer + 1, 120, Dtype::kBf16, Layout::kPagedHnd);
    const auto tile = Encode(group, in, positions);
    ASSERT_TRUE(Decode(group, tile, out, positions, 0, Dtype::kBf16).ok());
    bool changed = false;
    for (int p = 0; p < 2; ++p) {
      for (int h = 0; h < in.heads(p); ++h) {
        for (int t = 0; t < 120; ++t) {
          for (int d = 0; d < in.head_dim(p); ++d) {
            const bool same = in.Get(p, h, t, d) == out.Get(p, h, t, d);
            if (layer == 0 || p == 0 || t < 4) {
              ASSERT_TRUE(same) << "layer " << layer << " plane " << p << " token " << t;
            }
            changed |= !same;
          }
        }
      }
    }
    EXPECT_EQ(changed, layer != 0) << "values of other layers are coded";
  }
}

TEST_F(KakeyaTest, AnOffsetMovesKeysHoweverTheyWereCoded) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const char* params : kNear) {
    UseParams(params);
    for (int group : {0, 1}) {
      const int layer = LayerOf(group);
      const auto positions = PositionsFrom(2, 100);
      TestCache in(g_, layer, layer + 1, 100, Dtype::kF32, Layout::kContiguous);
      Fill(in);
      const auto tile = Encode(group, in, positions);
      TestCache same(g_, layer, layer + 1, 100, Dtype::kF32, Layout::kContiguous);
      TestCache moved(g_, layer, layer + 1, 100, Dtype::kF32, Layout::kTransposedK);
      ASSERT_TRUE(Decode(group, tile, same, positions, 0, Dtype::kF32).ok());
      ASSERT_TRUE(Decode(group, tile, moved, positions, 0, Dtype::kF32, 700).ok());
      const RopeTable shift = MakeRopeShift(g_.layers[layer].rope, 700);
      for (int t = 0; t < 100; ++t) {
        std::vector<float> row(in.head_dim(0));
        for (int d = 0; d < in.head_dim(0); ++d) row[d] = same.Get(0, 1, t, d);
        ApplyRope(g_.layers[layer].rope, shift, 1, in.head_dim(0), row.data());
        for (int d = 0; d < in.head_dim(0); ++d) {
          ASSERT_NEAR(moved.Get(0, 1, t, d), row[d], 2e-4 * (1 + std::fabs(row[d])));
        }
        ASSERT_EQ(moved.Get(1, 1, t, 3), same.Get(1, 1, t, 3)) << "values do not turn";
      }
    }
  }
}

TEST_F(KakeyaTest, WhitenedKeysKeepScoresBetterThanPlainOnes) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Geometry g = UniformGeometry(1, 1, 32, StandardRope(RopeStyle::kRotateHalf, 32, 1e4));
  // Queries that look at few directions: diag(sigma) with a steep fall, mixed by nothing.
  Tensors tensors;
  Tensor& chol = tensors["layer_0_chol"];
  chol.shape = {1, 32, 32};
  chol.numbers.assign(32 * 32, 0);
  for (int i = 0; i < 32; ++i) chol.numbers[i * 33] = std::pow(.8f, i);
  TestCache in(g, 0, 1, 128, Dtype::kF32, Layout::kContiguous);
  in.FillRandom(rng_);
  const std::vector<uint32_t> positions(128, 0);  // un-rotated: the identity
  double score_error[2];
  for (int whiten = 0; whiten < 2; ++whiten) {
    Use(MakeKakeya13PplCodec(
        {g,
         {0, 1, 0, 1, 0, 1},
         MakeTestProfile(g,
                         absl::StrCat(R"({"preset": "kakeya-1.3", "rows": "per_head",
                                         "v": {"coded": false}, "whiten_keys": )",
                                      whiten ? "true}" : "false}"),
                         tensors)}));
    TestCache out(g, 0, 1, 128, Dtype::kF32, Layout::kContiguous);
    ASSERT_TRUE(Decode(0, Encode(0, in, positions), out, positions, 0, Dtype::kF32).ok());
    score_error[whiten] = 0;
    for (int t = 0; t < 128; ++t) {
      for (int d = 0; d < 32; ++d) {
        const double e = (in.Get(0, 0, t, d) - out.Get(0, 0, t, d)) * chol.numbers[d * 33];
        score_error[whiten] += e * e;
      }
    }
  }
  EXPECT_LT(score_error[1], .5 * score_error[0]);
}

// sum over tokens and heads of (k - k^) S_h (k - k^)^T, of keys before RoPE: expected squared
// errors of scores with queries whose second moment is S_h.
double QueryWeightedError(const TestCache& in, const TestCache& out, const Rope& rope,
                          const std::vector<uint32_t>& positions,
                          const std::vector<std::vector<double>>& moments) {
  const RopeTable table = MakeRopeTable(rope, positions, 0, RopeDirection::kUnrotate);
  const int dim = in.head_dim(0), tokens = in.tokens();
  double sum = 0;
  for (int h = 0; h < in.heads(0); ++h) {
    std::vector<float> error(static_cast<size_t>(tokens) * dim);
    for (int t = 0; t < tokens; ++t) {
      for (int d = 0; d < dim; ++d) error[t * dim + d] = in.Get(0, h, t, d) - out.Get(0, h, t, d);
    }
    ApplyRope(rope, table, tokens, dim, error.data());
    for (int t = 0; t < tokens; ++t) {
      for (int i = 0; i < dim; ++i) {
        for (int j = 0; j < dim; ++j) {
          sum += error[t * dim + i] * moments[h][i * dim + j] * error[t * dim + j];
        }
      }
    }
  }
  return sum;
}

TEST_F(KakeyaTest, WhiteningWithAHeadsOwnMomentsLowersItsQueryWeightedErrorAtEqualRank) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  constexpr int kDim = 16, kHeads = 3, kTokens = 128;
  const Rope rope = StandardRope(RopeStyle::kRotateHalf, kDim, 1e4);
  const Geometry g = UniformGeometry(1, kHeads, kDim, rope);
  // Each head's queries: a steep spectrum in mixed directions of its own, S = L L^T.
  std::normal_distribution<float> normal;
  Tensors own, swapped;
  std::vector<std::vector<double>> moments(kHeads);
  Tensor chol{{kHeads, kDim, kDim}, {}}, other = chol;
  for (int h = 0; h < kHeads; ++h) {
    std::vector<double> factor(kDim * kDim);
    std::vector<double> q(400 * kDim);
    std::vector<double> mix(kDim * kDim);
    for (double& x : mix) x = normal(rng_);
    for (int n = 0; n < 400; ++n) {
      for (int k = 0; k < kDim; ++k) {
        const double along = normal(rng_) * std::pow(.6, k);
        for (int d = 0; d < kDim; ++d) q[n * kDim + d] += along * mix[k * kDim + d];
      }
    }
    std::vector<double>& s = moments[h];
    s.assign(kDim * kDim, 0);
    for (int n = 0; n < 400; ++n) {
      for (int i = 0; i < kDim; ++i) {
        for (int j = 0; j < kDim; ++j) s[i * kDim + j] += q[n * kDim + i] * q[n * kDim + j] / 400;
      }
    }
    for (int i = 0; i < kDim; ++i) {  // Cholesky
      for (int j = 0; j <= i; ++j) {
        double sum = s[i * kDim + j];
        for (int k = 0; k < j; ++k) sum -= factor[i * kDim + k] * factor[j * kDim + k];
        factor[i * kDim + j] = i == j ? std::sqrt(sum) : sum / factor[j * kDim + j];
      }
    }
    chol.numbers.insert(chol.numbers.end(), factor.begin(), factor.end());
  }
  // The heads' factors in another order: what a mistaken head would do.
  other.numbers = chol.numbers;
  std::rotate(other.numbers.begin(), other.numbers.begin() + kDim * kDim, other.numbers.end());
  own["layer_0_chol"] = chol;
  swapped["layer_0_chol"] = other;

  // Keys without a structure of their own before RoPE, rotated to far positions.
  const auto positions = PositionsFrom(700, kTokens);
  TestCache in(g, 0, 1, kTokens, Dtype::kF32, Layout::kContiguous);
  in.FillRandom(rng_);
  const auto error = [&](const char* whiten, const Tensors& tensors) {
    const auto profile = MakeTestProfile(
        g,
        absl::StrCat(R"({"preset": "kakeya-1.3", "rows": "per_head", "whiten_keys": )", whiten,
                     R"(, "k": {"pca": "exact", "variance_ratio": 1, "bits": 3,
                                "metric": "mse"}, "v": {"coded": false}})"),
        tensors);
    auto codec = MakeKakeya13PplCodec({g, {0, 1, 0, 1, 0, kHeads}, profile});
    EXPECT_TRUE(codec.ok()) << codec.status();
    codec_ = *std::move(codec);
    const auto tile = Encode(0, in, positions);
    TestCache out(g, 0, 1, kTokens, Dtype::kF32, Layout::kContiguous);
    EXPECT_TRUE(Decode(0, tile, out, positions, 0, Dtype::kF32).ok());
    return std::make_pair(QueryWeightedError(in, out, rope, positions, moments), tile.size());
  };
  const auto plain = error("false", own), whitened = error("true", own),
             mistaken = error("true", swapped);
  std::printf("query-weighted error: plain %.4g, whitened %.4g, with another head's %.4g\n",
              plain.first, whitened.first, mistaken.first);
  EXPECT_EQ(plain.second, whitened.second) << "the same rank and bytes";
  EXPECT_LT(whitened.first, .5 * plain.first);
  EXPECT_GT(mistaken.first, 1.5 * whitened.first) << "so that a wrong head would be seen";
}

TEST_F(KakeyaTest, ASettingChangesThePresetOrTheProfile) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Geometry g = UniformGeometry(4, 2, 32, StandardRope(RopeStyle::kRotateHalf, 32, 1e4));
  const auto positions = PositionsFrom(0, 128);
  TestCache in(g, 3, 4, 128, Dtype::kBf16, Layout::kContiguous);
  Fill(in);
  const auto size_of = [&](decltype(&MakeKakeya10Codec) make, const std::string& setting,
                           std::shared_ptr<const Profile> profile = nullptr) {
    CodecSpec spec = {g, {0, 1, 0, 4, 0, 2}, std::move(profile)};
    spec.setting = *CanonicalKakeyaSetting(setting);
    Use(make(spec));
    const auto tile = Encode(3, in, positions);
    TestCache out(g, 3, 4, 128, Dtype::kBf16, Layout::kContiguous);
    EXPECT_TRUE(Decode(3, tile, out, positions, 0, Dtype::kBf16).ok());
    EXPECT_EQ(FirstDifference(in, out).empty(), tile[0] == 0) << setting;
    return tile.size();
  };
  const size_t raw = 4 + 2 * 2 * 128 * 32 * 2;
  for (auto make : {MakeKakeya10Codec, MakeKakeya12Codec, MakeKakeya13Codec}) {
    const size_t plain = size_of(make, "");
    EXPECT_LT(plain, raw);
    EXPECT_EQ(size_of(make, "boundary"), raw) << "the last layer is one";
    EXPECT_EQ(size_of(make, R"({"raw_layers": [0, 1]})"), plain);
    EXPECT_GT(size_of(make, "sinks"), plain);
    const size_t k = size_of(make, "k-only"), v = size_of(make, "v-only");
    EXPECT_NEAR(static_cast<double>(k + v), static_cast<double>(plain + raw), 16);
  }
  EXPECT_GT(size_of(MakeKakeya13Codec, "hot-ends"), size_of(MakeKakeya13Codec, ""));
  EXPECT_EQ(size_of(MakeKakeya13Codec, R"({"hot_layers": [0], "hot_bits": 4})"),
            size_of(MakeKakeya13Codec, ""));
  Tensors tensors = kakeya::DyadicTensors(g);
  const auto profile = MakeTestProfile(g, R"({"preset": "kakeya-1.3-ppl"})", tensors);
  EXPECT_GT(size_of(MakeKakeya13PplCodec, "sinks", profile),
            size_of(MakeKakeya13PplCodec, "", profile));
  EXPECT_EQ(size_of(MakeKakeya13PplCodec, "boundary", profile), raw);
  // A layer that there is not.
  CodecSpec spec = {g, {0, 1, 0, 4, 0, 2}, nullptr, "boundary-deepseek"};
  const absl::Status s = MakeKakeya13Codec(spec).status();
  EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(s.message(), "raw_layers has 7; the model has layers 0 to 3")) << s;
  spec.setting = R"({"whiten_keys":true})";
  EXPECT_EQ(MakeKakeya13Codec(spec).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(KakeyaTest, AShardCodesItsHeadsAsTheWholeModelDoes) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Geometry model = UniformGeometry(3, 4, 32, StandardRope(RopeStyle::kRotateHalf, 32, 1e4));
  Tensors tensors;
  for (int layer = 0; layer < 3; ++layer) {
    Tensor t{{4, 32, 32}, std::vector<float>(4 * 32 * 32)};
    for (int h = 0; h < 4; ++h) {
      for (int i = 0; i < 32; ++i) t.numbers[(h * 32 + i) * 32 + i] = 1 + h + .1f * i + layer;
    }
    tensors[absl::StrCat("layer_", layer, "_chol")] = t;
  }
  const auto profile = MakeTestProfile(
      model, R"({"preset": "kakeya-1.3", "rows": "per_head", "whiten_keys": true})", tensors);
  const auto positions = PositionsFrom(9, 128);
  TestCache part(UniformGeometry(1, 2, 32, model.layers[0].rope), 0, 1, 128, Dtype::kF32,
                 Layout::kContiguous);
  Fill(part);
  TestCache whole(model, 2, 3, 128, Dtype::kF32, Layout::kContiguous);
  Fill(whole);
  for (int p = 0; p < 2; ++p) {
    for (int h = 0; h < 2; ++h) {
      for (int t = 0; t < 128; ++t) {
        for (int d = 0; d < 32; ++d) whole.Set(p, h + 2, t, d, part.Get(p, h, t, d));
      }
    }
  }
  Use(MakeKakeya13PplCodec({model, {0, 1, 0, 3, 0, 4}, profile}));
  TestCache want(model, 2, 3, 128, Dtype::kF32, Layout::kContiguous);
  ASSERT_TRUE(Decode(2, Encode(2, whole, positions), want, positions, 0, Dtype::kF32).ok());
  Use(MakeKakeya13PplCodec({model, {1, 2, 1, 3, 2, 4}, profile}));
  TestCache got(codec_->geometry(), 1, 2, 128, Dtype::kF32, Layout::kContiguous);
  ASSERT_TRUE(Decode(1, Encode(1, part, positions), got, positions, 0, Dtype::kF32).ok());
  for (int h = 0; h < 2; ++h) {
    for (int t = 0; t < 128; ++t) {
      for (int d = 0; d < 32; ++d) {
        ASSERT_EQ(got.Get(0, h, t, d), want.Get(0, h + 2, t, d)) << "keys, of one head a block";
      }
    }
  }
}

TEST_F(KakeyaTest, WhatIsNotFiniteIsRefusedByItsPlace) {
  Use(MakeKakeya13Codec(Whole(g_)));
  TestCache in(g_, 1, 2, 20, Dtype::kBf16, Layout::kTransposedK);
  in.FillRandom(rng_);
  in.Set(1, 2, 17, 5, -std::numeric_limits<float>::infinity());
  std::vector<uint8_t> tile;
  const absl::Status s = TryEncode(1, in, PositionsFrom(5000, 20), &tile);
  EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(s.message(),
                                "layer 1, V, head 2, token 17 (position 5017), element 5 is -Inf"))
      << s;
  EXPECT_TRUE(tile.empty());
}

TEST_F(KakeyaTest, WhatNoHalfCanCarryAndWhatIsShorterRawIsKeptRaw) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  Use(MakeKakeya13Codec(Whole(g_)));
  TestCache huge(g_, 0, 1, 128, Dtype::kF32, Layout::kContiguous);
  huge.FillRandom(rng_, 1e7f);
  TestCache tiny(g_, 0, 1, 2, Dtype::kBf16, Layout::kContiguous);
  tiny.FillRandom(rng_);
  for (TestCache* in : {&huge, &tiny}) {
    const auto positions = PositionsFrom(0, in->tokens());
    const auto tile = Encode(0, *in, positions);
    EXPECT_EQ(tile[0], 0);
    TestCache out(g_, 0, 1, in->tokens(), in->dtype(), Layout::kPagedHnd);
    ASSERT_TRUE(Decode(0, tile, out, positions, 0, in->dtype()).ok());
    EXPECT_EQ(FirstDifference(*in, out), "");
  }
}

TEST_F(KakeyaTest, TheSameInputGivesTheSameBytes) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  UseParams(R"({"preset": "kakeya-1.3-ppl"})");
  TestCache in(g_, 0, 1, 128, Dtype::kBf16, Layout::kContiguous);
  Fill(in);
  EXPECT_EQ(Encode(0, in, PositionsFrom(0, 128)), Encode(0, in, PositionsFrom(0, 128)));
}

TEST_F(KakeyaTest, ADamagedTileIsDataLossOrADifferentNumberNeverACrash) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const char* params : {kNear[0], kNear[1], kNear[2], R"({"preset": "kakeya-1.0"})"}) {
    UseParams(params);
    const auto positions = PositionsFrom(0, 100);
    TestCache in(g_, 0, 1, 100, Dtype::kBf16, Layout::kContiguous);
    Fill(in);
    const auto good = Encode(0, in, positions);
    ASSERT_EQ(good[0], 1);
    const auto code_of = [&](const std::vector<uint8_t>& tile) {
      TestCache out(g_, 0, 1, 100, Dtype::kBf16, Layout::kPadded);
      const absl::Status s = Decode(0, tile, out, positions, 0, Dtype::kBf16);
      EXPECT_TRUE(out.PaddingIntact());
      return s.code();
    };
    for (size_t n = 0; n < good.size() + 4; n += n < 40 || n + 8 > good.size() ? 1 : 997) {
      if (n == good.size()) continue;
      std::vector<uint8_t> bad = good;
      bad.resize(n);
      ASSERT_EQ(code_of(bad), absl::StatusCode::kDataLoss) << n;
    }
    for (int i = 0; i < 50; ++i) {
      std::vector<uint8_t> bad = good;
      for (int n = 0; n < 3; ++n) bad[rng_() % (i % 2 ? 60 : bad.size())] = rng_();
      const auto code = code_of(bad);
      ASSERT_TRUE(code == absl::StatusCode::kOk || code == absl::StatusCode::kDataLoss);
    }
  }
}

TEST_F(KakeyaTest, AProfileThatDoesNotFitIsRefusedWithTheReason) {
  const auto expect = [&](const std::string& params, const Tensors& tensors, absl::StatusCode code,
                          const std::string& text, const std::string& name = "kakeya-1.3-ppl") {
    const absl::Status s =
        MakeKakeya13PplCodec(Whole(g_, MakeTestProfile(g_, params, tensors, name))).status();
    EXPECT_EQ(s.code(), code) << s;
    EXPECT_TRUE(absl::StrContains(s.message(), text)) << s;
  };
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const std::string ppl = R"({"preset": "kakeya-1.3-ppl"})";
  Tensors t = RandomTensors();
  expect(ppl, t, absl::StatusCode::kFailedPrecondition, "expected kakeya-1.3-ppl", "fklt");
  t.erase("layer_1_chol");
  expect(ppl, t, kInvalid, "no layer_1_chol, which whiten_keys needs");
  t = RandomTensors();
  t.erase("centroids_v_b2");
  expect(ppl, t, kInvalid, "no centroids_v_b2");
  t = RandomTensors();
  t["centroids_k_b3"].numbers[3] = 1;
  expect(ppl, t, kInvalid, "ascending");
  t = RandomTensors();
  t["centroids_k_b3"] = {{7}, std::vector<float>(7)};
  expect(ppl, t, kInvalid, "centroids_k_b3 is not F32 [8]");
  t = RandomTensors();
  t["layer_0_chol"].numbers[1] = .5f;
  expect(ppl, t, kInvalid, "lower triangle");
  t = RandomTensors();
  t["layer_0_chol"].numbers[0] = 0;
  expect(ppl, t, kInvalid, "positive diagonal");
  t = RandomTensors();
  t["layer_0_chol"].numbers[0] = std::nanf("");
  expect(ppl, t, kInvalid, "has a number nan");
  t = RandomTensors();
  expect(R"({"preset": "kakeya-9"})", t, kInvalid, "preset");
  const auto profile = MakeTestProfile(g_, ppl, t);
  Geometry other = g_;
  other.layers[4].streams[1].heads = 5;
  const absl::Status s = MakeKakeya13PplCodec({other, {0, 1, 0, 5, 0, 5}, profile}).status();
  EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(s.message(), "layer 4: stream 1 heads")) << s;
  EXPECT_EQ(MakeKakeya13PplCodec(Whole(g_)).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(KakeyaParamsTest, PresetsAreWhatTheyAreCalled) {
  const Params v10 = *PresetParams("kakeya-1.0");
  EXPECT_EQ(v10.k.residual, kakeya::Residual::kSparse);
  EXPECT_EQ(v10.block_rows, 512);
  EXPECT_EQ(v10.k.sparse_count, 8);
  EXPECT_EQ(v10.k.clusters, 16);
  EXPECT_EQ(v10.k.variance_ratio, .95);
  const Params v13 = *PresetParams("kakeya-1.3");
  EXPECT_EQ(v13.k.bits, 2);
  EXPECT_EQ(v13.k.rank_factor, .5);
  EXPECT_TRUE(v13.v.share_basis);
  EXPECT_FALSE(v13.k.share_basis);
  const Params ppl = *PresetParams("kakeya-1.3-ppl");
  EXPECT_EQ(ppl.k.bits, 3);
  EXPECT_EQ(ppl.v.bits, 2);
  EXPECT_EQ(ppl.k.outlier_threshold, 2);
  EXPECT_TRUE(ppl.whiten_keys);
  EXPECT_FALSE(PresetParams("kakeya-1.1").ok());
}

TEST(KakeyaParamsTest, JsonComesBackAndStartsFromThePreset) {
  for (const char* preset : {"kakeya-1.0", "kakeya-1.2", "kakeya-1.3", "kakeya-1.3-ppl"}) {
    const std::string all = ParamsToJson(*PresetParams(preset));
    EXPECT_EQ(ParamsToJson(*ParamsFromJson(all)), all);
    EXPECT_EQ(ParamsToJson(*ParamsFromJson(absl::StrCat("{\"preset\": \"", preset, "\"}"))), all);
  }
  const auto p = ParamsFromJson(R"({"preset": "kakeya-1.2", "k": {"bits": 4},
      "raw_layers": [0, 29], "hot_layers": [3], "rows": "per_head"})");
  ASSERT_TRUE(p.ok()) << p.status();
  EXPECT_EQ(p->k.bits, 4);
  EXPECT_EQ(p->v.bits, 3);
  EXPECT_EQ(p->raw_layers, (std::vector<int>{0, 29}));
}

TEST(KakeyaParamsTest, SettingsHaveOneFormAndRecipesAreTheirFiles) {
  EXPECT_EQ(*kakeya::CanonicalSetting(""), "");
  EXPECT_EQ(*kakeya::CanonicalSetting("{ }"), "");
  EXPECT_EQ(*kakeya::CanonicalSetting("boundary"), "boundary");
  EXPECT_EQ(*kakeya::CanonicalSetting(R"({"raw_layers": [0, -1], "k": {"bits": 4}})"),
            R"({"k":{"bits":4},"raw_layers":[0,-1]})");
  const std::pair<std::string, const char*> refused[] = {
      {"balanced", "no recipe \"balanced\"; there are boundary, "},
      {R"({"preset": "kakeya-1.0"})", "unknown key \"preset\""},
      {R"({"k": {"bits": 9}})", "k.bits 9"},
      {"{" + std::string(1100, ' ') + "}", "a recipe of 1102 bytes; expected at most 1024"},
  };
  for (const auto& [setting, text] : refused) {
    const absl::Status s = kakeya::CanonicalSetting(setting).status();
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << setting;
    EXPECT_TRUE(absl::StrContains(s.message(), text)) << s;
  }
  EXPECT_GE(kakeya::Recipes().size(), 8u);
  for (const kakeya::Recipe& recipe : kakeya::Recipes()) {
    std::ifstream file(absl::StrCat("codec/kakeya/recipes/", recipe.name, ".json"));
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    EXPECT_EQ(text, recipe.json) << recipe.name;
    const auto p = kakeya::ApplySetting(recipe.name, *PresetParams("kakeya-1.3"));
    ASSERT_TRUE(p.ok()) << recipe.name << ": " << p.status();
    EXPECT_NE(ParamsToJson(*p), ParamsToJson(*PresetParams("kakeya-1.3"))) << recipe.name;
  }
  Params p = *PresetParams("kakeya-1.3");
  p.raw_layers = {0, -1};
  p.hot_layers = {-30};
  ASSERT_TRUE(kakeya::ResolveLayers(30, &p).ok());
  EXPECT_EQ(p.raw_layers, (std::vector<int>{0, 29}));
  EXPECT_EQ(p.hot_layers, (std::vector<int>{0}));
  p.raw_layers = {30};
  EXPECT_FALSE(kakeya::ResolveLayers(30, &p).ok());
}

TEST(KakeyaParamsTest, WhatIsNotUnderstoodIsRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"ranks": 3})", "unknown key \"ranks\""},
      {R"({"k": {"bit": 3}})", "unknown key k.\"bit\""},
      {R"({"k": {"bits": 5}})", "k.bits 5; expected 1 to 4"},
      {R"({"k": {"bits": "3"}})", "k.bits is \"3\"; expected a whole number"},
      {R"({"k": {"metric": "l1"}})", "expected mse, inner_product, linf"},
      {R"({"v": {"variance_ratio": 0}})", "v.variance_ratio 0"},
      {R"({"v": {"clusters": 257}})", "v.clusters 257"},
      {R"({"block_rows": 1})", "block_rows 1"},
      {R"({"raw_layers": [-1025]})", "raw_layers has -1025"},
      {R"({"raw_layers": [1024]})", "raw_layers has 1024"},
      {R"({"raw_layers": "0,1"})", "expected a list"},
      {R"({"k": []})", "is not an object"},
      {R"([])", "not a JSON object"},
      {"{", "not a JSON object"},
      {R"({"a": [[[[1]]]]})", "nested deeper"},
  };
  for (auto [json, text] : cases) {
    const absl::Status s = ParamsFromJson(json).status();
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_TRUE(absl::StrContains(s.message(), text)) << s;
  }
  EXPECT_FALSE(ParamsFromJson(std::string(70000, ' ')).ok());
}

}  // namespace
}  // namespace kvcask
