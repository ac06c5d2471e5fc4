#include "codec/fixed/fixed_codec.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>

#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/fixed/presets.h"
#include "codec/fixed/slow_rows.h"
#include "codec/profile/profile.h"
#include "codec/testing/test_cache.h"
#include "codec/transform/rope.h"

namespace kvcask {
namespace {

using Means = std::map<std::string, std::vector<float>>;  // "mean.00.k" -> [heads][head_dim]

// Layers that differ in heads, dims and rope, one latent, one with rows so short that the raw
// form is shorter.
Geometry Mixed() {
  Geometry g = UniformGeometry(4, 2, 64, StandardRope(RopeStyle::kRotateHalf, 64, 1e4));
  g.layers[1].streams = {{StreamKind::kK, 3, 40}, {StreamKind::kV, 3, 21}};
  g.layers[1].rope = StandardRope(RopeStyle::kInterleaved, 24, 1e4);
  g.layers[1].rope.attention_scale = 1.5;
  g.layers[2] = LayerGeometry();
  g.layers[2].kind = LayerKind::kLatent;
  g.layers[2].streams = {{StreamKind::kLatent, 1, 20}};
  g.layers[3].streams = {{StreamKind::kK, 2, 1}, {StreamKind::kV, 2, 1}};
  g.layers[3].rope = Rope();
  return g;
}
constexpr int kGroups = 3;  // but the short one

std::shared_ptr<const Profile> MakeProfile(const Geometry& g, const Means& means) {
  std::vector<uint8_t> file;
  SafetensorsWriter writer([&](absl::Span<const uint8_t> b) {
    file.insert(file.end(), b.begin(), b.end());
    return absl::OkStatus();
  });
  writer.SetMetadata("kvcask.profile", "1");
  writer.SetMetadata("codec", "int8");
  writer.SetMetadata("name", "test");
  writer.SetMetadata("model", "test");
  writer.SetMetadata("geometry", GeometryToJson(g));
  for (const auto& [name, mean] : means) {
    const int heads = g.layers[std::stoi(name.substr(5, 2))].streams[0].heads;
    EXPECT_TRUE(
        writer.Declare(name, "F32", {heads, static_cast<int64_t>(mean.size()) / heads}).ok());
  }
  EXPECT_TRUE(writer.Begin().ok());
  for (const auto& [name, mean] : means) {
    const auto* p = reinterpret_cast<const uint8_t*>(mean.data());
    EXPECT_TRUE(writer.Write({p, mean.size() * 4}).ok());
  }
  EXPECT_TRUE(writer.Finish().ok());
  auto profile = Profile::Parse(file);
  EXPECT_TRUE(profile.ok()) << profile.status();
  return *profile;
}

struct Case {
  std::string name;
  CoderSpec key, value;
};

// Every preset, and forms that only recipes name.
std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const FixedPreset& preset : FixedPresets()) {
    cases.push_back({preset.name, preset.key, preset.value});
  }
  Case c = cases[0];
  c.name = "sinks";
  c.value = {};  // raw values
  c.key.kind = CoderKind::kTurbo;
  c.key.scaled = false;
  c.key.bits = 1;
  c.key.sinks = 3;
  c.key.unrotated = true;
  cases.push_back(c);
  c.name = "odd";
  c.key = {};
  c.key.kind = CoderKind::kUniform;
  c.key.bits = 5;
  c.key.group = 24;
  c.key.sinks = 2;
  c.value = c.key;
  c.value.kind = CoderKind::kChannel;
  c.value.bits = 7;
  c.value.group = 5;
  cases.push_back(c);
  c.name = "d4_small";
  c.key = FindFixedPreset("d4")->key;
  c.key.q = 2;
  c.value = FindFixedPreset("e8")->value;
  c.value.q = 1024;
  cases.push_back(c);
  return cases;
}

class FixedCodecTest : public testing::TestWithParam<Case> {
 protected:
  FixedCodecTest() : seed_(std::random_device{}()), rng_(seed_), g_(Mixed()) { Use({}); }

