#include "codec/fklt/quantise_vector.h"

#include "codec/entropy/static_tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec/fklt/quantise_vector.cc"
#include <hwy/foreach_target.h>  // compiles what follows once for each target
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace kvcask::fklt {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;
using I32 = hn::RebindToSigned<F>;
using I16 = hn::Rebind<int16_t, F>;
using U8 = hn::Rebind<uint8_t, F>;
using VF = hn::Vec<F>;
using VI = hn::Vec<I32>;

// What n stands for in steps: centroids of a class up to 3, n itself beyond.
HWY_INLINE VF Reconstruct(const float* centroids, VI c, VI n) {
  const F f;
  const I32 d;
  const VI three = hn::Set(d, 3);
  const VI index = hn::Add(hn::ShiftLeft<2>(c), hn::Min(n, three));
  const VF centre = hn::GatherIndex(f, centroids, index);
  return hn::IfThenElse(hn::RebindMask(f, hn::Gt(n, three)), hn::ConvertTo(f, n), centre);
}

bool Quantise(int row_term, const float* y, int count, float rounding, const float* centroids,
              const PlaceScales& scales, uint8_t* classes, int16_t* symbols, float* error) {
  const F f;
  const I32 d;
  const I16 d16;
  const U8 d8;
  const int lanes = static_cast<int>(hn::Lanes(f));
  const VI term = hn::Set(d, row_term);
  const VI sixteen = hn::Set(d, 16);
  const VI last = hn::Set(d, kClasses - 1);
  const VF half = hn::Set(f, rounding);
  const VF limit = hn::Set(f, 32768.0f);
  auto good = hn::Eq(term, term);
  for (int p = 0; p < count; p += lanes) {
    const auto here = hn::FirstN(f, static_cast<size_t>(count - p));
    const VI e = hn::Add(term, hn::PromoteTo(d, hn::LoadU(d16, scales.terms + p)));
    const VI scaled = hn::Add(hn::Add(hn::ShiftLeft<2>(e), e), sixteen);
    const VI c = hn::Max(hn::Zero(d), hn::Min(last, hn::Add(hn::ShiftRight<5>(scaled), sixteen)));
    const VF v = hn::IfThenElseZero(here, hn::LoadU(f, y + p));
    const VF magnitude = hn::Abs(v);
    // Behind `count` scales may be anything, and 0 times infinity would not fit.
    const VF inverse = hn::IfThenElseZero(here, hn::LoadU(f, scales.inverse_step + p));
    const VF a = hn::Add(hn::Mul(magnitude, inverse), half);
    const auto fits = hn::Lt(a, limit);  // false for NaN
    good = hn::And(good, hn::RebindMask(d, fits));
    const VI n = hn::ConvertTo(d, hn::IfThenElseZero(fits, a));
    const VF value = Reconstruct(centroids, c, n);
    const VF off = hn::Sub(magnitude, hn::Mul(value, hn::LoadU(f, scales.step + p)));
    const VF sum = hn::Add(hn::LoadU(f, error + p), hn::IfThenElseZero(here, hn::Mul(off, off)));
    hn::StoreU(sum, f, error + p);
    const VI q = hn::IfThenElse(hn::RebindMask(d, hn::Lt(v, hn::Zero(f))), hn::Neg(n), n);
    hn::StoreU(hn::DemoteTo(d16, q), d16, symbols + p);
    hn::StoreU(hn::DemoteTo(d8, c), d8, classes + p);
  }
  return hn::AllTrue(d, good);
}

void Dequantise(const uint8_t* classes, const int16_t* symbols, int count, const float* centroids,
                const float* step, float* y) {
  const F f;
  const I32 d;
  const I16 d16;
  const U8 d8;
  const int lanes = static_cast<int>(hn::Lanes(f));
  const VI last = hn::Set(d, kAbsentClass);  // behind `count` may be anything
  for (int p = 0; p < count; p += lanes) {
    const VI c = hn::Min(last, hn::PromoteTo(d, hn::LoadU(d8, classes + p)));
    const VI q = hn::PromoteTo(d, hn::LoadU(d16, symbols + p));
    const VF value = hn::Mul(Reconstruct(centroids, c, hn::Abs(q)), hn::LoadU(f, step + p));
    const auto negative = hn::RebindMask(f, hn::Lt(q, hn::Zero(d)));
    hn::StoreU(hn::IfThenElse(negative, hn::Neg(value), value), f, y + p);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcask::fklt
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcask::fklt {

HWY_EXPORT(Quantise);
HWY_EXPORT(Dequantise);

bool QuantiseRowVector(VectorTarget target, int row_term, const float* y, int count, float rounding,
                       const float* centroids, const PlaceScales& scales, uint8_t* classes,
                       int16_t* symbols, float* error) {
#if HWY_TARGETS & HWY_AVX2
  if (target == VectorTarget::kAvx2) {
    return N_AVX2::Quantise(row_term, y, count, rounding, centroids, scales, classes, symbols,
                            error);
  }
#endif
#if HWY_TARGETS & HWY_AVX3
  if (target == VectorTarget::kAvx512) {
    return N_AVX3::Quantise(row_term, y, count, rounding, centroids, scales, classes, symbols,
                            error);
  }
#endif
  return HWY_DYNAMIC_DISPATCH(Quantise)(row_term, y, count, rounding, centroids, scales, classes,
                                        symbols, error);
}

void DequantiseRowVector(VectorTarget target, const uint8_t* classes, const int16_t* symbols,
                         int count, const float* centroids, const float* step, float* y) {
#if HWY_TARGETS & HWY_AVX2
  if (target == VectorTarget::kAvx2) {
    return N_AVX2::Dequantise(classes, symbols, count, centroids, step, y);
  }
#endif
#if HWY_TARGETS & HWY_AVX3
  if (target == VectorTarget::kAvx512) {
    return N_AVX3::Dequantise(classes, symbols, count, centroids, step, y);
  }
#endif
  HWY_DYNAMIC_DISPATCH(Dequantise)(classes, symbols, count, centroids, step, y);
}

}  // namespace kvcask::fklt
#endif  // HWY_ONCE
