// Any bytes as a profile: header, JSON, geometry. What parses lies within the bytes, and its
// geometry survives being written and read.
#include <cstdlib>

#include "codec/base/geometry_json.h"
#include "codec/profile/profile.h"

namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto text = absl::string_view(reinterpret_cast<const char*>(data), size);
  const auto alone = kvcask::GeometryFromJson(text);
  if (alone.ok()) Check(alone->Validate().ok());

  const auto profile = kvcask::Profile::Parse({data, data + size});
  if (!profile.ok()) return 0;
  const kvcask::Geometry& g = (*profile)->geometry();
  Check(g.Validate().ok());
  const auto again = kvcask::GeometryFromJson(kvcask::GeometryToJson(g));
  Check(again.ok() && again->ComputeFingerprint() == g.ComputeFingerprint());
  Check(kvcask::DescribeGeometryDifference(g, *again, "a", "b").empty());
  if (const auto* tensor = (*profile)->Find("mean.00.k")) {
    unsigned sum = 0;
    for (uint8_t b : tensor->bytes) sum += b;  // a sanitizer sees what is outside
    Check(sum <= 255u * tensor->bytes.size());
  }
  (void)kvcask::ParseCacheMetadata((*profile)->metadata());
  return 0;
}
