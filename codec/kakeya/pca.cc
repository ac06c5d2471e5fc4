#include "codec/kakeya/pca.h"

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Dense>

#include "codec/kakeya/random.h"

namespace kvcask::kakeya {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXd;

// Mixed into the seed, as the published range finder does.
constexpr uint64_t kRangeFinderSeed = 0x9E3779B97F4A7C15u;

// Right singular vectors (as rows) and squared singular values, the largest first.
struct Spectrum {
  Matrix vectors;
  Vector squares;
};

// From the smaller of A^T A and A A^T.
Spectrum Decompose(const Matrix& a) {
  const bool wide = a.rows() < a.cols();
  const Matrix gram = wide ? Matrix(a * a.transpose()) : Matrix(a.transpose() * a);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(gram);
  const Eigen::Index n = gram.rows();
  Spectrum s;
  s.squares = solver.eigenvalues().reverse().cwiseMax(0);
  const Matrix eigenvectors = solver.eigenvectors().rowwise().reverse().transpose();
  if (!wide) {
    s.vectors = eigenvectors;
    return s;
  }
  // v = A^T u / sigma; below the noise of the Gram matrix there is no direction to take.
  const double floor = s.squares(0) * 1e-12;
  Eigen::Index rank = 0;
  while (rank < n && s.squares(rank) > floor) ++rank;
  s.vectors = eigenvectors.topRows(rank) * a;
  for (Eigen::Index i = 0; i < rank; ++i) s.vectors.row(i).normalize();
  s.squares.conservativeResize(rank);
  return s;
}

Matrix Orthonormal(const Matrix& y) {
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(y);
  return qr.householderQ() * Eigen::MatrixXd::Identity(y.rows(), std::min(y.rows(), y.cols()));
}

Spectrum DecomposeRandomized(const Matrix& a, int rank, const PcaOptions& options) {
  const Eigen::Index columns =
      std::min<Eigen::Index>({rank + options.oversample, a.rows(), a.cols()});
  Random random(options.seed ^ kRangeFinderSeed);
  Matrix omega(a.cols(), columns);
  for (Eigen::Index i = 0; i < omega.size(); ++i) omega.data()[i] = random.Normal();
  Matrix q = Orthonormal(a * omega);
  for (int i = 0; i < options.power_iterations; ++i) {
    q = Orthonormal(a * Orthonormal(a.transpose() * q));
  }
  return Decompose(q.transpose() * a);
}

// The least rank whose variances add up to the ratio, within the cap.
int ChooseRank(const Vector& squares, double total, int cap, double ratio) {
  int rank = 0;
  double sum = 0;
  while (rank < cap && rank < squares.size()) {
    sum += squares(rank++);
    if (sum >= ratio * total * (1 - 1e-12)) break;
  }
  return rank;
}

}  // namespace

Pca PcaOfFactor(std::vector<double> mean, absl::Span<const double> factor, int dim,
                const PcaOptions& options) {
  const Matrix a =
      Eigen::Map<const Matrix>(factor.data(), static_cast<Eigen::Index>(factor.size()) / dim, dim);
  Pca pca;
  pca.mean = std::move(mean);
  pca.total_variance = a.squaredNorm();
  const int cap = options.rank_cap > 0 ? std::min(options.rank_cap, dim) : dim;
  if (!(pca.total_variance > 0)) {  // nothing to explain: any direction does
    pca.rank = 1;
    pca.basis.assign(dim, 0);
    pca.basis[0] = 1;
    pca.variances.assign(1, 0);
    return pca;
  }
  const Spectrum s = options.randomized ? DecomposeRandomized(a, cap, options) : Decompose(a);
  pca.rank = std::max(1, ChooseRank(s.squares, pca.total_variance, cap, options.variance_ratio));
  pca.basis.assign(s.vectors.data(), s.vectors.data() + static_cast<size_t>(pca.rank) * dim);
  pca.variances.assign(s.squares.data(), s.squares.data() + pca.rank);
  return pca;
}

Pca ComputePca(absl::Span<const float> rows, int dim, absl::Span<const double> weights,
               const PcaOptions& options) {
  const size_t n = rows.size() / dim;
  const auto weight = [&](size_t i) { return weights.empty() ? 1.0 : weights[i]; };
  std::vector<double> mean(dim);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    for (int d = 0; d < dim; ++d) mean[d] += weight(i) * rows[i * dim + d];
    sum += weight(i);
  }
  for (double& m : mean) m /= sum;
  std::vector<double> factor(rows.size());
  for (size_t i = 0; i < n; ++i) {
    const double root = std::sqrt(weight(i));
    for (int d = 0; d < dim; ++d) factor[i * dim + d] = root * (rows[i * dim + d] - mean[d]);
  }
  return PcaOfFactor(std::move(mean), factor, dim, options);
}

}  // namespace kvcask::kakeya
