// The codecs of constant size that have a name of their own.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <memory>
#include <string>

#include "codec/api/codec.h"
#include "codec/fixed/plane_coder.h"

namespace kvcask {

// A preset: one coder for keys, one for values; latent streams are coded as values.
struct FixedPreset {
  CodecId id;
  const char* name;
  CoderSpec key, value;
  bool has_q;  // takes the setting "qN": lattices
};

absl::Span<const FixedPreset> FixedPresets();
const FixedPreset* FindFixedPreset(absl::string_view name);  // nullptr: none

// The preset's coders with a setting: "" or, where has_q, "q2" to "q1024". INVALID_ARGUMENT.
absl::StatusOr<FixedPreset> WithSetting(const FixedPreset& preset, absl::string_view setting);

// For the table of codecs.
template <CodecId id>
absl::StatusOr<std::unique_ptr<Codec>> MakePresetCodec(const CodecSpec& spec);
absl::StatusOr<std::unique_ptr<Codec>> MakePresetCodec(CodecId id, const CodecSpec& spec);
template <CodecId id>
absl::StatusOr<std::unique_ptr<Codec>> MakePresetCodec(const CodecSpec& spec) {
  return MakePresetCodec(id, spec);
}
// "" becomes the default; what is accepted is returned as it is to be shown.
absl::StatusOr<std::string> CanonicalLatticeSetting(absl::string_view setting);

}  // namespace kvcask
