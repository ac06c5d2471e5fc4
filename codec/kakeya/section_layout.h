// Numbers of the section's format that both sides share. FORMAT.md says what they mean.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcask::kakeya {

// Frozen in the file format.
inline constexpr size_t kSectionHeaderBytes = 20;
inline constexpr uint8_t kSparseSection = 1;
inline constexpr uint8_t kCodedSection = 2;
inline constexpr uint8_t kSharedBasis = 1;
inline constexpr uint8_t kOutliers = 2;
inline constexpr uint8_t kCalibratedCentroids = 4;

// Bits of a cluster's number.
constexpr int IdBits(int clusters) {
  int bits = 0;
  while ((1 << bits) < clusters) ++bits;
  return bits;
}
// Elements that a row of so many coordinates is rotated as.
constexpr int RotatedLength(int rank) {
  int length = 1;
  while (length < rank) length *= 2;
  return length;
}
// Bytes of the number of a coordinate.
constexpr int IndexBytes(int rank) { return rank <= 256 ? 1 : 2; }

}  // namespace kvcask::kakeya
