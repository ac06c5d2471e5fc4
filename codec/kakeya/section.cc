#include "codec/kakeya/section.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codec/base/dtype.h"
#include "codec/kakeya/section_layout.h"
#include "codec/quant/bit_pack.h"
#include "codec/quant/half.h"
#include "codec/quant/lloyd_max.h"
#include "codec/transform/hadamard.h"

namespace kvcask::kakeya {
namespace {

template <typename... Args>
absl::Status Corrupt(const Args&... what) {
  return absl::DataLossError(absl::StrCat("kakeya section: ", what...));
}

uint16_t Load16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}
uint32_t Load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

std::vector<float> LoadNumbers(absl::Span<const uint8_t> bytes, Dtype dtype) {
  std::vector<float> out(bytes.size() / DtypeSize(dtype));
  LoadRow(bytes.data(), static_cast<int64_t>(DtypeSize(dtype)), dtype, out.size(), out.data());
  return out;
}

bool AllFinite(absl::Span<const uint8_t> bytes, Dtype dtype) {
  for (float x : LoadNumbers(bytes, dtype)) {
    if (!std::isfinite(x)) return false;
  }
  return true;
}

}  // namespace

std::vector<float> GaussianCentroids(int bits) {
  const Codebook& book = LloydMaxCodebook(bits, 0);
  std::vector<float> levels;
  for (auto l = book.levels.rbegin(); l != book.levels.rend(); ++l) {
    levels.push_back(static_cast<float>(-*l) * kCodebookUnit);
  }
  for (int l : book.levels) levels.push_back(static_cast<float>(l) * kCodebookUnit);
  return levels;
}

// Hands out the section's bytes in order; once they do not suffice, nothing.
class SectionView::Cursor {
 public:
  explicit Cursor(absl::Span<const uint8_t> bytes) : bytes_(bytes) {}
  absl::Span<const uint8_t> Take(uint64_t n) {
    if (failed_ || n > bytes_.size() - at_) {
      failed_ = true;
      return {};
    }
    const auto taken = bytes_.subspan(at_, n);
    at_ += n;
    return taken;
  }
  bool failed() const { return failed_; }
  size_t at() const { return at_; }
  size_t left() const { return bytes_.size() - at_; }

 private:
  const absl::Span<const uint8_t> bytes_;
  size_t at_ = 0;
  bool failed_ = false;
};

absl::StatusOr<SectionView> SectionView::Parse(absl::Span<const uint8_t> bytes, int64_t rows,
                                               int dim,
                                               const std::vector<std::vector<float>>* centroids) {
  if (bytes.size() < kSectionHeaderBytes) {
    return Corrupt(bytes.size(), " bytes; expected at least ", kSectionHeaderBytes);
  }
  const uint8_t* h = bytes.data();
  SectionView s;
  s.bits_ = h[3];
  s.dim_ = Load16(h + 4);
  s.clusters_ = Load16(h + 6);
  const uint32_t found_rows = Load32(h + 8), block_rows = Load32(h + 12);
  s.sparse_count_ = Load16(h + 16);
  const int runs = Load16(h + 18);
  const uint8_t flags = h[2];
  const bool coded = h[0] == kCodedSection;
  if (h[0] != kSparseSection && !coded) return Corrupt("kind ", h[0], " at byte 0");
  if (!IsValidDtype(h[1])) return Corrupt("dtype ", h[1], " at byte 1");
  if (flags & ~(kSharedBasis | kOutliers | kCalibratedCentroids) || (!coded && flags > 1)) {
    return Corrupt("flags ", flags, " at byte 2");
  }
  if (coded ? s.bits_ < 1 || s.bits_ > 4 || s.sparse_count_ != 0 : s.bits_ != 0) {
    return Corrupt(s.bits_, " bits and ", s.sparse_count_, " coordinates at bytes 3 and 16");
  }
  if (found_rows != rows || s.dim_ != dim) {
    return Corrupt(found_rows, " rows of ", s.dim_, "; expected ", rows, " of ", dim);
  }
  if (s.clusters_ < 1 || s.clusters_ > kMaxClusters || block_rows < 1 ||
      block_rows > kMaxBlockRows || runs < 1 || rows % runs != 0) {
    return Corrupt(s.clusters_, " clusters, ", runs, " runs, blocks of ", block_rows, " rows");
  }
  s.residual_ = coded ? Residual::kCoded : Residual::kSparse;
  s.skeleton_ = static_cast<Dtype>(h[1]);
  s.shared_basis_ = flags & kSharedBasis;
  s.has_outliers_ = flags & kOutliers;
  if (flags & kCalibratedCentroids) {
    if (centroids == nullptr || static_cast<int>(centroids->size()) < s.bits_ ||
        static_cast<int>((*centroids)[s.bits_ - 1].size()) != 1 << s.bits_) {
      return Corrupt("coded with calibrated centroids of ", s.bits_, " bits, which there are not");
    }
    s.centroids_ = (*centroids)[s.bits_ - 1];
  } else if (coded) {
    s.centroids_ = GaussianCentroids(s.bits_);
  }
  Cursor cursor(bytes);
  cursor.Take(kSectionHeaderBytes);
  if (s.shared_basis_) {
    if (absl::Status ok = s.ReadBasis(cursor); !ok.ok()) return ok;
  }
  const int64_t run_rows = rows / runs;
  for (int64_t begin = 0; begin < rows;) {
    const int64_t left = run_rows - begin % run_rows;
    const int n = static_cast<int>(std::min<int64_t>(block_rows, left));
    if (absl::Status ok = s.ReadBlock(cursor, begin, n); !ok.ok()) return ok;
    begin += n;
  }
  if (cursor.left() != 0) return Corrupt(cursor.left(), " bytes after the last block");
  int longest = 0;
  for (const Basis& b : s.bases_) longest = std::max(longest, RotatedLength(b.rank));
  if (coded) s.signs_ = HadamardSigns(longest);
  return s;
}

