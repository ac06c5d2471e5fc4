// The dial: how much predicted loss a session accepts.
#pragma once

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>

namespace kvcask {

// Frozen in the file format. kDefault: codecs without a dial accept only this; `fklt`
// takes it as balanced.
enum class Quality : uint8_t {
  kDefault = 0,
  kNearLossless = 1,  // KLD about .002 nats a token
  kBalanced = 2,      // about .005
  kCompact = 3,       // about .009
};

absl::string_view QualityName(Quality q);                      // "", "near_lossless", ...
absl::StatusOr<Quality> ParseQuality(absl::string_view name);  // INVALID_ARGUMENT lists them

}  // namespace kvcask
