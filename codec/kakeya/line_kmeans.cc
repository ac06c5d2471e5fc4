#include "codec/kakeya/line_kmeans.h"

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Dense>

#include "codec/kakeya/random.h"

namespace kvcask::kakeya {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr int kRounds = 8;

}  // namespace

std::vector<int> NearestLines(absl::Span<const float> rows, int dim,
                              absl::Span<const float> centres) {
  const Eigen::Map<const Matrix> x(rows.data(), static_cast<Eigen::Index>(rows.size()) / dim, dim);
  const Eigen::Map<const Matrix> c(centres.data(), static_cast<Eigen::Index>(centres.size()) / dim,
                                   dim);
  Eigen::VectorXf inverse = c.rowwise().squaredNorm();
  for (float& s : inverse) s = s > 0 ? 1 / s : 0;
  const Matrix energy = (x * c.transpose()).cwiseAbs2() * inverse.asDiagonal();
  std::vector<int> of(x.rows());
  for (Eigen::Index i = 0; i < x.rows(); ++i) {
    Eigen::Index best;
    energy.row(i).maxCoeff(&best);
    of[i] = static_cast<int>(best);
  }
  return of;
}

std::vector<float> FitLines(absl::Span<const float> rows, int dim, int clusters, uint64_t seed) {
  const Eigen::Index n = static_cast<Eigen::Index>(rows.size()) / dim;
  const Eigen::Index k = std::min<Eigen::Index>(clusters, n);
  const Eigen::Map<const Matrix> x(rows.data(), n, dim);
  const Eigen::VectorXf squares = x.rowwise().squaredNorm();
  Eigen::VectorXf left = squares;  // energy of each row that no centre takes
  Matrix centres = Matrix::Zero(k, dim);
  const auto take = [&](Eigen::Index row, Eigen::Index centre) {
    centres.row(centre) = x.row(row);
    if (squares(row) > 0) {
      centres.row(centre) /= std::sqrt(squares(row));
    } else {
      centres(centre, 0) = 1;
    }
    left = left.cwiseMin(squares - (x * centres.row(centre).transpose()).cwiseAbs2()).cwiseMax(0);
  };
  Random random(seed);
  for (Eigen::Index c = 0; c < k; ++c) {
    double at = random.Uniform() * left.cast<double>().sum();
    Eigen::Index row = 0;
    while (row + 1 < n && (at -= left(row)) >= 0) ++row;
    take(row, c);
  }
  for (int round = 0; round < kRounds; ++round) {
    const std::vector<int> of =
        NearestLines(rows, dim, {centres.data(), static_cast<size_t>(centres.size())});
    Matrix sums = Matrix::Zero(k, dim);
    for (Eigen::Index i = 0; i < n; ++i) {
      const float along = x.row(i).dot(centres.row(of[i]));
      left(i) = std::max(0.f, squares(i) - along * along);
      sums.row(of[i]) += along * x.row(i);
    }
    for (Eigen::Index c = 0; c < k; ++c) {
      const float norm = sums.row(c).norm();
      if (norm > 0) {
        centres.row(c) = sums.row(c) / norm;
        continue;
      }
      Eigen::Index worst;
      left.maxCoeff(&worst);
      take(worst, c);
    }
  }
  return {centres.data(), centres.data() + centres.size()};
}

}  // namespace kvcask::kakeya
