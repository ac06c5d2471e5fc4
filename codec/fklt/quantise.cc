#include "codec/fklt/quantise.h"

#include <cmath>

#include "codec/entropy/static_tables.h"

// One body for each function, compiled once as it is and once for AVX2: the compiler vectorises
// the loops over tokens. -ffp-contract=off keeps both the same.
#if defined(__x86_64__)
#define KVCASK_AVX2 __attribute__((target("avx2")))
#else
#define KVCASK_AVX2
#endif
#define KVCASK_BODY __attribute__((always_inline)) inline

namespace kvcask::fklt {
namespace {

bool UseAvx2(RansPath path) {
  return path != RansPath::kPortable && RansPathAvailable(RansPath::kAvx2);
}

KVCASK_BODY bool QuantiseBody(int row, int row_term, const float* __restrict y, int tokens,
                              float rounding, const float* __restrict centroids,
                              const TokenScales& scales, uint8_t* __restrict classes,
                              int16_t* __restrict symbols, TokenSums* __restrict sums) {
  int outside = 0;
  alignas(32) int c32[kMaxTokens];
  alignas(32) int q32[kMaxTokens];
  for (int t = 0; t < tokens; ++t) {
    const bool present = row < scales.rows[t];
    int c = ((5 * (row_term + scales.terms[t]) + 16) >> 5) + 16;
    c = c < 0 ? 0 : c;
    c = c > kClasses - 1 ? kClasses - 1 : c;
    c = present ? c : kAbsentClass;
    const float magnitude = std::fabs(y[t]);
    float a = magnitude * scales.inverse_step[t] + rounding;
    const bool fits = a < 32768.0f;  // false for NaN
    outside |= present & !fits;
    a = present & fits ? a : 0.0f;
    const int n = static_cast<int>(a);
    const int small = n < 3 ? n : 3;
    const float centre = centroids[c * 4 + small];
    const float value = n > 3 ? static_cast<float>(n) : centre;
    const float e = magnitude - value * scales.step[t];
    sums->error[t] += e * e;
    c32[t] = c;
    q32[t] = y[t] < 0 ? -n : n;
  }
  for (int t = 0; t < tokens; ++t) {
    classes[t] = static_cast<uint8_t>(c32[t]);
    symbols[t] = static_cast<int16_t>(q32[t]);
  }
  return outside == 0;
}

KVCASK_BODY void DequantiseBody(const uint8_t* __restrict classes, const int16_t* __restrict symbols,
                                int begin, int end, const float* __restrict centroids,
                                const float* __restrict step, float* __restrict y) {
  for (int t = begin; t < end; ++t) {
    const int q = symbols[t];
    const int n = q < 0 ? -q : q;
    const int small = n < 3 ? n : 3;
    const float centre = centroids[classes[t] * 4 + small];
    const float value = (n > 3 ? static_cast<float>(n) : centre) * step[t];
    y[t - begin] = q < 0 ? -value : value;
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

KVCASK_AVX2 bool QuantiseAvx2(int row, int row_term, const float* y, int tokens, float rounding,
                              const float* centroids, const TokenScales& scales, uint8_t* classes,
                              int16_t* symbols, TokenSums* sums) {
  return QuantiseBody(row, row_term, y, tokens, rounding, centroids, scales, classes, symbols,
                      sums);
}
KVCASK_AVX2 void DequantiseAvx2(const uint8_t* classes, const int16_t* symbols, int begin, int end,
                                const float* centroids, const float* step, float* y) {
  DequantiseBody(classes, symbols, begin, end, centroids, step, y);
}
KVCASK_AVX2 void PredictorAvx2(const float* y, int tokens, float inverse_sigma, float c, float d,
                               float* eta) {
  PredictorBody(y, tokens, inverse_sigma, c, d, eta);
}
KVCASK_AVX2 void AmplitudeAvx2(const float* y, int tokens, float inverse_sigma, float* amplitude) {
  AmplitudeBody(y, tokens, inverse_sigma, amplitude);
}

}  // namespace

bool QuantiseRow(int row, int row_term, const float* y, int tokens, float rounding,
                 const float* centroids, const TokenScales& scales, uint8_t* classes,
                 int16_t* symbols, TokenSums* sums, RansPath path) {
  return UseAvx2(path) ? QuantiseAvx2(row, row_term, y, tokens, rounding, centroids, scales,
                                      classes, symbols, sums)
                       : QuantiseBody(row, row_term, y, tokens, rounding, centroids, scales,
                                      classes, symbols, sums);
}

void DequantiseRow(const uint8_t* classes, const int16_t* symbols, int begin, int end,
                   const float* centroids, const float* step, float* y, RansPath path) {
  UseAvx2(path) ? DequantiseAvx2(classes, symbols, begin, end, centroids, step, y)
                : DequantiseBody(classes, symbols, begin, end, centroids, step, y);
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
