#include "codec/fixed/slow_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "codec/base/dtype.h"
#include "codec/quant/lloyd_max.h"

namespace kvcask {
namespace {

using Row = std::vector<float>;
using Bits = std::vector<bool>;
using Index = unsigned __int128;

void Put(Bits& bits, Index value, int n) {
  for (int i = 0; i < n; ++i) bits.push_back(static_cast<bool>(value >> i & 1));
}
Index Take(const Bits& bits, size_t& at, int n) {
  Index value = 0;
  for (int i = 0; i < n; ++i) value |= static_cast<Index>(bits[at++]) << i;
  return value;
}
void Fill(Bits& bits) {
  while (bits.size() % 8 != 0) bits.push_back(false);
}

// Halves by search among all of them: the positive ones, infinity last.
uint16_t SlowHalfAtLeast(float x) {
  static const std::vector<float> kAll = [] {
    std::vector<float> all;
    for (int h = 0; h <= 0x7c00; ++h) all.push_back(F16ToFloat(static_cast<uint16_t>(h)));
    return all;
  }();
  return static_cast<uint16_t>(std::lower_bound(kAll.begin(), kAll.end(), x) - kAll.begin());
}
uint16_t SlowHalfAtMost(float x) {
  if (x < 0) return 0x8000 | SlowHalfAtLeast(-x);
  const uint16_t h = SlowHalfAtLeast(x);
  return F16ToFloat(h) == x ? h : h - 1;
}

// The nearest e4m3 number: of equally near ones that with an even code; by search.
float E4m3(int e) {
  const int exponent = e >> 3 & 15, mantissa = e & 7;
  const double x = exponent == 0 ? mantissa * 0x1p-9 : (8 + mantissa) * std::exp2(exponent - 10);
  return static_cast<float>(e & 0x80 ? -x : x);
}
int SlowE4m3(float x) {
  int best = 0;
  for (int e = 0; e < 127; ++e) {
    const double d = std::fabs(E4m3(e) - std::fabs(static_cast<double>(x)));
    const double b = std::fabs(E4m3(best) - std::fabs(static_cast<double>(x)));
    if (d < b || (d == b && e % 2 == 0)) best = e;
  }
  return std::signbit(x) ? best | 0x80 : best;
}

void PutUniform(Bits& out, Bits& codes, const std::vector<float>& group, int bits) {
  const float low = *std::min_element(group.begin(), group.end());
  const float high = *std::max_element(group.begin(), group.end());
  const uint16_t zero = SlowHalfAtMost(low);
  const int largest = (1 << bits) - 1;
  const uint16_t scale = SlowHalfAtLeast((high - F16ToFloat(zero)) / static_cast<float>(largest));
  Put(out, scale, 16);
  Put(out, zero, 16);
  const float inverse = scale ? 1 / F16ToFloat(scale) : 0;
  for (float x : group) {
    const float code = std::nearbyint((x - F16ToFloat(zero)) * inverse);
    Put(codes, static_cast<unsigned>(std::min(code, static_cast<float>(largest))), bits);
  }
}

// signs, blocks, and H in place, from the definition of each stage.
float SlowSign(size_t i) {
  uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return (z ^ (z >> 31)) >> 63 ? -1.f : 1.f;
}
std::vector<std::pair<size_t, size_t>> SlowBlocks(size_t n) {  // (first, length)
  std::vector<std::pair<size_t, size_t>> blocks;
  for (size_t at = 0, m = 4096; m > 0; m /= 2) {
    if ((n / m) % 2 == 1) {
      blocks.push_back({at, m});
      at += m;
    }
  }
  return blocks;
}
void SlowTransform(Row& x) {
  for (auto [first, length] : SlowBlocks(x.size())) {
    for (size_t stride = 1; stride < length; stride *= 2) {
      const Row old = x;
      for (size_t i = 0; i < length; ++i) {
        const float self = old[first + i], other = old[first + (i ^ stride)];
        x[first + i] = i & stride ? other - self : self + other;
      }
    }
  }
}
float SlowSquares(const Row& x) {
  float s[16] = {};
  for (size_t i = 0; i < x.size(); ++i) s[i % 16] += x[i] * x[i];
  for (int j = 0; j < 8; ++j) s[j] += s[j + 8];
  for (int j = 0; j < 4; ++j) s[j] += s[j + 4];
  for (int j = 0; j < 2; ++j) s[j] += s[j + 2];
  return s[0] + s[1];
}

void PutTurbo(Bits& out, const CoderSpec& spec, Row x) {
  const size_t n = x.size();
  const Codebook& book = LloydMaxCodebook(spec.bits, spec.signs ? static_cast<int>(n) : 0);
  const int half = 1 << (spec.bits - 1);
  const float norm = std::sqrt(SlowSquares(x)), root = std::sqrt(static_cast<float>(n));
  if (spec.signs) {
    for (size_t i = 0; i < n; ++i) x[i] *= SlowSign(i);
  }
  SlowTransform(x);
  Bits codes;
  uint64_t energy = 0;
  for (auto [first, length] : SlowBlocks(n)) {
    const float factor =
        (norm > 0 ? root / norm : 0) * (1 / std::sqrt(static_cast<float>(length)));
    for (size_t i = first; i < first + length; ++i) {
      const float y = x[i] * factor;
      int m = half - 1;
      while (m > 0 && std::fabs(y) < (book.levels[m - 1] + book.levels[m]) / 2048.f) --m;
      energy += static_cast<uint64_t>(book.levels[m]) * book.levels[m];
      Put(codes, std::signbit(y) ? half - 1 - m : half + m, spec.bits);
    }
  }
  const float length =
      spec.norm_corrected ? std::sqrt(static_cast<float>(energy)) * (1 / 1024.f) : root;
  Put(out, FloatToF16(norm / length), 16);
  Fill(codes);
  out.insert(out.end(), codes.begin(), codes.end());
}

// Of equally near points: that with the fewest steps away from the rounding, then that which
// moves the first coordinate, and upwards.
bool Before(const float* y, float shift, const std::vector<int>& a, const std::vector<int>& b) {
  int steps = 0;  // of a less b
  for (size_t i = 0; i < a.size(); ++i) {
    const int rounded = static_cast<int>(std::nearbyint(y[i] - shift));
    steps += std::abs(a[i] - rounded) - std::abs(b[i] - rounded);
  }
  if (steps != 0) return steps < 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const int rounded = static_cast<int>(std::nearbyint(y[i] - shift));
    const int move_a = std::abs(a[i] - rounded), move_b = std::abs(b[i] - rounded);
    if (move_a != move_b) return move_a > move_b;
    if (a[i] != b[i]) return a[i] > b[i];
  }
  return false;
}

// The point of the class with a fixed coset that is nearest, from all roundings up and down of
// each coordinate and one step further.
void SlowNearest(const float* y, int n, int q, float shift, std::vector<int>& best,
                 float& least) {
  std::vector<int> z(n), base(n);
  for (int i = 0; i < n; ++i) base[i] = static_cast<int>(std::floor(y[i] - shift));
  const int choices = 1 << (2 * n);  // -1, 0, 1, 2 from the floor
  std::vector<int> chosen;
  double nearest = 1e30;
  for (int c = 0; c < choices; ++c) {
    int sum = 0;
    bool inside = true;
    for (int i = 0; i < n; ++i) {
      z[i] = base[i] - 1 + (c >> (2 * i) & 3);
      inside = inside && z[i] >= -q && z[i] <= q - 1;
      sum += z[i];
    }
    if (!inside || sum % 2 != 0) continue;
    double distance = 0;  // exact: fp32 differences of about one
    for (int i = 0; i < n; ++i) {
      const double d = (y[i] - shift) - static_cast<float>(z[i]);
      distance += d * d;
    }
    if (distance < nearest || (distance == nearest && Before(y, shift, z, chosen))) {
      nearest = distance;
      chosen = z;
    }
  }
  float distance = 0;
  for (int i = 0; i < n; ++i) {
    const float d = (y[i] - shift) - static_cast<float>(chosen[i]);
    distance += d * d;
  }
  if (distance >= least) return;
  least = distance;
  best.resize(n);
  for (int i = 0; i < n; ++i) best[i] = 2 * chosen[i] + (shift > 0);
}

int IndexBits(int dimensions, int q) {
  Index points = dimensions == 8 ? 2 : 1;
  for (int i = 0; i < dimensions; ++i) points *= 2 * q;
  points = points / 2;
  int bits = 0;
  while ((static_cast<Index>(1) << bits) < points) ++bits;
  return bits;
}

// Digits d_i = floor(coordinate) + Q; index = half + 2 (d_0 + 2Q (d_1 + ... (d_last / 2))).
Index SlowIndex(const std::vector<int>& twice, int q) {
  const int n = static_cast<int>(twice.size());
  Index index = 0, place = 1;
  for (int i = 0; i < n; ++i) {
    const int digit = static_cast<int>(std::floor(twice[i] / 2.0)) + q;
    index += place * static_cast<Index>(i + 1 < n ? digit : digit / 2);
    place *= 2 * q;
  }
  return n == 8 ? 2 * index + (twice[0] & 1) : index;
}

void PutLattice(Bits& out, const CoderSpec& spec, Row x) {
  const size_t n = x.size();
  const uint16_t length = FloatToF16(std::sqrt(SlowSquares(x)));
  const float norm = F16ToFloat(length);
  for (size_t i = 0; i < n; ++i) x[i] *= SlowSign(i);
  SlowTransform(x);
  float largest = 0;
  for (auto [first, block] : SlowBlocks(n)) {
    const float factor = (norm > 0 ? 1 / norm : 0) * (1 / std::sqrt(static_cast<float>(block)));
    for (size_t i = first; i < first + block; ++i) {
      x[i] *= factor;
      largest = std::max(largest, std::fabs(x[i]));
    }
  }
  const uint16_t range = SlowHalfAtLeast(largest);
  Put(out, length, 16);
  Put(out, range, 16);
  const float stretch =
      range ? (static_cast<float>(spec.q) - .5f) / F16ToFloat(range) : 0;
  x.resize((n + spec.bits - 1) / spec.bits * spec.bits, 0);
  Bits codes;
  for (size_t i = 0; i < x.size(); i += spec.bits) {
    float y[8];
    for (int j = 0; j < spec.bits; ++j) y[j] = i + j < n ? x[i + j] * stretch : 0;
    std::vector<int> best;
    float least = std::numeric_limits<float>::infinity();
    SlowNearest(y, spec.bits, spec.q, 0, best, least);
    if (spec.bits == 8) SlowNearest(y, spec.bits, spec.q, .5f, best, least);
    Put(codes, SlowIndex(best, spec.q), IndexBits(spec.bits, spec.q));
  }
  Fill(codes);
  out.insert(out.end(), codes.begin(), codes.end());
}

Row TakeLattice(const Bits& in, size_t& at, const CoderSpec& spec, size_t n) {
  const float norm = F16ToFloat(static_cast<uint16_t>(Take(in, at, 16)));
  const float range = F16ToFloat(static_cast<uint16_t>(Take(in, at, 16)));
  const float step = range / (static_cast<float>(spec.q) - .5f) * .5f;
  Row x;
  for (size_t i = 0; i < n; i += spec.bits) {
    Index index = Take(in, at, IndexBits(spec.bits, spec.q));
    int half = 0, sum = 0;
    if (spec.bits == 8) {
      half = static_cast<int>(index % 2);
      index /= 2;
    }
    for (int j = 0; j < spec.bits; ++j) {
      int digit = static_cast<int>(index % (2 * spec.q));
      index /= 2 * spec.q;
      if (j == spec.bits - 1) digit = 2 * digit + sum % 2;
      sum += digit;
      x.push_back(static_cast<float>(2 * (digit - spec.q) + half) * step);
    }
  }
  x.resize(n);
  SlowTransform(x);
  for (auto [first, length] : SlowBlocks(n)) {
    const float factor = norm * (1 / std::sqrt(static_cast<float>(length)));
    for (size_t i = first; i < first + length; ++i) x[i] = x[i] * factor * SlowSign(i);
  }
  while (at % 8 != 0) ++at;
  return x;
}

Row TakeTurbo(const Bits& in, size_t& at, const CoderSpec& spec, size_t n) {
  const Codebook& book = LloydMaxCodebook(spec.bits, spec.signs ? static_cast<int>(n) : 0);
  const int half = 1 << (spec.bits - 1);
  const float norm = F16ToFloat(static_cast<uint16_t>(Take(in, at, 16)));
  Row x(n);
  for (auto [first, length] : SlowBlocks(n)) {
    const float factor = norm * (1 / std::sqrt(static_cast<float>(length)));
    for (size_t i = first; i < first + length; ++i) {
      const int code = static_cast<int>(Take(in, at, spec.bits));
      const int level = code >= half ? book.levels[code - half] : -book.levels[half - 1 - code];
      x[i] = static_cast<float>(level) / 1024 * factor;
    }
  }
  SlowTransform(x);
  for (size_t i = 0; spec.signs && i < n; ++i) x[i] *= SlowSign(i);
  while (at % 8 != 0) ++at;
  return x;
}

}  // namespace

