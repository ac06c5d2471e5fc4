// Every codec of constant size through the daemon: what comes back, what is held of it, and
// what is refused.
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>

#include "client/cc/status.h"
#include "codec/base/dtype.h"
#include "codec/recipe/projection.h"
#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

class CodecsTest : public testing::Test {
 protected:
  v1::PutOpen Open(const std::string& codec, const std::string& setting = "") {
    v1::PutOpen open = OpenOf(absl::StrCat("s", ++sessions_), codec);
    open.mutable_codec()->set_quality(setting);
    return open;
  }
  // sqrt(sum of squared errors / sum of squares) of a session that was put from the example.
  double RelativeError(const std::string& session) {
    const auto got = Fetch(client_, RequestOf(session));
    EXPECT_TRUE(got.ok()) << Describe(got.status());
    if (!got.ok()) return 1e9;
    const ConstKvView view = Example().view();
    double error = 0, energy = 0;
    for (size_t p = 0; p < got->planes.size(); ++p) {
      for (int h = 0; h < 3; ++h) {
        for (int t = 0; t < 256; ++t) {
          for (int d = 0; d < 64; ++d) {
            const double x = LoadElement(view.At(static_cast<int>(p), h, t, d), Dtype::kBf16);
            const double y = LoadElement(
                got->planes[p].data() + ((h * 256 + t) * 64 + d) * 2, Dtype::kBf16);
            error += (x - y) * (x - y);
            energy += x * x;
          }
        }
      }
    }
    return std::sqrt(error / energy);
  }

  Daemon daemon_;
  Client client_ = daemon_.Connect();
  int sessions_ = 0;
};

TEST_F(CodecsTest, EachComesBackAndIsHeldInTheBytesThatWereProjected) {
  const auto info = client_.GetServerInfo();
  ASSERT_TRUE(info.ok()) << Describe(info.status());
  // By the bits of an element; the coarsest are two.
  const auto bound = [](const std::string& name) {
    if (absl::StrContains(name, "2")) return .45;
    if (absl::StrContains(name, "3")) return .25;
    return .15;
  };
  int tried = 0;
  for (const auto& codec : info->codecs()) {
    if (codec.needs_profile() || codec.lossless()) continue;
    std::vector<std::string> settings(codec.qualities().begin(), codec.qualities().end());
    settings.push_back("");
    for (const std::string& setting : settings) {
      SCOPED_TRACE(absl::StrCat(codec.name(), " ", setting));
      ProjectionSpec spec;
      spec.model = Example().geometry();
      spec.codec = codec.name();
      spec.setting = setting;
      spec.tokens = 256;
      spec.token_ids = true;
      const auto projected = Project(spec);
      if (!projected.ok()) continue;  // its bytes depend on the data
      const v1::PutOpen open = Open(codec.name(), setting);
      const auto put = PutExample(client_, open);
      ASSERT_TRUE(put.ok()) << Describe(put.status());
      EXPECT_EQ(put->stored_bytes(), projected->stored_bytes);
      EXPECT_EQ(put->raw_bytes(), projected->raw_bytes);
      ++tried;
      EXPECT_LT(put->stored_bytes(), put->raw_bytes());
      EXPECT_LT(RelativeError(open.session().session_id()),
                codec.name() == "recipe" ? .3 : bound(codec.name()));
      const auto stat = client_.StatSession(open.session());
      ASSERT_TRUE(stat.ok());
      EXPECT_EQ(stat->codec(), codec.name());
    }
  }
  EXPECT_GE(tried, 25);
}

TEST_F(CodecsTest, SettingsAreKeptInOneFormAndShareNothingWithOthers) {
  const auto put = [&](const v1::PutOpen& open) {
    const auto result = PutExample(client_, open);
    EXPECT_TRUE(result.ok()) << Describe(result.status());
    const auto stat = client_.StatSession(open.session());
    EXPECT_TRUE(stat.ok());
    return stat->quality();
  };
  EXPECT_EQ(put(Open("e8")), "q38");
  EXPECT_EQ(put(Open("e8", "q10")), "q10");
  EXPECT_EQ(put(Open("recipe", "k: turbo4 sinks=0;v:int4  group=32")), "k: turbo4; v: int4");
  EXPECT_EQ(put(Open("recipe")), "default");
  // The same text again shares its chunks; another Q does not.
  const v1::PutOpen again = Open("e8", "q10"), other = Open("e8", "q11");
  put(again);
  put(other);
  EXPECT_EQ(client_.StatSession(again.session())->unique_bytes(), 0u);
  const auto alone = client_.StatSession(other.session());
  EXPECT_EQ(alone->unique_bytes(), alone->stored_bytes());
}

TEST_F(CodecsTest, SettingsThatMeanNothingAreRefused) {
  const auto refused = [&](const v1::PutOpen& open, const std::string& text) {
    const absl::Status s = client_.OpenPut(open).status();
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << s;
    EXPECT_TRUE(absl::StrContains(s.message(), text)) << text << " is not in: " << s.message();
  };
  refused(Open("e8", "q1"), "\"q2\" to \"q1024\"");
  refused(Open("turbo4", "q10"), "q10");
  refused(Open("recipe", "no-such-one"), "vllm-k8v4");
  refused(Open("recipe", "k: turbo4\nv: zip"), "line 2: unknown form \"zip\"");
  refused(Open("recipe", "k: turbo4"), "no rule names stream v of layer 0");
  refused(Open("recipe", "all: fp8; layers 30: raw"), "layer 30 of a model with 30 layers");
  refused(Open("recipe", std::string(1 << 16, ':')), "at most 1024");
}

TEST_F(CodecsTest, MeansComeFromAnFkltProfile) {
  std::ifstream file("examples/smollm2-135m-layer.fklt.profile.safetensors", std::ios::binary);
  const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto profile = client_.AddProfile(bytes);
  ASSERT_TRUE(profile.ok()) << Describe(profile.status());
  for (const char* codec : {"int8", "turbo4", "e8", "kivi4", "recipe"}) {
    SCOPED_TRACE(codec);
    v1::PutOpen plain = Open(codec), with = Open(codec);
    with.mutable_codec()->set_profile_fingerprint(profile->fingerprint());
    ASSERT_TRUE(PutExample(client_, plain).ok());
    const auto put = PutExample(client_, with);
    ASSERT_TRUE(put.ok()) << Describe(put.status());
    const double without = RelativeError(plain.session().session_id());
    const double error = RelativeError(with.session().session_id());
    EXPECT_NE(error, without);
    EXPECT_LT(error, 1.5 * without + .001) << "and not worse: sinks are kept";
  }
}

}  // namespace
}  // namespace kvcask
