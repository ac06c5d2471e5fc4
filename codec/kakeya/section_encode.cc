#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Dense>
#include <numeric>

#include "codec/base/dtype.h"
#include "codec/kakeya/line_kmeans.h"
#include "codec/kakeya/pca.h"
#include "codec/kakeya/section.h"
#include "codec/kakeya/section_layout.h"
#include "codec/quant/bit_pack.h"
#include "codec/transform/hadamard.h"

namespace kvcask::kakeya {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

float Round(float x, Dtype dtype) {
  uint8_t bytes[4];
  StoreElement(x, dtype, bytes);
  return LoadElement(bytes, dtype);
}

class Encoder {
 public:
  Encoder(absl::Span<const float> rows, int dim, const StreamParams& params,
          const SectionContext& context, std::vector<uint8_t>* out)
      : rows_(rows),
        dim_(dim),
        n_(static_cast<int64_t>(rows.size()) / dim),
        params_(params),
        context_(context),
        coded_(params.residual == Residual::kCoded),
        out_(*out) {
    if (!coded_) return;
    centroids_.assign(context.centroids.begin(), context.centroids.end());
    if (centroids_.empty()) centroids_ = GaussianCentroids(params.bits);
  }

  absl::Status Run() {
    WriteHeader();
    if (context_.trace != nullptr) {
      for (auto* stage : {&context_.trace->pca, &context_.trace->centres, &context_.trace->rotated,
                          &context_.trace->coded}) {
        stage->assign(rows_.size(), 0);
      }
      context_.trace->quantiser_input.clear();
    }
    if (params_.share_basis) FitBasis(rows_, context_.weights);
    const int64_t run_rows = n_ / context_.runs;
    for (int64_t begin = 0; begin < n_ && fits_;) {
      const int64_t left = run_rows - begin % run_rows;
      const int n = static_cast<int>(std::min<int64_t>(context_.block_rows, left));
      EncodeBlock(begin, n);
      begin += n;
    }
    if (fits_) return absl::OkStatus();
    return absl::OutOfRangeError("kakeya section: a number is beyond its dtype");
  }

 private:
  void WriteHeader();
  void FitBasis(absl::Span<const float> rows, absl::Span<const double> weights);
  void EncodeBlock(int64_t begin, int n);
  void WriteSparse(const std::vector<float>& residuals, int n);
  void WriteCoded(const std::vector<float>& residuals, int n);
  int NearestLevel(float x) const;
  // The factor on the decoded residual, which has the shape of `decoded`.
  double ScaleFactor(const std::vector<float>& z, const std::vector<float>& decoded) const;
  void Trace(int64_t begin, int n, const std::vector<float>& coordinates,
             std::vector<float>* stage) const;

  void Write16(size_t v) {
    const uint8_t bytes[2] = {static_cast<uint8_t>(v), static_cast<uint8_t>(v >> 8)};
    out_.insert(out_.end(), bytes, bytes + 2);
  }
  void Write32(uint64_t v) {
    Write16(v & 0xffff);
    Write16(v >> 16);
  }
  // Appends x in `dtype`; returns it as a reader will see it.
  float WriteNumber(float x, Dtype dtype) {
    const size_t at = out_.size();
    out_.resize(at + DtypeSize(dtype));
    StoreElement(x, dtype, &out_[at]);
    const float kept = LoadElement(&out_[at], dtype);
    fits_ = fits_ && std::isfinite(kept);
    return kept;
  }
  void WritePacked(const std::vector<uint8_t>& codes, int bits) {
    if (bits == 0) return;
    const size_t at = out_.size();
    out_.resize(at + PackedBytes(codes.size(), bits));
    PackBits(codes.data(), codes.size(), bits, &out_[at]);
  }

