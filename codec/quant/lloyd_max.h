// Lloyd-Max codebooks (Lloyd 1982, Max 1960), computed and not pasted: for one coordinate of
// a random vector of length sqrt(n) in n dimensions, and for the normal distribution, which is
// its limit.
//
// Thread-safe. Tables live as long as the program.
#pragma once

#include <cstdint>
#include <vector>

namespace kvcask {

struct Codebook {
  int bits = 0;
  // The positive half, ascending, in units of 2^-10: code 2^(bits-1) + m stands for
  // levels[m], code 2^(bits-1) - 1 - m for -levels[m]. Frozen in the file format.
  std::vector<int> levels;
  // [m] is half way from level m - 1 to level m: a magnitude from thresholds[m] on belongs to
  // level m or a higher one. thresholds[0] is 0.
  std::vector<float> thresholds;
};
inline constexpr float kCodebookUnit = 1.f / 1024;

// `dimensions`: n, or 0 for the normal distribution, which also serves n below 8. bits 1..4.
const Codebook& LloydMaxCodebook(int bits, int dimensions);

// Expected squared error of a codebook, for the distribution of variance 1 it was made for.
double ExpectedSquaredError(const Codebook& book, int dimensions);

}  // namespace kvcask
