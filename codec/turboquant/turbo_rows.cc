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

// A row's blocks are powers of two that fall: of kMaxTurboRow, 13 at most.
constexpr size_t kMaxTurboBlocks = 16;

// What the rows of a codebook share.
struct Levels {
  explicit Levels(const Codebook& book) : book(book) {
    for (size_t m = 0; m < book.levels.size(); ++m) {
      squares[m] = book.levels[m] * book.levels[m];
      rise[m] = squares[m] - (m == 0 ? 0 : squares[m - 1]);
    }
  }
  const Codebook& book;
  HWY_ALIGN int squares[16] = {};
  int rise[8] = {};  // how much each square is more than the one below
};

// Codes of y * factor; returns the sum of their levels' squares (in units of 2^-20). `kHalf` is
// the number of the book's levels.
template <int kHalf>
HWY_INLINE uint64_t QuantiseBlock(const Levels& levels, const float* y, size_t n, float factor,
                                  uint8_t* q) {
  const F f;
  const I32 d32;
  const U8 d8;
  const size_t lanes = hn::Lanes(f);
  const float* const thresholds = levels.book.thresholds.data();
  // A vector of eight or more holds all squares.
  const bool has_table = lanes == 8 || lanes == 16;
  const auto table = has_table ? hn::LoadU(d32, levels.squares) : hn::Zero(d32);
  const auto scale = hn::Set(f, factor);
  const auto top = hn::Set(d32, kHalf);
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
      for (int k = 1; k < kHalf; ++k) {
        const auto over = hn::RebindMask(d32, hn::Ge(magnitude, hn::Set(f, thresholds[k])));
        m = hn::Sub(m, hn::VecFromMask(d32, over));
        if (!has_table) sum = hn::Add(sum, hn::IfThenElseZero(over, hn::Set(d32, levels.rise[k])));
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
  if (!has_table) energy += i * static_cast<uint64_t>(levels.rise[0]);
  for (; i < n; ++i) {
    const float v = y[i] * factor, magnitude = std::fabs(v);
    int m = 0;
    while (m + 1 < kHalf && magnitude >= thresholds[m + 1]) ++m;
    q[i] = static_cast<uint8_t>(std::signbit(v) ? kHalf - 1 - m : kHalf + m);
    energy += static_cast<uint64_t>(levels.squares[m]);
  }
  return energy;
}

// The roots and divisions of so many rows hide behind each other.
constexpr size_t kRowsAtOnce = 8;

template <int kHalf>
bool EncodeRowsOf(const TurboRow& shape, float* x, size_t rows, uint8_t* out) {
  const size_t n = shape.n, bytes = shape.bytes();
  const float root = std::sqrt(static_cast<float>(n));
  const float* signs = shape.signs.empty() ? nullptr : shape.signs.data();
  const Levels levels(*shape.book);
  float inverse_roots[kMaxTurboBlocks];  // of the blocks' lengths
  size_t blocks = 0;
  ForEachBlock(n, [&](size_t, size_t length) {
    inverse_roots[blocks++] = 1 / std::sqrt(static_cast<float>(length));
  });
  uint8_t codes[kMaxTurboRow];
  for (size_t first = 0; first < rows; first += kRowsAtOnce) {
    const size_t some = std::min(kRowsAtOnce, rows - first);
    float norm[kRowsAtOnce], to_unit[kRowsAtOnce];
    uint64_t energy[kRowsAtOnce] = {};
    for (size_t r = 0; r < some; ++r) norm[r] = OrderedSumOfSquares(x + r * n, n);
    bool finite = true;
    for (size_t r = 0; r < some; ++r) {
      norm[r] = std::sqrt(norm[r]);
      finite &= std::isfinite(norm[r]);
      to_unit[r] = norm[r] > 0 ? root / norm[r] : 0;
    }
    if (!finite) return false;
    for (size_t r = 0; r < some; ++r, x += n) {
      ApplyHadamard(signs, x, n);
      const float* inverse_root = inverse_roots;
      ForEachBlock(n, [&](size_t at, size_t length) {
        const float factor = to_unit[r] * *inverse_root++;
        energy[r] += QuantiseBlock<kHalf>(levels, x + at, length, factor, codes + at);
      });
      PackBits(codes, n, shape.bits, out + r * bytes + 2);
    }
    for (size_t r = 0; r < some; ++r, out += bytes) {
      const float length = shape.norm_corrected
                               ? std::sqrt(static_cast<float>(energy[r])) * kCodebookUnit
                               : root;
      const uint16_t scale = ToHalf(norm[r] / length);
      finite &= IsFiniteHalf(scale);
      StoreHalf(scale, out);
    }
    if (!finite) return false;
  }
  return true;
}

bool EncodeRows(const TurboRow& shape, float* x, size_t rows, uint8_t* out) {
  switch (shape.book->levels.size()) {
    case 1:
      return EncodeRowsOf<1>(shape, x, rows, out);
    case 2:
      return EncodeRowsOf<2>(shape, x, rows, out);
    case 4:
      return EncodeRowsOf<4>(shape, x, rows, out);
    default:
      return EncodeRowsOf<8>(shape, x, rows, out);
  }
}

// x[i] = table[codes[i]], of 16 entries.
HWY_INLINE void LookUp(const float* table, const uint8_t* codes, size_t n, float* x) {
  const F f;
  const I32 d32;
  const U8 d8;
  const size_t lanes = hn::Lanes(f);
  size_t i = 0;
  if (lanes == 8 || lanes == 16) {
    const auto low = hn::LoadU(f, table), high = hn::LoadU(f, table + 16 - lanes);
    const auto index = hn::Set(d32, static_cast<int>(lanes) - 1), top = hn::Set(d32, 7);
    for (; i + lanes <= n; i += lanes) {
      const auto code = hn::PromoteTo(d32, hn::LoadU(d8, codes + i));
      const auto at = hn::IndicesFromVec(f, hn::And(code, index));
      auto value = hn::TableLookupLanes(low, at);
      if (lanes == 8) {
        const auto is_high = hn::RebindMask(f, hn::Gt(code, top));
        value = hn::IfThenElse(is_high, hn::TableLookupLanes(high, at), value);
      }
      hn::StoreU(value, f, x + i);
    }
  }
  for (; i < n; ++i) x[i] = table[codes[i]];
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
  float inverse_roots[kMaxTurboBlocks];
  size_t blocks = 0;
  ForEachBlock(n, [&](size_t, size_t length) {
    inverse_roots[blocks++] = 1 / std::sqrt(static_cast<float>(length));
  });
  uint8_t codes[kMaxTurboRow];
  for (size_t r = 0; r < rows; ++r, x += n, in += shape.bytes()) {
    const uint16_t scale = LoadHalf(in);
    if (scale >= kInfiniteHalf) return false;
    const float norm = FromHalf(scale);
    UnpackBits(in + 2, n, shape.bits, codes);
    const float* inverse_root = inverse_roots;
    ForEachBlock(n, [&](size_t at, size_t length) {
      const float factor = norm * *inverse_root++;
      float scaled[16];
      for (int i = 0; i < 16; ++i) scaled[i] = i < 2 * half ? table[i] * factor : 0;
      LookUp(scaled, codes + at, length, x + at);
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