  void Use(const Means& means) {
    means_ = means;
    const CodecSpec spec{g_, {0, 1, 0, 4, 0, 3}, means.empty() ? nullptr : MakeProfile(g_, means)};
    auto codec = MakeFixedCodec(CodecId::kRecipe, "test", spec, [](int, const PlaneInfo& plane) {
      return plane.kind == StreamKind::kK ? GetParam().key : GetParam().value;
    });
    ASSERT_TRUE(codec.ok()) << codec.status();
    codec_ = *std::move(codec);
  }
  Means RandomMeans() {
    std::normal_distribution<float> normal(0, 50);
    Means means = {{"mean.00.k", std::vector<float>(2 * 64)},
                   {"mean.01.k", std::vector<float>(3 * 40)},
                   {"mean.01.v", std::vector<float>(3 * 21)}};
    for (auto& m : means) {
      for (float& f : m.second) f = normal(rng_);
    }
    return means;
  }
  // The spec as it is written: a mean where there is one, un-rotated where that says something.
  CoderSpec SpecOf(int layer, int plane) const {
    CoderSpec s = g_.layers[layer].streams[plane].kind == StreamKind::kK ? GetParam().key
                                                                         : GetParam().value;
    s.minus_mean = s.minus_mean && !MeanOf(layer, plane).empty();
    if (s.minus_mean) s.sinks = std::max(s.sinks, 4);
    s.unrotated = (s.unrotated || s.minus_mean) &&
                  g_.layers[layer].streams[plane].kind == StreamKind::kK &&
                  g_.layers[layer].rope.style != RopeStyle::kNone;
    return s;
  }
  std::vector<float> MeanOf(int layer, int plane) const {
    const auto mean = means_.find(absl::StrFormat("mean.%02d.%s", layer, plane == 0 ? "k" : "v"));
    return mean == means_.end() ? std::vector<float>() : mean->second;
  }
  std::vector<float> CodedRow(const CoderSpec& spec, const TestCache& in, int layer, int plane,
                              int head, int token, uint32_t position) const {
    const int dim = in.head_dim(plane);
    std::vector<float> x(dim);
    for (int d = 0; d < dim; ++d) x[d] = in.Get(plane, head, token, d);
    const Rope& rope = g_.layers[layer].rope;
    if (spec.unrotated) {
      const uint32_t one[] = {position};
      ApplyRope(rope, MakeRopeTable(rope, one, 0, RopeDirection::kUnrotate), 1, dim, x.data());
    }
    for (int d = 0; spec.minus_mean && d < dim; ++d) x[d] -= MeanOf(layer, plane)[head * dim + d];
    return x;
  }
  // Which tokens a stream codes: not the sinks, and only whole groups of tokens.
  static std::vector<bool> CodedTokens(const CoderSpec& spec,
                                       const std::vector<uint32_t>& positions) {
    std::vector<bool> coded;
    int left = 0;
    for (uint32_t p : positions) left += p >= static_cast<uint32_t>(spec.sinks);
    if (spec.kind == CoderKind::kChannel) left = left / spec.group * spec.group;
    if (spec.kind == CoderKind::kRaw) left = 0;
    for (uint32_t p : positions) {
      coded.push_back(p >= static_cast<uint32_t>(spec.sinks) && left-- > 0);
    }
    return coded;
  }
  std::vector<uint8_t> SlowTile(const TestCache& in, int layer,
                                const std::vector<uint32_t>& positions) const {
    std::vector<uint8_t> tile = {1, 0, 0, 0};
    for (int p = 0; p < in.planes(); ++p) {
      uint8_t spec[kCoderSpecBytes];
      WriteCoderSpec(SpecOf(layer, p), spec);
      tile.insert(tile.end(), spec, spec + kCoderSpecBytes);
    }
    for (int p = 0; p < in.planes(); ++p) {
      const CoderSpec spec = SpecOf(layer, p);
      const std::vector<bool> coded = CodedTokens(spec, positions);
      for (int h = 0; h < in.heads(p); ++h) {
        std::vector<std::vector<float>> rows;
        for (int t = 0; t < in.tokens(); ++t) {
          if (coded[t]) {
            rows.push_back(CodedRow(spec, in, layer, p, h, t, positions[t]));
            continue;
          }
          for (int d = 0; d < in.head_dim(p); ++d) {
            const uint8_t* at = in.At(p, h, t, d);
            tile.insert(tile.end(), at, at + DtypeSize(in.dtype()));
          }
        }
        const auto bytes = SlowEncode(spec, rows);
        tile.insert(tile.end(), bytes.begin(), bytes.end());
      }
    }
    return tile;
  }
  absl::Status TryEncode(int group, const TestCache& cache, const std::vector<uint32_t>& positions,
                         std::vector<uint8_t>* tile) {
    EncodeJob job;
    job.group = group;
    job.tokens = cache.tokens();
    job.source = cache.const_view();
    job.positions = positions;
    const size_t bound = codec_->MaxTileBytes(group, job.tokens, cache.dtype());
    tile->assign(bound + 32, 0xcc);
    job.destination = absl::MakeSpan(tile->data(), bound);
    EXPECT_TRUE(codec_->Encode({&job, 1}, workspace_).ok());
    EXPECT_LE(job.bytes, bound);
    EXPECT_EQ(std::vector<uint8_t>(tile->begin() + bound, tile->end()),
              std::vector<uint8_t>(32, 0xcc));
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
    job.layer_begin = group;
    job.layer_end = group + 1;
    job.position_offset = offset;
    job.destination = out.view();
    EXPECT_TRUE(codec_->Decode({&job, 1}, workspace_).ok());
    return job.status;
  }
  bool IsLattice() const {
    return GetParam().key.kind == CoderKind::kLattice;  // its slow search is slow indeed
  }

