#include "codec/entropy/rans_test_tables.h"

#include <algorithm>
#include <cmath>

namespace kvcask {
namespace {

double Cdf(double x) { return .5 * std::erfc(-x / std::sqrt(2.0)); }

}  // namespace

double ClassSigma(int table) { return std::exp2((table - 16) / 2.5); }

RawTables GaussianTables() {
  RawTables out;
  for (int t = 0; t < kTables; ++t) {
    int lo, n, shift = 0;
    std::vector<double> p;
    if (t < kCoordinateTables) {
      double sigma = ClassSigma(t);
      for (; sigma > 24; sigma /= 2) ++shift;
      const int reach = std::min(100, static_cast<int>(std::ceil(3.8 * sigma)));
      lo = -reach;
      n = 2 * reach + 1;
      for (int v = lo; v < lo + n; ++v) {
        // Values v << shift ... (v + 1) << shift of integers rounded to nearest.
        const double a = shift ? v - .5 / (1 << shift) : v - .5;
        p.push_back(Cdf((a + 1) / sigma) - Cdf(a / sigma));
      }
      p.push_back(1e-4);
    } else if (t == kAmplitudeTable) {
      lo = 0, n = 16;
      for (int v = 0; v < n; ++v) p.push_back(std::exp(-.5 * (v - 8) * (v - 8)));
    } else {
      lo = -6, n = 13;
      for (int v = lo; v < lo + n; ++v) p.push_back(std::exp(-.3 * v * v));
    }
    out.shape.insert(out.shape.end(), {static_cast<int16_t>(lo), static_cast<int16_t>(n),
                                       static_cast<int16_t>(shift)});
    for (int16_t f : NormalizeFrequencies(p)) out.freq.push_back(f);
    if (t >= kCoordinateTables) out.freq.push_back(0);
  }
  return out;
}

}  // namespace kvcask
