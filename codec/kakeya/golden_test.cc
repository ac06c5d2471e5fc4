// Tiles that must decode to the same numbers for as long as version 0 of FORMAT.md holds, and
// tiles that must be refused. The files begin with the 8 bytes that tile_fuzz.cc asks by.
//
// Encoders may differ in their last bits (an eigenvector's sign, a sum's order), so what is kept
// is the decoded numbers: decoded_*.f32, within 1e-5 of the largest.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "codec/kakeya/kakeya.h"
#include "codec/kakeya/test_profile.h"
#include "codec/testing/test_cache.h"

namespace kvcask {
namespace {

constexpr int kTokens = 120;
constexpr uint32_t kFirst = 5000;

struct Golden {
  const char* name;
  absl::StatusOr<std::unique_ptr<Codec>> (*make)(const CodecSpec&);
  int group;
};
constexpr Golden kGoldens[] = {{"kakeya_1.0", MakeKakeya10Codec, 0},
                               {"kakeya_1.2", MakeKakeya12Codec, 0},
                               {"kakeya_1.3", MakeKakeya13Codec, 1},
                               {"kakeya_1.3_ppl", MakeKakeya13PplCodec, 0}};

Geometry GoldenGeometry() {
  Geometry g = UniformGeometry(2, 2, 8, StandardRope(RopeStyle::kRotateHalf, 8, 1e4));
  g.layers[1].rope = StandardRope(RopeStyle::kInterleaved, 4, 1e4);
  return g;
}

// Exact in any arithmetic: a random walk of small dyadic numbers in three directions.
void Fill(TestCache& c) {
  uint32_t x = 1;
  for (int p = 0; p < c.planes(); ++p) {
    for (int h = 0; h < 2; ++h) {
      for (int t = 0; t < kTokens; ++t) {
        int along[3];
        for (int& a : along) {
          x = x * 1664525 + 1013904223;
          a = static_cast<int>(x >> 27) - 16;
        }
        for (int d = 0; d < 8; ++d) {
          x = x * 1664525 + 1013904223;
          const int noise = static_cast<int>(x >> 30) - 1;
          c.Set(p, h, t, d,
                (along[d % 3] * (1 + d / 3) + along[(d + 1) % 3] + 8 * h + noise) / 16.f);
        }
      }
    }
  }
}

std::vector<uint8_t> ReadFile(const std::string& name) {
  std::ifstream in("codec/kakeya/testdata/" + name, std::ios::binary);
  EXPECT_TRUE(in.good()) << name;
  return {std::istreambuf_iterator<char>(in), {}};
}

void MaybeWrite(const std::string& name, const std::vector<uint8_t>& bytes) {
  if (const char* directory = std::getenv("KVCASK_UPDATE_GOLDEN")) {
    std::ofstream(std::string(directory) + "/" + name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
}

class GoldenTest : public testing::TestWithParam<Golden> {
 protected:
  GoldenTest() : g_(GoldenGeometry()) {
    std::shared_ptr<const Profile> profile;
    if (NeedsProfile()) {
      profile =
          kakeya::MakeTestProfile(g_, R"({"preset": "kakeya-1.3-ppl"})", kakeya::DyadicTensors(g_));
    }
    auto codec = GetParam().make({g_, {0, 1, 0, 2, 0, 2}, profile});
    EXPECT_TRUE(codec.ok()) << codec.status();
    codec_ = *std::move(codec);
  }
  static bool NeedsProfile() { return GetParam().make == MakeKakeya13PplCodec; }
  std::vector<uint8_t> Encode(const TestCache& in) {
    const auto positions = PositionsFrom(kFirst, kTokens);
    std::vector<uint8_t> tile(codec_->MaxTileBytes(GetParam().group, kTokens, Dtype::kBf16));
    EncodeJob job;
    job.group = GetParam().group;
    job.tokens = kTokens;
    job.source = in.const_view();
    job.positions = positions;
    job.destination = absl::MakeSpan(tile);
    Workspace workspace;
    EXPECT_TRUE(codec_->Encode({&job, 1}, workspace).ok());
    EXPECT_TRUE(job.status.ok()) << job.status;
    tile.resize(job.bytes);
    return tile;
  }
  absl::Status Decode(absl::Span<const uint8_t> tile, TestCache& out) {
    const auto positions = PositionsFrom(kFirst, kTokens);
    DecodeJob job;
    job.group = GetParam().group;
    job.tokens = kTokens;
    job.tile = tile;
    job.positions = positions;
    job.token_end = kTokens;
    job.layer_begin = GetParam().group;
    job.layer_end = GetParam().group + 1;
    job.destination = out.view();
    Workspace workspace;
    EXPECT_TRUE(codec_->Decode({&job, 1}, workspace).ok());
    return job.status;
  }
  TestCache Cache(Dtype dtype) {
    return TestCache(g_, GetParam().group, GetParam().group + 1, kTokens, dtype,
                     Layout::kContiguous);
  }
  static std::vector<float> Numbers(const TestCache& c) {
    std::vector<float> x;
    for (int p = 0; p < c.planes(); ++p) {
      for (int h = 0; h < 2; ++h) {
        for (int t = 0; t < kTokens; ++t) {
          for (int d = 0; d < 8; ++d) x.push_back(c.Get(p, h, t, d));
        }
      }
    }
    return x;
  }
  std::string Name(const char* prefix, const char* ending) const {
    return std::string(prefix) + GetParam().name + ending;
  }

  const Geometry g_;
  std::unique_ptr<Codec> codec_;
};

TEST_P(GoldenTest, KeptTilesDecodeToTheKeptNumbers) {
  TestCache in = Cache(Dtype::kBf16);
  Fill(in);
  const std::vector<uint8_t> fresh = Encode(in);
  TestCache got = Cache(Dtype::kF32);
  if (std::getenv("KVCASK_UPDATE_GOLDEN") != nullptr) {
    std::vector<uint8_t> file = {static_cast<uint8_t>(GetParam().group | NeedsProfile() << 1),
                                 kTokens - 1,
                                 0,
                                 0,
                                 kTokens - 1,
                                 128,
                                 2,
                                 0};
    file.insert(file.end(), fresh.begin(), fresh.end());
    MaybeWrite(Name("tile_", ".tile"), file);
    ASSERT_TRUE(Decode(fresh, got).ok());
    const auto numbers = Numbers(got);
    std::vector<uint8_t> bytes(numbers.size() * 4);
    std::memcpy(bytes.data(), numbers.data(), bytes.size());
    MaybeWrite(Name("decoded_", ".f32"), bytes);
  }
  const auto kept = ReadFile(Name("tile_", ".tile"));
  ASSERT_GT(kept.size(), 8u);
  const absl::Status s = Decode(absl::MakeConstSpan(kept).subspan(8), got);
  ASSERT_TRUE(s.ok()) << s;
  const auto bytes = ReadFile(Name("decoded_", ".f32"));
  const auto numbers = Numbers(got);
  ASSERT_EQ(bytes.size(), numbers.size() * 4);
  for (size_t i = 0; i < numbers.size(); ++i) {
    float want;
    std::memcpy(&want, &bytes[4 * i], 4);
    ASSERT_NEAR(numbers[i], want, 1e-4) << "number " << i;
  }
}

TEST_P(GoldenTest, AnEncoderOfTodayIsAsGoodAsTheOneThatWroteThem) {
  TestCache in = Cache(Dtype::kBf16), then = Cache(Dtype::kF32), now = Cache(Dtype::kF32);
  Fill(in);
  const auto kept = ReadFile(Name("tile_", ".tile"));
  const auto fresh = Encode(in);
  EXPECT_NEAR(static_cast<double>(fresh.size()), kept.size() - 8., .02 * kept.size());
  ASSERT_TRUE(Decode(absl::MakeConstSpan(kept).subspan(8), then).ok());
  ASSERT_TRUE(Decode(fresh, now).ok());
  const auto want = Numbers(in), a = Numbers(then), b = Numbers(now);
  double error_then = 0, error_now = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error_then += std::pow(a[i] - want[i], 2), error_now += std::pow(b[i] - want[i], 2);
  }
  EXPECT_LT(error_now, 1.1 * error_then);
}

TEST_P(GoldenTest, BrokenTilesAreRefused) {
  const auto kept = ReadFile(Name("tile_", ".tile"));
  TestCache out = Cache(Dtype::kF32);
  const auto refused = [&](size_t at, uint8_t value) {
    std::vector<uint8_t> bad(kept.begin() + 8, kept.end());
    if (bad.at(at) == value) return true;
    bad[at] = value;
    return absl::IsDataLoss(Decode(bad, out));
  };
  // The tile's form and zeros; the plane's kind, flags, zeros and size; the section's kind,
  // dtype, flags, bits, dim, clusters, rows, runs.
  for (size_t at : {0, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 16, 18, 20, 30}) {
    EXPECT_TRUE(refused(at, 0x7f)) << "byte " << at;
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, GoldenTest, testing::ValuesIn(kGoldens), [](const auto& info) {
  std::string name = info.param.name;
  for (char& c : name) c = c == '.' ? '_' : c;
  return name;
});

}  // namespace
}  // namespace kvcask
