#include "codec/fixed/presets.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include "codec/fixed/fixed_codec.h"
#include "codec/lattice/lattice.h"

namespace kvcask {
namespace {

constexpr int kDefaultQ = 38;

constexpr CoderSpec Fp8(bool scaled) {
  CoderSpec s;
  s.kind = CoderKind::kFp8;
  s.scaled = scaled;
  s.minus_mean = true;
  return s;
}
constexpr CoderSpec Uniform(int bits, int group) {
  CoderSpec s;
  s.kind = CoderKind::kUniform;
  s.bits = bits;
  s.group = group;
  s.minus_mean = true;
  return s;
}
constexpr CoderSpec Turbo(int bits, bool signs) {
  CoderSpec s;
  s.kind = CoderKind::kTurbo;
  s.bits = bits;
  s.norm_corrected = true;
  s.signs = signs;
  s.minus_mean = true;
  return s;
}
constexpr CoderSpec Channel(int bits, int group) {
  CoderSpec s = Uniform(bits, group);
  s.kind = CoderKind::kChannel;
  return s;
}
constexpr CoderSpec Points(int dimensions) {
  CoderSpec s;
  s.kind = CoderKind::kLattice;
  s.bits = dimensions;
  s.q = kDefaultQ;
  s.minus_mean = true;
  return s;
}

constexpr FixedPreset kPresets[] = {
    {CodecId::kFp8, "fp8", Fp8(true), Fp8(true), false},
    {CodecId::kInt4, "int4", Uniform(4, 32), Uniform(4, 32), false},
    {CodecId::kTurbo2, "turbo2", Turbo(2, true), Turbo(2, true), false},
    {CodecId::kTurbo3, "turbo3", Turbo(3, true), Turbo(3, true), false},
    {CodecId::kTurbo4, "turbo4", Turbo(4, true), Turbo(4, true), false},
    {CodecId::kK8V4, "k8v4", Fp8(false), Uniform(4, 0), false},
    {CodecId::k4BitNc, "4bit_nc", Turbo(4, false), Uniform(4, 0), false},
    {CodecId::kK3V4Nc, "k3v4_nc", Turbo(3, false), Uniform(4, 0), false},
    {CodecId::k3BitNc, "3bit_nc", Turbo(3, false), Uniform(3, 0), false},
    {CodecId::kKivi2, "kivi2", Channel(2, 32), Uniform(2, 32), false},
    {CodecId::kKivi4, "kivi4", Channel(4, 32), Uniform(4, 32), false},
    {CodecId::kD4, "d4", Points(4), Points(4), true},
    {CodecId::kE8, "e8", Points(8), Points(8), true},
};

absl::StatusOr<int> ParseQ(absl::string_view setting) {
  if (setting.empty()) return kDefaultQ;
  absl::string_view digits = setting;
  int q = 0;
  if (setting.size() > 5 || !absl::ConsumePrefix(&digits, "q") ||
      digits.find_first_not_of("0123456789") != digits.npos || !absl::SimpleAtoi(digits, &q) ||
      q < kMinLatticeQ || q > kMaxLatticeQ) {
    return absl::InvalidArgumentError(absl::StrCat("a lattice's setting is \"\" or \"q",
                                                   kMinLatticeQ, "\" to \"q", kMaxLatticeQ,
                                                   "\", found ", setting.size(), " characters"));
  }
  return q;
}

}  // namespace

absl::Span<const FixedPreset> FixedPresets() { return kPresets; }

const FixedPreset* FindFixedPreset(absl::string_view name) {
  for (const FixedPreset& preset : kPresets) {
    if (preset.name == name) return &preset;
  }
  return nullptr;
}

absl::StatusOr<FixedPreset> WithSetting(const FixedPreset& preset, absl::string_view setting) {
  FixedPreset out = preset;
  if (!preset.has_q) {
    if (setting.empty()) return out;
    return absl::InvalidArgumentError(absl::StrCat("codec ", preset.name, " has no setting"));
  }
  const absl::StatusOr<int> q = ParseQ(setting);
  if (!q.ok()) return q.status();
  out.key.q = out.value.q = *q;
  return out;
}

absl::StatusOr<std::unique_ptr<Codec>> MakePresetCodec(CodecId id, const CodecSpec& spec) {
  for (const FixedPreset& preset : kPresets) {
    if (preset.id != id) continue;
    const absl::StatusOr<FixedPreset> set = WithSetting(preset, spec.setting);
    if (!set.ok()) return set.status();
    return MakeFixedCodec(id, preset.name, spec, [&](int, const PlaneInfo& plane) {
      return plane.kind == StreamKind::kK ? set->key : set->value;
    });
  }
  return absl::InternalError("no such preset");
}

absl::StatusOr<std::string> CanonicalLatticeSetting(absl::string_view setting) {
  const absl::StatusOr<int> q = ParseQ(setting);
  if (!q.ok()) return q.status();
  return absl::StrCat("q", *q);
}

}  // namespace kvcask
