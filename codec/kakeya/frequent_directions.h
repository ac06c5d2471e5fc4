// The streaming form: a sketch of all rows so far by Frequent Directions (Liberty 2013; Ghashami,
// Liberty, Phillips and Woodruff 2016), whose state and whose work per row do not grow, and an
// encoder that seals blocks with the basis of the sketch as it stands.
//
// Not published, so done here: rows are centred as they come (Welford's update of the scatter);
// a sealed block stores the basis it was coded with, so that a basis that moves on changes no
// code; the newest `hot_rows` are never sealed.
//
// An object belongs to one thread.
#pragma once

#include <absl/status/status.h>
#include <absl/types/span.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "codec/kakeya/params.h"
#include "codec/kakeya/pca.h"

namespace kvcask::kakeya {

// Keeps l rows B with 0 <= |A v|^2 - |B v|^2 <= |A|^2 / (l / 2) for every unit v, A being the
// centred rows (norms of Frobenius). When full, the squared median singular value is taken from
// all squared ones, which empties half of the rows.
class FrequentDirections {
 public:
  FrequentDirections(int dim, int sketch_rows);  // dim >= 1, sketch_rows >= 2
  void Append(absl::Span<const float> row);

  int64_t rows() const { return rows_; }
  const std::vector<double>& mean() const { return mean_; }
  // [sketch_rows][dim]; those that are not in use are 0.
  absl::Span<const double> sketch() const { return sketch_; }
  double squares() const { return squares_; }  // |A|^2, exact
  // Variance that was given up counts as noise: ratios are of |A|^2.
  Pca Basis(const PcaOptions& options) const;
  size_t state_bytes() const { return (sketch_.size() + mean_.size()) * sizeof(double); }

 private:
  void Shrink();

  const int dim_, capacity_;
  std::vector<double> sketch_, mean_;
  int used_ = 0;
  int64_t rows_ = 0;
  double squares_ = 0;
};

// Rows in, sections of one block out, oldest first. State: the sketch and at most hot_rows +
// block_rows rows.
class StreamingEncoder {
 public:
  using Sink = std::function<absl::Status(std::vector<uint8_t> section)>;
  struct Options {
    StreamParams params;  // its PCA's method is not used, its ranks are
    int block_rows = 512;
    int hot_rows = 512;
    int sketch_rows = 0;  // 0: twice the dimension
    uint64_t seed = 0;
  };
  StreamingEncoder(int dim, const Options& options, Sink sink);
  // OUT_OF_RANGE as EncodeSection, or the sink's error. The block is then lost to the stream.
  absl::Status Append(absl::Span<const float> row);
  // The rows not sealed, oldest first.
  std::vector<float> HotRows() const { return {hot_.begin(), hot_.end()}; }
  size_t state_bytes() const { return sketch_.state_bytes() + hot_.size() * sizeof(float); }

 private:
  const int dim_;
  const Options options_;
  const Sink sink_;
  FrequentDirections sketch_;
  std::deque<float> hot_;
};

}  // namespace kvcask::kakeya
