// The AVX2 path of rans.h: eight lanes a vector, the same bytes as the portable path.
#include <immintrin.h>

#include <array>

#include "codec/entropy/rans_internal.h"

#if defined(__x86_64__)
#define KVCASK_AVX2 __attribute__((target("avx2,popcnt")))
#endif

namespace kvcask::rans_internal {

#if defined(__x86_64__)
namespace {

// For each mask of lanes, where in the next words a lane finds its own (decoding).
constexpr std::array<std::array<uint8_t, 8>, 256> MakeExpand() {
  std::array<std::array<uint8_t, 8>, 256> t{};
  for (int m = 0; m < 256; ++m) {
    int n = 0;
    for (int l = 0; l < 8; ++l) t[m][l] = static_cast<uint8_t>((m >> l & 1) ? n++ : 0);
  }
  return t;
}

// For each mask, the bytes of its lanes' words moved to the top of 16, in order (encoding).
constexpr std::array<std::array<uint8_t, 16>, 256> MakeCompress() {
  std::array<std::array<uint8_t, 16>, 256> t{};
  for (int m = 0; m < 256; ++m) {
    int at = 16;
    for (int l = 7; l >= 0; --l) {
      if (!(m >> l & 1)) continue;
      t[m][--at] = static_cast<uint8_t>(2 * l + 1);
      t[m][--at] = static_cast<uint8_t>(2 * l);
    }
    while (at > 0) t[m][--at] = 0x80;
  }
  return t;
}

alignas(64) constexpr auto kExpand = MakeExpand();
alignas(64) constexpr auto kCompress = MakeCompress();

KVCASK_AVX2 inline __m256i LoadClasses(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

// Lanes whose class has shift bits (a superset, from the least such class up).
KVCASK_AVX2 inline __m256i ShiftedLanes(__m256i classes, int first_shifted) {
  return _mm256_andnot_si256(_mm256_cmpeq_epi32(classes, _mm256_set1_epi32(kAbsentClass)),
                             _mm256_cmpgt_epi32(classes, _mm256_set1_epi32(first_shifted - 1)));
}

template <int kVectors>
KVCASK_AVX2 bool DecodeVectors(const TableSet& t, const uint8_t* classes, int16_t* symbols,
                               size_t steps, uint32_t* states, const uint8_t*& cursor_ref,
                               const uint8_t* end) {
  constexpr int kLanes = 8 * kVectors;
  const int* const table = reinterpret_cast<const int*>(t.decode());
  const int first_shifted = t.first_shifted();
  const __m256i slot_mask = _mm256_set1_epi32(kProbabilityOne - 1);
  const __m256i one = _mm256_set1_epi32(1);
  const __m256i initial = _mm256_set1_epi32(kRansInitial);
  const __m256i escape = _mm256_set1_epi32(kEscape);
  const uint8_t* cursor = cursor_ref;
  __m256i x[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    x[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(states) + v);
  }
  for (size_t s = 0; s < steps; ++s, classes += kLanes, symbols += kLanes) {
    // A step reads at most kLanes words before its extras; near the end, one by one.
    if (end - cursor < 2 * kLanes) {
      for (int v = 0; v < kVectors; ++v) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(states) + v, x[v]);
      }
      for (; s < steps; ++s, classes += kLanes, symbols += kLanes) {
        if (!DecodeStep(t, kLanes, classes, symbols, states, cursor, end)) return false;
      }
      cursor_ref = cursor;
      return true;
    }
    __m256i extras = _mm256_setzero_si256();
    __m256i value[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const __m256i c = LoadClasses(classes + 8 * v);
      const __m256i index =
          _mm256_or_si256(_mm256_slli_epi32(c, kProbabilityBits), _mm256_and_si256(x[v], slot_mask));
      const __m256i entry = _mm256_i32gather_epi32(table, index, 4);
      const __m256i freq =
          _mm256_add_epi32(_mm256_and_si256(_mm256_srli_epi32(entry, 8), slot_mask), one);
      x[v] = _mm256_add_epi32(_mm256_mullo_epi32(freq, _mm256_srli_epi32(x[v], kProbabilityBits)),
                              _mm256_srli_epi32(entry, 20));
      value[v] = _mm256_srai_epi32(_mm256_slli_epi32(entry, 24), 24);
      extras = _mm256_or_si256(extras, _mm256_or_si256(_mm256_cmpeq_epi32(value[v], escape),
                                                       ShiftedLanes(c, first_shifted)));
    }
    for (int v = 0; v < kVectors; ++v) {
      const __m256i need = _mm256_cmpgt_epi32(initial, x[v]);
      const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(need));
      const __m256i words =
          _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(cursor)));
      const __m256i order = _mm256_cvtepu8_epi32(
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kExpand[mask].data())));
      const __m256i refilled = _mm256_or_si256(_mm256_slli_epi32(x[v], 16),
                                               _mm256_permutevar8x32_epi32(words, order));
      x[v] = _mm256_blendv_epi8(x[v], refilled, need);
      cursor += 2 * __builtin_popcount(mask);
    }
    for (int v = 0; v < kVectors; ++v) {
      const __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(value[v]),
                                             _mm256_extracti128_si256(value[v], 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols + 8 * v), packed);
    }
    if (!_mm256_testz_si256(extras, extras)) {
      for (int v = 0; v < kVectors; ++v) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(states) + v, x[v]);
      }
      if (!DecodeExtras(t, kLanes, classes, symbols, states, cursor, end)) return false;
      for (int v = 0; v < kVectors; ++v) {
        x[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(states) + v);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(states) + v, x[v]);
  }
  cursor_ref = cursor;
  return true;
}

