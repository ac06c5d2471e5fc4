// A tile's integers and its bytes: everything after the quantiser, nothing before it, the same
// on every machine (FORMAT.md 3).
//
// Thread-safe: values and pure functions.
#pragma once

#include <absl/status/status.h>
#include <absl/types/span.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/entropy/rans.h"
#include "codec/fklt/tile_layout.h"

namespace kvcask::fklt {

// What a tile's integers mean: of a group, from the profile.
struct TileModel {
  absl::Span<const int16_t> sigma;  // 1/16 octaves, never rising
  absl::Span<const TableSet> table_sets;
  int active_threshold = -21;
};

struct TileHeader {
  int mode = kCodedMode;
  int kcap = 0;
  int table_set = 0;
  int step_limit_shift = 0;  // 0..2: a lane has at most 512 >> this steps
  int step_exponent = 0;
  int groups = 0;  // of 32 symbols; WriteTile sets it
};

// Token classes of a tile, by token.
struct TokenClasses {
  uint8_t amplitude[kMaxTokens];
  int8_t step[kMaxTokens];
};

// Where the symbols of each coordinate are in the tile's flat array of symbols, and in which
// order the tokens stand there.
class SymbolLayout {
 public:
  // From the header's step and kcap and the tokens' step classes.
  void Reset(const TileModel& model, const TileHeader& header, int tokens, const int8_t* step);

  int tokens() const { return tokens_; }
  int rows() const { return static_cast<int>(offsets_.size()) - 1; }
  int token_at(int place) const { return token_at_[place]; }
  int rows_at(int place) const { return rows_at_[place]; }
  // Coordinate r: symbols offset(r) .. offset(r) + count(r) - 1, of the first count(r) places.
  size_t offset(int row) const { return offsets_[row]; }
  int count(int row) const { return static_cast<int>(offsets_[row + 1] - offsets_[row]); }
  // Places that have more than `rows` coordinates.
  int PlacesOver(int rows) const;
  int groups() const {
    return static_cast<int>((offsets_.back() + kGroupSymbols - 1) / kGroupSymbols);
  }
  size_t symbols() const { return static_cast<size_t>(groups()) * kGroupSymbols; }
  // At most this many for any tile.
  static size_t MaxSymbols(int tokens, int dimensions);

 private:
  int tokens_ = 0;
  uint8_t token_at_[kMaxTokens];
  int16_t rows_at_[kMaxTokens];
  std::vector<uint32_t> offsets_;  // [rows + 1]
};

// The order of tokens alone: by falling step class.
void SortTokens(const int8_t* step, int tokens, uint8_t* token_at);

// Writes a coded tile without its sinks: `layout` and `classes`, `symbols` filled for all
// coordinates; the token classes and the padding are filled in here. Returns the bytes written,
// or 0 when they would exceed `limit` or a field. `out` has `limit` bytes; `scratch`
// SegmentScratchBytes().
size_t WriteTile(const TileHeader& header, const TableSet& tables, const TokenClasses& tokens,
                 const SymbolLayout& layout, uint8_t* classes, int16_t* symbols, uint8_t* scratch,
                 uint8_t* out, size_t limit, RansPath path = RansPath::kBest);
size_t SegmentScratchBytes();
void WriteRawHeader(uint8_t* out);

// Reads `tile`: DATA_LOSS says what is wrong.
absl::Status ReadTileHeader(absl::Span<const uint8_t> tile, int table_sets, TileHeader* header);
// The rest of a coded tile, its sinks cut off: `tile` begins at the header. T = `tokens`
// coded ones, 1..128. `classes` and `symbols` have SymbolLayout::MaxSymbols(tokens,
// sigma.size()) elements.
absl::Status ReadTile(absl::Span<const uint8_t> tile, const TileHeader& header,
                      const TileModel& model, int tokens, SymbolLayout* layout,
                      TokenClasses* token_classes, uint8_t* classes, int16_t* symbols,
                      RansPath path = RansPath::kBest);

// Tables of one coordinate's symbols: of the first `count` places, whose terms are given.
void FillRowClasses(int row_term, int count, const int16_t* place_terms, uint8_t* out);

}  // namespace kvcask::fklt
