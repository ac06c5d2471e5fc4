// Interleaved rANS over static tables: segments of codec/fklt/FORMAT.md 3.4 and 3.5.
//
// rANS: Duda 2013; interleaving: Giesen 2014. Up to 32 lanes share one stream of 16-bit
// words; lane l codes symbols l, l + lanes, l + 2 lanes, ... Every path (portable, AVX2, AVX-512)
// writes and reads the same bytes; the best one of this machine is chosen at run time.
//
// Thread-safe: pure functions, and a decoder that belongs to one thread.
#pragma once

#include <absl/types/span.h>

#include <cstddef>
#include <cstdint>

#include "codec/entropy/static_tables.h"

namespace kvcask {

inline constexpr int kMaxLanes = 32;                // frozen in the file format
inline constexpr int kMaxSegmentSymbols = 16384;    // frozen in the file format
inline constexpr uint32_t kRansInitial = 1u << 12;  // frozen in the file format

// Lanes of a segment of `symbols` symbols: the least power of two >= symbols / steps, 1..32.
int SegmentLanes(int symbols, int steps = 512);

// Bytes that a segment of `symbols` symbols never exceeds.
constexpr size_t MaxSegmentBytes(int symbols) {
  // Per lane 4 bytes of state; per symbol at most three words (table, shift or escape).
  return 144 + static_cast<size_t>(symbols) * 6;
}

// kAvx512 falls back to AVX2 where a segment has fewer than 16 lanes.
enum class RansPath { kBest, kPortable, kAvx2, kAvx512 };
inline constexpr RansPath kAllRansPaths[] = {RansPath::kPortable, RansPath::kAvx2,
                                             RansPath::kAvx512};
bool RansPathAvailable(RansPath path);
RansPath ResolveRansPath(RansPath path);  // kBest, or what is not available: the best here
const char* RansPathName(RansPath path);  // resolved: "avx2"

// Encodes `classes.size()` symbols, a multiple of `lanes` (pad with kAbsentClass). Classes are
// 0..42; an absent symbol must be 0; the others are any int16, but 0..15 of class 40 and
// -6..6 of class 41. `out` has MaxSegmentBytes(classes.size()) bytes. Returns the bytes
// written, always even.
size_t EncodeSegment(const TableSet& tables, int lanes, absl::Span<const uint8_t> classes,
                     const int16_t* symbols, uint8_t* out, RansPath path = RansPath::kBest);

// Decodes one segment, in as many calls as the caller needs to learn the classes. Takes any
// bytes: never reads outside `segment`.
class SegmentDecoder {
 public:
  // False: the segment is too short for its states, or not of even size.
  bool Open(absl::Span<const uint8_t> segment, int lanes, RansPath path = RansPath::kBest);

  // The next classes.size() symbols, a multiple of lanes. False: the words ran out.
  bool Decode(const TableSet& tables, absl::Span<const uint8_t> classes, int16_t* symbols);

  // True when every lane is in its initial state and every word was read.
  bool Finished() const;

 private:
  alignas(64) uint32_t x_[kMaxLanes];
  const uint8_t* cursor_ = nullptr;
  const uint8_t* end_ = nullptr;
  int lanes_ = 0;
  RansPath path_ = RansPath::kPortable;
};

}  // namespace kvcask
