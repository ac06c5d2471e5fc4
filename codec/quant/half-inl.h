// half.h's bounds with the conversions of one Highway target: include it after
// hwy/foreach_target.h. The same bits as half.h's.
#if defined(KVCASK_HALF_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCASK_HALF_INL_H_
#undef KVCASK_HALF_INL_H_
#else
#define KVCASK_HALF_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "codec/quant/half.h"

HWY_BEFORE_NAMESPACE();
namespace kvcask {
namespace HWY_NAMESPACE {

// Only the hardware's conversions: Highway's emulation is not promised to round alike.
HWY_INLINE uint16_t ToHalf(float x) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  const hwy::HWY_NAMESPACE::Full128<float> d;
  const hwy::HWY_NAMESPACE::Rebind<hwy::float16_t, decltype(d)> d16;
  const auto h = hwy::HWY_NAMESPACE::DemoteTo(d16, hwy::HWY_NAMESPACE::Set(d, x));
  hwy::float16_t out[4];
  hwy::HWY_NAMESPACE::StoreU(h, d16, out);
  uint16_t bits;
  hwy::CopySameSize(&out[0], &bits);
  return bits;
#else
  return FloatToF16(x);
#endif
}
HWY_INLINE float FromHalf(uint16_t h) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  const hwy::HWY_NAMESPACE::Full128<float> d;
  const hwy::HWY_NAMESPACE::Rebind<hwy::float16_t, decltype(d)> d16;
  const hwy::HWY_NAMESPACE::Rebind<uint16_t, decltype(d)> u16;
  const auto bits = hwy::HWY_NAMESPACE::BitCast(d16, hwy::HWY_NAMESPACE::Set(u16, h));
  return hwy::HWY_NAMESPACE::GetLane(hwy::HWY_NAMESPACE::PromoteTo(d, bits));
#else
  return F16ToFloat(h);
#endif
}

// Without branches: which way a number rounds is a coin's toss.
HWY_INLINE uint16_t HalfNotBelow(float x) {
  const uint16_t h = ToHalf(x + 0.f);  // -0 becomes 0
  return static_cast<uint16_t>(h + ((h < kInfiniteHalf) & (FromHalf(h) < x)));
}
HWY_INLINE uint16_t HalfNotAbove(float x) {
  const uint16_t h = ToHalf(x);
  // Down: one more of a negative number's magnitude, one less of a positive one's.
  const int down = static_cast<int>(h >> 15) * 2 - 1;
  const int moved = h + (IsFiniteHalf(h) & (FromHalf(h) > x)) * down;
  const int of_zero = x < 0 ? 0x8001 : 0;
  return static_cast<uint16_t>((h & 0x7fff) == 0 ? of_zero : moved);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcask
HWY_AFTER_NAMESPACE();

#endif  // include guard toggled by target
