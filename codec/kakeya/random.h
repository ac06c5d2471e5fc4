// Random numbers that are the same on every machine: SplitMix64 (Steele et al. 2014), and
// normal deviates of it by Box and Muller.
#pragma once

#include <cmath>
#include <cstdint>

namespace kvcask::kakeya {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }  // [0, 1)
  double Normal() {
    const double r = std::sqrt(-2 * std::log1p(-Uniform()));
    return r * std::cos(2 * 3.14159265358979323846 * Uniform());
  }

 private:
  uint64_t state_;
};

}  // namespace kvcask::kakeya
