#include "codec/quant/uniform.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "codec/quant/bit_pack.h"
#include "codec/quant/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec/quant/uniform.cc"
#include <hwy/foreach_target.h>  // compiles what follows once for each target
#include <hwy/highway.h>

#include "codec/quant/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcask {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F>;
using U8 = hn::Rebind<uint8_t, F>;

HWY_INLINE void MinMax(const float* x, size_t n, float* low, float* high) {
  const F f;
  const size_t lanes = hn::Lanes(f);
  size_t i = 0;
  *low = *high = x[0];
  if (n >= lanes) {
    auto least = hn::LoadU(f, x), most = least;
    for (i = lanes; i + lanes <= n; i += lanes) {
      const auto v = hn::LoadU(f, x + i);
      least = hn::Min(least, v);
      most = hn::Max(most, v);
    }
    *low = hn::GetLane(hn::MinOfLanes(f, least));
    *high = hn::GetLane(hn::MaxOfLanes(f, most));
  }
  for (; i < n; ++i) {
    *low = std::min(*low, x[i]);
    *high = std::max(*high, x[i]);
  }
}

HWY_INLINE void Quantise(const float* x, size_t n, float zero, float inverse, int largest, uint8_t* q) {
  const F f;
  const I32 d32;
  const U8 d8;
  const size_t lanes = hn::Lanes(f);
  const auto z = hn::Set(f, zero), scale = hn::Set(f, inverse);
  const auto top = hn::Set(d32, largest);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto code = hn::NearestInt(hn::Mul(hn::Sub(hn::LoadU(f, x + i), z), scale));
    hn::StoreU(hn::DemoteTo(d8, hn::Min(code, top)), d8, q + i);
  }
  for (; i < n; ++i) {
    const int code = static_cast<int>(std::nearbyint((x[i] - zero) * inverse));
    q[i] = static_cast<uint8_t>(std::min(code, largest));
  }
}

HWY_INLINE void Dequantise(const uint8_t* q, size_t n, float zero, float step, float* x) {
  const F f;
  const I32 d32;
  const U8 d8;
  const size_t lanes = hn::Lanes(f);
  const auto z = hn::Set(f, zero), scale = hn::Set(f, step);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto code = hn::ConvertTo(f, hn::PromoteTo(d32, hn::LoadU(d8, q + i)));
    hn::StoreU(hn::Add(hn::Mul(code, scale), z), f, x + i);
  }
  for (; i < n; ++i) x[i] = static_cast<float>(q[i]) * step + zero;
}

constexpr size_t kRangesAtOnce = 16;

bool EncodeRows(const UniformRow& shape, const float* x, size_t rows, uint8_t* out) {
  const int largest = (1 << shape.bits) - 1;
  const float levels = static_cast<float>(largest);
  const size_t groups = shape.groups(), n = shape.n;
  uint8_t codes[kMaxUniformRow];
  struct Range {
    float low, high;  // then the zero that is stored, and 1 / the scale that is
  } ranges[kRangesAtOnce];
  for (size_t r = 0; r < rows; ++r, x += n) {
    for (size_t first = 0; first < groups; first += kRangesAtOnce) {
      const size_t some = std::min(kRangesAtOnce, groups - first);
      const auto each = [&](auto f) {
        for (size_t i = 0; i < some; ++i) {
          const size_t begin = (first + i) * shape.group;
          f(ranges[i], begin, std::min<size_t>(shape.group, n - begin));
        }
      };
      each([&](Range& range, size_t begin, size_t count) {
        MinMax(x + begin, count, &range.low, &range.high);
      });
      // A loop of its own: the conversions and divisions of one group hide behind another's.
      bool finite = true;
      for (size_t i = 0; i < some; ++i, out += 4) {
        Range& range = ranges[i];
        const uint16_t zero = HalfNotAbove(range.low);
        range.low = FromHalf(zero);
        const uint16_t scale = HalfNotBelow((range.high - range.low) / levels);
        finite &= IsFiniteHalf(zero) & IsFiniteHalf(scale);
        StoreHalf(scale, out);
        StoreHalf(zero, out + 2);
        range.high = scale > 0 ? 1 / FromHalf(scale) : 0;
      }
      if (!finite) return false;
      each([&](const Range& range, size_t begin, size_t count) {
        Quantise(x + begin, count, range.low, range.high, largest, codes + begin);
      });
    }
    PackBits(codes, n, shape.bits, out);
    out += PackedBytes(n, shape.bits);
  }
  return true;
}