  const uint32_t seed_;
  std::mt19937 rng_;
  const Geometry g_;
  Means means_;
  std::unique_ptr<Codec> codec_;
  Workspace workspace_;
};

TEST_P(FixedCodecTest, WritesTheBytesOfTheSlowReference) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const Means& means : {Means(), RandomMeans()}) {
    Use(means);
    for (Dtype dtype : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
      for (int group = 0; group < kGroups; ++group) {
        const Layout layout = kAllLayouts[rng_() % 5];
        const int tokens = IsLattice() ? 1 + rng_() % 3 : 1 + rng_() % 70;
        SCOPED_TRACE(absl::StrCat(DtypeName(dtype), " ", LayoutName(layout), " layer ", group,
                                  " tokens ", tokens));
        const auto positions = PositionsFrom(rng_() % 7, tokens);
        TestCache in(g_, group, group + 1, tokens, dtype, layout);
        in.FillRandom(rng_, std::ldexp(1.f, static_cast<int>(rng_() % 12) - 6));
        for (int d = 0; d < in.head_dim(0); ++d) in.Set(0, 0, tokens - 1, d, 0);
        const auto slow = SlowTile(in, group, positions);
        const size_t raw = 4 + size_t(g_.ElementsPerToken(group, group + 1)) * tokens * DtypeSize(dtype);
        const auto tile = Encode(group, in, positions);
        if (slow.size() >= raw) {
          ASSERT_EQ(tile[0], 0) << "raw where that is shorter";
          ASSERT_EQ(tile.size(), raw);
        } else {
          ASSERT_EQ(tile, slow);
        }
      }
    }
  }
}

