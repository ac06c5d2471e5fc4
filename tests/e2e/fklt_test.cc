// Profiles, and the codec that needs one, end to end.
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>

#include "client/cli/top_view.h"
#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

using absl::StatusCode;

constexpr char kProfile[] = "examples/smollm2-135m-layer.fklt.profile.safetensors";

std::vector<uint8_t> ProfileBytes() {
  std::ifstream in(kProfile, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// sqrt(sum (a - b)^2 / sum a^2) over all elements.
double RelativeRms(const std::vector<std::vector<uint8_t>>& a,
                   const std::vector<std::vector<uint8_t>>& b) {
  double error = 0, size = 0;
  for (size_t p = 0; p < a.size(); ++p) {
    for (size_t i = 0; i < a[p].size(); i += 2) {
      const double x = LoadElement(&a[p][i], Dtype::kBf16), y = LoadElement(&b[p][i], Dtype::kBf16);
      error += (x - y) * (x - y);
      size += x * x;
    }
  }
  return std::sqrt(error / size);
}

class FkltTest : public testing::Test {
 protected:
  FkltTest() {
    const auto added = client_.AddProfile(ProfileBytes());
    EXPECT_TRUE(added.ok()) << Describe(added.status());
    if (added.ok()) profile_ = *added;
  }
  v1::PutOpen Open(const std::string& session, const std::string& quality = "") {
    v1::PutOpen open = OpenOf(session, "fklt");
    open.mutable_codec()->set_quality(quality);
    open.mutable_codec()->set_profile_fingerprint(profile_.fingerprint());
    return open;
  }
  Fetched Get(const v1::GetRequest& request) {
    auto got = Fetch(client_, request);
    EXPECT_TRUE(got.ok()) << Describe(got.status());
    return got.ok() ? *std::move(got) : Fetched();
  }
  std::string Hex() const {
    std::string hex;
    for (unsigned char c : profile_.fingerprint()) {
      absl::StrAppend(&hex, absl::Hex(c, absl::kZeroPad2));
    }
    return hex;
  }

  Daemon daemon_;
  Client client_ = daemon_.Connect();
  v1::Profile profile_;
};

TEST_F(FkltTest, TheDialTradesPredictedLossForSize) {
  ASSERT_TRUE(PutExample(client_, OpenOf("raw", "raw")).ok());
  const Fetched raw = Get(RequestOf("raw"));
  double kld = 0, error = 0;
  uint64_t stored = UINT64_MAX;
  for (const std::string quality : {"near_lossless", "balanced", "compact"}) {
    const auto put = PutExample(client_, Open(quality, quality));
    ASSERT_TRUE(put.ok()) << Describe(put.status());
    EXPECT_LT(put->stored_bytes(), stored) << quality;
    EXPECT_GT(put->predicted_kld(), kld) << quality;
    stored = put->stored_bytes();
    kld = put->predicted_kld();
    const double e = RelativeRms(raw.planes, Get(RequestOf(quality)).planes);
    EXPECT_GT(e, error) << quality;
    EXPECT_LT(e, .4) << quality;
    error = e;
  }
  EXPECT_LT(stored, uint64_t{5898240} / 12);
  EXPECT_LT(kld, .03);
}

TEST_F(FkltTest, ARangeIsThatOfTheWholeUpToBf16sRounding) {
  ASSERT_TRUE(PutExample(client_, Open("s")).ok());
  const Fetched whole = Get(RequestOf("s"));
  const Fetched part = Get(RequestOf("s", 100, 228, 4, 9));
  ASSERT_EQ(part.planes.size(), 10u);
  std::vector<std::vector<uint8_t>> expected;
  for (size_t p = 8; p < 18; ++p) {
    expected.emplace_back();
    for (int h = 0; h < 3; ++h) {
      const auto from = whole.planes[p].begin() + (h * 256 + 100) * 128;
      expected.back().insert(expected.back().end(), from, from + 128 * 128);
    }
  }
  EXPECT_LT(RelativeRms(expected, part.planes), 1e-4);
}

TEST_F(FkltTest, LayerByLayerAndInLayerShardsItIsTheSame) {
  ASSERT_TRUE(PutExample(client_, Open("whole")).ok());
  const Fetched whole = Get(RequestOf("whole"));
  ASSERT_TRUE(PutExample(client_, Open("layers"), true, PutOrder::kLayerMajor).ok());
  EXPECT_LT(RelativeRms(whole.planes, Get(RequestOf("layers")).planes), 1e-4);
  for (uint32_t i = 0; i < 2; ++i) {
    v1::PutOpen open = Open("shards");
    open.mutable_shard()->set_index(i);
    open.mutable_shard()->set_count(2);
    open.mutable_shard()->set_layer_begin(i == 0 ? 0 : 15);
    open.mutable_shard()->set_layer_end(i == 0 ? 15 : 30);
    const auto put = PutExample(client_, open);
    ASSERT_TRUE(put.ok()) << Describe(put.status());
  }
  EXPECT_LT(RelativeRms(whole.planes, Get(RequestOf("shards")).planes), 1e-4);
}

TEST_F(FkltTest, ShortSegmentsTakeMoreBytesAndReadTheSame) {
  ASSERT_TRUE(PutExample(client_, Open("s")).ok());
  Daemon daemon({"--fklt-segments", "short"});
  Client client = daemon.Connect();
  ASSERT_TRUE(client.AddProfile(ProfileBytes()).ok());
  ASSERT_TRUE(PutExample(client, Open("s")).ok());
  const auto longer = client_.StatSession(Ref("s")), shorter = client.StatSession(Ref("s"));
  ASSERT_TRUE(longer.ok() && shorter.ok());
  EXPECT_GT(shorter->stored_bytes(), longer->stored_bytes());
  EXPECT_LT(shorter->stored_bytes(), longer->stored_bytes() * 11 / 10);
  const auto got = Fetch(client, RequestOf("s"));
  ASSERT_TRUE(got.ok()) << Describe(got.status());
  EXPECT_EQ(got->planes, Get(RequestOf("s")).planes);
}

TEST_F(FkltTest, AProfileInUseCannotBeRemoved) {
  ASSERT_TRUE(PutExample(client_, Open("s")).ok());
  const auto refused = client_.RemoveProfile(Hex());
  EXPECT_EQ(refused.status().code(), StatusCode::kFailedPrecondition) << refused.status();
  EXPECT_EQ(DetailsOf(refused.status()).reason, "PROFILE_IN_USE");
  ASSERT_TRUE(client_.DeleteSession(Ref("s"), false).ok());
  absl::Status removed;
  EXPECT_TRUE(Eventually([&] {
    const auto r = client_.RemoveProfile(Hex().substr(0, 12));
    removed = r.status();
    return r.ok();
  })) << removed;
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client_); }));
}