  const absl::Span<const float> rows_;
  const int dim_;
  const int64_t n_;
  const StreamParams& params_;
  const SectionContext& context_;
  const bool coded_;
  std::vector<float> centroids_;
  std::vector<uint8_t>& out_;
  bool fits_ = true;
  // The basis in use, as a reader sees it.
  int rank_ = 0;
  std::vector<float> mean_, vectors_;
  // Of the block at hand.
  std::vector<float> along_;  // t times the centre, [n][rank]
  int64_t block_begin_ = 0;
};

void Encoder::WriteHeader() {
  out_.push_back(coded_ ? kCodedSection : kSparseSection);
  out_.push_back(static_cast<uint8_t>(params_.skeleton));
  uint8_t flags = params_.share_basis ? kSharedBasis : 0;
  if (coded_ && params_.outlier_threshold > 0) flags |= kOutliers;
  if (coded_ && !context_.centroids.empty()) flags |= kCalibratedCentroids;
  out_.push_back(flags);
  out_.push_back(coded_ ? static_cast<uint8_t>(params_.bits) : 0);
  Write16(dim_);
  Write16(params_.clusters);
  Write32(n_);
  Write32(context_.block_rows);
  Write16(coded_ ? 0 : params_.sparse_count);
  Write16(context_.runs);
}

// Fits, rounds to the skeleton's dtype and writes. All that follows uses the rounded numbers, so
// that their error is coded with the rest and not added to it.
void Encoder::FitBasis(absl::Span<const float> rows, absl::Span<const double> weights) {
  PcaOptions options;
  options.randomized = params_.pca == PcaMethod::kRandomized;
  options.variance_ratio = params_.variance_ratio;
  options.rank_cap = RankCap(params_, dim_);
  options.oversample = params_.oversample;
  options.power_iterations = params_.power_iterations;
  options.seed = context_.seed;
  const Pca pca =
      context_.basis != nullptr ? *context_.basis : ComputePca(rows, dim_, weights, options);
  rank_ = pca.rank;
  Write16(rank_);
  mean_.resize(dim_);
  for (int d = 0; d < dim_; ++d) {
    mean_[d] = WriteNumber(static_cast<float>(pca.mean[d]), params_.skeleton);
  }
  vectors_.resize(pca.basis.size());
  for (size_t i = 0; i < vectors_.size(); ++i) {
    vectors_[i] = WriteNumber(static_cast<float>(pca.basis[i]), params_.skeleton);
  }
}

void Encoder::EncodeBlock(int64_t begin, int n) {
  block_begin_ = begin;
  const absl::Span<const float> rows = rows_.subspan(begin * dim_, static_cast<size_t>(n) * dim_);
  if (!params_.share_basis) {
    FitBasis(rows,
             context_.weights.empty() ? context_.weights : context_.weights.subspan(begin, n));
  }
  std::vector<float> y(static_cast<size_t>(n) * rank_);
  Eigen::Map<const Eigen::RowVectorXf> mean(mean_.data(), dim_);
  Eigen::Map<Matrix>(y.data(), n, rank_) =
      (Eigen::Map<const Matrix>(rows.data(), n, dim_).rowwise() - mean) *
      Eigen::Map<const Matrix>(vectors_.data(), rank_, dim_).transpose();
  if (context_.trace != nullptr) Trace(begin, n, y, &context_.trace->pca);

  // The seed knows a block's place in its run alone: a shard's heads are coded as the model's.
  std::vector<float> centres =
      FitLines(y, rank_, params_.clusters, context_.seed + begin % (n_ / context_.runs));
  for (float& c : centres) c = WriteNumber(c, params_.skeleton);
  const int clusters = static_cast<int>(centres.size()) / rank_;
  std::vector<uint8_t> ids(n);
  std::vector<float> lengths(n);
  const std::vector<int> nearest = NearestLines(y, rank_, centres);
  const Dtype length_dtype = coded_ ? Dtype::kF16 : params_.skeleton;
  along_.assign(y.size(), 0);
  for (int i = 0; i < n; ++i) {
    float* row = &y[static_cast<size_t>(i) * rank_];
    ids[i] = static_cast<uint8_t>(nearest[i]);
    const float* c = &centres[static_cast<size_t>(ids[i]) * rank_];
    double along = 0, squares = 0;
    for (int r = 0; r < rank_; ++r) {
      along += static_cast<double>(row[r]) * c[r];
      squares += static_cast<double>(c[r]) * c[r];
    }
    lengths[i] = squares > 0 ? static_cast<float>(along / squares) : 0;
    const float t = Round(lengths[i], length_dtype);
    for (int r = 0; r < rank_; ++r) {
      along_[static_cast<size_t>(i) * rank_ + r] = t * c[r];
      row[r] -= t * c[r];
    }
  }
  if (context_.trace != nullptr) Trace(begin, n, along_, &context_.trace->centres);
  WritePacked(ids, IdBits(clusters));
  for (float t : lengths) WriteNumber(t, length_dtype);
  if (!fits_) return;
  if (coded_) {
    WriteCoded(y, n);
  } else {
    WriteSparse(y, n);
  }
}

void Encoder::WriteSparse(const std::vector<float>& residuals, int n) {
  const int kept = std::min(params_.sparse_count, rank_);
  std::vector<int> order(rank_), all;
  std::vector<float> decoded(along_);
  for (int i = 0; i < n; ++i) {
    const float* r = &residuals[static_cast<size_t>(i) * rank_];
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + kept, order.end(), [r](int a, int b) {
      return std::fabs(r[a]) != std::fabs(r[b]) ? std::fabs(r[a]) > std::fabs(r[b]) : a < b;
    });
    std::sort(order.begin(), order.begin() + kept);
    all.insert(all.end(), order.begin(), order.begin() + kept);
    for (int k = 0; k < kept; ++k) {
      decoded[static_cast<size_t>(i) * rank_ + order[k]] +=
          WriteNumber(r[order[k]], params_.skeleton);
    }
  }
  if (kept < rank_) {
    for (int index : all) {
      if (IndexBytes(rank_) == 2) {
        Write16(index);
      } else {
        out_.push_back(static_cast<uint8_t>(index));
      }
    }
  }
  if (context_.trace != nullptr) Trace(block_begin_, n, decoded, &context_.trace->coded);
}

