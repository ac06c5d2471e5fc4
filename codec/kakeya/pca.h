// Principal components of a block of rows: exact, by the eigenvectors of a covariance, or
// randomized, by a range finder (Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1).
// Linear algebra is Eigen's, in double.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/types/span.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvcask::kakeya {

struct PcaOptions {
  bool randomized = false;
  double variance_ratio = 1;  // the least rank that holds so much of the variance
  int rank_cap = 0;           // at most so many; 0: no cap
  int oversample = 8;         // randomized: columns beyond the cap
  int power_iterations = 2;
  uint64_t seed = 0;
};

struct Pca {
  std::vector<double> mean;       // [dim]
  int rank = 0;                   // at least 1, at most dim
  std::vector<double> basis;      // [rank][dim], orthonormal rows, the largest variance first
  std::vector<double> variances;  // [rank], of the weighted rows along them
  double total_variance = 0;      // of all of them
};

// `rows` is [n][dim], n >= 1. `weights`, one for each row or none, are not negative and not all
// 0: the mean is theirs, and rows count with them. Rows that are all alike give rank 1.
Pca ComputePca(absl::Span<const float> rows, int dim, absl::Span<const double> weights,
               const PcaOptions& options);

// As ComputePca once the rows are given by a mean and by a factor A [n][dim] with A^T A their
// scatter: what a sketch of them holds.
Pca PcaOfFactor(std::vector<double> mean, absl::Span<const double> factor, int dim,
                const PcaOptions& options);

}  // namespace kvcask::kakeya
