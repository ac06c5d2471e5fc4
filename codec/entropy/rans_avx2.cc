// The AVX2 path of rans.h: eight lanes a vector.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <array>

#include "codec/entropy/rans_internal.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,popcnt")
#endif
#include "codec/entropy/rans_vector.h"

namespace kvcask::rans_internal {
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

struct Avx2 {
  using Reg = __m256i;
  using Mask = __m256i;  // all bits of a lane
  static constexpr int kLanes = 8;

  static Reg Set(int v) { return _mm256_set1_epi32(v); }
  static Reg Load(const uint32_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void Store(Reg x, uint32_t* p) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), x); }
  static Reg LoadBytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Reg LoadWords(const uint8_t* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Reg LoadSymbols(const int16_t* p) {
    return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void StoreSymbols(Reg x, int16_t* p) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
  }
  static Reg Gather(const uint32_t* table, Reg index) {
    return _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), index, 4);
  }
  static Reg And(Reg a, Reg b) { return _mm256_and_si256(a, b); }
  static Reg Or(Reg a, Reg b) { return _mm256_or_si256(a, b); }
  static Reg Add(Reg a, Reg b) { return _mm256_add_epi32(a, b); }
  static Reg Sub(Reg a, Reg b) { return _mm256_sub_epi32(a, b); }
  static Reg Multiply(Reg a, Reg b) { return _mm256_mullo_epi32(a, b); }
  template <int k>
  static Reg Shl(Reg a) {
    return _mm256_slli_epi32(a, k);
  }
  template <int k>
  static Reg Shr(Reg a) {
    return _mm256_srli_epi32(a, k);
  }
  template <int k>
  static Reg Sar(Reg a) {
    return _mm256_srai_epi32(a, k);
  }
  static Mask None() { return _mm256_setzero_si256(); }
  static Mask Equal(Reg a, Reg b) { return _mm256_cmpeq_epi32(a, b); }
  static Mask Greater(Reg a, Reg b) { return _mm256_cmpgt_epi32(a, b); }
  static Mask AndNot(Mask a, Mask b) { return _mm256_andnot_si256(a, b); }
  static bool Any(Mask m) { return !_mm256_testz_si256(m, m); }
  static int Bits(Mask m) { return _mm256_movemask_ps(_mm256_castsi256_ps(m)); }
  static int Count(Mask m) { return __builtin_popcount(static_cast<unsigned>(Bits(m))); }
  static Reg Select(Mask m, Reg a, Reg b) { return _mm256_blendv_epi8(b, a, m); }
  // The l-th lane of the mask gets the l-th of the words.
  static Reg Expand(Mask m, Reg words) {
    const __m256i order = _mm256_cvtepu8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kExpand[Bits(m)].data())));
    return _mm256_permutevar8x32_epi32(words, order);
  }
  // Low words of the lanes not in `stay`, in order, below the cursor, which is returned lowered.
  // Writes 16 bytes below it, of which the top ones count.
  static uint8_t* PushWords(Mask stay, Reg x, uint8_t* cursor) {
    const int mask = Bits(stay) ^ 255;
    const __m256i words = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i*>(kCompress[mask].data()));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(cursor - 16), _mm_shuffle_epi8(packed, order));
    return cursor - 2 * __builtin_popcount(static_cast<unsigned>(mask));
  }
  // x / f, from the multiplier and k - 28 (bits 25.. of the entry).
  static Reg Divide(Reg x, Reg multiplier, Reg entry) {
    const __m256i k = _mm256_add_epi32(_mm256_srli_epi32(entry, 25), _mm256_set1_epi32(28));
    const __m256i low = _mm256_set1_epi64x(0xffffffff);
    const __m256i even =
        _mm256_srlv_epi64(_mm256_mul_epu32(x, multiplier), _mm256_and_si256(k, low));
    const __m256i odd = _mm256_srlv_epi64(
        _mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(multiplier, 32)),
        _mm256_srli_epi64(k, 32));
    return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  }
};

}  // namespace

bool HaveAvx2() {
  static const bool have = __builtin_cpu_supports("avx2");
  return have;
}

void EncodeStepsAvx2(const TableSet& t, int lanes, const uint8_t* classes, const int16_t* symbols,
                     size_t steps, uint32_t* x, uint8_t*& cursor) {
  EncodeSteps<Avx2>(t, lanes, classes, symbols, steps, x, cursor);
}

bool DecodeStepsAvx2(const TableSet& t, int lanes, const uint8_t* classes, int16_t* symbols,
                     size_t steps, uint32_t* x, const uint8_t*& cursor, const uint8_t* end) {
  return DecodeSteps<Avx2>(t, lanes, classes, symbols, steps, x, cursor, end);
}

}  // namespace kvcask::rans_internal
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else  // not x86

namespace kvcask::rans_internal {

bool HaveAvx2() { return false; }
void EncodeStepsAvx2(const TableSet&, int, const uint8_t*, const int16_t*, size_t, uint32_t*,
                     uint8_t*&) {}
bool DecodeStepsAvx2(const TableSet&, int, const uint8_t*, int16_t*, size_t, uint32_t*,
                     const uint8_t*&, const uint8_t*) {
  return false;
}

}  // namespace kvcask::rans_internal
#endif