int Encoder::NearestLevel(float x) const {
  int best = 0;
  for (int i = 1; i < static_cast<int>(centroids_.size()); ++i) {
    if (std::fabs(centroids_[i] - x) < std::fabs(centroids_[best] - x)) best = i;
  }
  return best;
}

double Encoder::ScaleFactor(const std::vector<float>& z, const std::vector<float>& decoded) const {
  double zz = 0, zd = 0, dd = 0;
  for (size_t i = 0; i < z.size(); ++i) {
    zz += static_cast<double>(z[i]) * z[i];
    zd += static_cast<double>(z[i]) * decoded[i];
    dd += static_cast<double>(decoded[i]) * decoded[i];
  }
  if (!(zd > 0)) return 1;  // a row of zeros
  if (params_.norm_correction) return std::sqrt(zz / dd);
  if (params_.metric == Metric::kInnerProduct) return zz / zd;
  if (params_.metric == Metric::kMse) return 1;
  // Linf, over the coordinates before the rotation; the error is convex in the factor.
  const std::vector<float> signs = HadamardSigns(z.size());
  std::vector<float> a = z, b = decoded;
  InverseHadamard(signs, a.data(), a.size());
  InverseHadamard(signs, b.data(), b.size());
  const auto largest = [&](double factor) {
    double worst = 0;
    for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::fabs(a[i] - factor * b[i]));
    return worst;
  };
  double low = .5, high = 2;
  for (int i = 0; i < 40; ++i) {
    const double third = (high - low) / 3;
    if (largest(low + third) < largest(high - third)) {
      high -= third;
    } else {
      low += third;
    }
  }
  return (low + high) / 2;
}