TEST_P(FixedCodecTest, DecodingGivesTheBitsOfTheSlowReferenceInEveryLayoutAndDtype) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (Dtype dtype : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
    for (Layout layout : kAllLayouts) {
      for (int group = 0; group < kGroups; ++group) {
        const int tokens = 1 + rng_() % kPageTokens;
        SCOPED_TRACE(absl::StrCat(DtypeName(dtype), " ", LayoutName(layout), " layer ", group));
        // Beyond the sinks, so that nothing needs to turn; without a mean.
        const auto positions = PositionsFrom(rng_() % 5, tokens);
        TestCache in(g_, group, group + 1, tokens, Dtype::kBf16, Layout::kContiguous);
        in.FillRandom(rng_);
        const auto tile = Encode(group, in, positions);
        if (tile[0] == 0) continue;
        const int begin = rng_() % tokens, end = begin + 1 + rng_() % (tokens - begin);
        TestCache out(g_, group, group + 1, end - begin, dtype, layout);
        const absl::Status s = Decode(group, tile, out, positions, begin, Dtype::kBf16);
        ASSERT_TRUE(s.ok()) << s;
        ASSERT_TRUE(out.PaddingIntact());
        size_t at = 4 + kCoderSpecBytes * in.planes();
        for (int p = 0; p < in.planes(); ++p) {
          const CoderSpec spec = SpecOf(group, p);
          const std::vector<bool> coded = CodedTokens(spec, positions);
          const int count = static_cast<int>(std::count(coded.begin(), coded.end(), true));
          const int dim = in.head_dim(p);
          for (int h = 0; h < in.heads(p); ++h) {
            at += (tokens - count) * dim * 2;  // rows kept raw
            const auto coder = MakePlaneCoder(spec, dim);
            const size_t bytes = coder == nullptr ? 0 : coder->Bytes(count);
            const auto rows = SlowDecode(
                spec, {tile.begin() + at, tile.begin() + at + bytes}, count, dim);
            at += bytes;
            int row = 0;
            for (int t = 0; t < tokens; ++t) {
              std::vector<float> want(dim);
              for (int d = 0; d < dim; ++d) want[d] = in.Get(p, h, t, d);
              if (coded[t]) {
                want = rows[row++];
                if (spec.unrotated) {
                  const Rope& rope = g_.layers[group].rope;
                  const uint32_t one[] = {positions[t]};
                  ApplyRope(rope, MakeRopeTable(rope, one, 0, RopeDirection::kRotate), 1, dim,
                            want.data());
                }
              }
              if (t < begin || t >= end) continue;
              for (int d = 0; d < dim; ++d) {
                uint8_t bits[4];
                StoreElement(want[d], dtype, bits);
                ASSERT_EQ(std::memcmp(bits, out.At(p, h, t - begin, d), DtypeSize(dtype)), 0)
                    << "plane " << p << " head " << h << " token " << t << " element " << d;
              }
            }
          }
        }
        ASSERT_EQ(at, tile.size());
      }
    }
  }
}

// Of rows with a mean, by what they were: the mean is taken off and put back, keys turned back
// and forth, an offset applied.
TEST_P(FixedCodecTest, MeansAndOffsetsLeaveTheErrorWhereItIs) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const Means means = RandomMeans();
  const auto error_of = [&](const Means& used, int64_t offset) {
    Use(used);
    std::mt19937 rng(7);
    const auto positions = PositionsFrom(5000, 96);
    TestCache in(g_, 1, 2, 96, Dtype::kF32, Layout::kContiguous);
    in.FillRandom(rng, .05f);
    const Rope& rope = g_.layers[1].rope;
    for (int p = 0; p < 2; ++p) {
      for (int h = 0; h < in.heads(p); ++h) {
        for (int t = 0; t < 96; ++t) {
          const int dim = in.head_dim(p);
          std::vector<float> x(dim);
          const std::vector<float>& mean = means.at(p == 0 ? "mean.01.k" : "mean.01.v");
          for (int d = 0; d < dim; ++d) x[d] = in.Get(p, h, t, d) + mean[h * dim + d];
          const uint32_t one[] = {positions[t]};
          if (p == 0) {
            ApplyRope(rope, MakeRopeTable(rope, one, 0, RopeDirection::kRotate), 1, dim, x.data());
          }
          for (int d = 0; d < dim; ++d) in.Set(p, h, t, d, x[d]);
        }
      }
    }
    TestCache out(g_, 1, 2, 96, Dtype::kF32, Layout::kTransposedK);
    const absl::Status s =
        Decode(1, Encode(1, in, positions), out, positions, 0, Dtype::kF32, offset);
    EXPECT_TRUE(s.ok()) << s;
    double error = 0;
    for (int p = 0; p < 2; ++p) {
      for (int h = 0; h < in.heads(p); ++h) {
        for (int t = 0; t < 96; ++t) {
          std::vector<float> x(in.head_dim(p));
          for (size_t d = 0; d < x.size(); ++d) x[d] = in.Get(p, h, t, d);
          if (p == 0) ApplyRope(rope, MakeRopeShift(rope, offset), 1, x.size(), x.data());
          for (size_t d = 0; d < x.size(); ++d) {
            error += std::pow(static_cast<double>(x[d]) - out.Get(p, h, t, d), 2);
          }
        }
      }
    }
    return std::sqrt(error);
  };
  const double without = error_of({}, 0), with = error_of(means, 0);
  EXPECT_NEAR(error_of(means, -4990), with, .02 * with + .02) << "moved by an offset";
  EXPECT_NEAR(error_of({}, -4990), without, .02 * without + .02);
  if (GetParam().key.minus_mean || GetParam().value.minus_mean) {
    EXPECT_LT(with, .5 * without) << "a mean of 50 in noise of .05 to .2";
  } else {
    EXPECT_NEAR(with, without, 1e-6 * without);
  }
}

