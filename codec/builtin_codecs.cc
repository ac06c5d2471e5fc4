#include "codec/builtin_codecs.h"

#include "codec/fklt/fklt.h"
#include "codec/raw/raw.h"
#include "codec/scalar/int8.h"

namespace kvcask {
namespace {

constexpr CodecEntry kCodecs[] = {
    {CodecId::kRaw, "raw", "the bytes as they were put", /*needs_profile=*/false,
     /*has_quality=*/false, /*lossless=*/true, MakeRawCodec},
    {CodecId::kInt8, "int8", "8 bits an element, an fp16 scale for each token and head",
     /*needs_profile=*/false, /*has_quality=*/false, /*lossless=*/false, MakeInt8Codec},
    {CodecId::kFklt, "fklt",
     "a calibrated transform in the Fisher metric, entropy-coded: 10 to 25x",
     /*needs_profile=*/true, /*has_quality=*/true, /*lossless=*/false, MakeFkltCodec},
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
