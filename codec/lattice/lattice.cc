#include "codec/lattice/lattice.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codec/base/dtype.h"
#include "codec/quant/half.h"
#include "codec/transform/hadamard.h"

namespace kvcask {
namespace {

constexpr int kMaxDimensions = 8;

// The nearest integer point with an even sum and coordinates in [-q, q - 1]; its distance.
float NearestEven(const float* y, int dimensions, int q, int* z) {
  const auto square = [](float v) { return v * v; };
  int sum = 0;
  for (int i = 0; i < dimensions; ++i) {
    z[i] = std::clamp(static_cast<int>(std::nearbyint(y[i])), -q, q - 1);
    sum += z[i];
  }
  if (sum & 1) {
    // The cheapest step to a neighbour inside the cube: on both sides the cost, 1 - 2 gain,
    // grows with the distance, so that no other change of one coordinate is cheaper, and one is
    // enough.
    float best = 0;
    int best_at = -1, best_step = 0;
    for (int i = 0; i < dimensions; ++i) {
      for (int step : {1, -1}) {
        if (z[i] + step < -q || z[i] + step > q - 1) continue;
        const float gain = static_cast<float>(step) * (y[i] - static_cast<float>(z[i]));
        if (best_at >= 0 && gain <= best) continue;
        best = gain;
        best_at = i;
        best_step = step;
      }
    }
    z[best_at] += best_step;
  }
  float distance = 0;
  for (int i = 0; i < dimensions; ++i) distance += square(y[i] - static_cast<float>(z[i]));
  return distance;
}

// `bits` of an index at a place in a row's bit string.
class BitWriter {
 public:
  explicit BitWriter(uint8_t* out) : out_(out) {}
  void Write(LatticeIndex value, int bits) {
    for (int left = bits; left > 0;) {
      const int n = std::min(left, 32);
      pending_ |= (static_cast<uint64_t>(value) & ((uint64_t{1} << n) - 1)) << held_;
      value >>= n;
      left -= n;
      for (held_ += n; held_ >= 8; held_ -= 8, pending_ >>= 8) {
        *out_++ = static_cast<uint8_t>(pending_);
      }
    }
  }
  void Finish() {
    if (held_ > 0) *out_++ = static_cast<uint8_t>(pending_);
  }

 private:
  uint8_t* out_;
  uint64_t pending_ = 0;
  int held_ = 0;
};

class BitReader {
 public:
  explicit BitReader(const uint8_t* in) : in_(in) {}
  LatticeIndex Read(int bits) {
    LatticeIndex value = 0;
    for (int at = 0; at < bits;) {
      const int n = std::min(bits - at, 32);
      for (; held_ < n; held_ += 8) pending_ |= static_cast<uint64_t>(*in_++) << held_;
      value |= static_cast<LatticeIndex>(pending_ & ((uint64_t{1} << n) - 1)) << at;
      pending_ >>= n;
      held_ -= n;
      at += n;
    }
    return value;
  }