TEST_P(FixedCodecTest, WhatIsNotFiniteIsRefusedByItsPlaceWhereItIsCoded) {
  for (Dtype dtype : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
    TestCache in(g_, 1, 2, 50, dtype, Layout::kTransposedK);
    in.FillRandom(rng_);
    in.Set(0, 2, 17, 5, -std::numeric_limits<float>::infinity());
    std::vector<uint8_t> tile;
    const absl::Status s = TryEncode(1, in, PositionsFrom(5000, 50), &tile);
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(s.message().find(
                  "test: layer 1, K, head 2, token 17 (position 5017), element 5 is -Inf"),
              absl::string_view::npos)
        << s;
    EXPECT_TRUE(tile.empty());
  }
  TestCache tiny(g_, 3, 4, 3, Dtype::kBf16, Layout::kContiguous);
  tiny.FillRandom(rng_);
  tiny.Set(0, 1, 2, 0, std::nanf(""));
  std::vector<uint8_t> tile;
  EXPECT_EQ(TryEncode(3, tiny, PositionsFrom(0, 3), &tile).code(),
            absl::StatusCode::kInvalidArgument)
      << "in raw form, too";
}

TEST_P(FixedCodecTest, WhatNoHalfCanCarryIsKeptRaw) {
  if (GetParam().name == "k8v4") GTEST_SKIP() << "its keys saturate at 448 as published";
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (const Means& means : {Means(), RandomMeans()}) {
    Use(means);
    TestCache in(g_, 0, 1, 40, Dtype::kF32, Layout::kPagedNhd);
    in.FillRandom(rng_);
    for (int d = 0; d < 64; ++d) in.Set(0, 1, 3, d, d % 2 ? 3e38f : -3e38f);
    const auto positions = PositionsFrom(5000, 40);
    const auto tile = Encode(0, in, positions);
    ASSERT_EQ(tile[0], 0);
    TestCache out(g_, 0, 1, 40, Dtype::kF32, Layout::kPagedHnd);
    ASSERT_TRUE(Decode(0, tile, out, positions, 0, Dtype::kF32).ok());
    EXPECT_EQ(FirstDifference(in, out), "");
  }
}

TEST_P(FixedCodecTest, ADamagedTileIsDataLossOrADifferentNumberNeverACrash) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const auto positions = PositionsFrom(0, 37);
  TestCache in(g_, 0, 1, 37, Dtype::kBf16, Layout::kContiguous);
  in.FillRandom(rng_);
  const auto good = Encode(0, in, positions);
  ASSERT_EQ(good[0], 1);
  const auto code_of = [&](const std::vector<uint8_t>& tile) {
    TestCache out(g_, 0, 1, 37, Dtype::kBf16, Layout::kPadded);
    const absl::Status s = Decode(0, tile, out, positions, 0, Dtype::kBf16);
    EXPECT_TRUE(out.PaddingIntact());
    EXPECT_TRUE(s.ok() || s.code() == absl::StatusCode::kDataLoss) << s;
    return s.code();
  };
  for (size_t n = 0; n < good.size() + 4; n += n < 100 || n + 9 > good.size() ? 1 : 97) {
    if (n == good.size()) continue;
    std::vector<uint8_t> bad = good;
    bad.resize(n);
    ASSERT_EQ(code_of(bad), absl::StatusCode::kDataLoss) << n;
  }
  for (size_t byte = 0; byte < 4; ++byte) {
    std::vector<uint8_t> bad = good;
    bad[byte] ^= 0x80;
    EXPECT_EQ(code_of(bad), absl::StatusCode::kDataLoss);
  }
  for (size_t bit = 0; bit < 8 * 2 * kCoderSpecBytes; ++bit) {  // what the tile says of itself
    std::vector<uint8_t> bad = good;
    bad[4 + bit / 8] ^= 1 << (bit % 8);
    code_of(bad);
  }
  for (int i = 0; i < 300; ++i) {
    std::vector<uint8_t> bad = good;
    for (int n = 0; n < 8; ++n) bad[rng_() % bad.size()] = rng_();
    code_of(bad);
  }
}

