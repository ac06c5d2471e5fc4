#include "codec/quant/lloyd_max.h"

#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace kvcask {
namespace {

// A density that is even, up to a factor, with the antiderivative of x f(x), on [0, end).
struct Density {
  explicit Density(int n) : n(n < 8 ? 0 : n) {}
  double end() const { return n == 0 ? 12 : std::sqrt(static_cast<double>(n)); }
  double At(double x) const {
    if (n == 0) return std::exp(-x * x / 2);
    return std::pow(1 - x * x / n, (n - 3) / 2.0);
  }
  double FirstMoment(double a, double b) const {  // integral of x f(x) from a to b
    if (n == 0) return std::exp(-a * a / 2) - std::exp(-b * b / 2);
    const auto rest = [&](double x) { return std::pow(std::max(0.0, 1 - x * x / n), (n - 1) / 2.0); };
    return (rest(a) - rest(b)) * n / (n - 1);
  }
  // Integral of g from a to b by Simpson's rule.
  template <typename G>
  static double Integral(double a, double b, G g) {
    constexpr int kSteps = 64;
    const double h = (b - a) / kSteps;
    double sum = 0;
    for (int i = 0; i <= kSteps; ++i) {
      sum += (i == 0 || i == kSteps ? 1 : i % 2 ? 4 : 2) * g(a + i * h);
    }
    return sum * h / 3;
  }
  double Mass(double a, double b) const {
    // The last cell is long and its mass is at its beginning.
    const double middle = std::min(b, a + 2);
    const auto f = [this](double x) { return x < end() ? At(x) : 0; };
    return Integral(a, middle, f) + (middle < b ? Integral(middle, b, f) : 0);
  }
  const int n;
};

Codebook Compute(int bits, int dimensions) {
  const Density density(dimensions);
  const int half = 1 << (bits - 1);
  std::vector<double> level(half);
  for (int m = 0; m < half; ++m) level[m] = (m + .5) * 3 / half;
  for (double moved = 1; moved > 1e-9;) {
    moved = 0;
    std::vector<double> next(half);
    for (int m = 0; m < half; ++m) {
      const double a = m == 0 ? 0 : (level[m - 1] + level[m]) / 2;
      const double b = m + 1 == half ? density.end() : (level[m] + level[m + 1]) / 2;
      next[m] = density.FirstMoment(a, b) / density.Mass(a, b);
      moved = std::max(moved, std::fabs(next[m] - level[m]));
    }
    level = std::move(next);
  }
  Codebook book;
  book.bits = bits;
  for (int m = 0; m < half; ++m) {
    book.levels.push_back(static_cast<int>(std::lround(level[m] / kCodebookUnit)));
    book.thresholds.push_back(
        m == 0 ? 0 : static_cast<float>(book.levels[m - 1] + book.levels[m]) / 2 * kCodebookUnit);
  }
  return book;
}

}  // namespace

const Codebook& LloydMaxCodebook(int bits, int dimensions) {
  static std::mutex* const mu = new std::mutex;
  static auto* const books = new std::map<std::pair<int, int>, std::unique_ptr<const Codebook>>;
  const std::pair<int, int> key(bits, dimensions < 8 ? 0 : dimensions);
  std::lock_guard<std::mutex> lock(*mu);
  std::unique_ptr<const Codebook>& book = (*books)[key];
  if (book == nullptr) book = std::make_unique<const Codebook>(Compute(bits, dimensions));
  return *book;
}

double ExpectedSquaredError(const Codebook& book, int dimensions) {
  const Density density(dimensions);
  double error = 0, mass = 0;
  const int half = static_cast<int>(book.levels.size());
  for (int m = 0; m < half; ++m) {
    const double a = book.thresholds[m];
    const double b = m + 1 == half ? density.end() : book.thresholds[m + 1];
    const double c = book.levels[m] * static_cast<double>(kCodebookUnit);
    const double middle = std::min(b, a + 2);
    const auto f = [&](double x) {
      return x < density.end() ? density.At(x) * (x - c) * (x - c) : 0;
    };
    error += Density::Integral(a, middle, f) + (middle < b ? Density::Integral(middle, b, f) : 0);
    mass += density.Mass(a, b);
  }
  return error / mass;
}

}  // namespace kvcask
