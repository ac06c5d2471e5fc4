// The Kakeya codecs through the daemon: ranges, a profile's guardrails, recipes, bad input.
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "client/cc/status.h"
#include "codec/base/dtype.h"
#include "codec/kakeya/test_profile.h"
#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

constexpr uint64_t kTokens = 256;
constexpr int kHeads = 3, kDim = 64;

class KakeyaTest : public testing::Test {
 protected:
  KakeyaTest() {
    const auto added = client_.AddProfile(kakeya::TestProfileFile(
        Example().geometry(), R"({"preset": "kakeya-1.3-ppl", "raw_layers": [29]})",
        kakeya::DyadicTensors(Example().geometry())));
    EXPECT_TRUE(added.ok()) << Describe(added.status());
    if (added.ok()) profile_ = added->fingerprint();
  }
  v1::PutOpen Open(const std::string& session, const std::string& codec,
                   const std::string& setting = "") {
    v1::PutOpen open = OpenOf(session, codec);
    open.mutable_codec()->set_quality(setting);
    if (codec == "kakeya-1.3-ppl") open.mutable_codec()->set_profile_fingerprint(profile_);
    return open;
  }
  Fetched Put(const v1::PutOpen& open) {
    const auto put = PutExample(client_, open);
    EXPECT_TRUE(put.ok()) << Describe(put.status());
    if (put.ok()) stored_ = put->stored_bytes();
    auto got = Fetch(client_, RequestOf(open.session().session_id()));
    EXPECT_TRUE(got.ok()) << Describe(got.status());
    return got.ok() ? *std::move(got) : Fetched();
  }
  // Of a plane: relative L2 error against what was put, and whether all bytes are the same.
  static double Error(const Fetched& got, size_t plane) {
    double error = 0, power = 0;
    for (int h = 0; h < kHeads; ++h) {
      for (uint64_t t = 0; t < kTokens; ++t) {
        for (int d = 0; d < kDim; ++d) {
          const double x = LoadElement(
              Example().view().At(static_cast<int>(plane), h, static_cast<int64_t>(t), d),
              Dtype::kBf16);
          const double y = LoadElement(
              got.planes[plane].data() + ((h * kTokens + t) * kDim + d) * 2, Dtype::kBf16);
          error += (x - y) * (x - y), power += x * x;
        }
      }
    }
    return std::sqrt(error / power);
  }

  Daemon daemon_;
  Client client_ = daemon_.Connect();
  std::string profile_;
  uint64_t stored_ = 0;
};

TEST_F(KakeyaTest, EachVersionShrinksTheCacheAndAnyRangeIsThatOfTheWhole) {
  for (const std::string codec : {"kakeya-1.0", "kakeya-1.2", "kakeya-1.3", "kakeya-1.3-ppl"}) {
    SCOPED_TRACE(codec);
    const Fetched whole = Put(Open(codec, codec));
    ASSERT_EQ(whole.planes.size(), 60u);
    EXPECT_LT(stored_, uint64_t{5898240} * 2 / 3);
    for (size_t p = 0; p < 60; ++p) EXPECT_LT(Error(whole, p), .8) << "plane " << p;
    if (codec == "kakeya-1.3-ppl") {
      EXPECT_EQ(Error(whole, 58), 0) << "the profile's boundary layer";
      EXPECT_GT(Error(whole, 0), 0);
    }
    const std::pair<uint64_t, uint64_t> ranges[] = {{0, 1},     {127, 129}, {100, 228},
                                                    {128, 256}, {255, 256}, {31, 32}};
    for (const auto& [begin, end] : ranges) {
      SCOPED_TRACE(absl::StrCat(begin, ":", end));
      const auto part = Fetch(client_, RequestOf(codec, begin, end, 3, 7));
      ASSERT_TRUE(part.ok()) << Describe(part.status());
      ASSERT_EQ(part->planes.size(), 8u);
      const size_t bytes = (end - begin) * kDim * 2;
      for (size_t p = 0; p < 8; ++p) {
        for (int h = 0; h < kHeads; ++h) {
          ASSERT_EQ(
              0, std::memcmp(part->planes[p].data() + h * bytes,
                             whole.planes[p + 6].data() + (h * kTokens + begin) * kDim * 2, bytes));
        }
      }
    }
  }
}

