#include "codec/kakeya/frequent_directions.h"

#include <algorithm>
#include <cmath>

#include "codec/kakeya/section.h"

namespace kvcask::kakeya {

FrequentDirections::FrequentDirections(int dim, int sketch_rows)
    : dim_(dim),
      capacity_(sketch_rows),
      sketch_(static_cast<size_t>(dim) * sketch_rows),
      mean_(dim) {}

void FrequentDirections::Append(absl::Span<const float> row) {
  // Scatter grows by n / (n + 1) times the square of the distance to the mean so far.
  const double n = static_cast<double>(rows_++);
  const double root = std::sqrt(n / (n + 1));
  double* slot = &sketch_[static_cast<size_t>(used_) * dim_];
  for (int d = 0; d < dim_; ++d) {
    const double from_mean = row[d] - mean_[d];
    slot[d] = root * from_mean;
    squares_ += slot[d] * slot[d];
    mean_[d] += from_mean / (n + 1);
  }
  if (rows_ > 1 && ++used_ == capacity_) Shrink();
}

void FrequentDirections::Shrink() {
  const Pca pca = PcaOfFactor({}, sketch_, dim_, PcaOptions());
  std::fill(sketch_.begin(), sketch_.end(), 0.0);
  used_ = 0;
  const size_t median = capacity_ / 2;
  const double taken = median < pca.variances.size() ? pca.variances[median] : 0;
  for (int r = 0; r < pca.rank && r < capacity_ - 1; ++r) {
    const double left = pca.variances[r] - taken;
    if (!(left > 0)) break;
    for (int d = 0; d < dim_; ++d) {
      sketch_[static_cast<size_t>(used_) * dim_ + d] =
          std::sqrt(left) * pca.basis[static_cast<size_t>(r) * dim_ + d];
    }
    ++used_;
  }
}

Pca FrequentDirections::Basis(const PcaOptions& options) const {
  return PcaOfFactor(mean_, sketch_, dim_, options);
}

StreamingEncoder::StreamingEncoder(int dim, const Options& options, Sink sink)
    : dim_(dim),
      options_(options),
      sink_(std::move(sink)),
      sketch_(dim, options.sketch_rows > 0 ? options.sketch_rows : 2 * dim + 2) {}

absl::Status StreamingEncoder::Append(absl::Span<const float> row) {
  sketch_.Append(row);
  hot_.insert(hot_.end(), row.begin(), row.end());
  const size_t full = static_cast<size_t>(options_.hot_rows + options_.block_rows) * dim_;
  if (hot_.size() < full) return absl::OkStatus();
  const auto end = hot_.begin() + static_cast<int64_t>(options_.block_rows) * dim_;
  const std::vector<float> block(hot_.begin(), end);
  hot_.erase(hot_.begin(), end);
  PcaOptions pca_options;
  pca_options.variance_ratio = options_.params.variance_ratio;
  pca_options.rank_cap = RankCap(options_.params, dim_);
  const Pca pca = sketch_.Basis(pca_options);
  SectionContext context;
  context.block_rows = options_.block_rows;
  context.seed = options_.seed;
  context.basis = &pca;
  std::vector<uint8_t> section;
  absl::Status s = EncodeSection(block, dim_, options_.params, context, &section);
  return s.ok() ? sink_(std::move(section)) : s;
}

}  // namespace kvcask::kakeya