absl::Status SectionView::ReadBasis(Cursor& cursor) {
  const size_t at = cursor.at();
  const size_t element = DtypeSize(skeleton_);
  const auto rank = cursor.Take(2);
  if (cursor.failed()) return Corrupt("ends in a basis");
  Basis b;
  b.rank = Load16(rank.data());
  if (b.rank < 1 || b.rank > dim_) return Corrupt("rank ", b.rank, " of ", dim_, " at byte ", at);
  b.mean = cursor.Take(element * dim_);
  b.vectors = cursor.Take(element * dim_ * b.rank);
  if (cursor.failed()) return Corrupt("ends in a basis");
  if (!AllFinite(b.mean, skeleton_) || !AllFinite(b.vectors, skeleton_)) {
    return Corrupt("a basis that is not finite at byte ", at);
  }
  skeleton_bytes_ += 2 + b.mean.size() + b.vectors.size();
  bases_.push_back(b);
  return absl::OkStatus();
}

absl::Status SectionView::ReadBlock(Cursor& cursor, int64_t begin, int rows) {
  const size_t at = cursor.at();
  if (!shared_basis_) {
    if (absl::Status s = ReadBasis(cursor); !s.ok()) return s;
  }
  Block b;
  b.begin = begin;
  b.rows = rows;
  b.clusters = std::min(clusters_, rows);
  b.basis = static_cast<int>(bases_.size()) - 1;
  const uint64_t rank = bases_[b.basis].rank, n = rows;
  const uint64_t element = DtypeSize(skeleton_);
  b.centres = cursor.Take(element * rank * b.clusters);
  b.ids = cursor.Take(PackedBytes(n, IdBits(b.clusters)));
  if (residual_ == Residual::kSparse) {
    const uint64_t kept = std::min<uint64_t>(sparse_count_, rank);
    b.lengths = cursor.Take(element * n);
    b.values = cursor.Take(element * n * kept);
    b.indices = cursor.Take(kept == rank ? 0 : IndexBytes(static_cast<int>(rank)) * n * kept);
    if (!AllFinite(b.lengths, skeleton_) || !AllFinite(b.values, skeleton_)) {
      return Corrupt("a number that is not finite in the block at byte ", at);
    }
  } else {
    b.lengths = cursor.Take(2 * n);
    b.scales = cursor.Take(2 * n);
    b.codes = cursor.Take(PackedBytes(n * RotatedLength(static_cast<int>(rank)), bits_));
    if (!AllFinite(b.lengths, Dtype::kF16) || !AllFinite(b.scales, Dtype::kF16)) {
      return Corrupt("a number that is not finite in the block at byte ", at);
    }
    if (has_outliers_) {
      b.counts = cursor.Take(n);
      uint64_t outliers = 0;
      for (uint8_t c : b.counts) outliers += c;
      b.outliers = cursor.Take(4 * outliers);
    }
  }
  if (cursor.failed()) return Corrupt("ends in the block at byte ", at);
  if (!AllFinite(b.centres, skeleton_)) {
    return Corrupt("centres that are not finite in the block at byte ", at);
  }
  skeleton_bytes_ += b.centres.size();
  blocks_.push_back(b);
  return absl::OkStatus();
}

SectionView::Skeleton SectionView::Load(const Block& block) const {
  const Basis& basis = bases_[block.basis];
  return {LoadNumbers(basis.mean, skeleton_), LoadNumbers(basis.vectors, skeleton_),
          LoadNumbers(block.centres, skeleton_)};
}

