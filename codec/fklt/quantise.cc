#include "codec/fklt/quantise.h"

#include <cmath>

#include "codec/fklt/quantise_vector.h"

// The portable path, and for the small functions one body, compiled once as it is and once for
// AVX2: the compiler vectorises the loops over tokens. -ffp-contract=off keeps both the same.
#if defined(__x86_64__)
#define KVCASK_AVX2 __attribute__((target("avx2")))
#else
#define KVCASK_AVX2
#endif
#define KVCASK_BODY __attribute__((always_inline)) inline

namespace kvcask::fklt {
namespace {

bool UseAvx2(RansPath path) { return ResolveRansPath(path) != RansPath::kPortable; }

VectorTarget TargetOf(RansPath path) {
  return path == RansPath::kAvx2     ? VectorTarget::kAvx2
         : path == RansPath::kAvx512 ? VectorTarget::kAvx512
                                     : VectorTarget::kWidest;
}

KVCASK_BODY bool QuantiseBody(int row_term, const float* __restrict y, int count, float rounding,
                              const float* __restrict centroids, const PlaceScales& scales,
                              uint8_t* __restrict classes, int16_t* __restrict symbols,
                              float* __restrict error) {
  int outside = 0;
  alignas(32) int c32[kMaxTokens];
  alignas(32) int q32[kMaxTokens];
  for (int p = 0; p < count; ++p) {
    int c = ((5 * (row_term + scales.terms[p]) + 16) >> 5) + 16;
    c = c < 0 ? 0 : c;
    c = c > kClasses - 1 ? kClasses - 1 : c;
    const float magnitude = std::fabs(y[p]);
    float a = magnitude * scales.inverse_step[p] + rounding;
    const bool fits = a < 32768.0f;  // false for NaN
    outside |= !fits;
    a = fits ? a : 0.0f;
    const int n = static_cast<int>(a);
    const int small = n < 3 ? n : 3;
    const float centre = centroids[c * 4 + small];
    const float value = n > 3 ? static_cast<float>(n) : centre;
    const float e = magnitude - value * scales.step[p];
    error[p] += e * e;
    c32[p] = c;
    q32[p] = y[p] < 0 ? -n : n;
  }
  for (int p = 0; p < count; ++p) {
    classes[p] = static_cast<uint8_t>(c32[p]);
    symbols[p] = static_cast<int16_t>(q32[p]);
  }
  return outside == 0;
}

KVCASK_BODY void DequantiseBody(const uint8_t* __restrict classes,
                                const int16_t* __restrict symbols, int count,
                                const float* __restrict centroids, const float* __restrict step,
                                float* __restrict y) {
  for (int p = 0; p < count; ++p) {
    const int q = symbols[p];
    const int n = q < 0 ? -q : q;
    const int small = n < 3 ? n : 3;
    const float centre = centroids[classes[p] * 4 + small];
    const float value = (n > 3 ? static_cast<float>(n) : centre) * step[p];
    y[p] = q < 0 ? -value : value;
  }
}

KVCASK_BODY void PredictorBody(const float* __restrict y, int tokens, float inverse_sigma, float c,
                               float d, float* __restrict eta) {
  for (int t = 0; t < tokens; ++t) {
    float u = y[t] * inverse_sigma;
    u = u < -8.0f ? -8.0f : u;
    u = u > 8.0f ? 8.0f : u;
    eta[t] += (c + d * u) * u;
  }
}

KVCASK_BODY void AmplitudeBody(const float* __restrict y, int tokens, float inverse_sigma,
                               float* __restrict amplitude) {
  for (int t = 0; t < tokens; ++t) {
    const float u = y[t] * inverse_sigma;
    amplitude[t] += u * u;
  }
}

KVCASK_AVX2 void PredictorAvx2(const float* y, int tokens, float inverse_sigma, float c, float d,
                               float* eta) {
  PredictorBody(y, tokens, inverse_sigma, c, d, eta);
}
KVCASK_AVX2 void AmplitudeAvx2(const float* y, int tokens, float inverse_sigma, float* amplitude) {
  AmplitudeBody(y, tokens, inverse_sigma, amplitude);
}

}  // namespace

bool QuantiseRow(int row_term, const float* y, int count, float rounding, const float* centroids,
                 const PlaceScales& scales, uint8_t* classes, int16_t* symbols, float* error,
                 RansPath path) {
  path = ResolveRansPath(path);
  return path == RansPath::kPortable
             ? QuantiseBody(row_term, y, count, rounding, centroids, scales, classes, symbols,
                            error)
             : QuantiseRowVector(TargetOf(path), row_term, y, count, rounding, centroids, scales,
                                 classes, symbols, error);
}

void DequantiseRow(const uint8_t* classes, const int16_t* symbols, int count,
                   const float* centroids, const float* step, float* y, RansPath path) {
  path = ResolveRansPath(path);
  path == RansPath::kPortable
      ? DequantiseBody(classes, symbols, count, centroids, step, y)
      : DequantiseRowVector(TargetOf(path), classes, symbols, count, centroids, step, y);
}

void AddToPredictor(const float* y, int tokens, float inverse_sigma, float c, float d, float* eta,
                    RansPath path) {
  UseAvx2(path) ? PredictorAvx2(y, tokens, inverse_sigma, c, d, eta)
                : PredictorBody(y, tokens, inverse_sigma, c, d, eta);
}

void AddToAmplitude(const float* y, int tokens, float inverse_sigma, float* amplitude,
                    RansPath path) {
  UseAvx2(path) ? AmplitudeAvx2(y, tokens, inverse_sigma, amplitude)
                : AmplitudeBody(y, tokens, inverse_sigma, amplitude);
}

}  // namespace kvcask::fklt