// x / f for the eight lanes, from multiplier and k - 28 (bits 25.. of the entry).
KVCASK_AVX2 inline __m256i Divide(__m256i x, __m256i multiplier, __m256i entry) {
  const __m256i k = _mm256_add_epi32(_mm256_srli_epi32(entry, 25), _mm256_set1_epi32(28));
  const __m256i low = _mm256_set1_epi64x(0xffffffff);
  const __m256i even = _mm256_srlv_epi64(_mm256_mul_epu32(x, multiplier), _mm256_and_si256(k, low));
  const __m256i odd =
      _mm256_srlv_epi64(_mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(multiplier, 32)),
                        _mm256_srli_epi64(k, 32));
  return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}

template <int kVectors>
KVCASK_AVX2 void EncodeVectors(const TableSet& t, const uint8_t* classes, const int16_t* symbols,
                               size_t steps, uint32_t* states, uint8_t*& cursor_ref) {
  constexpr int kLanes = 8 * kVectors;
  const int* const table = reinterpret_cast<const int*>(t.encode());
  const int* const multipliers = reinterpret_cast<const int*>(t.multiplier());
  const int first_shifted = t.first_shifted();
  const __m256i bound = _mm256_set1_epi32(127);
  const __m256i freq_mask = _mm256_set1_epi32(0x1fff);
  const __m256i cum_mask = _mm256_set1_epi32(0xfff);
  const __m256i word_mask = _mm256_set1_epi32(0xffff);
  uint8_t* cursor = cursor_ref;
  __m256i x[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    x[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(states) + v);
  }
  for (size_t s = steps; s-- > 0;) {
    const uint8_t* c8 = classes + s * kLanes;
    const int16_t* q16 = symbols + s * kLanes;
    __m256i index[kVectors], entry[kVectors];
    __m256i special = _mm256_setzero_si256();
    for (int v = 0; v < kVectors; ++v) {
      const __m256i c = LoadClasses(c8 + 8 * v);
      const __m256i q = _mm256_cvtepi16_epi32(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(q16 + 8 * v)));
      const __m256i outside = _mm256_cmpgt_epi32(_mm256_abs_epi32(q), bound);
      // Outside the lookup: read entry 0 of the class instead.
      index[v] = _mm256_add_epi32(
          _mm256_slli_epi32(c, 8),
          _mm256_andnot_si256(outside, _mm256_add_epi32(q, _mm256_set1_epi32(128))));
      entry[v] = _mm256_i32gather_epi32(table, index[v], 4);
      const __m256i unknown =
          _mm256_cmpeq_epi32(_mm256_and_si256(entry[v], freq_mask), _mm256_setzero_si256());
      special = _mm256_or_si256(_mm256_or_si256(special, outside),
                                _mm256_or_si256(unknown, ShiftedLanes(c, first_shifted)));
    }
    if (!_mm256_testz_si256(special, special)) {
      for (int v = 0; v < kVectors; ++v) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(states) + v, x[v]);
      }
      EncodeStep(t, kLanes, c8, q16, states, cursor);
      for (int v = 0; v < kVectors; ++v) {
        x[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(states) + v);
      }
      continue;
    }
    for (int v = kVectors - 1; v >= 0; --v) {
      const __m256i freq = _mm256_and_si256(entry[v], freq_mask);
      // x >= freq << 16, both below 2^31
      const __m256i stay = _mm256_cmpgt_epi32(_mm256_slli_epi32(freq, 16), x[v]);
      const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(stay)) ^ 255;
      const __m256i words = _mm256_and_si256(x[v], word_mask);
      const __m128i packed =
          _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      const __m128i order =
          _mm_load_si128(reinterpret_cast<const __m128i*>(kCompress[mask].data()));
      // Writes below the cursor only: 16 bytes, of which the top ones count.
      _mm_storeu_si128(reinterpret_cast<__m128i*>(cursor - 16), _mm_shuffle_epi8(packed, order));
      cursor -= 2 * __builtin_popcount(mask);
      const __m256i y = _mm256_blendv_epi8(_mm256_srli_epi32(x[v], 16), x[v], stay);
      const __m256i m = _mm256_i32gather_epi32(multipliers, index[v], 4);
      const __m256i q = Divide(y, m, entry[v]);
      const __m256i rest = _mm256_sub_epi32(y, _mm256_mullo_epi32(q, freq));
      const __m256i cum = _mm256_and_si256(_mm256_srli_epi32(entry[v], 13), cum_mask);
      x[v] = _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(q, kProbabilityBits), rest), cum);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(states) + v, x[v]);
  }
  cursor_ref = cursor;
}

}  // namespace

