// SHA-256, for fingerprints. Thread-safe: a pure function.
#pragma once

#include <absl/types/span.h>

#include <array>
#include <cstdint>

namespace kvcask {

std::array<uint8_t, 32> Sha256(absl::Span<const uint8_t> bytes);

}  // namespace kvcask
