// Any text as a client's setting and as parameters: a status, or parameters within their ranges
// whose canonical text means the same.
#include <cstdlib>
#include <string>

#include "codec/kakeya/params.h"

namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvcask::kakeya;
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto p = ParamsFromJson(text); p.ok()) {
    Check(CheckParams(*p).ok());
    Check(ParamsToJson(*ParamsFromJson(ParamsToJson(*p))) == ParamsToJson(*p));
  } else {
    Check(absl::IsInvalidArgument(p.status()));
  }
  const auto canonical = CanonicalSetting(text);
  if (!canonical.ok()) {
    Check(absl::IsInvalidArgument(canonical.status()));
    return 0;
  }
  const auto again = CanonicalSetting(*canonical);
  Check(again.ok() && *again == *canonical);
  auto applied = ApplySetting(*canonical, *PresetParams("kakeya-1.3-ppl"));
  Check(applied.ok() && CheckParams(*applied).ok());
  const auto given = ApplySetting(text, *PresetParams("kakeya-1.3-ppl"));
  Check(given.ok() && ParamsToJson(*given) == ParamsToJson(*applied));
  const bool fits = ResolveLayers(30, &*applied).ok();
  for (int layer : applied->raw_layers) Check(!fits || (layer >= 0 && layer < 30));
  return 0;
}
