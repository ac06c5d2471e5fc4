// The table of all codecs in this program: the only place that names them all.
//
// Thread-safe: immutable.
#pragma once

#include <absl/types/span.h>

#include "codec/api/codec.h"

namespace kvcask {

absl::Span<const CodecEntry> BuiltinCodecs();

// nullptr when there is none.
const CodecEntry* FindCodec(absl::string_view name);
const CodecEntry* FindCodec(CodecId id);

}  // namespace kvcask