// Stored tiles: what is read today was written before, and is written again.
TEST_P(FixedCodecTest, TheKeptTileIsWrittenAndRead) {
  Geometry g = UniformGeometry(1, 1, 24, Rope());
  const CodecSpec spec{g, {0, 1, 0, 1, 0, 1}, nullptr};
  auto codec = MakeFixedCodec(CodecId::kRecipe, "test", spec, [](int, const PlaneInfo& plane) {
    return plane.kind == StreamKind::kK ? GetParam().key : GetParam().value;
  });
  ASSERT_TRUE(codec.ok()) << codec.status();
  codec_ = *std::move(codec);
  constexpr int kTokens = 33;
  TestCache in(g, 0, 1, kTokens, Dtype::kBf16, Layout::kContiguous);
  uint32_t x = 12345;
  for (int p = 0; p < 2; ++p) {
    for (int t = 0; t < kTokens; ++t) {
      for (int d = 0; d < 24; ++d) {
        x = x * 1664525 + 1013904223;
        in.Set(p, 0, t, d, static_cast<float>(static_cast<int>(x >> 25) - 64) / 32);
      }
    }
  }
  const auto positions = PositionsFrom(0, kTokens);
  const auto tile = Encode(0, in, positions);
  const std::string path = "codec/fixed/testdata/" + GetParam().name + ".tile";
  if (const char* directory = std::getenv("KVCASK_UPDATE_GOLDEN")) {
    std::ofstream(std::string(directory) + "/" + GetParam().name + ".tile", std::ios::binary)
        .write(reinterpret_cast<const char*>(tile.data()), tile.size());
  }
  std::ifstream file(path, std::ios::binary);
  const std::vector<uint8_t> kept{std::istreambuf_iterator<char>(file), {}};
  ASSERT_FALSE(kept.empty()) << path;
  EXPECT_EQ(kept, tile);
  TestCache out(g, 0, 1, kTokens, Dtype::kF32, Layout::kContiguous);
  ASSERT_TRUE(Decode(0, kept, out, positions, 0, Dtype::kBf16).ok());
  double error = 0, energy = 0;
  for (int p = 0; p < 2; ++p) {
    for (int t = 0; t < kTokens; ++t) {
      for (int d = 0; d < 24; ++d) {
        error += std::pow(out.Get(p, 0, t, d) - in.Get(p, 0, t, d), 2);
        energy += std::pow(in.Get(p, 0, t, d), 2);
      }
    }
  }
  EXPECT_LT(error, .25 * energy) << "one and two bits are the coarsest";
}

// Another codec of the same geometry, with other coders, reads a tile by what it says itself.
TEST_P(FixedCodecTest, TilesAreReadByOtherRecipes) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  const auto positions = PositionsFrom(0, 40);
  TestCache in(g_, 1, 2, 40, Dtype::kBf16, Layout::kContiguous);
  in.FillRandom(rng_);
  const auto tile = Encode(1, in, positions);
  TestCache want(g_, 1, 2, 40, Dtype::kBf16, Layout::kContiguous);
  ASSERT_TRUE(Decode(1, tile, want, positions, 0, Dtype::kBf16).ok());
  auto other = MakePresetCodec(CodecId::kE8, {g_, {0, 1, 0, 4, 0, 3}, nullptr, "q3"});
  ASSERT_TRUE(other.ok()) << other.status();
  codec_ = *std::move(other);
  TestCache got(g_, 1, 2, 40, Dtype::kBf16, Layout::kContiguous);
  const absl::Status s = Decode(1, tile, got, positions, 0, Dtype::kBf16);
  ASSERT_TRUE(s.ok()) << s;
  EXPECT_EQ(FirstDifference(want, got), "");
}