TEST_F(KakeyaTest, RecipesKeepBoundaryLayersStreamsAndSinksExact) {
  const Fetched plain = Put(Open("plain", "kakeya-1.3"));
  const uint64_t without = stored_;
  const Fetched boundary = Put(Open("boundary", "kakeya-1.3", "boundary"));
  EXPECT_GT(stored_, without);
  for (size_t p = 0; p < 60; ++p) {
    const size_t layer = p / 2;
    const bool raw = layer < 2 || layer > 27;
    EXPECT_EQ(Error(boundary, p) == 0, raw) << "plane " << p;
    if (!raw) {
      EXPECT_EQ(boundary.planes[p], plain.planes[p]) << "no cross-talk";
    }
  }
  const Fetched listed = Put(Open("listed", "kakeya-1.3", R"({"raw_layers": [0, 1, -2, 29]})"));
  for (size_t p = 0; p < 60; ++p) EXPECT_EQ(listed.planes[p], boundary.planes[p]);
  EXPECT_EQ(client_.StatSession(Ref("listed"))->quality(), R"({"raw_layers":[0,1,-2,29]})");
  const Fetched k = Put(Open("k", "kakeya-1.3", "k-only"));
  const Fetched sinks = Put(Open("sinks", "kakeya-1.3-ppl", "sinks"));
  for (size_t p = 0; p < 60; ++p) {
    EXPECT_EQ(Error(k, p) == 0, p % 2 == 1) << "plane " << p;
    for (int h = 0; h < kHeads; ++h) {
      for (int64_t t = 0; t < 4; ++t) {
        ASSERT_EQ(0, std::memcmp(sinks.planes[p].data() + (h * kTokens + t) * kDim * 2,
                                 Example().view().At(static_cast<int>(p), h, t, 0), kDim * 2));
      }
    }
  }
  // More bits for the keys of some layers, and for them alone.
  const Fetched hot = Put(Open("hot", "kakeya-1.3", R"({"hot_layers": [5], "hot_bits": 4})"));
  for (size_t p = 0; p < 60; ++p) {
    if (p == 10) {
      EXPECT_LT(Error(hot, p), Error(plain, p));
    } else {
      EXPECT_EQ(hot.planes[p], plain.planes[p]) << "plane " << p;
    }
  }
}

TEST_F(KakeyaTest, WhatIsNoRecipeOrNoNumberIsRefusedAndNothingIsKept) {
  const auto refused = [&](const v1::PutOpen& open, absl::StatusCode code,
                           const std::string& text) {
    const absl::Status s = client_.OpenPut(open).status();
    EXPECT_EQ(s.code(), code) << s;
    EXPECT_TRUE(absl::StrContains(s.message(), text)) << text << " is not in: " << s.message();
  };
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  for (const std::string codec : {"kakeya-1.0", "kakeya-1.2", "kakeya-1.3", "kakeya-1.3-ppl"}) {
    SCOPED_TRACE(codec);
    refused(Open("s", codec, "balanced"), kInvalid, "there are boundary, ");
    refused(Open("s", codec, "{"), kInvalid, "not a JSON object");
    refused(Open("s", codec, R"({"k": {"bits": 7}})"), kInvalid, "k.bits 7; expected 1 to 4");
    refused(Open("s", codec, R"({"preset": "kakeya-1.0"})"), kInvalid, "unknown key");
    refused(Open("s", codec, R"({"raw_layers": [30]})"), kInvalid,
            "raw_layers has 30; the model has layers 0 to 29");
    refused(Open("s", codec, "{" + std::string(1 << 16, ' ') + "}"), kInvalid, "at most 1024");
    // A number that is none, in the last layer: the run fails, whole.
    auto put = client_.OpenPut(Open("s", codec));
    ASSERT_TRUE(put.ok()) << Describe(put.status());
    absl::Status status;
    for (uint32_t layer = 0; layer < 30 && status.ok(); ++layer) {
      const v1::Rectangle r = MakeRectangle(layer, 1, 0, kTokens);
      std::vector<uint8_t> bytes = ExampleBytes(r);
      if (layer == 28) bytes[1] = 0x7f, bytes[0] = 0xc0;  // NaN
      status = put->Write(r, bytes);
    }
    if (status.ok()) status = put->Commit(Seal()).status();
    EXPECT_EQ(status.code(), kInvalid) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "layer 28, K, head 0, token 0")) << status;
    EXPECT_EQ(client_.StatSession(Ref("s")).status().code(), absl::StatusCode::kNotFound);
  }
  refused(Open("s", "kakeya-1.3", "boundary-deepseek"), absl::StatusCode::kOk, "");
  refused(Open("t", "kakeya-1.3", R"({"whiten_keys": true})"),
          absl::StatusCode::kFailedPrecondition, "need a profile");
  v1::PutOpen open = Open("s", "kakeya-1.3-ppl");
  open.mutable_codec()->clear_profile_fingerprint();
  refused(open, absl::StatusCode::kFailedPrecondition, "needs a profile");
}

}  // namespace
}  // namespace kvcask
