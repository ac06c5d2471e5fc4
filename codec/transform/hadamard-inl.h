// What hadamard.h promises, for the kernels of one Highway target: include it after
// hwy/foreach_target.h.
#if defined(KVCASK_HADAMARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCASK_HADAMARD_INL_H_
#undef KVCASK_HADAMARD_INL_H_
#else
#define KVCASK_HADAMARD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>

HWY_BEFORE_NAMESPACE();
namespace kvcask {
namespace HWY_NAMESPACE {

namespace wht_hn = hwy::HWY_NAMESPACE;

// One stage inside a vector: lane i becomes x[i] + x[i + stride], or x[i - stride] - x[i]
// where i has the stride's bit.
template <class D, class V>
HWY_INLINE V WhtLanes(D d, V v, V swapped, size_t stride) {
  const wht_hn::RebindToUnsigned<D> u;
  const auto bit = wht_hn::Set(u, static_cast<uint32_t>(stride));
  const auto odd = wht_hn::Eq(wht_hn::And(wht_hn::Iota(u, 0), bit), bit);
  const auto flip = wht_hn::IfThenElseZero(odd, wht_hn::Set(u, 0x80000000u));
  return wht_hn::Add(swapped, wht_hn::Xor(v, wht_hn::BitCast(d, flip)));
}

// Unnormalised, in place; n is a power of two. Stages of stride 1, 2, 4, ... n / 2, each
// (a, b) -> (a + b, a - b): the same bits whatever the vectors' length.
HWY_INLINE void Wht(float* HWY_RESTRICT x, size_t n) {
  const wht_hn::ScalableTag<float> d;
  const size_t lanes = wht_hn::Lanes(d);
  size_t stride = 1;
#if HWY_TARGET != HWY_SCALAR
  if (lanes >= 4 && lanes <= 16 && n >= lanes) {
    for (size_t i = 0; i < n; i += lanes) {
      auto v = wht_hn::LoadU(d, x + i);
      v = WhtLanes(d, v, wht_hn::Shuffle2301(v), 1);
      v = WhtLanes(d, v, wht_hn::Shuffle1032(v), 2);
      if (lanes >= 8) v = WhtLanes(d, v, wht_hn::SwapAdjacentBlocks(v), 4);
      if (lanes >= 16) {
        v = WhtLanes(d, v, wht_hn::SwapAdjacentBlocks(wht_hn::ReverseBlocks(d, v)), 8);
      }
      wht_hn::StoreU(v, d, x + i);
    }
    stride = lanes;
    // Two stages a pass where there are two left.
    for (; 4 * stride <= n; stride *= 4) {
      for (size_t i = 0; i < n; i += 4 * stride) {
        for (size_t j = i; j < i + stride; j += lanes) {
          const auto a = wht_hn::LoadU(d, x + j), b = wht_hn::LoadU(d, x + j + stride);
          const auto c = wht_hn::LoadU(d, x + j + 2 * stride);
          const auto e = wht_hn::LoadU(d, x + j + 3 * stride);
          const auto ab = wht_hn::Add(a, b), a_b = wht_hn::Sub(a, b);
          const auto ce = wht_hn::Add(c, e), c_e = wht_hn::Sub(c, e);
          wht_hn::StoreU(wht_hn::Add(ab, ce), d, x + j);
          wht_hn::StoreU(wht_hn::Add(a_b, c_e), d, x + j + stride);
          wht_hn::StoreU(wht_hn::Sub(ab, ce), d, x + j + 2 * stride);
          wht_hn::StoreU(wht_hn::Sub(a_b, c_e), d, x + j + 3 * stride);
        }
      }
    }
    for (; stride < n; stride *= 2) {
      for (size_t i = 0; i < n; i += 2 * stride) {
        for (size_t j = i; j < i + stride; j += lanes) {
          const auto a = wht_hn::LoadU(d, x + j), b = wht_hn::LoadU(d, x + j + stride);
          wht_hn::StoreU(wht_hn::Add(a, b), d, x + j);
          wht_hn::StoreU(wht_hn::Sub(a, b), d, x + j + stride);
        }
      }
    }
    return;
  }
#endif
  (void)lanes;
  for (; stride < n; stride *= 2) {
    for (size_t i = 0; i < n; i += 2 * stride) {
      for (size_t j = i; j < i + stride; ++j) {
        const float a = x[j], b = x[j + stride];
        x[j] = a + b;
        x[j + stride] = a - b;
      }
    }
  }
}

// f(offset, length) for each block of a row, the largest first.
template <class Function>
HWY_INLINE void ForEachBlock(size_t n, Function f) {
  size_t block = 1;
  while (block <= n / 2) block *= 2;
  for (size_t at = 0; at < n; block /= 2) {
    if ((n & block) == 0) continue;
    f(at, block);
    at += block;
  }
}

HWY_INLINE void MultiplyInto(const float* HWY_RESTRICT factors, float* HWY_RESTRICT x, size_t n) {
  const wht_hn::ScalableTag<float> d;
  const size_t lanes = wht_hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    wht_hn::StoreU(wht_hn::Mul(wht_hn::LoadU(d, factors + i), wht_hn::LoadU(d, x + i)), d, x + i);
  }
  for (; i < n; ++i) x[i] *= factors[i];
}

HWY_INLINE void ApplyHadamard(const float* signs, float* x, size_t n) {
  if (signs != nullptr) MultiplyInto(signs, x, n);
  ForEachBlock(n, [&](size_t at, size_t length) { Wht(x + at, length); });
}
HWY_INLINE void ApplyInverseHadamard(const float* signs, float* x, size_t n) {
  ForEachBlock(n, [&](size_t at, size_t length) { Wht(x + at, length); });
  if (signs != nullptr) MultiplyInto(signs, x, n);
}

HWY_INLINE float OrderedSumOfSquares(const float* x, size_t n) {
  const wht_hn::CappedTag<float, 16> d;
  const size_t lanes = wht_hn::Lanes(d);  // divides 16
  HWY_ALIGN float sums[16] = {};
  size_t i = n / 16 * 16;
  for (size_t j = 0; j < 16; j += lanes) {
    auto sum = wht_hn::Zero(d);
    for (size_t k = j; k < i; k += 16) {
      const auto v = wht_hn::LoadU(d, x + k);
      sum = wht_hn::Add(sum, wht_hn::Mul(v, v));
    }
    wht_hn::Store(sum, d, sums + j);
  }
  for (; i < n; ++i) sums[i % 16] += x[i] * x[i];
  for (size_t step = 8; step > 0; step /= 2) {
    for (size_t j = 0; j < step; ++j) sums[j] += sums[j + step];
  }
  return sums[0];
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcask
HWY_AFTER_NAMESPACE();

#endif  // include guard toggled by target
