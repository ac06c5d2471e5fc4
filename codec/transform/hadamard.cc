#include "codec/transform/hadamard.h"

#include <cstdint>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec/transform/hadamard.cc"
#include <hwy/foreach_target.h>  // compiles what follows once for each target

#include "codec/transform/hadamard-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcask {
namespace HWY_NAMESPACE {

void HadamardRow(const float* signs, float* x, size_t n) { ApplyHadamard(signs, x, n); }
void InverseHadamardRow(const float* signs, float* x, size_t n) {
  ApplyInverseHadamard(signs, x, n);
}
float SumRow(const float* x, size_t n) { return OrderedSumOfSquares(x, n); }

}  // namespace HWY_NAMESPACE
}  // namespace kvcask
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcask {

HWY_EXPORT(HadamardRow);
HWY_EXPORT(InverseHadamardRow);
HWY_EXPORT(SumRow);

std::vector<size_t> HadamardBlocks(size_t n) {
  std::vector<size_t> blocks;
  for (size_t m = size_t{1} << 62; m > 0; m >>= 1) {
    if (n & m) blocks.push_back(m);
  }
  return blocks;
}

std::vector<float> HadamardSigns(size_t n) {
  std::vector<float> signs(n);
  for (size_t i = 0; i < n; ++i) {
    uint64_t z = (i + 1) * uint64_t{0x9e3779b97f4a7c15};
    z = (z ^ z >> 30) * uint64_t{0xbf58476d1ce4e5b9};
    z = (z ^ z >> 27) * uint64_t{0x94d049bb133111eb};
    signs[i] = (z ^ z >> 31) >> 63 ? -1.f : 1.f;
  }
  return signs;
}

void Hadamard(const std::vector<float>& signs, float* x, size_t n) {
  HWY_DYNAMIC_DISPATCH(HadamardRow)(signs.empty() ? nullptr : signs.data(), x, n);
}
void InverseHadamard(const std::vector<float>& signs, float* x, size_t n) {
  HWY_DYNAMIC_DISPATCH(InverseHadamardRow)(signs.empty() ? nullptr : signs.data(), x, n);
}
float SumOfSquares(const float* x, size_t n) { return HWY_DYNAMIC_DISPATCH(SumRow)(x, n); }

}  // namespace kvcask
#endif  // HWY_ONCE
