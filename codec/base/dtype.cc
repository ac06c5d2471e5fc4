#include "codec/base/dtype.h"

#include "codec/base/row_kernels.h"

namespace kvcask {
namespace {

float FloatOf(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

template <typename T>
T LoadUnaligned(const uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof(T));
  return v;
}

template <typename T, typename Convert>
void LoadStrided(const uint8_t* src, int64_t stride, size_t n, float* dst, Convert convert) {
  for (size_t i = 0; i < n; ++i) {
    dst[i] = convert(LoadUnaligned<T>(src + static_cast<int64_t>(i) * stride));
  }
}
template <typename T, typename Convert>
void StoreStrided(const float* src, size_t n, uint8_t* dst, int64_t stride, Convert convert) {
  for (size_t i = 0; i < n; ++i) {
    const T v = convert(src[i]);
    std::memcpy(dst + static_cast<int64_t>(i) * stride, &v, sizeof(T));
  }
}

}  // namespace

absl::string_view DtypeName(Dtype d) {
  switch (d) {
    case Dtype::kBf16:
      return "bf16";
    case Dtype::kF16:
      return "f16";
    case Dtype::kF32:
      return "f32";
  }
  return "unknown";
}

float F16ToFloat(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity; NaN is made quiet, as the hardware does
    const uint32_t quiet = magnitude > 0x7c00 ? 0x400000 : 0;
    return FloatOf(sign | 0x7f800000 | ((magnitude & 0x3ff) << 13) | quiet);
  }
  if (magnitude >= 0x400) return FloatOf(sign | ((magnitude << 13) + 0x38000000));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return FloatOf(sign | FloatBits(subnormal));
}

uint16_t FloatToF16(float f) {
  const uint32_t bits = FloatBits(f);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    return static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x1ff));
  }
  if (magnitude >= 0x47800000) return sign | 0x7c00;  // 2^16 and above
  if (magnitude < 0x38800000) {  // below 2^-14: binary16's subnormals are multiples of 2^-24,
    const float shifted = FloatOf(magnitude) + 0.5f;  // which is the spacing of floats at 1/2
    return static_cast<uint16_t>(sign | (FloatBits(shifted) - 0x3f000000));
  }
  // Rebias the exponent and round; a carry runs into the exponent, up to infinity.
  const uint32_t rounded = magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

float LoadElement(const uint8_t* p, Dtype d) {
  switch (d) {
    case Dtype::kBf16:
      return Bf16ToFloat(LoadUnaligned<uint16_t>(p));
    case Dtype::kF16:
      return F16ToFloat(LoadUnaligned<uint16_t>(p));
    case Dtype::kF32:
      break;
  }
  return LoadUnaligned<float>(p);
}

void StoreElement(float f, Dtype d, uint8_t* p) {
  if (d == Dtype::kF32) {
    std::memcpy(p, &f, 4);
    return;
  }
  const uint16_t v = d == Dtype::kBf16 ? FloatToBf16(f) : FloatToF16(f);
  std::memcpy(p, &v, 2);
}

void LoadRow(const uint8_t* src, int64_t stride, Dtype d, size_t n, float* dst) {
  const bool contiguous = stride == static_cast<int64_t>(DtypeSize(d));
  switch (d) {
    case Dtype::kBf16:
      if (contiguous) return Bf16ToFloatRow(src, n, dst);
      return LoadStrided<uint16_t>(src, stride, n, dst, Bf16ToFloat);
    case Dtype::kF16:
      if (contiguous) return F16ToFloatRow(src, n, dst);
      return LoadStrided<uint16_t>(src, stride, n, dst, F16ToFloat);
    case Dtype::kF32:
      if (contiguous) {
        if (n > 0) std::memcpy(dst, src, n * 4);
        return;
      }
      return LoadStrided<float>(src, stride, n, dst, [](float v) { return v; });
  }
}

void StoreRow(const float* src, size_t n, Dtype d, uint8_t* dst, int64_t stride) {
  const bool contiguous = stride == static_cast<int64_t>(DtypeSize(d));
  switch (d) {
    case Dtype::kBf16:
      if (contiguous) return FloatToBf16Row(src, n, dst);
      return StoreStrided<uint16_t>(src, n, dst, stride, FloatToBf16);
    case Dtype::kF16:
      if (contiguous) return FloatToF16Row(src, n, dst);
      return StoreStrided<uint16_t>(src, n, dst, stride, FloatToF16);
    case Dtype::kF32:
      if (contiguous) {
        if (n > 0) std::memcpy(dst, src, n * 4);
        return;
      }
      return StoreStrided<float>(src, n, dst, stride, [](float v) { return v; });
  }
}

}  // namespace kvcask
