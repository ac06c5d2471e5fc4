// Random rotations made of a Walsh-Hadamard transform: what turboquant and the lattices turn
// rows with, so that their elements become alike.
//
// A row of n elements is cut into blocks that are powers of two, the largest first (n = 80:
// 64 and 16); each is transformed for itself, so that any n works and nothing is padded.
//
// Thread-safe: values and pure functions.
#pragma once

#include <cstddef>
#include <vector>

namespace kvcask {

// Lengths of the blocks of a row: the binary digits of n, the largest first.
std::vector<size_t> HadamardBlocks(size_t n);

// +1 and -1 for each of n elements, from SplitMix64 (Steele et al. 2014): element i is -1 where
// the top bit of output number i + 1 of the generator started at 0 is set. Frozen in the file
// format.
std::vector<float> HadamardSigns(size_t n);

// x[block] = WHT(signs * x)[block] in place, unnormalised: a block of m elements grows by
// sqrt(m) in length. Stages of stride 1, 2, 4, ...; each (a, b) -> (a + b, a - b). Empty signs:
// all +1. The inverse is the transform, then the signs, divided by m.
void Hadamard(const std::vector<float>& signs, float* x, size_t n);
void InverseHadamard(const std::vector<float>& signs, float* x, size_t n);  // times m

// sum of x[i]^2: sixteen partial sums, number j over the elements i with i % 16 = j in order,
// then added in pairs (j, j + 8), (j, j + 4), (j, j + 2), (0, 1). The same bits on every CPU.
float SumOfSquares(const float* x, size_t n);

}  // namespace kvcask
