#include "codec/transform/rope.h"

#include <cmath>

namespace kvcask {
namespace {

// Rows between fresh sines and cosines: the error of the steps in between, one rounding in
// double each, stays below 1e-14, far under that of a float.
constexpr int kRestart = 64;

bool Consecutive(absl::Span<const uint32_t> positions) {
  for (size_t i = 1; i < positions.size(); ++i) {
    if (positions[i] != static_cast<uint64_t>(positions[i - 1]) + 1) return false;
  }
  return true;
}

}  // namespace

RopeTable MakeRopeTable(const Rope& rope, absl::Span<const uint32_t> positions, int64_t offset,
                        RopeDirection direction) {
  RopeTable table;
  table.rows = static_cast<int>(positions.size());
  table.pairs = static_cast<int>(rope.inv_freq.size());
  const size_t size = static_cast<size_t>(table.rows) * table.pairs;
  table.cosines.resize(size);
  table.sines.resize(size);
  const bool inverse = direction == RopeDirection::kUnrotate;
  const double scale = inverse ? 1.0 / rope.attention_scale : rope.attention_scale;
  const double sine_scale = inverse ? -scale : scale;
  const bool steps = Consecutive(positions);
  std::vector<double> c(table.pairs), s(table.pairs), step_c(table.pairs), step_s(table.pairs);
  for (int i = 0; i < table.pairs; ++i) {
    step_c[i] = std::cos(static_cast<double>(rope.inv_freq[i]));
    step_s[i] = std::sin(static_cast<double>(rope.inv_freq[i]));
  }
  for (int r = 0; r < table.rows; ++r) {
    float* cosines = table.cosines.data() + static_cast<size_t>(r) * table.pairs;
    float* sines = table.sines.data() + static_cast<size_t>(r) * table.pairs;
    if (!steps || r % kRestart == 0) {
      const double position = static_cast<double>(positions[r] + offset);
      for (int i = 0; i < table.pairs; ++i) {
        const double angle = position * static_cast<double>(rope.inv_freq[i]);
        c[i] = std::cos(angle);
        s[i] = std::sin(angle);
      }
    } else {
      for (int i = 0; i < table.pairs; ++i) {
        const double turned = c[i] * step_c[i] - s[i] * step_s[i];
        s[i] = c[i] * step_s[i] + s[i] * step_c[i];
        c[i] = turned;
      }
    }
    for (int i = 0; i < table.pairs; ++i) {
      cosines[i] = static_cast<float>(c[i] * scale);
      sines[i] = static_cast<float>(s[i] * sine_scale);
    }
  }
  return table;
}

RopeTable MakeRopeShift(const Rope& rope, int64_t offset) {
  RopeTable table;
  table.rows = 1;
  table.pairs = static_cast<int>(rope.inv_freq.size());
  for (float f : rope.inv_freq) {
    const double angle = static_cast<double>(offset) * static_cast<double>(f);
    table.cosines.push_back(static_cast<float>(std::cos(angle)));
    table.sines.push_back(static_cast<float>(std::sin(angle)));
  }
  return table;
}

void ApplyRope(const Rope& rope, const RopeTable& table, int rows, int64_t row_stride, float* x) {
  if (rope.style == RopeStyle::kNone) return;
  const int pairs = table.pairs;
  for (int r = 0; r < rows; ++r, x += row_stride) {
    const size_t row = table.rows == 1 ? 0 : static_cast<size_t>(r) * pairs;
    const float* __restrict c = table.cosines.data() + row;
    const float* __restrict s = table.sines.data() + row;
    if (rope.style == RopeStyle::kRotateHalf) {
      float* __restrict a = x;
      float* __restrict b = x + pairs;
      for (int i = 0; i < pairs; ++i) {
        const float first = a[i], second = b[i];
        a[i] = first * c[i] - second * s[i];
        b[i] = first * s[i] + second * c[i];
      }
    } else {
      for (int i = 0; i < pairs; ++i) {
        const float first = x[2 * i], second = x[2 * i + 1];
        x[2 * i] = first * c[i] - second * s[i];
        x[2 * i + 1] = first * s[i] + second * c[i];
      }
    }
  }
}

}  // namespace kvcask