std::vector<uint8_t> SlowEncode(const CoderSpec& spec, const std::vector<Row>& rows) {
  Bits out;
  const size_t n = rows.empty() ? 0 : rows[0].size();
  switch (spec.kind) {
    case CoderKind::kRaw:
      break;
    case CoderKind::kFp8:
      for (const Row& x : rows) {
        float inverse = 1;
        if (spec.scaled) {
          float largest = 0;
          for (float v : x) largest = std::max(largest, std::fabs(v));
          const uint16_t scale = SlowHalfAtLeast(largest / 448);
          Put(out, scale, 16);
          inverse = scale ? 1 / F16ToFloat(scale) : 0;
        }
        for (float v : x) Put(out, SlowE4m3(v * inverse), 8);
      }
      break;
    case CoderKind::kUniform:
      for (const Row& x : rows) {
        const size_t group = spec.group == 0 ? n : spec.group;
        Bits codes;
        for (size_t g = 0; g < n; g += group) {
          PutUniform(out, codes, Row(x.begin() + g, x.begin() + std::min(n, g + group)), spec.bits);
        }
        Fill(codes);
        out.insert(out.end(), codes.begin(), codes.end());
      }
      break;
    case CoderKind::kTurbo:
      for (const Row& x : rows) PutTurbo(out, spec, x);
      break;
    case CoderKind::kLattice:
      for (const Row& x : rows) PutLattice(out, spec, x);
      break;
    case CoderKind::kChannel:
      for (size_t t = 0; t < rows.size(); t += spec.group) {
        std::vector<Bits> codes(n);
        for (size_t c = 0; c < n; ++c) {
          Row column;
          for (int i = 0; i < spec.group; ++i) column.push_back(rows[t + i][c]);
          PutUniform(out, codes[c], column, spec.bits);
        }
        Bits together;
        for (int i = 0; i < spec.group; ++i) {
          for (size_t c = 0; c < n; ++c) {
            for (int b = 0; b < spec.bits; ++b) together.push_back(codes[c][i * spec.bits + b]);
          }
        }
        Fill(together);
        out.insert(out.end(), together.begin(), together.end());
      }
      break;
  }
  std::vector<uint8_t> bytes(out.size() / 8);
  for (size_t i = 0; i < out.size(); ++i) bytes[i / 8] |= static_cast<uint8_t>(out[i] << (i % 8));
  return bytes;
}

