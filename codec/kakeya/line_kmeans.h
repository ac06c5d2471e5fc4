// Spherical k-means of rows by the lines they lie near: unit centres c such that the energy left
// in row - <row, c> c, with the best c for each row, is small. A row and its opposite share a
// line; long rows count more, since their error does.
//
// Not published, so done here: the first centres are drawn as k-means++ draws them (Arthur and
// Vassilvitskii 2007), a centre moves to the normalised sum of <row, c> row over its rows (one
// step of power iteration, which never adds energy), a centre without rows takes the row that is
// worst off, 8 rounds.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/types/span.h>

#include <cstdint>
#include <vector>

namespace kvcask::kakeya {

// `rows` is [n][dim], n >= 1. min(clusters, n) unit centres, [clusters][dim].
std::vector<float> FitLines(absl::Span<const float> rows, int dim, int clusters, uint64_t seed);

// For each row the centre whose line takes the most of its energy; centres need not be unit.
std::vector<int> NearestLines(absl::Span<const float> rows, int dim,
                              absl::Span<const float> centres);

}  // namespace kvcask::kakeya