TEST_F(FkltTest, TheSameFileAgainIsTheSameProfile) {
  const auto again = client_.AddProfile(ProfileBytes());
  ASSERT_TRUE(again.ok()) << Describe(again.status());
  EXPECT_EQ(again->fingerprint(), profile_.fingerprint());
  const auto list = client_.ListProfiles();
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->size(), 1u);
  EXPECT_EQ((*list)[0].codec(), "fklt");
  EXPECT_EQ((*list)[0].size_bytes(), ProfileBytes().size());
}

TEST_F(FkltTest, WhatDoesNotFitTheProfileIsRefused) {
  const auto refused = [&](const v1::PutOpen& open, const std::string& text) {
    const absl::Status s = client_.OpenPut(open).status();
    EXPECT_EQ(s.code(), StatusCode::kFailedPrecondition) << s;
    EXPECT_TRUE(absl::StrContains(s.message(), text)) << text << " is not in: " << s.message();
  };
  v1::PutOpen open = Open("s");
  open.mutable_codec()->clear_profile_fingerprint();
  refused(open, "needs a profile");
  open = Open("s");
  open.mutable_codec()->set_name("raw");
  refused(open, "is for codec fklt");
  open = Open("s");
  open.mutable_geometry()->mutable_layers()->RemoveLast();
  refused(open, "geometry");
  open = Open("s");
  open.mutable_codec()->set_quality("splendid");
  const absl::Status quality = client_.OpenPut(open).status();
  EXPECT_EQ(quality.code(), StatusCode::kInvalidArgument) << quality;
  EXPECT_TRUE(absl::StrContains(quality.message(), "near_lossless")) << quality;
  EXPECT_EQ(client_.StatSession(Ref("s")).status().code(), StatusCode::kNotFound);
}

TEST_F(FkltTest, AProfileThatIsCutShortIsRefusedAndNothingOfItKept) {
  std::vector<uint8_t> cut = ProfileBytes();
  cut.resize(cut.size() - 1000);
  const auto added = client_.AddProfile(cut);
  EXPECT_EQ(added.status().code(), StatusCode::kInvalidArgument) << added.status();
  const auto list = client_.ListProfiles();
  ASSERT_TRUE(list.ok());
  EXPECT_EQ(list->size(), 1u);
}

TEST(FkltShadowTest, ChunksMeasureWhatTheyWereCertifiedFor) {
  Daemon daemon({"--shadow-fraction", "1"});
  Client client = daemon.Connect();
  const auto profile = client.AddProfile(ProfileBytes());
  ASSERT_TRUE(profile.ok()) << Describe(profile.status());
  const auto has = [&](const char* line) {
    const auto text = FetchMetrics(daemon.metrics_address(), kPatience);
    return text.ok() && absl::StrContains(*text, line);
  };
  EXPECT_TRUE(has("\nkvcask_shadow_chunks_total{codec=\"fklt\",result=\"within\"} 0\n"));
  v1::PutOpen open = OpenOf("s", "fklt");
  open.mutable_codec()->set_profile_fingerprint(profile->fingerprint());
  ASSERT_TRUE(PutExample(client, open).ok());
  // Both pages, each within a tenth.
  EXPECT_TRUE(Eventually([&] {
    return has("\nkvcask_shadow_chunks_total{codec=\"fklt\",result=\"within\"} 2\n");
  }));
  EXPECT_TRUE(has("\nkvcask_shadow_kld_ratio_bucket{codec=\"fklt\",le=\"0.9\"} 0\n"));
  EXPECT_TRUE(has("\nkvcask_shadow_kld_ratio_bucket{codec=\"fklt\",le=\"1.1\"} 2\n"));
  EXPECT_TRUE(has("\nkvcask_shadow_chunks_total{codec=\"fklt\",result=\"over\"} 0\n"));
  EXPECT_TRUE(has("\nkvcask_shadow_skipped_total 0\n"));
}

}  // namespace
}  // namespace kvcask
