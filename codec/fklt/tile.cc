#include "codec/fklt/tile.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include <absl/strings/str_cat.h>

namespace kvcask::fklt {
namespace {

size_t RoundUp(size_t n, int unit) { return (n + unit - 1) / unit * unit; }

template <typename... Args>
absl::Status Lost(const Args&... what) {
  return absl::DataLossError(absl::StrCat("fklt tile: ", what...));
}

void PutU16(int v, uint8_t* p) {
  const uint16_t u = static_cast<uint16_t>(v);
  p[0] = static_cast<uint8_t>(u);
  p[1] = static_cast<uint8_t>(u >> 8);
}
int GetU16(const uint8_t* p) { return p[0] | p[1] << 8; }

}  // namespace

void SymbolLayout::Reset(int tokens, int rows) {
  assert(tokens >= 1 && tokens <= kMaxTokens && rows >= 0);
  tokens_ = tokens;
  rows_ = rows;
  const SegmentCut cut = CutSegments(tokens, rows);
  rows_per_segment_ = cut.rows_per_segment;
  segments_.resize(cut.segments);
  symbols_ = 0;
  for (int s = 0; s < cut.segments; ++s) {
    const int first = s * cut.rows_per_segment;
    const int end = std::min(first + cut.rows_per_segment, rows + kClassRows);
    const int lanes = SegmentLanes((end - first) * tokens);
    const int coordinate_rows = end - first - (s == 0 ? kClassRows : 0);
    if (s == 0) class_symbols_ = RoundUp(kClassRows * tokens, lanes);
    Segment& segment = segments_[s];
    segment.first_row = std::max(0, first - kClassRows);
    segment.end_row = end - kClassRows;
    segment.lanes = lanes;
    segment.begin = symbols_;
    symbols_ += (s == 0 ? class_symbols_ : 0) +
                RoundUp(static_cast<size_t>(coordinate_rows) * tokens, lanes);
    segment.end = symbols_;
  }
}

size_t SymbolLayout::MaxSymbols(int tokens, int rows) {
  const SegmentCut cut = CutSegments(tokens, rows);
  return static_cast<size_t>(rows + kClassRows) * tokens +
         static_cast<size_t>(cut.segments + 1) * kMaxLanes;
}

size_t SymbolLayout::RowOffset(int row) const {
  const Segment& segment = segments_[(row + kClassRows) / rows_per_segment_];
  return segment.begin + (segment.begin == 0 ? class_symbols_ : 0) +
         static_cast<size_t>(row - segment.first_row) * tokens_;
}

void SymbolLayout::FillPadding(uint8_t* classes, int16_t* symbols) const {
  auto fill = [&](size_t from, size_t to) {
    std::memset(classes + from, kAbsentClass, to - from);
    std::memset(symbols + from, 0, (to - from) * sizeof(int16_t));
  };
  fill(static_cast<size_t>(kClassRows) * tokens_, class_symbols_);
  for (const Segment& s : segments_) {
    fill(s.begin + (s.begin == 0 ? class_symbols_ : 0) +
             static_cast<size_t>(s.end_row - s.first_row) * tokens_,
         s.end);
  }
}

void FillTokenTerms(const TileModel& model, const TileHeader& header, int tokens,
                    const TokenClasses& classes, int16_t* token_terms, int16_t* rows_of_token) {
  const int dimensions = static_cast<int>(model.sigma.size());
  int rows[2 * kMaxStepClass + 1];
  for (int k = -kMaxStepClass; k <= kMaxStepClass; ++k) {
    rows[k + kMaxStepClass] =
        ActiveRows(model.sigma.data(), dimensions, header.step_exponent, std::min(k, header.kcap),
                   model.active_threshold);
  }
  for (int t = 0; t < tokens; ++t) {
    token_terms[t] = static_cast<int16_t>(TokenTerm(classes.amplitude[t], classes.step[t]));
    rows_of_token[t] = static_cast<int16_t>(rows[classes.step[t] + kMaxStepClass]);
  }
}

void FillRowClasses(int row, int row_term, int tokens, const int16_t* token_terms,
                    const int16_t* rows_of_token, uint8_t* out) {
  // |row_term| <= 1024 + 2 * 1024 and |token term| <= 112: 5 e + 16 fits 16 bits.
  const int16_t base = static_cast<int16_t>(row_term);
  const int16_t row16 = static_cast<int16_t>(row);
  for (int t = 0; t < tokens; ++t) {
    const int16_t e = static_cast<int16_t>(base + token_terms[t]);
    int16_t c = static_cast<int16_t>((static_cast<int16_t>(5 * e + 16) >> 5) + 16);
    c = c < 0 ? int16_t{0} : c;
    c = c > kClasses - 1 ? int16_t{kClasses - 1} : c;
    out[t] = static_cast<uint8_t>(row16 < rows_of_token[t] ? c : int16_t{kAbsentClass});
  }
}

size_t SegmentScratchBytes() { return MaxSegmentBytes(kSegmentSymbols + 2 * kMaxLanes); }

void WriteRawHeader(uint8_t* out) { std::memset(out, 0, kHeaderBytes); }

size_t WriteTile(const TileHeader& header, const TableSet& tables, const TokenClasses& tokens,
                 const SymbolLayout& layout, uint8_t* classes, int16_t* symbols,
                 uint8_t* scratch, uint8_t* out, size_t limit, RansPath path) {
  const int n = layout.tokens();
  const int segments = layout.segments();
  size_t at = kHeaderBytes + 2 * static_cast<size_t>(segments - 1);
  if (at > limit) return 0;
  out[0] = kCodedMode;
  out[1] = static_cast<uint8_t>((header.kcap + kMaxStepClass) | header.table_set << 4);
  PutU16(header.step_exponent, out + 2);
  layout.FillPadding(classes, symbols);
  std::memset(classes, kAmplitudeTable, n);
  std::memset(classes + n, kStepTable, n);
  for (int t = 0; t < n; ++t) {
    symbols[t] = tokens.amplitude[t];
    symbols[n + t] = tokens.step[t];
  }
  for (int s = 0; s < segments; ++s) {
    const SymbolLayout::Segment& segment = layout.segment(s);
    const size_t bytes =
        EncodeSegment(tables, segment.lanes, {classes + segment.begin, segment.end - segment.begin},
                      symbols + segment.begin, scratch, path);
    if (bytes > limit - at || bytes / 2 > 0xffff) return 0;
    std::memcpy(out + at, scratch, bytes);
    if (s + 1 < segments) PutU16(static_cast<int>(bytes / 2), out + kHeaderBytes + 2 * s);
    at += bytes;
  }
  return at;
}

absl::Status ReadTileHeader(absl::Span<const uint8_t> tile, int table_sets, TileHeader* header) {
  if (tile.size() < kHeaderBytes) return Lost(tile.size(), " bytes; expected a header of 4");
  header->mode = tile[0];
  if (header->mode == kRawMode) {
    if (tile[1] != 0 || tile[2] != 0 || tile[3] != 0) return Lost("reserved bytes are not zero");
    return absl::OkStatus();
  }
  if (header->mode != kCodedMode) return Lost("mode ", header->mode, "; expected 0 or 1");
  header->kcap = (tile[1] & 15) - kMaxStepClass;
  header->table_set = tile[1] >> 4 & 3;
  header->step_exponent = static_cast<int16_t>(GetU16(tile.data() + 2));
  if (tile[1] >> 6 != 0) return Lost("reserved flags are set: ", int{tile[1]});
  if (header->kcap > kMaxStepClass) return Lost("kcap ", header->kcap, "; expected at most 6");
  if (header->table_set >= table_sets) {
    return Lost("table set ", header->table_set, "; the profile has ", table_sets);
  }
  if (header->step_exponent < kMinStepExponent || header->step_exponent > kMaxStepExponent) {
    return Lost("step exponent ", header->step_exponent, "; expected -900 to 900");
  }
  return absl::OkStatus();
}

absl::Status ReadTile(absl::Span<const uint8_t> tile, const TileHeader& header,
                      const TileModel& model, int tokens, SymbolLayout* layout,
                      TokenClasses* token_classes, uint8_t* classes, int16_t* symbols,
                      RansPath path) {
  const int rows = ActiveRows(model.sigma.data(), static_cast<int>(model.sigma.size()),
                              header.step_exponent, header.kcap, model.active_threshold);
  const TableSet& tables = model.table_sets[header.table_set];
  layout->Reset(tokens, rows);
  const int segments = layout->segments();
  size_t at = kHeaderBytes + 2 * static_cast<size_t>(segments - 1);
  if (tile.size() < at) return Lost(tile.size(), " bytes; expected ", segments, " segments");
  layout->FillPadding(classes, symbols);
  std::memset(classes, kAmplitudeTable, tokens);
  std::memset(classes + tokens, kStepTable, tokens);
  int16_t token_terms[kMaxTokens], rows_of_token[kMaxTokens];
  for (int s = 0; s < segments; ++s) {
    const SymbolLayout::Segment& segment = layout->segment(s);
    const size_t bytes = s + 1 < segments
                             ? 2 * static_cast<size_t>(GetU16(tile.data() + kHeaderBytes + 2 * s))
                             : tile.size() - at;
    if (bytes > tile.size() - at) {
      return Lost("segment ", s, " of ", bytes, " bytes at ", at, " of ", tile.size());
    }
    SegmentDecoder decoder;
    if (!decoder.Open(tile.subspan(at, bytes), segment.lanes, path)) {
      return Lost("segment ", s, " of ", bytes, " bytes: broken lane states");
    }
    size_t begin = segment.begin;
    if (s == 0) {
      begin = layout->ClassSymbols();
      if (!decoder.Decode(tables, {classes, begin}, symbols)) return Lost("class rows end early");
      for (int t = 0; t < tokens; ++t) {
        token_classes->amplitude[t] = static_cast<uint8_t>(symbols[t]);
        token_classes->step[t] = static_cast<int8_t>(symbols[tokens + t]);
      }
      FillTokenTerms(model, header, tokens, *token_classes, token_terms, rows_of_token);
    }
    size_t row_at = begin;
    for (int r = segment.first_row; r < segment.end_row; ++r, row_at += tokens) {
      FillRowClasses(r, RowTerm(model.sigma[r], header.step_exponent), tokens, token_terms,
                     rows_of_token, classes + row_at);
    }
    if (!decoder.Decode(tables, {classes + begin, segment.end - begin}, symbols + begin)) {
      return Lost("segment ", s, " ends early");
    }
    if (!decoder.Finished()) return Lost("segment ", s, ": lanes do not end in their initial state");
    at += bytes;
  }
  return absl::OkStatus();
}

}  // namespace kvcask::fklt
