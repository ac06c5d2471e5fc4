// `raw`: the bytes as they were put, one group a layer. FORMAT.md beside this file.
//
// Byte-exact when decoded to the dtype that was put with position_offset 0. Another dtype
// rounds; another position_offset turns the keys by the difference in fp32 (the attention
// scale, which received keys carry, is not applied again) and rounds. NaN and Inf are kept.
#pragma once

#include <absl/status/statusor.h>

#include <memory>

#include "codec/api/codec.h"

namespace kvcask {

absl::StatusOr<std::unique_ptr<Codec>> MakeRawCodec(const CodecSpec& spec);

}  // namespace kvcask
