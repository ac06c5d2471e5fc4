// CRC32C (Castagnoli, RFC 3720): the checksum of everything that is stored or sent.
// Uses isa-l, which picks the CPU's instructions.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/types/span.h>

#include <cstddef>
#include <cstdint>

namespace kvcask {

// The CRC of the bytes whose CRC is `crc` followed by `bytes`. Begin with 0.
uint32_t Crc32cExtend(uint32_t crc, absl::Span<const uint8_t> bytes);

inline uint32_t Crc32c(absl::Span<const uint8_t> bytes) { return Crc32cExtend(0, bytes); }

// The CRC of A followed by B, of which only the CRCs and B's length are known. O(log bytes).
uint32_t Crc32cConcat(uint32_t crc_a, uint32_t crc_b, uint64_t bytes_b);

// Copies `n` bytes, which must not overlap, and extends `crc` by them: one pass over memory,
// since the checksum reads what the copy has just brought into the cache.
uint32_t Crc32cCopy(uint8_t* dst, const uint8_t* src, size_t n, uint32_t crc = 0);

// The same, for what nobody reads soon: `dst` is written past the caches (non-temporal stores,
// where the CPU has them), so that its lines are not fetched first and nothing is pushed out.
uint32_t Crc32cCopyPastCache(uint8_t* dst, const uint8_t* src, size_t n, uint32_t crc = 0);

}  // namespace kvcask
