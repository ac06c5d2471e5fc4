#include "codec/builtin_codecs.h"

#include "codec/fixed/presets.h"
#include "codec/fklt/fklt.h"
#include "codec/kakeya/kakeya.h"
#include "codec/raw/raw.h"
#include "codec/recipe/recipe.h"
#include "codec/scalar/int8.h"

namespace kvcask {
namespace {

// A preset of codec/fixed under its own name and id.
template <CodecId id>
constexpr CodecEntry Fixed(const char* name, const char* description) {
  return {id, name, description, /*needs_profile=*/false, /*has_quality=*/false,
          /*lossless=*/false, MakePresetCodec<id>, /*takes_means=*/true, nullptr, ""};
}
template <CodecId id>
constexpr CodecEntry FixedLattice(const char* name, const char* description) {
  CodecEntry entry = Fixed<id>(name, description);
  entry.canonical_setting = CanonicalLatticeSetting;
  entry.settings = "q10 q38 q152";
  return entry;
}

// Of codec/kakeya/recipes.
constexpr char kKakeyaRecipes[] =
    "boundary boundary-deepseek guarded hot-ends k-only per-head sinks v-only";

constexpr CodecEntry kCodecs[] = {
    {CodecId::kRaw, "raw", "the bytes as they were put", /*needs_profile=*/false,
     /*has_quality=*/false, /*lossless=*/true, MakeRawCodec},
    {CodecId::kInt8, "int8", "8 bits an element, an fp16 scale for each token and head",
     /*needs_profile=*/false, /*has_quality=*/false, /*lossless=*/false, MakeInt8Codec,
     /*takes_means=*/true},
    {CodecId::kFklt, "fklt",
     "a calibrated transform in the Fisher metric, entropy-coded: 10 to 25x",
     /*needs_profile=*/true, /*has_quality=*/true, /*lossless=*/false, MakeFkltCodec},
    Fixed<CodecId::kFp8>("fp8", "8-bit floats (e4m3), an fp16 scale for each token and head"),
    Fixed<CodecId::kInt4>("int4", "4 bits an element, an fp16 scale and zero for each 32"),
    Fixed<CodecId::kTurbo2>("turbo2", "TurboQuant, 2 bits: rotation and Lloyd-Max codes"),
    Fixed<CodecId::kTurbo3>("turbo3", "TurboQuant, 3 bits"),
    Fixed<CodecId::kTurbo4>("turbo4", "TurboQuant, 4 bits"),
    Fixed<CodecId::kK8V4>("k8v4", "vLLM: keys e4m3 without a scale, values of 4 bits"),
    Fixed<CodecId::k4BitNc>("4bit_nc", "vLLM: keys of 4-bit TurboQuant, values of 4 bits"),
    Fixed<CodecId::kK3V4Nc>("k3v4_nc", "vLLM: keys of 3-bit TurboQuant, values of 4 bits"),
    Fixed<CodecId::k3BitNc>("3bit_nc", "vLLM: keys of 3-bit TurboQuant, values of 3 bits"),
    Fixed<CodecId::kKivi2>("kivi2", "KIVI, 2 bits: keys by channel over 32 tokens, values by token"),
    Fixed<CodecId::kKivi4>("kivi4", "KIVI, 4 bits"),
    FixedLattice<CodecId::kD4>("d4", "rotation and points of the lattice D4, Q 2 to 1,024"),
    FixedLattice<CodecId::kE8>("e8", "rotation and points of the lattice E8, Q 2 to 1,024"),
    {CodecId::kRecipe, "recipe", "each stream and layer as a policy says (docs/codecs.md)",
     /*needs_profile=*/false, /*has_quality=*/false, /*lossless=*/false, MakeRecipeCodec,
     /*takes_means=*/true, CanonicalRecipe,
     "default k-only kivi4 lattice-boundary turbo-rescue v-only vllm-3bit-nc vllm-4bit-nc "
     "vllm-k3v4-nc vllm-k8v4"},
    {CodecId::kKakeya10, "kakeya-1.0", "block PCA, 16 lines, the 8 largest coordinates of a row",
     /*needs_profile=*/false, /*has_quality=*/false, /*lossless=*/false, MakeKakeya10Codec,
     /*takes_means=*/false, CanonicalKakeyaSetting, kKakeyaRecipes},
    {CodecId::kKakeya12, "kakeya-1.2", "block PCA, 16 lines, a 3-bit code for each coordinate",
     /*needs_profile=*/false, /*has_quality=*/false, /*lossless=*/false, MakeKakeya12Codec,
     /*takes_means=*/false, CanonicalKakeyaSetting, kKakeyaRecipes},
    {CodecId::kKakeya13, "kakeya-1.3", "randomized PCA of half the rank, 16 lines, 2-bit codes",
     /*needs_profile=*/false, /*has_quality=*/false, /*lossless=*/false, MakeKakeya13Codec,
     /*takes_means=*/false, CanonicalKakeyaSetting, kKakeyaRecipes},
    {CodecId::kKakeya13Ppl, "kakeya-1.3-ppl", "kakeya-1.3 with its profile's guardrails",
     /*needs_profile=*/true, /*has_quality=*/false, /*lossless=*/false, MakeKakeya13PplCodec,
     /*takes_means=*/false, CanonicalKakeyaSetting, kKakeyaRecipes},
};

}  // namespace

absl::Span<const CodecEntry> BuiltinCodecs() { return kCodecs; }

const CodecEntry* FindCodec(absl::string_view name) {
  for (const CodecEntry& entry : kCodecs) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

const CodecEntry* FindCodec(CodecId id) {
  for (const CodecEntry& entry : kCodecs) {
    if (entry.id == id) return &entry;
  }
  return nullptr;
}

}  // namespace kvcask