TEST_P(FixedCodecTest, ATileHasTheBytesThatItsShapeSays) {
  SCOPED_TRACE(testing::Message() << "seed " << seed_);
  for (int group = 0; group < kGroups; ++group) {
    for (int tokens : {1, 31, 100, 128}) {
      const std::vector<PlaneInfo> planes = ListPlanes(g_, group, group + 1);
      std::vector<CoderSpec> specs;
      for (size_t p = 0; p < planes.size(); ++p) {
        specs.push_back(SpecOf(group, static_cast<int>(p)));
      }
      TestCache in(g_, group, group + 1, tokens, Dtype::kBf16, Layout::kContiguous);
      in.FillRandom(rng_);
      EXPECT_EQ(Encode(group, in, PositionsFrom(5000, tokens)).size(),
                FixedTileBytes(planes, specs, tokens, Dtype::kBf16));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, FixedCodecTest, testing::ValuesIn(AllCases()),
                         [](const auto& info) {
                           return (std::isdigit(info.param.name[0]) ? "vllm_" : "") +
                                  info.param.name;
                         });

double BytesOf(const char* name, int head_dim, const char* setting = "") {
  const auto preset = WithSetting(*FindFixedPreset(name), setting);
  EXPECT_TRUE(preset.ok()) << preset.status();
  return CoderBytesPerRow(preset->key, head_dim) + CoderBytesPerRow(preset->value, head_dim);
}

TEST(FixedPresetsTest, TakeTheBytesAHeadAndTokenThatWerePublished) {
  EXPECT_EQ(BytesOf("k8v4", 128), 196);
  EXPECT_EQ(BytesOf("4bit_nc", 128), 134);
  EXPECT_EQ(BytesOf("k3v4_nc", 128), 118);
  EXPECT_EQ(BytesOf("3bit_nc", 128), 102);
  for (int dim : {64, 128, 512}) {
    for (int bits : {2, 3, 4}) {
      EXPECT_EQ(BytesOf(absl::StrCat("turbo", bits).c_str(), dim) * 8, 2 * (bits * dim + 16));
    }
  }
  // TurboQuant+'s ratios at head_dim 64, 128 and 512, to the digits that were published.
  const auto ratio = [](const char* name, int dim) { return 4 * dim / BytesOf(name, dim); };
  EXPECT_NEAR(ratio("turbo2", 128), 7.5, .05);
  EXPECT_NEAR(ratio("turbo3", 64), 4.92, .005);
  EXPECT_NEAR(ratio("turbo3", 128), 5.12, .005);
  EXPECT_NEAR(ratio("turbo3", 512), 5.28, .005);
  EXPECT_NEAR(ratio("turbo4", 128), 3.9, .05);
  EXPECT_EQ(BytesOf("e8", 128, "q38") * 8, 2 * 832);
  EXPECT_EQ(BytesOf("e8", 128, "q10") * 8, 2 * (16 * 35 + 32));
  EXPECT_EQ(BytesOf("e8", 128, "q152") * 8, 2 * (16 * 66 + 32));
  EXPECT_EQ(BytesOf("int4", 128) * 8, 2 * 5 * 128);
  EXPECT_EQ(BytesOf("kivi4", 128) * 8, 2 * 5 * 128);
  EXPECT_EQ(BytesOf("kivi2", 128) * 8, 2 * 3 * 128);
  EXPECT_EQ(BytesOf("fp8", 128), 2 * 130);
}

TEST(FixedPresetsTest, SettingsAreChecked) {
  for (const char* bad : {"q1", "q1025", "q", "38", "q-3", "q3x", "q 38", "near_lossless"}) {
    EXPECT_EQ(CanonicalLatticeSetting(bad).status().code(), absl::StatusCode::kInvalidArgument)
        << bad;
  }
  EXPECT_EQ(*CanonicalLatticeSetting(""), "q38");
  EXPECT_EQ(*CanonicalLatticeSetting("q7"), "q7");
  EXPECT_FALSE(WithSetting(*FindFixedPreset("fp8"), "q38").ok());
}

TEST(CoderSpecTest, OnlyWhatAWriterWritesIsRead) {
  int accepted = 0;
  std::mt19937 rng(1);
  for (int i = 0; i < 200000; ++i) {
    uint8_t bytes[kCoderSpecBytes], again[kCoderSpecBytes];
    for (uint8_t& b : bytes) b = rng() % 3 == 0 ? rng() % 40 : 0;
    const auto spec = ReadCoderSpec(bytes);
    if (!spec.ok()) continue;
    ++accepted;
    WriteCoderSpec(*spec, again);
    ASSERT_EQ(std::memcmp(bytes, again, sizeof(bytes)), 0) << i;
  }
  EXPECT_GT(accepted, 1000);
}

}  // namespace
}  // namespace kvcask
