// Codes of 1 to 8 bits side by side: code i stands at bits [i * bits, (i + 1) * bits) of a
// little-endian bit string; what is left of the last byte is 0. Eight codes fill `bits` bytes.
//
// Thread-safe: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcask {

constexpr size_t PackedBytes(size_t n, int bits) { return (n * bits + 7) / 8; }

// Each code is below 2^bits. Writes PackedBytes(n, bits).
void PackBits(const uint8_t* codes, size_t n, int bits, uint8_t* out);
void UnpackBits(const uint8_t* in, size_t n, int bits, uint8_t* codes);

}  // namespace kvcask
