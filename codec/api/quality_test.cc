#include "codec/api/quality.h"

#include <gtest/gtest.h>

namespace kvcask {
namespace {

TEST(QualityTest, NamesParseToWhatTheyName) {
  for (Quality q :
       {Quality::kDefault, Quality::kNearLossless, Quality::kBalanced, Quality::kCompact}) {
    ASSERT_TRUE(ParseQuality(QualityName(q)).ok());
    EXPECT_EQ(*ParseQuality(QualityName(q)), q);
  }
}

TEST(QualityTest, AnUnknownNameIsRefusedWithTheList) {
  const absl::Status s = ParseQuality("best").status();
  EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(s.message().find("\"best\""), absl::string_view::npos);
  EXPECT_NE(s.message().find("near_lossless, balanced, compact"), absl::string_view::npos);
}

}  // namespace
}  // namespace kvcask
