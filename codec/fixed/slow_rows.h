// The rows of codec/fixed written and read from FORMAT.md in plain loops, bit by bit: what the
// tests hold the fast coders against.
#pragma once

#include <cstdint>
#include <vector>

#include "codec/fixed/plane_coder.h"

namespace kvcask {

// All rows of one head, as they are coded (whole groups of tokens for kChannel).
std::vector<uint8_t> SlowEncode(const CoderSpec& spec, const std::vector<std::vector<float>>& rows);
std::vector<std::vector<float>> SlowDecode(const CoderSpec& spec, const std::vector<uint8_t>& bytes,
                                           int rows, int head_dim);

}  // namespace kvcask