std::vector<int> SectionView::ranks() const {
  std::vector<int> ranks;
  for (const Block& b : blocks_) ranks.push_back(bases_[b.basis].rank);
  return ranks;
}

absl::Status SectionView::DecodeRows(int64_t begin, int64_t end, float* out) const {
  for (const Block& b : blocks_) {
    const int64_t first = std::max(begin, b.begin), last = std::min(end, b.begin + b.rows);
    if (first >= last) continue;
    absl::Status s = DecodeBlock(b, static_cast<int>(first - b.begin),
                                 static_cast<int>(last - b.begin), out + (first - begin) * dim_);
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status SectionView::DecodeBlock(const Block& b, int begin, int end, float* out) const {
  const Skeleton skeleton = Load(b);
  const int rank = bases_[b.basis].rank;
  std::vector<uint8_t> ids(b.rows);
  const int id_bits = IdBits(b.clusters);
  if (id_bits > 0) UnpackBits(b.ids.data(), ids.size(), id_bits, ids.data());
  std::vector<float> y(std::max(rank, RotatedLength(rank)));
  size_t outlier = 0;
  for (int i = 0; i < begin && has_outliers_; ++i) outlier += b.counts[i];
  for (int i = begin; i < end; ++i, out += dim_) {
    if (ids[i] >= b.clusters) return Corrupt("cluster ", ids[i], " of ", b.clusters);
    absl::Status s = residual_ == Residual::kSparse ? ReadSparse(b, i, y.data())
                                                    : ReadCoded(b, i, outlier, y.data());
    if (!s.ok()) return s;
    if (has_outliers_) outlier += b.counts[i];
    const size_t element = residual_ == Residual::kSparse ? DtypeSize(skeleton_) : 2;
    const float t = LoadElement(b.lengths.data() + i * element,
                                residual_ == Residual::kSparse ? skeleton_ : Dtype::kF16);
    const float* centre = &skeleton.centres[static_cast<size_t>(ids[i]) * rank];
    std::copy(skeleton.mean.begin(), skeleton.mean.end(), out);
    for (int r = 0; r < rank; ++r) {
      const float coordinate = y[r] + t * centre[r];
      const float* vector = &skeleton.vectors[static_cast<size_t>(r) * dim_];
      for (int d = 0; d < dim_; ++d) out[d] += coordinate * vector[d];
    }
  }
  return absl::OkStatus();
}

absl::Status SectionView::ReadSparse(const Block& b, int row, float* y) const {
  const int rank = bases_[b.basis].rank, kept = std::min(sparse_count_, rank);
  const size_t element = DtypeSize(skeleton_), width = IndexBytes(rank);
  std::fill(y, y + rank, 0.f);
  int last = -1;
  for (int i = 0; i < kept; ++i) {
    const size_t at = static_cast<size_t>(row) * kept + i;
    int index = i;
    if (kept < rank) {
      const uint8_t* p = b.indices.data() + at * width;
      index = width == 1 ? *p : Load16(p);
      if (index <= last || index >= rank) return Corrupt("coordinate ", index, " after ", last);
      last = index;
    }
    y[index] = LoadElement(b.values.data() + at * element, skeleton_);
  }
  return absl::OkStatus();
}

absl::Status SectionView::ReadCoded(const Block& b, int row, size_t outlier, float* y) const {
  const size_t length = RotatedLength(bases_[b.basis].rank);
  // A row's codes begin within a byte where rows are shorter than one: rows come in powers of
  // two, so bit by bit.
  for (size_t i = 0; i < length; ++i) {
    const size_t bit = (row * length + i) * bits_, byte = bit / 8;
    const unsigned two = b.codes[byte] | (byte + 1 < b.codes.size() ? b.codes[byte + 1] << 8 : 0);
    y[i] = centroids_[(two >> (bit % 8)) & ((1u << bits_) - 1)];
  }
  if (has_outliers_) {
    int last = -1;
    for (int i = 0; i < b.counts[row]; ++i) {
      const uint8_t* p = &b.outliers[(outlier + i) * 4];
      const int index = Load16(p);
      if (index <= last || index >= static_cast<int>(length) || !IsFiniteHalf(Load16(p + 2))) {
        return Corrupt("outlier of coordinate ", index, " after ", last);
      }
      last = index;
      y[index] = F16ToFloat(Load16(p + 2));
    }
  }
  const float scale = F16ToFloat(Load16(&b.scales[2 * static_cast<size_t>(row)])) / length;
  InverseHadamard(signs_, y, length);
  for (size_t i = 0; i < length; ++i) y[i] *= scale;
  return absl::OkStatus();
}

}  // namespace kvcask::kakeya