std::vector<Row> SlowDecode(const CoderSpec& spec, const std::vector<uint8_t>& bytes, int count,
                            int head_dim) {
  Bits in;
  for (uint8_t b : bytes) Put(in, b, 8);
  const size_t n = head_dim;
  std::vector<Row> rows(count, Row(n));
  size_t at = 0;
  const auto half = [&] { return F16ToFloat(static_cast<uint16_t>(Take(in, at, 16))); };
  switch (spec.kind) {
    case CoderKind::kRaw:
      break;
    case CoderKind::kFp8:
      for (Row& x : rows) {
        const float scale = spec.scaled ? half() : 1;
        for (float& v : x) v = E4m3(static_cast<int>(Take(in, at, 8))) * scale;
      }
      break;
    case CoderKind::kUniform:
      for (Row& x : rows) {
        const size_t group = spec.group == 0 ? n : spec.group;
        std::vector<float> scale, zero;
        for (size_t g = 0; g < n; g += group) {
          scale.push_back(half());
          zero.push_back(half());
        }
        for (size_t i = 0; i < n; ++i) {
          x[i] = static_cast<float>(Take(in, at, spec.bits)) * scale[i / group] + zero[i / group];
        }
        while (at % 8 != 0) ++at;
      }
      break;
    case CoderKind::kTurbo:
      for (Row& x : rows) x = TakeTurbo(in, at, spec, n);
      break;
    case CoderKind::kLattice:
      for (Row& x : rows) x = TakeLattice(in, at, spec, n);
      break;
    case CoderKind::kChannel:
      for (int t = 0; t < count; t += spec.group) {
        std::vector<float> scale(n), zero(n);
        for (size_t c = 0; c < n; ++c) {
          scale[c] = half();
          zero[c] = half();
        }
        for (int i = 0; i < spec.group; ++i) {
          for (size_t c = 0; c < n; ++c) {
            rows[t + i][c] = static_cast<float>(Take(in, at, spec.bits)) * scale[c] + zero[c];
          }
        }
        while (at % 8 != 0) ++at;
      }
      break;
  }
  return rows;
}

}  // namespace kvcask
