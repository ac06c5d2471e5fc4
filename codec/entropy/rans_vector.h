// The vector kernel of rans.h, written once over a type V of vector operations (rans_avx2.cc,
// rans_avx512.cc, and plain loops in the test, so that the kernel is tested at every width on
// any machine). The same bytes as the portable path.
//
// Include it where the instructions that V needs are enabled. V has kLanes lanes of 32 bits,
// types Reg and Mask (with |), and the static functions used here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/entropy/rans_internal.h"

namespace kvcask::rans_internal {

// Lanes whose class has shift bits (a superset, from the least such class up).
template <typename V>
inline typename V::Mask ShiftedLanes(typename V::Reg classes, int first_shifted) {
  return V::AndNot(V::Equal(classes, V::Set(kAbsentClass)),
                   V::Greater(classes, V::Set(first_shifted - 1)));
}

// `steps` steps of kVectors * V::kLanes lanes.
template <typename V, int kVectors>
bool DecodeVectors(const TableSet& t, const uint8_t* classes, int16_t* symbols, size_t steps,
                   uint32_t* states, const uint8_t*& cursor_ref, const uint8_t* end) {
  using Reg = typename V::Reg;
  constexpr int kWide = V::kLanes;
  constexpr int kLanes = kWide * kVectors;
  const uint32_t* const table = t.decode();
  const int first_shifted = t.first_shifted();
  const Reg slot_mask = V::Set(kProbabilityOne - 1);
  const uint8_t* cursor = cursor_ref;
  Reg x[kVectors];
  for (int v = 0; v < kVectors; ++v) x[v] = V::Load(states + kWide * v);
  for (size_t s = 0; s < steps; ++s, classes += kLanes, symbols += kLanes) {
    // A step reads at most kLanes words before its extras; near the end, one by one.
    if (end - cursor < 2 * kLanes) {
      for (int v = 0; v < kVectors; ++v) V::Store(x[v], states + kWide * v);
      for (; s < steps; ++s, classes += kLanes, symbols += kLanes) {
        if (!DecodeStep(t, kLanes, classes, symbols, states, cursor, end)) return false;
      }
      cursor_ref = cursor;
      return true;
    }
    typename V::Mask extras = V::None();
    for (int v = 0; v < kVectors; ++v) {
      const Reg c = V::LoadBytes(classes + kWide * v);
      const Reg slot = V::And(x[v], slot_mask);
      const Reg entry = V::Gather(table, V::Or(V::template Shl<kProbabilityBits>(c), slot));
      const Reg freq = V::Add(V::And(V::template Shr<8>(entry), slot_mask), V::Set(1));
      x[v] = V::Add(V::Multiply(freq, V::template Shr<kProbabilityBits>(x[v])),
                    V::template Shr<20>(entry));
      const Reg value = V::template Sar<24>(V::template Shl<24>(entry));
      V::StoreSymbols(value, symbols + kWide * v);
      extras |= V::Equal(value, V::Set(kEscape)) | ShiftedLanes<V>(c, first_shifted);
    }
    for (int v = 0; v < kVectors; ++v) {
      const typename V::Mask need = V::Greater(V::Set(kRansInitial), x[v]);
      const Reg words = V::Expand(need, V::LoadWords(cursor));
      x[v] = V::Select(need, V::Or(V::template Shl<16>(x[v]), words), x[v]);
      cursor += 2 * V::Count(need);
    }
    if (V::Any(extras)) {
      for (int v = 0; v < kVectors; ++v) V::Store(x[v], states + kWide * v);
      if (!DecodeExtras(t, kLanes, classes, symbols, states, cursor, end)) return false;
      for (int v = 0; v < kVectors; ++v) x[v] = V::Load(states + kWide * v);
    }
  }
  for (int v = 0; v < kVectors; ++v) V::Store(x[v], states + kWide * v);
  cursor_ref = cursor;
  return true;
}

template <typename V, int kVectors>
void EncodeVectors(const TableSet& t, const uint8_t* classes, const int16_t* symbols, size_t steps,
                   uint32_t* states, uint8_t*& cursor_ref) {
  using Reg = typename V::Reg;
  constexpr int kWide = V::kLanes;
  constexpr int kLanes = kWide * kVectors;
  const int first_shifted = t.first_shifted();
  const Reg freq_mask = V::Set(0x1fff);
  uint8_t* cursor = cursor_ref;
  Reg x[kVectors];
  for (int v = 0; v < kVectors; ++v) x[v] = V::Load(states + kWide * v);
  for (size_t s = steps; s-- > 0;) {
    const uint8_t* c8 = classes + s * kLanes;
    const int16_t* q16 = symbols + s * kLanes;
    Reg index[kVectors], entry[kVectors];
    typename V::Mask special = V::None();
    for (int v = 0; v < kVectors; ++v) {
      const Reg c = V::LoadBytes(c8 + kWide * v);
      const Reg q = V::LoadSymbols(q16 + kWide * v);
      const typename V::Mask outside = V::Greater(q, V::Set(127)) | V::Greater(V::Set(-127), q);
      // Outside the lookup: read entry 0 of the class instead.
      const Reg at = V::Select(outside, V::Set(0), V::Add(q, V::Set(128)));
      index[v] = V::Add(V::template Shl<8>(c), at);
      entry[v] = V::Gather(t.encode(), index[v]);
      special |= outside | V::Equal(V::And(entry[v], freq_mask), V::Set(0)) |
                 ShiftedLanes<V>(c, first_shifted);
    }
    if (V::Any(special)) {
      for (int v = 0; v < kVectors; ++v) V::Store(x[v], states + kWide * v);
      EncodeStep(t, kLanes, c8, q16, states, cursor);
      for (int v = 0; v < kVectors; ++v) x[v] = V::Load(states + kWide * v);
      continue;
    }
    for (int v = kVectors - 1; v >= 0; --v) {
      const Reg freq = V::And(entry[v], freq_mask);
      // x >= freq << 16, both below 2^31
      const typename V::Mask stay = V::Greater(V::template Shl<16>(freq), x[v]);
      cursor = V::PushWords(stay, x[v], cursor);
      const Reg y = V::Select(stay, x[v], V::template Shr<16>(x[v]));
      const Reg q = V::Divide(y, V::Gather(t.multiplier(), index[v]), entry[v]);
      const Reg rest = V::Sub(y, V::Multiply(q, freq));
      const Reg cum = V::And(V::template Shr<13>(entry[v]), V::Set(0xfff));
      x[v] = V::Add(V::Add(V::template Shl<kProbabilityBits>(q), rest), cum);
    }
  }
  for (int v = 0; v < kVectors; ++v) V::Store(x[v], states + kWide * v);
  cursor_ref = cursor;
}

// As many vectors as the lanes need; lanes is V::kLanes times 1, 2 or 4, at most 32.
template <typename V>
bool DecodeSteps(const TableSet& t, int lanes, const uint8_t* classes, int16_t* symbols,
                 size_t steps, uint32_t* x, const uint8_t*& cursor, const uint8_t* end) {
  if constexpr (V::kLanes <= 8) {
    if (lanes == 4 * V::kLanes) {
      return DecodeVectors<V, 4>(t, classes, symbols, steps, x, cursor, end);
    }
  }
  if (lanes == 2 * V::kLanes) {
    return DecodeVectors<V, 2>(t, classes, symbols, steps, x, cursor, end);
  }
  return DecodeVectors<V, 1>(t, classes, symbols, steps, x, cursor, end);
}

template <typename V>
void EncodeSteps(const TableSet& t, int lanes, const uint8_t* classes, const int16_t* symbols,
                 size_t steps, uint32_t* x, uint8_t*& cursor) {
  if constexpr (V::kLanes <= 8) {
    if (lanes == 4 * V::kLanes) return EncodeVectors<V, 4>(t, classes, symbols, steps, x, cursor);
  }
  if (lanes == 2 * V::kLanes) return EncodeVectors<V, 2>(t, classes, symbols, steps, x, cursor);
  EncodeVectors<V, 1>(t, classes, symbols, steps, x, cursor);
}

}  // namespace kvcask::rans_internal
