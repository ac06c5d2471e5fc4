// The products of device/cublas.h by plain loops, in order of the stream.
#include <absl/status/status.h>

#include <algorithm>
#include <vector>

#include "device/cublas.h"

namespace kvcask {

struct Cublas::Functions {};

absl::StatusOr<std::unique_ptr<Cublas>> Cublas::Load() {
  return std::unique_ptr<Cublas>(new Cublas());
}
Cublas::~Cublas() = default;

absl::Status Cublas::MultiplyTransposed(cudaStream_t stream, int tokens, int columns, int rows,
                                        float alpha, const __half* y, int y_stride, const __half* m,
                                        __half* x) {
  emulation::Enqueue(stream, [=] {
    std::vector<float> sum(columns);
    for (int t = 0; t < tokens; ++t) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int r = 0; r < rows; ++r) {
        const float v = __half2float(y[static_cast<size_t>(r) * y_stride + t]);
        if (v == 0) continue;
        const __half* const row = m + static_cast<size_t>(r) * columns;
        for (int c = 0; c < columns; ++c) sum[c] += v * __half2float(row[c]);
      }
      for (int c = 0; c < columns; ++c) {
        x[static_cast<size_t>(t) * columns + c] = __float2half_rn(alpha * sum[c]);
      }
    }
  });
  return absl::OkStatus();
}

absl::Status Cublas::MultiplyByTransposed(cudaStream_t stream, int rows, int tokens, int columns,
                                          float alpha, const __half* m, const __half* x, __half* y,
                                          int y_stride) {
  emulation::Enqueue(stream, [=] {
    std::vector<float> a(static_cast<size_t>(rows) * columns), b(columns);
    for (size_t i = 0; i < a.size(); ++i) a[i] = __half2float(m[i]);
    for (int t = 0; t < tokens; ++t) {
      for (int c = 0; c < columns; ++c) {
        b[c] = __half2float(x[static_cast<size_t>(t) * columns + c]);
      }
      for (int r = 0; r < rows; ++r) {
        float sum = 0;
        for (int c = 0; c < columns; ++c) sum += a[static_cast<size_t>(r) * columns + c] * b[c];
        y[static_cast<size_t>(r) * y_stride + t] = __float2half_rn(alpha * sum);
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace kvcask
