// A tile's integers and its bytes: everything after the quantiser, nothing before it.
//
// Here is no float but the step's size; TileWriter and TileReader do the same on every
// machine (FORMAT.md 3).
//
// Thread-safe: values; a writer or reader belongs to one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <absl/status/status.h>
#include <absl/types/span.h>

#include "codec/entropy/rans.h"
#include "codec/fklt/tile_layout.h"

namespace kvcask::fklt {

// What a tile's integers mean: of a group, from the profile.
struct TileModel {
  absl::Span<const int16_t> sigma;         // 1/16 octaves, never rising
  absl::Span<const TableSet> table_sets;
  int active_threshold = -21;
};

struct TileHeader {
  int mode = kCodedMode;
  int kcap = 0;
  int table_set = 0;
  int step_exponent = 0;
};

// Where the symbols of each coordinate row are in the flat arrays that the entropy coder
// takes: segment after segment, each padded to whole steps of its lanes.
class SymbolLayout {
 public:
  void Reset(int tokens, int rows);

  int tokens() const { return tokens_; }
  int rows() const { return rows_; }
  int segments() const { return static_cast<int>(segments_.size()); }
  size_t symbols() const { return symbols_; }  // padding included
  // At most this many for any tile of `tokens` and `rows`.
  static size_t MaxSymbols(int tokens, int rows);

  struct Segment {
    int first_row, end_row;  // coordinate rows
    int lanes;
    size_t begin, end;  // in the arrays
  };
  const Segment& segment(int s) const { return segments_[s]; }
  size_t RowOffset(int row) const;
  // Of segment 0's class rows: amplitude at 0, step class at `tokens`, coordinates from here.
  size_t ClassSymbols() const { return class_symbols_; }
  // Marks everything that is neither a coordinate nor a class as absent.
  void FillPadding(uint8_t* classes, int16_t* symbols) const;

 private:
  int tokens_ = 0, rows_ = 0, rows_per_segment_ = 1;
  size_t class_symbols_ = 0, symbols_ = 0;
  std::vector<Segment> segments_;
};

// Token classes of a tile.
struct TokenClasses {
  uint8_t amplitude[kMaxTokens];
  int8_t step[kMaxTokens];
};

// Writes a coded tile without its sinks: `layout` and `classes`, `symbols` filled for all
// coordinate rows (absent ones kAbsentClass and 0), classes of tokens in `tokens`. Returns the
// bytes written, or 0 when they would exceed `limit`. `out` has `limit` bytes; `scratch`
// SegmentScratchBytes().
size_t WriteTile(const TileHeader& header, const TableSet& tables, const TokenClasses& tokens,
                 const SymbolLayout& layout, uint8_t* classes, int16_t* symbols,
                 uint8_t* scratch, uint8_t* out, size_t limit, RansPath path = RansPath::kBest);
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

// Classes of one row's symbols: row r of tokens whose rows and terms are given; absent where
// r >= rows_of_token[t].
void FillRowClasses(int row, int row_term, int tokens, const int16_t* token_terms,
                    const int16_t* rows_of_token, uint8_t* out);
// The terms of each token, and how many rows it has (at most those of kcap).
void FillTokenTerms(const TileModel& model, const TileHeader& header, int tokens,
                    const TokenClasses& classes, int16_t* token_terms, int16_t* rows_of_token);

}  // namespace kvcask::fklt