void Encoder::WriteCoded(const std::vector<float>& residuals, int n) {
  const size_t length = RotatedLength(rank_);
  const std::vector<float> signs = HadamardSigns(length);
  std::vector<uint8_t> codes(n * length), counts(n);
  std::vector<uint8_t> outliers;  // (u16 index, fp16 value)
  std::vector<float> scales(n);
  std::vector<float> z(length), decoded(length);
  std::vector<float> rotated_trace(along_), coded_trace(along_);
  for (int i = 0; i < n; ++i) {
    const float* r = &residuals[static_cast<size_t>(i) * rank_];
    double squares = 0;
    for (int k = 0; k < rank_; ++k) squares += static_cast<double>(r[k]) * r[k];
    const double norm = std::sqrt(squares);
    std::fill(z.begin(), z.end(), 0.f);
    std::copy(r, r + rank_, z.begin());
    // 1 / norm, and no sqrt(length): the butterfly, unnormalised, already grows a row by that,
    // so that coordinates have variance 1 here.
    for (float& x : z) x = squares > 0 ? static_cast<float>(x / norm) : 0;
    Hadamard(signs, z.data(), length);
    for (size_t k = 0; k < length; ++k) {
      codes[i * length + k] = static_cast<uint8_t>(NearestLevel(z[k]));
      decoded[k] = centroids_[codes[i * length + k]];
    }
    if (params_.outlier_threshold > 0) {
      std::vector<int> over;
      for (size_t k = 0; k < length; ++k) {
        if (std::fabs(z[k]) > params_.outlier_threshold) over.push_back(static_cast<int>(k));
      }
      if (over.size() > 255) {  // all that a count can say
        std::nth_element(over.begin(), over.begin() + 255, over.end(), [&](int a, int b) {
          return std::fabs(z[a]) != std::fabs(z[b]) ? std::fabs(z[a]) > std::fabs(z[b]) : a < b;
        });
        over.resize(255);
        std::sort(over.begin(), over.end());
      }
      counts[i] = static_cast<uint8_t>(over.size());
      for (int k : over) {
        decoded[k] = Round(z[k], Dtype::kF16);
        uint8_t bytes[4] = {static_cast<uint8_t>(k), static_cast<uint8_t>(k >> 8)};
        StoreElement(z[k], Dtype::kF16, bytes + 2);
        outliers.insert(outliers.end(), bytes, bytes + 4);
      }
    }
    scales[i] = static_cast<float>(norm * ScaleFactor(z, decoded));
    if (context_.trace == nullptr) continue;
    StageTrace& trace = *context_.trace;
    trace.quantiser_input.insert(trace.quantiser_input.end(), z.begin(), z.end());
    const auto back = [&](std::vector<float> x, float scale, std::vector<float>& out) {
      InverseHadamard(signs, x.data(), length);
      for (int k = 0; k < rank_; ++k) {
        out[static_cast<size_t>(i) * rank_ + k] += x[k] * (scale / static_cast<float>(length));
      }
    };
    back(z, Round(static_cast<float>(norm), Dtype::kF16), rotated_trace);
    back(decoded, Round(scales[i], Dtype::kF16), coded_trace);
  }
  for (float s : scales) WriteNumber(s, Dtype::kF16);
  WritePacked(codes, params_.bits);
  if (params_.outlier_threshold > 0) {
    out_.insert(out_.end(), counts.begin(), counts.end());
    out_.insert(out_.end(), outliers.begin(), outliers.end());
  }
  if (context_.trace == nullptr) return;
  Trace(block_begin_, n, rotated_trace, &context_.trace->rotated);
  Trace(block_begin_, n, coded_trace, &context_.trace->coded);
}

// mean + basis times coordinates, for rows of the block.
void Encoder::Trace(int64_t begin, int n, const std::vector<float>& coordinates,
                    std::vector<float>* stage) const {
  const Eigen::Map<const Eigen::RowVectorXf> mean(mean_.data(), dim_);
  Eigen::Map<Matrix> out(&(*stage)[begin * dim_], n, dim_);
  out = Eigen::Map<const Matrix>(coordinates.data(), n, rank_) *
        Eigen::Map<const Matrix>(vectors_.data(), rank_, dim_);
  out.rowwise() += mean;
}

}  // namespace

int RankCap(const StreamParams& params, int dim) {
  if (params.rank_factor <= 0) return params.rank;
  const int cap = std::max(2, static_cast<int>(dim * params.rank_factor));
  return params.rank > 0 ? std::min(params.rank, cap) : cap;
}

absl::Status EncodeSection(absl::Span<const float> rows, int dim, const StreamParams& params,
                           const SectionContext& context, std::vector<uint8_t>* out) {
  return Encoder(rows, dim, params, context, out).Run();
}

}  // namespace kvcask::kakeya