 private:
  const uint8_t* in_;
  uint64_t pending_ = 0;
  int held_ = 0;
};

}  // namespace

LatticeIndex Lattice::points() const {
  LatticeIndex n = kind == LatticeKind::kE8 ? 1 : 0;
  if (kind == LatticeKind::kD4) {
    const LatticeIndex side = 2 * q;
    return side * side * side * side / 2;
  }
  for (int i = 0; i < dimensions(); ++i) n *= 2 * q;
  return n;
}

int Lattice::bits() const {
  int n = 0;
  for (LatticeIndex last = points() - 1; last > 0; last >>= 1) ++n;
  return n;
}

void Lattice::Nearest(const float* y, int* twice) const {
  const int n = dimensions();
  int z[kMaxDimensions];
  const float distance = NearestEven(y, n, q, z);
  for (int i = 0; i < n; ++i) twice[i] = 2 * z[i];
  if (kind == LatticeKind::kD4) return;
  float shifted[kMaxDimensions] = {};
  for (int i = 0; i < n; ++i) shifted[i] = y[i] - .5f;
  if (NearestEven(shifted, n, q, z) >= distance) return;
  for (int i = 0; i < n; ++i) twice[i] = 2 * z[i] + 1;
}

LatticeIndex Lattice::IndexOf(const int* twice) const {
  const int n = dimensions();
  const int halves = twice[0] & 1;
  const auto digit = [&](int i) { return (twice[i] - halves) / 2 + q; };
  // The last digit's parity follows from the others': digits sum to an even number.
  LatticeIndex index = digit(n - 1) / 2;
  for (int i = n - 2; i >= 0; --i) index = index * (2 * q) + digit(i);
  return kind == LatticeKind::kE8 ? 2 * index + halves : index;
}

bool Lattice::PointOf(LatticeIndex index, int* twice) const {
  if (index >= points()) return false;
  const int n = dimensions(), side = 2 * q;
  int halves = 0;
  if (kind == LatticeKind::kE8) {
    halves = static_cast<int>(index & 1);
    index >>= 1;
  }
  int sum = 0;
  for (int i = 0; i < n - 1; ++i) {
    int digit;
    if (index >> 64 == 0) {  // nearly always: 128-bit division is slow
      const uint64_t low = static_cast<uint64_t>(index);
      digit = static_cast<int>(low % side);
      index = low / side;
    } else {
      digit = static_cast<int>(index % side);
      index /= side;
    }
    sum += digit;
    twice[i] = 2 * (digit - q) + halves;
  }
  const int last = 2 * static_cast<int>(index) + (sum & 1);
  twice[n - 1] = 2 * (last - q) + halves;
  return true;
}

size_t LatticeRowBytes(const Lattice& lattice, size_t n) {
  const size_t blocks = (n + lattice.dimensions() - 1) / lattice.dimensions();
  return 4 + (blocks * lattice.bits() + 7) / 8;
}

bool EncodeLatticeRows(const Lattice& lattice, const float* signs, size_t n, float* x, size_t rows,
                       uint8_t* out) {
  const size_t dimensions = lattice.dimensions(), bytes = LatticeRowBytes(lattice, n);
  const int bits = lattice.bits();
  const std::vector<size_t> blocks = HadamardBlocks(n);
  const std::vector<float> no_signs;
  float u[kMaxLatticeRow + kMaxDimensions];
  for (size_t r = 0; r < rows; ++r, x += n, out += bytes) {
    const uint16_t length = FloatToF16(std::sqrt(SumOfSquares(x, n)));
    if (!IsFiniteHalf(length)) return false;
    const float norm = F16ToFloat(length), inverse = norm > 0 ? 1 / norm : 0;
    for (size_t i = 0; i < n; ++i) x[i] *= signs[i];
    Hadamard(no_signs, x, n);
    float largest = 0;
    size_t at = 0;
    for (size_t block : blocks) {
      const float factor = inverse * (1 / std::sqrt(static_cast<float>(block)));
      for (size_t end = at + block; at < end; ++at) {
        u[at] = x[at] * factor;
        largest = std::max(largest, std::fabs(u[at]));
      }
    }
    std::fill(u + n, u + n + kMaxDimensions, 0.f);
    const uint16_t range = HalfAtLeast(largest);
    if (!IsFiniteHalf(range)) return false;  // a length that a half rounds to nearly nothing
    StoreHalf(length, out);
    StoreHalf(range, out + 2);
    const float side = static_cast<float>(lattice.q) - .5f;
    const float stretch = range > 0 ? side / F16ToFloat(range) : 0;
    BitWriter writer(out + 4);
    for (size_t i = 0; i < n; i += dimensions) {
      float y[kMaxDimensions];
      int twice[kMaxDimensions];
      for (size_t j = 0; j < dimensions; ++j) y[j] = u[i + j] * stretch;
      lattice.Nearest(y, twice);
      writer.Write(lattice.IndexOf(twice), bits);
    }
    writer.Finish();
  }
  return true;
}

bool DecodeLatticeRows(const Lattice& lattice, const float* signs, size_t n, const uint8_t* in,
                       size_t rows, float* x) {
  const size_t dimensions = lattice.dimensions(), bytes = LatticeRowBytes(lattice, n);
  const int bits = lattice.bits();
  const std::vector<size_t> blocks = HadamardBlocks(n);
  const std::vector<float> no_signs;
  float row[kMaxLatticeRow + kMaxDimensions];
  for (size_t r = 0; r < rows; ++r, x += n, in += bytes) {
    const uint16_t length = LoadHalf(in), range = LoadHalf(in + 2);
    if (length >= kInfiniteHalf || range >= kInfiniteHalf) return false;
    const float step = F16ToFloat(range) / (static_cast<float>(lattice.q) - .5f) * .5f;
    BitReader reader(in + 4);
    for (size_t i = 0; i < n; i += dimensions) {
      int twice[kMaxDimensions];
      if (!lattice.PointOf(reader.Read(bits), twice)) return false;
      for (size_t j = 0; j < dimensions; ++j) row[i + j] = static_cast<float>(twice[j]) * step;
    }
    Hadamard(no_signs, row, n);
    const float norm = F16ToFloat(length);
    size_t at = 0;
    for (size_t block : blocks) {
      const float factor = norm * (1 / std::sqrt(static_cast<float>(block)));
      for (size_t end = at + block; at < end; ++at) x[at] = row[at] * factor * signs[at];
    }
  }
  return true;
}

}  // namespace kvcask
