#include "codec/api/quality.h"

#include <absl/strings/str_cat.h>

namespace kvcask {

absl::string_view QualityName(Quality q) {
  switch (q) {
    case Quality::kDefault:
      return "";
    case Quality::kNearLossless:
      return "near_lossless";
    case Quality::kBalanced:
      return "balanced";
    case Quality::kCompact:
      return "compact";
  }
  return "unknown";
}

absl::StatusOr<Quality> ParseQuality(absl::string_view name) {
  for (Quality q :
       {Quality::kDefault, Quality::kNearLossless, Quality::kBalanced, Quality::kCompact}) {
    if (QualityName(q) == name) return q;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown quality \"", name, "\"; expected near_lossless, balanced, compact or none"));
}

}  // namespace kvcask
