// The AVX-512 path of rans.h: sixteen lanes a vector.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "codec/entropy/rans_internal.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,popcnt")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of gcc 12 in its own header
#endif
#include "codec/entropy/rans_vector.h"

namespace kvcask::rans_internal {
namespace {

struct Avx512 {
  using Reg = __m512i;
  using Mask = __mmask16;
  static constexpr int kLanes = 16;

  static Reg Set(int v) { return _mm512_set1_epi32(v); }
  static Reg Load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static void Store(Reg x, uint32_t* p) { _mm512_storeu_si512(p, x); }
  static Reg LoadBytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Reg LoadWords(const uint8_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Reg LoadSymbols(const int16_t* p) {
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void StoreSymbols(Reg x, int16_t* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
  }
  static Reg Gather(const uint32_t* table, Reg index) {
    return _mm512_i32gather_epi32(index, table, 4);
  }
  static Reg And(Reg a, Reg b) { return _mm512_and_si512(a, b); }
  static Reg Or(Reg a, Reg b) { return _mm512_or_si512(a, b); }
  static Reg Add(Reg a, Reg b) { return _mm512_add_epi32(a, b); }
  static Reg Sub(Reg a, Reg b) { return _mm512_sub_epi32(a, b); }
  static Reg Multiply(Reg a, Reg b) { return _mm512_mullo_epi32(a, b); }
  template <int k>
  static Reg Shl(Reg a) {
    return _mm512_slli_epi32(a, k);
  }
  template <int k>
  static Reg Shr(Reg a) {
    return _mm512_srli_epi32(a, k);
  }
  template <int k>
  static Reg Sar(Reg a) {
    return _mm512_srai_epi32(a, k);
  }
  static Mask None() { return 0; }
  static Mask Equal(Reg a, Reg b) { return _mm512_cmpeq_epi32_mask(a, b); }
  static Mask Greater(Reg a, Reg b) { return _mm512_cmpgt_epi32_mask(a, b); }
  static Mask AndNot(Mask a, Mask b) { return static_cast<Mask>(~a & b); }
  static bool Any(Mask m) { return m != 0; }
  static int Count(Mask m) { return __builtin_popcount(m); }
  static Reg Select(Mask m, Reg a, Reg b) { return _mm512_mask_blend_epi32(m, b, a); }
  static Reg Expand(Mask m, Reg words) { return _mm512_maskz_expand_epi32(m, words); }
  static uint8_t* PushWords(Mask stay, Reg x, uint8_t* cursor) {
    const Mask push = static_cast<Mask>(~stay);
    const int n = Count(push);
    cursor -= 2 * n;
    // Compressed in the register: to memory it is slow on some machines.
    const __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(push, x));
    _mm256_mask_storeu_epi16(cursor, static_cast<Mask>((1u << n) - 1), words);
    return cursor;
  }
  static Reg Divide(Reg x, Reg multiplier, Reg entry) {
    const __m512i k = _mm512_add_epi32(_mm512_srli_epi32(entry, 25), _mm512_set1_epi32(28));
    const __m512i low = _mm512_set1_epi64(0xffffffff);
    const __m512i even =
        _mm512_srlv_epi64(_mm512_mul_epu32(x, multiplier), _mm512_and_si512(k, low));
    const __m512i odd = _mm512_srlv_epi64(
        _mm512_mul_epu32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(multiplier, 32)),
        _mm512_srli_epi64(k, 32));
    return _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  }
};

}  // namespace

bool HaveAvx512() {
  static const bool have = __builtin_cpu_supports("avx512f") &&
                           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return have;
}

void EncodeStepsAvx512(const TableSet& t, int lanes, const uint8_t* classes, const int16_t* symbols,
                       size_t steps, uint32_t* x, uint8_t*& cursor) {
  EncodeSteps<Avx512>(t, lanes, classes, symbols, steps, x, cursor);
}

bool DecodeStepsAvx512(const TableSet& t, int lanes, const uint8_t* classes, int16_t* symbols,
                       size_t steps, uint32_t* x, const uint8_t*& cursor, const uint8_t* end) {
  return DecodeSteps<Avx512>(t, lanes, classes, symbols, steps, x, cursor, end);
}

}  // namespace kvcask::rans_internal
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else  // not x86

namespace kvcask::rans_internal {

bool HaveAvx512() { return false; }
void EncodeStepsAvx512(const TableSet&, int, const uint8_t*, const int16_t*, size_t, uint32_t*,
                       uint8_t*&) {}
bool DecodeStepsAvx512(const TableSet&, int, const uint8_t*, int16_t*, size_t, uint32_t*,
                       const uint8_t*&, const uint8_t*) {
  return false;
}

}  // namespace kvcask::rans_internal
#endif
