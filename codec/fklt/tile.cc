#include "codec/fklt/tile.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cassert>
#include <cstring>

namespace kvcask::fklt {
namespace {

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

void FillClassSymbols(int tokens, size_t end, uint8_t* classes) {
  std::memset(classes, kAmplitudeTable, tokens);
  std::memset(classes + tokens, kStepTable, tokens);
  std::memset(classes + 2 * tokens, kAbsentClass, end - 2 * tokens);
}

}  // namespace

void SortTokens(const int8_t* step, int tokens, uint8_t* token_at) {
  int n = 0;
  for (int k = kMaxStepClass; k >= -kMaxStepClass; --k) {
    for (int t = 0; t < tokens; ++t) {
      if (step[t] == k) token_at[n++] = static_cast<uint8_t>(t);
    }
  }
  assert(n == tokens);
}

void SymbolLayout::Reset(const TileModel& model, const TileHeader& header, int tokens,
                         const int8_t* step) {
  assert(tokens >= 1 && tokens <= kMaxTokens);
  tokens_ = tokens;
  SortTokens(step, tokens, token_at_);
  const int dimensions = static_cast<int>(model.sigma.size());
  for (int p = 0; p < tokens; ++p) {
    const int k = step[token_at_[p]];
    rows_at_[p] =
        p > 0 && k == step[token_at_[p - 1]]
            ? rows_at_[p - 1]
            : static_cast<int16_t>(ActiveRows(model.sigma.data(), dimensions, header.step_exponent,
                                              std::min(k, header.kcap), model.active_threshold));
  }
  const int rows = rows_at_[0];  // the finest token has the most
  offsets_.resize(rows + 1);
  uint32_t at = ClassSymbols(tokens);
  int count = tokens;
  for (int r = 0; r < rows; ++r) {
    while (rows_at_[count - 1] <= r) --count;
    offsets_[r] = at;
    at += count;
  }
  offsets_[rows] = at;
}

int SymbolLayout::PlacesOver(int rows) const {
  int n = 0;
  while (n < tokens_ && rows_at_[n] > rows) ++n;
  return n;
}

size_t SymbolLayout::MaxSymbols(int tokens, int dimensions) {
  return static_cast<size_t>(ClassSymbols(tokens)) + static_cast<size_t>(tokens) * dimensions +
         kGroupSymbols;
}

void FillRowClasses(int row_term, int count, const int16_t* place_terms, uint8_t* out) {
  // |row_term| <= 1024 + 2 * 900 and |place term| <= 112: 5 e + 16 fits 16 bits.
  const int16_t base = static_cast<int16_t>(row_term);
  for (int p = 0; p < count; ++p) {
    const int16_t e = static_cast<int16_t>(base + place_terms[p]);
    int16_t c = static_cast<int16_t>((static_cast<int16_t>(5 * e + 16) >> 5) + 16);
    c = c < 0 ? int16_t{0} : c;
    c = c > kClasses - 1 ? int16_t{kClasses - 1} : c;
    out[p] = static_cast<uint8_t>(c);
  }
}

namespace {

void FillCoordinateClasses(const TileModel& model, const TileHeader& header,
                           const TokenClasses& tokens, const SymbolLayout& layout,
                           uint8_t* classes) {
  int16_t terms[kMaxTokens];
  for (int p = 0; p < layout.tokens(); ++p) {
    const int t = layout.token_at(p);
    terms[p] = static_cast<int16_t>(TokenTerm(tokens.amplitude[t], tokens.step[t]));
  }
  for (int r = 0; r < layout.rows(); ++r) {
    FillRowClasses(RowTerm(model.sigma[r], header.step_exponent), layout.count(r), terms,
                   classes + layout.offset(r));
  }
  const size_t end = layout.offset(layout.rows());
  std::memset(classes + end, kAbsentClass, layout.symbols() - end);
}

}  // namespace

size_t SegmentScratchBytes() { return MaxSegmentBytes(kSegmentSymbols); }

void WriteRawHeader(uint8_t* out) { std::memset(out, 0, kRawHeaderBytes); }

size_t WriteTile(const TileHeader& header, const TableSet& tables, const TokenClasses& tokens,
                 const SymbolLayout& layout, uint8_t* classes, int16_t* symbols, uint8_t* scratch,
                 uint8_t* out, size_t limit, RansPath path) {
  const int n = layout.tokens();
  const int groups = layout.groups();
  if (groups > kMaxGroups) return 0;
  const SegmentCut cut = CutSegments(groups, header.step_limit_shift);
  size_t at = kHeaderBytes + 2 * static_cast<size_t>(cut.segments - 1);
  if (at > limit) return 0;
  out[0] = static_cast<uint8_t>(header.mode);
  out[1] = static_cast<uint8_t>((header.kcap + kMaxStepClass) | header.table_set << 4 |
                                header.step_limit_shift << 6);
  PutU16(header.step_exponent, out + 2);
  PutU16(groups, out + 4);
  FillClassSymbols(n, layout.offset(0), classes);
  std::memset(symbols, 0, layout.offset(0) * sizeof(int16_t));
  for (int t = 0; t < n; ++t) {
    symbols[t] = tokens.amplitude[t];
    symbols[n + t] = tokens.step[t];
  }
  const size_t end = layout.offset(layout.rows());
  std::memset(classes + end, kAbsentClass, layout.symbols() - end);
  std::memset(symbols + end, 0, (layout.symbols() - end) * sizeof(int16_t));
  for (int s = 0; s < cut.segments; ++s) {
    const size_t begin = static_cast<size_t>(s) * cut.groups_each * kGroupSymbols;
    const size_t count =
        std::min<size_t>(cut.groups_each * kGroupSymbols, layout.symbols() - begin);
    const size_t bytes = EncodeSegment(tables, SegmentLanes(static_cast<int>(count), cut.steps),
                                       {classes + begin, count}, symbols + begin, scratch, path);
    if (bytes > limit - at || bytes / 2 > 0xffff) return 0;
    std::memcpy(out + at, scratch, bytes);
    if (s + 1 < cut.segments) PutU16(static_cast<int>(bytes / 2), out + kHeaderBytes + 2 * s);
    at += bytes;
  }
  return at;
}

absl::Status ReadTileHeader(absl::Span<const uint8_t> tile, int table_sets, TileHeader* header) {
  if (tile.size() < kRawHeaderBytes) return Lost(tile.size(), " bytes; expected a header of 4");
  header->mode = tile[0];
  if (header->mode == kRawMode) {
    if (tile[1] != 0 || tile[2] != 0 || tile[3] != 0) return Lost("reserved bytes are not zero");
    return absl::OkStatus();
  }
  if (header->mode != kCodedMode && header->mode != kCodedSinksMode) {
    return Lost("mode ", header->mode, "; expected 0, 1 or 2");
  }
  if (tile.size() < kHeaderBytes) return Lost(tile.size(), " bytes; expected a header of 6");
  header->kcap = (tile[1] & 15) - kMaxStepClass;
  header->table_set = tile[1] >> 4 & 3;
  header->step_exponent = static_cast<int16_t>(GetU16(tile.data() + 2));
  header->step_limit_shift = tile[1] >> 6;
  if (header->step_limit_shift > kMaxStepLimitShift) {
    return Lost("step limit 512 >> ", header->step_limit_shift, "; expected a shift of 0 to 2");
  }
  if (header->kcap > kMaxStepClass) return Lost("kcap ", header->kcap, "; expected at most 6");
  if (header->table_set >= table_sets) {
    return Lost("table set ", header->table_set, "; the profile has ", table_sets);
  }
  if (header->step_exponent < kMinStepExponent || header->step_exponent > kMaxStepExponent) {
    return Lost("step exponent ", header->step_exponent, "; expected -900 to 900");
  }
  header->groups = GetU16(tile.data() + 4);
  if (header->groups == 0) return Lost("no symbols");
  return absl::OkStatus();
}

absl::Status ReadTile(absl::Span<const uint8_t> tile, const TileHeader& header,
                      const TileModel& model, int tokens, SymbolLayout* layout,
                      TokenClasses* token_classes, uint8_t* classes, int16_t* symbols,
                      RansPath path) {
  const TableSet& tables = model.table_sets[header.table_set];
  const size_t class_symbols = ClassSymbols(tokens);
  const size_t total = static_cast<size_t>(header.groups) * kGroupSymbols;
  if (total < class_symbols ||
      total > SymbolLayout::MaxSymbols(tokens, static_cast<int>(model.sigma.size()))) {
    return Lost(header.groups, " groups of symbols for ", tokens, " tokens");
  }
  const SegmentCut cut = CutSegments(header.groups, header.step_limit_shift);
  size_t at = kHeaderBytes + 2 * static_cast<size_t>(cut.segments - 1);
  if (tile.size() < at) return Lost(tile.size(), " bytes; expected ", cut.segments, " segments");
  for (int s = 0; s < cut.segments; ++s) {
    const size_t bytes = s + 1 < cut.segments
                             ? 2 * static_cast<size_t>(GetU16(tile.data() + kHeaderBytes + 2 * s))
                             : tile.size() - at;
    if (bytes > tile.size() - at) {
      return Lost("segment ", s, " of ", bytes, " bytes at ", at, " of ", tile.size());
    }
    size_t begin = static_cast<size_t>(s) * cut.groups_each * kGroupSymbols;
    const size_t end =
        std::min(begin + static_cast<size_t>(cut.groups_each) * kGroupSymbols, total);
    SegmentDecoder decoder;
    const int lanes = SegmentLanes(static_cast<int>(end - begin), cut.steps);
    if (!decoder.Open(tile.subspan(at, bytes), lanes, path)) {
      return Lost("segment ", s, " of ", bytes, " bytes: broken lane states");
    }
    if (s == 0) {
      FillClassSymbols(tokens, class_symbols, classes);
      if (!decoder.Decode(tables, {classes, class_symbols}, symbols)) {
        return Lost("token classes end early");
      }
      for (int t = 0; t < tokens; ++t) {
        token_classes->amplitude[t] = static_cast<uint8_t>(symbols[t]);
        token_classes->step[t] = static_cast<int8_t>(symbols[tokens + t]);
      }
      layout->Reset(model, header, tokens, token_classes->step);
      if (layout->groups() != header.groups) {
        return Lost(header.groups, " groups of symbols; its classes make ", layout->groups());
      }
      FillCoordinateClasses(model, header, *token_classes, *layout, classes);
      begin = class_symbols;
    }
    if (!decoder.Decode(tables, {classes + begin, end - begin}, symbols + begin)) {
      return Lost("segment ", s, " ends early");
    }
    if (!decoder.Finished())
      return Lost("segment ", s, ": lanes do not end in their initial state");
    at += bytes;
  }
  return absl::OkStatus();
}

}  // namespace kvcask::fklt
