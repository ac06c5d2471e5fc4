#include "codec/turboquant/turbo_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codec/quant/bit_pack.h"
#include "codec/quant/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec/turboquant/turbo_rows.cc"
#include <hwy/foreach_target.h>  // compiles what follows once for each target

#include "codec/quant/half-inl.h"
#include "codec/transform/hadamard-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcask {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F>;
using U8 = hn::Rebind<uint8_t, F>;

// Codes of y * factor; returns the sum of their levels' squares (in units of 2^-20).
HWY_INLINE uint64_t QuantiseBlock(const Codebook& book, const float* y, size_t n, float factor,
                                  uint8_t* q) {
  const F f;
  const I32 d32;
  const U8 d8;
  const size_t lanes = hn::Lanes(f);
  const int half = static_cast<int>(book.levels.size());
  // Squares of the levels, and how much each is more than the one below.
  HWY_ALIGN int squares[16] = {};
  int rise[8];
  for (int m = 0; m < half; ++m) {
    squares[m] = book.levels[m] * book.levels[m];
    rise[m] = squares[m] - (m == 0 ? 0 : squares[m - 1]);
  }
  // A vector of eight or more holds them all.
  const bool has_table = lanes == 8 || lanes == 16;
  const auto table = has_table ? hn::LoadU(d32, squares) : hn::Zero(d32);
  const auto scale = hn::Set(f, factor);
  const auto top = hn::Set(d32, half);
  uint64_t energy = 0;
  size_t i = 0;
  while (i + lanes <= n) {
    // Squares are below 2^23: the sum of 512 of them fits 32 bits.
    const size_t end = std::min(n, i + 512);
    auto sum = hn::Zero(d32);
    for (; i + lanes <= end; i += lanes) {
      const auto v = hn::Mul(hn::LoadU(f, y + i), scale);
      const auto magnitude = hn::Abs(v);
      auto m = hn::Zero(d32);
      for (int k = 1; k < half; ++k) {
        const auto over = hn::RebindMask(d32, hn::Ge(magnitude, hn::Set(f, book.thresholds[k])));
        m = hn::Sub(m, hn::VecFromMask(d32, over));
        if (!has_table) sum = hn::Add(sum, hn::IfThenElseZero(over, hn::Set(d32, rise[k])));
      }
      if (has_table) {
        sum = hn::Add(sum, hn::TableLookupLanes(table, hn::IndicesFromVec(d32, m)));
      }
      // half + m, or half - 1 - m = half + ~m, where the sign bit is set.
      const auto sign = hn::BroadcastSignBit(hn::BitCast(d32, v));
      hn::StoreU(hn::DemoteTo(d8, hn::Add(top, hn::Xor(m, sign))), d8, q + i);
    }
    energy += static_cast<uint32_t>(hn::GetLane(hn::SumOfLanes(d32, sum)));
  }
  if (!has_table) energy += i * static_cast<uint64_t>(rise[0]);
  for (; i < n; ++i) {
    const float v = y[i] * factor, magnitude = std::fabs(v);
    int m = 0;
    while (m + 1 < half && magnitude >= book.thresholds[m + 1]) ++m;
    q[i] = static_cast<uint8_t>(std::signbit(v) ? half - 1 - m : half + m);
    energy += static_cast<uint64_t>(book.levels[m]) * book.levels[m];
  }
  return energy;
}

bool EncodeRows(const TurboRow& shape, float* x, size_t rows, uint8_t* out) {
  const size_t n = shape.n;
  const float root = std::sqrt(static_cast<float>(n));
  const float* signs = shape.signs.empty() ? nullptr : shape.signs.data();
  uint8_t codes[kMaxTurboRow];
  for (size_t r = 0; r < rows; ++r, x += n, out += shape.bytes()) {
    const float norm = std::sqrt(OrderedSumOfSquares(x, n));
    if (!std::isfinite(norm)) return false;
    const float to_unit = norm > 0 ? root / norm : 0;
    ApplyHadamard(signs, x, n);
    uint64_t energy = 0;
    ForEachBlock(n, [&](size_t at, size_t length) {
      const float factor = to_unit * (1 / std::sqrt(static_cast<float>(length)));
      energy += QuantiseBlock(*shape.book, x + at, length, factor, codes + at);
    });
    const float length = shape.norm_corrected
                             ? std::sqrt(static_cast<float>(energy)) * kCodebookUnit
                             : root;
    const uint16_t scale = ToHalf(norm / length);
    if (!IsFiniteHalf(scale)) return false;
    StoreHalf(scale, out);
    PackBits(codes, n, shape.bits, out + 2);
  }
  return true;
}

bool DecodeRows(const TurboRow& shape, const uint8_t* in, size_t rows, float* x) {
  const size_t n = shape.n;
  const int half = static_cast<int>(shape.book->levels.size());
  float table[16];
  for (int m = 0; m < half; ++m) {
    table[half + m] = static_cast<float>(shape.book->levels[m]) * kCodebookUnit;
    table[half - 1 - m] = -table[half + m];
  }
  const float* signs = shape.signs.empty() ? nullptr : shape.signs.data();
  uint8_t codes[kMaxTurboRow];
  for (size_t r = 0; r < rows; ++r, x += n, in += shape.bytes()) {
    const uint16_t scale = LoadHalf(in);
    if (scale >= kInfiniteHalf) return false;
    const float norm = FromHalf(scale);
    UnpackBits(in + 2, n, shape.bits, codes);
    ForEachBlock(n, [&](size_t at, size_t length) {
      const float factor = norm * (1 / std::sqrt(static_cast<float>(length)));
      float scaled[16];
      for (int i = 0; i < 16; ++i) scaled[i] = i < 2 * half ? table[i] * factor : 0;
      for (size_t i = at; i < at + length; ++i) x[i] = scaled[codes[i]];
    });
    ApplyInverseHadamard(signs, x, n);
  }
  return true;
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcask
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcask {

HWY_EXPORT(EncodeRows);
HWY_EXPORT(DecodeRows);

bool EncodeTurboRows(const TurboRow& shape, float* x, size_t rows, uint8_t* out) {
  return HWY_DYNAMIC_DISPATCH(EncodeRows)(shape, x, rows, out);
}
bool DecodeTurboRows(const TurboRow& shape, const uint8_t* in, size_t rows, float* x) {
  return HWY_DYNAMIC_DISPATCH(DecodeRows)(shape, in, rows, x);
}

}  // namespace kvcask
#endif  // HWY_ONCE
