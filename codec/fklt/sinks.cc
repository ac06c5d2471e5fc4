#include "codec/fklt/sinks.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "codec/fklt/tile_layout.h"

namespace kvcask::fklt {
namespace {

// The least exponent whose step holds `largest`, as the byte that is stored.
int ExponentFor(float largest) {
  int e = 0;
  if (largest > 0) {
    const double exact = std::ceil(8 * std::log2(largest / static_cast<double>(kSinkLargest)));
    e = static_cast<int>(std::max(0.0, std::min(255.0, exact + kSinkExponentBias)));
  }
  while (e < 255 && largest > (kSinkLargest + .49f) * SinkStep(e)) ++e;
  return e;
}

// sum of 1/2 |L^T e|^2 of one sub-vector.
double Loss(const GroupModel& group, const Member& m, const float* error) {
  std::vector<double> z(m.head_dim, 0);
  size_t at = m.l_offset;
  for (int i = 0; i < m.head_dim; ++i) {
    for (int j = 0; j <= i; ++j) z[j] += static_cast<double>(group.l[at++]) * error[i];
  }
  double sum = 0;
  for (double v : z) sum += .5 * v * v;
  return sum;
}

}  // namespace

size_t SinkBytes(const GroupModel& group, int sinks) {
  const size_t elements = static_cast<size_t>(group.dimensions) * sinks;
  return group.members.size() * sinks + elements + (elements + 3) / 4;
}

double QuantiseSinks(const GroupModel& group, int sinks, const float* centred, uint8_t* out) {
  const size_t elements = static_cast<size_t>(group.dimensions) * sinks;
  uint8_t* exponents = out;
  uint8_t* const high = out + group.members.size() * sinks;
  uint8_t* const low = high + elements;
  std::fill_n(low, (elements + 3) / 4, uint8_t{0});
  double loss = 0;
  size_t at = 0;
  std::vector<float> error;
  for (const Member& m : group.members) {
    error.resize(m.head_dim);
    for (int t = 0; t < sinks; ++t) {
      const float* const x = centred + static_cast<size_t>(t) * group.dimensions + m.offset;
      float largest = 0;
      for (int i = 0; i < m.head_dim; ++i) largest = std::max(largest, std::fabs(x[i]));
      const int exponent = ExponentFor(largest);
      *exponents++ = static_cast<uint8_t>(exponent);
      const float step = SinkStep(exponent);
      for (int i = 0; i < m.head_dim; ++i, ++at) {
        const int n = std::min(kSinkLargest, static_cast<int>(std::fabs(x[i]) / step + .5f));
        const int q = x[i] < 0 ? -n : n;
        error[i] = x[i] - static_cast<float>(q) * step;
        const int u = q + kSinkBias;
        high[at] = static_cast<uint8_t>(u >> 2);
        low[at / 4] = static_cast<uint8_t>(low[at / 4] | (u & 3) << at % 4 * 2);
      }
      loss += Loss(group, m, error.data());
    }
  }
  return loss;
}

absl::Status DequantiseSinks(const GroupModel& group, int sinks, absl::Span<const uint8_t> bytes,
                             float* x) {
  const size_t elements = static_cast<size_t>(group.dimensions) * sinks;
  const uint8_t* exponents = bytes.data();
  const uint8_t* const high = exponents + group.members.size() * sinks;
  const uint8_t* const low = high + elements;
  if (elements % 4 != 0 && low[elements / 4] >> elements % 4 * 2 != 0) {
    return absl::DataLossError("fklt tile: unused bits after the sinks are set");
  }
  size_t at = 0;
  for (const Member& m : group.members) {
    for (int t = 0; t < sinks; ++t) {
      const float step = SinkStep(*exponents++);
      float* const to = x + static_cast<size_t>(t) * group.dimensions + m.offset;
      for (int i = 0; i < m.head_dim; ++i, ++at) {
        const int u = high[at] << 2 | (low[at / 4] >> at % 4 * 2 & 3);
        to[i] = group.mu[m.offset + i] + static_cast<float>(u - kSinkBias) * step;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvcask::fklt
