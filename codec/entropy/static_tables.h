// Static frequency tables for rANS: 40 for the classes of transform coordinates, two for
// token classes, as codec/fklt/FORMAT.md 2.3 defines them; with the lookups that the coder
// needs.
//
// Thread-safe: immutable once made.
#pragma once

#include <cstdint>
#include <vector>

#include <absl/status/statusor.h>
#include <absl/types/span.h>

namespace kvcask {

// Frozen in the file format.
inline constexpr int kProbabilityBits = 12;
inline constexpr int kProbabilityOne = 1 << kProbabilityBits;
inline constexpr int kCoordinateTables = 40;
inline constexpr int kAmplitudeTable = 40;
inline constexpr int kStepTable = 41;
inline constexpr int kTables = 42;
inline constexpr int kMaxTableShift = 8;

// Class of a symbol that is not there: the coder's state passes it unchanged and it reads
// as 0. Not in the format: its table (one symbol of frequency 4,096) saves the coder a branch.
inline constexpr int kAbsentClass = 42;

// Value of the escape in the lookups.
inline constexpr int kEscape = -128;

// Table of one class: symbols lo .. lo+n-1, then the escape; `shift` low bits are coded
// as they are.
struct TableShape {
  int lo = 0;
  int n = 0;
  int shift = 0;
};

class TableSet {
 public:
  // `shape` is [42][3], `freq` the frequencies of all tables one after another, each with its
  // escape last; `centroids` [40][3] are what abs(q) = 1, 2, 3 stand for, in steps (empty: 1, 2,
  // 3). INVALID_ARGUMENT says which table breaks which rule of FORMAT.md 2.3.
  static absl::StatusOr<TableSet> Make(absl::Span<const int16_t> shape,
                                       absl::Span<const int16_t> freq,
                                       absl::Span<const float> centroids = {});

  // What decoding slot s of a class yields: symbol (signed, bits 0..7), frequency - 1 (bits
  // 8..19), s - cum (bits 20..31). [43][4096].
  const uint32_t* decode() const { return decode_.data(); }

  // How a symbol v of a class is encoded, at [class][v + 128]: frequency (bits 0..12; 0: not
  // in the alphabet), cum (bits 13..24), k - 28 (bits 25..28); x / frequency =
  // x * multiplier >> k exactly for x < 2^28. [43][256].
  const uint32_t* encode() const { return encode_.data(); }
  const uint32_t* multiplier() const { return multiplier_.data(); }

  // What abs(q) = 0..3 stand for, [43][4].
  const float* centroids() const { return centroids_.data(); }

  const TableShape& shape(int table) const { return shape_[table]; }
  int shift(int table) const { return shape_[table].shift; }
  // Every class that has shift bits is >= this; kAbsentClass when none has.
  int first_shifted() const { return first_shifted_; }

  // Ideal code length of value q in a class, in bits, escapes and shift bits included.
  double Cost(int table, int q) const;

 private:
  TableSet() = default;
  std::vector<TableShape> shape_;
  std::vector<uint32_t> decode_, encode_, multiplier_;
  std::vector<float> centroids_;
  int first_shifted_ = kAbsentClass;
};

// Scales `counts` to frequencies >= 1 that sum to 4,096, close to the smallest code length.
// 1 <= counts.size() <= 4,096; counts not negative.
std::vector<int16_t> NormalizeFrequencies(absl::Span<const double> counts);

}  // namespace kvcask
