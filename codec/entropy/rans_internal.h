// What the paths of rans.h share: one step of all lanes, symbol by symbol. The portable path is
// made of these; the vector path falls back to them for steps with escapes, shift bits, or
// close to the end of the words.
#pragma once

#include <cstdint>
#include <cstring>

#include "codec/entropy/rans.h"

namespace kvcask::rans_internal {

inline void PushWord(uint8_t*& cursor, uint32_t word) {
  const uint16_t w = static_cast<uint16_t>(word);
  cursor -= 2;
  std::memcpy(cursor, &w, 2);
}

// The inverse of DecodeStep. `cursor` moves down.
inline void EncodeStep(const TableSet& t, int lanes, const uint8_t* classes, const int16_t* symbols,
                       uint32_t* x, uint8_t*& cursor) {
  int entry[kMaxLanes];
  for (int l = lanes - 1; l >= 0; --l) {
    const int c = classes[l];
    const int v = symbols[l] >> (c < kTables ? t.shift(c) : 0);
    int at = c * 256 + v + 128;
    if (v < -127 || v > 127 || (t.encode()[at] & 0x1fff) == 0) {
      at = c * 256 + kEscape + 128;
      PushWord(cursor, static_cast<uint16_t>(symbols[l]));
    }
    entry[l] = at;
  }
  for (int l = lanes - 1; l >= 0; --l) {
    const int c = classes[l];
    if (c < t.first_shifted() || c >= kTables || (entry[l] & 255) == kEscape + 128) continue;
    const int shift = t.shift(c);
    if (shift == 0) continue;
    if (x[l] >> (28 - shift) != 0) {
      PushWord(cursor, x[l]);
      x[l] >>= 16;
    }
    x[l] = x[l] << shift | (symbols[l] & ((1 << shift) - 1));
  }
  for (int l = lanes - 1; l >= 0; --l) {
    const uint32_t e = t.encode()[entry[l]];
    const uint32_t f = e & 0x1fff;
    if (x[l] >= f << 16) {
      PushWord(cursor, x[l]);
      x[l] >>= 16;
    }
    const uint32_t q =
        static_cast<uint32_t>(uint64_t{x[l]} * t.multiplier()[entry[l]] >> (28 + (e >> 25)));
    x[l] = (q << kProbabilityBits) + (x[l] - q * f) + (e >> 13 & 0xfff);
  }
}

inline bool TakeWord(const uint8_t*& cursor, const uint8_t* end, uint32_t& word) {
  if (end - cursor < 2) return false;
  uint16_t w;
  std::memcpy(&w, cursor, 2);
  cursor += 2;
  word = w;
  return true;
}

// Steps 3 and 4 of FORMAT.md 3.5: `symbols` hold what the tables gave. False: no word left.
inline bool DecodeExtras(const TableSet& t, int lanes, const uint8_t* classes, int16_t* symbols,
                         uint32_t* x, const uint8_t*& cursor, const uint8_t* end) {
  uint32_t escapes = 0;  // marked now: a shifted symbol may come to have the escape's value
  for (int l = 0; l < lanes; ++l) escapes |= static_cast<uint32_t>(symbols[l] == kEscape) << l;
  uint32_t word;
  for (int l = 0; l < lanes; ++l) {
    const int c = classes[l];
    const int shift = c < kTables ? t.shift(c) : 0;
    if (shift == 0 || (escapes >> l & 1)) continue;
    symbols[l] = static_cast<int16_t>(symbols[l] * (1 << shift) + (x[l] & ((1u << shift) - 1)));
    x[l] >>= shift;
    if (x[l] < kRansInitial) {
      if (!TakeWord(cursor, end, word)) return false;
      x[l] = x[l] << 16 | word;
    }
  }
  for (int l = 0; l < lanes; ++l) {
    if (!(escapes >> l & 1)) continue;
    if (!TakeWord(cursor, end, word)) return false;
    symbols[l] = static_cast<int16_t>(word);
  }
  return true;
}

// One step of all lanes. False: no word left.
inline bool DecodeStep(const TableSet& t, int lanes, const uint8_t* classes, int16_t* symbols,
                       uint32_t* x, const uint8_t*& cursor, const uint8_t* end) {
  uint32_t word, extras = 0;
  for (int l = 0; l < lanes; ++l) {
    const int c = classes[l];
    const uint32_t entry = t.decode()[c * kProbabilityOne + (x[l] & (kProbabilityOne - 1))];
    x[l] = ((entry >> 8 & 0xfff) + 1) * (x[l] >> kProbabilityBits) + (entry >> 20);
    symbols[l] = static_cast<int8_t>(entry & 255);
    extras |= (symbols[l] == kEscape) | (c >= t.first_shifted() && c < kTables);
    if (x[l] < kRansInitial) {
      if (!TakeWord(cursor, end, word)) return false;
      x[l] = x[l] << 16 | word;
    }
  }
  return extras == 0 || DecodeExtras(t, lanes, classes, symbols, x, cursor, end);
}

// Vector paths, in rans_avx2.cc and rans_avx512.cc. `steps` steps of 8 (AVX2 only), 16 or 32
// lanes.
bool HaveAvx2();
void EncodeStepsAvx2(const TableSet& t, int lanes, const uint8_t* classes, const int16_t* symbols,
                     size_t steps, uint32_t* x, uint8_t*& cursor);
bool DecodeStepsAvx2(const TableSet& t, int lanes, const uint8_t* classes, int16_t* symbols,
                     size_t steps, uint32_t* x, const uint8_t*& cursor, const uint8_t* end);
bool HaveAvx512();
void EncodeStepsAvx512(const TableSet& t, int lanes, const uint8_t* classes, const int16_t* symbols,
                       size_t steps, uint32_t* x, uint8_t*& cursor);
bool DecodeStepsAvx512(const TableSet& t, int lanes, const uint8_t* classes, int16_t* symbols,
                       size_t steps, uint32_t* x, const uint8_t*& cursor, const uint8_t* end);

}  // namespace kvcask::rans_internal
