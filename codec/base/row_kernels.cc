#include "codec/base/row_kernels.h"

#include <cmath>
#include <cstring>

#include "codec/base/dtype.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec/base/row_kernels.cc"
#include <hwy/foreach_target.h>  // compiles what follows once for each target
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace kvcask {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F>;
using U32 = hn::RebindToUnsigned<F>;
using I8 = hn::Rebind<int8_t, F>;
using U16 = hn::Rebind<uint16_t, F>;

uint32_t MaxMagnitudeBits(const float* x, size_t n) {
  const F f;
  const I32 d;  // magnitudes are positive as signed numbers, which every target compares
  const size_t lanes = hn::Lanes(f);
  const auto mask = hn::Set(d, 0x7fffffff);
  auto largest = hn::Zero(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    largest = hn::Max(largest, hn::And(hn::BitCast(d, hn::LoadU(f, x + i)), mask));
  }
  uint32_t bits = static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(d, largest)));
  for (; i < n; ++i) {
    const uint32_t b = FloatBits(x[i]) & 0x7fffffff;
    if (b > bits) bits = b;
  }
  return bits;
}

void QuantiseInt8(const float* x, size_t n, float inverse_scale, int8_t* q) {
  const F f;
  const I8 d8;
  const size_t lanes = hn::Lanes(f);
  const auto scale = hn::Set(f, inverse_scale);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto rounded = hn::NearestInt(hn::Mul(hn::LoadU(f, x + i), scale));
    hn::StoreU(hn::DemoteTo(d8, rounded), d8, q + i);
  }
  for (; i < n; ++i) q[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse_scale));
}

void DequantiseInt8(const int8_t* q, size_t n, float scale, float* x) {
  const F f;
  const I32 d32;
  const I8 d8;
  const size_t lanes = hn::Lanes(f);
  const auto factor = hn::Set(f, scale);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto wide = hn::ConvertTo(f, hn::PromoteTo(d32, hn::LoadU(d8, q + i)));
    hn::StoreU(hn::Mul(wide, factor), f, x + i);
  }
  for (; i < n; ++i) x[i] = static_cast<float>(q[i]) * scale;
}

void Bf16ToFloatRow(const uint8_t* src, size_t n, float* dst) {
  const F f;
  const U32 d32;
  const U16 d16;
  const size_t lanes = hn::Lanes(f);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto narrow = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(src + 2 * i));
    hn::StoreU(hn::BitCast(f, hn::ShiftLeft<16>(hn::PromoteTo(d32, narrow))), f, dst + i);
  }
  for (; i < n; ++i) {
    uint16_t b;
    std::memcpy(&b, src + 2 * i, 2);
    dst[i] = Bf16ToFloat(b);
  }
}

void FloatToBf16Row(const float* src, size_t n, uint8_t* dst) {
  const F f;
  const I32 d32;
  const U32 u32;
  const U16 d16;
  const size_t lanes = hn::Lanes(f);
  const auto magnitude = hn::Set(d32, 0x7fffffff);
  const auto infinity = hn::Set(d32, 0x7f800000);
  const auto half = hn::Set(u32, 0x7fff);
  const auto one = hn::Set(u32, 1);
  const auto quiet = hn::Set(u32, 0x40);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto bits = hn::BitCast(u32, hn::LoadU(f, src + i));
    const auto high = hn::ShiftRight<16>(bits);
    const auto carry = hn::Add(half, hn::And(high, one));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, carry));
    const auto nan =
        hn::RebindMask(u32, hn::Gt(hn::And(hn::BitCast(d32, bits), magnitude), infinity));
    const auto out = hn::IfThenElse(nan, hn::Or(high, quiet), rounded);
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(d32, out)), d16,
               reinterpret_cast<uint16_t*>(dst + 2 * i));
  }
  for (; i < n; ++i) {
    const uint16_t b = FloatToBf16(src[i]);
    std::memcpy(dst + 2 * i, &b, 2);
  }
}

// The hardware's conversions where there are some; Highway's emulation elsewhere is not
// promised to round alike.
void F16ToFloatRow(const uint8_t* src, size_t n, float* dst) {
  size_t i = 0;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  const F f;
  const hn::Rebind<hwy::float16_t, F> d16;
  for (const size_t lanes = hn::Lanes(f); i + lanes <= n; i += lanes) {
    const auto narrow = hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(src + 2 * i));
    hn::StoreU(hn::PromoteTo(f, narrow), f, dst + i);
  }
#endif
  for (; i < n; ++i) {
    uint16_t h;
    std::memcpy(&h, src + 2 * i, 2);
    dst[i] = F16ToFloat(h);
  }
}

void FloatToF16Row(const float* src, size_t n, uint8_t* dst) {
  size_t i = 0;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  const F f;
  const hn::Rebind<hwy::float16_t, F> d16;
  for (const size_t lanes = hn::Lanes(f); i + lanes <= n; i += lanes) {
    hn::StoreU(hn::DemoteTo(d16, hn::LoadU(f, src + i)), d16,
               reinterpret_cast<hwy::float16_t*>(dst + 2 * i));
  }
#endif
  for (; i < n; ++i) {
    const uint16_t h = FloatToF16(src[i]);
    std::memcpy(dst + 2 * i, &h, 2);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcask
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcask {

HWY_EXPORT(MaxMagnitudeBits);
HWY_EXPORT(QuantiseInt8);
HWY_EXPORT(DequantiseInt8);
HWY_EXPORT(Bf16ToFloatRow);
HWY_EXPORT(FloatToBf16Row);
HWY_EXPORT(F16ToFloatRow);
HWY_EXPORT(FloatToF16Row);

uint32_t MaxMagnitudeBits(const float* x, size_t n) {
  return HWY_DYNAMIC_DISPATCH(MaxMagnitudeBits)(x, n);
}
void QuantiseInt8(const float* x, size_t n, float inverse_scale, int8_t* q) {
  HWY_DYNAMIC_DISPATCH(QuantiseInt8)(x, n, inverse_scale, q);
}
void DequantiseInt8(const int8_t* q, size_t n, float scale, float* x) {
  HWY_DYNAMIC_DISPATCH(DequantiseInt8)(q, n, scale, x);
}
void Bf16ToFloatRow(const uint8_t* src, size_t n, float* dst) {
  HWY_DYNAMIC_DISPATCH(Bf16ToFloatRow)(src, n, dst);
}
void FloatToBf16Row(const float* src, size_t n, uint8_t* dst) {
  HWY_DYNAMIC_DISPATCH(FloatToBf16Row)(src, n, dst);
}
void F16ToFloatRow(const uint8_t* src, size_t n, float* dst) {
  HWY_DYNAMIC_DISPATCH(F16ToFloatRow)(src, n, dst);
}
void FloatToF16Row(const float* src, size_t n, uint8_t* dst) {
  HWY_DYNAMIC_DISPATCH(FloatToF16Row)(src, n, dst);
}

}  // namespace kvcask
#endif  // HWY_ONCE