bool HaveAvx2() {
  static const bool have = __builtin_cpu_supports("avx2");
  return have;
}

void EncodeStepsAvx2(const TableSet& t, int lanes, const uint8_t* classes, const int16_t* symbols,
                     size_t steps, uint32_t* x, uint8_t*& cursor) {
  if (lanes == 32) return EncodeVectors<4>(t, classes, symbols, steps, x, cursor);
  if (lanes == 16) return EncodeVectors<2>(t, classes, symbols, steps, x, cursor);
  EncodeVectors<1>(t, classes, symbols, steps, x, cursor);
}

bool DecodeStepsAvx2(const TableSet& t, int lanes, const uint8_t* classes, int16_t* symbols,
                     size_t steps, uint32_t* x, const uint8_t*& cursor, const uint8_t* end) {
  if (lanes == 32) return DecodeVectors<4>(t, classes, symbols, steps, x, cursor, end);
  if (lanes == 16) return DecodeVectors<2>(t, classes, symbols, steps, x, cursor, end);
  return DecodeVectors<1>(t, classes, symbols, steps, x, cursor, end);
}

#else  // not x86

bool HaveAvx2() { return false; }
void EncodeStepsAvx2(const TableSet&, int, const uint8_t*, const int16_t*, size_t, uint32_t*,
                     uint8_t*&) {}
bool DecodeStepsAvx2(const TableSet&, int, const uint8_t*, int16_t*, size_t, uint32_t*,
                     const uint8_t*&, const uint8_t*) {
  return false;
}

#endif

}  // namespace kvcask::rans_internal