bool DecodeRows(const UniformRow& shape, const uint8_t* in, size_t rows, float* x) {
  const size_t groups = shape.groups(), n = shape.n;
  uint8_t codes[kMaxUniformRow];
  for (size_t r = 0; r < rows; ++r, x += n, in += shape.bytes()) {
    UnpackBits(in + 4 * groups, n, shape.bits, codes);
    for (size_t g = 0; g < groups; ++g) {
      const uint16_t scale = LoadHalf(in + 4 * g), zero = LoadHalf(in + 4 * g + 2);
      if (scale >= kInfiniteHalf || !IsFiniteHalf(zero)) return false;
      const size_t begin = g * shape.group;
      Dequantise(codes + begin, std::min<size_t>(shape.group, n - begin), FromHalf(zero),
                 FromHalf(scale), x + begin);
    }
  }
  return true;
}

}  // namespace HWY_NAMESPACE
}  // namespace kvcask
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcask {

HWY_EXPORT(EncodeRows);
HWY_EXPORT(DecodeRows);

bool EncodeUniformRows(const UniformRow& shape, const float* x, size_t rows, uint8_t* out) {
  return HWY_DYNAMIC_DISPATCH(EncodeRows)(shape, x, rows, out);
}
bool DecodeUniformRows(const UniformRow& shape, const uint8_t* in, size_t rows, float* x) {
  return HWY_DYNAMIC_DISPATCH(DecodeRows)(shape, in, rows, x);
}

size_t UniformColumnsBytes(size_t tokens, size_t channels, int bits) {
  return 4 * channels + PackedBytes(tokens * channels, bits);
}

bool EncodeUniformColumns(const float* x, size_t tokens, size_t channels, int bits, uint8_t* out) {
  const int largest = (1 << bits) - 1;
  std::vector<float> low(x, x + channels), high = low, inverse(channels);
  for (size_t t = 1; t < tokens; ++t) {
    const float* row = x + t * channels;
    for (size_t c = 0; c < channels; ++c) {
      low[c] = std::min(low[c], row[c]);
      high[c] = std::max(high[c], row[c]);
    }
  }
  for (size_t c = 0; c < channels; ++c, out += 4) {
    const uint16_t zero = HalfAtMost(low[c]);
    low[c] = F16ToFloat(zero);
    const uint16_t scale = HalfAtLeast((high[c] - low[c]) / static_cast<float>(largest));
    if (!IsFiniteHalf(zero) || !IsFiniteHalf(scale)) return false;
    StoreHalf(scale, out);
    StoreHalf(zero, out + 2);
    inverse[c] = scale > 0 ? 1 / F16ToFloat(scale) : 0;
  }
  std::vector<uint8_t> codes(tokens * channels);
  for (size_t t = 0, i = 0; t < tokens; ++t) {
    for (size_t c = 0; c < channels; ++c, ++i) {
      const int code = static_cast<int>(std::nearbyint((x[i] - low[c]) * inverse[c]));
      codes[i] = static_cast<uint8_t>(std::min(code, largest));
    }
  }
  PackBits(codes.data(), codes.size(), bits, out);
  return true;
}

bool DecodeUniformColumns(const uint8_t* in, size_t tokens, size_t channels, int bits,
                          size_t begin, size_t end, float* x) {
  std::vector<float> scale(channels), zero(channels);
  for (size_t c = 0; c < channels; ++c, in += 4) {
    const uint16_t s = LoadHalf(in), z = LoadHalf(in + 2);
    if (s >= kInfiniteHalf || !IsFiniteHalf(z)) return false;
    scale[c] = F16ToFloat(s);
    zero[c] = F16ToFloat(z);
  }
  std::vector<uint8_t> codes(tokens * channels);
  UnpackBits(in, codes.size(), bits, codes.data());
  for (size_t t = begin; t < end; ++t, x += channels) {
    const uint8_t* row = &codes[t * channels];
    for (size_t c = 0; c < channels; ++c) {
      x[c] = static_cast<float>(row[c]) * scale[c] + zero[c];
    }
  }
  return true;
}

}  // namespace kvcask
#endif  // HWY_ONCE
