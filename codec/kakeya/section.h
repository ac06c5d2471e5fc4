// A section: the rows of one stream, cut into blocks, coded by Kakeya. FORMAT.md is the
// specification of its bytes. Knows nothing of layers, heads, RoPE or metrics: rows in, rows out.
//
// A block's skeleton is a mean, a PCA basis and the unit centres of its clusters; a row is its
// cluster, its length t along the centre, and what is left in the basis's coordinates, either
// the largest few of them or a Lloyd-Max code of each after a random rotation.
//
// Thread-safe: EncodeSection is a pure function; a SectionView is immutable.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <vector>

#include "codec/kakeya/params.h"
#include "codec/kakeya/pca.h"

namespace kvcask::kakeya {

inline constexpr int kMaxDim = 4096;

// The rows as they stand after each stage, [rows][dim], for audits. What a later stage adds in
// error is the difference to the one before.
struct StageTrace {
  std::vector<float> pca;      // projected on the basis and back
  std::vector<float> centres;  // mean and t times the centre alone: no residual
  std::vector<float> rotated;  // residual rotated, scaled by its stored scale, not quantised
  std::vector<float> coded;    // what a decoder gives
  // Scaled coordinates as they enter the quantiser (kCoded): variance 1 when the scale is right.
  std::vector<float> quantiser_input;
};

// Level of each code, ascending, 2^bits of them: those of the normal distribution.
std::vector<float> GaussianCentroids(int bits);

// What sections are coded with beside the parameters.
struct SectionContext {
  int block_rows = 512;  // 1..kMaxBlockRows
  int runs = 1;          // equal parts of the rows, each cut into blocks for itself
  uint64_t seed = 0;
  absl::Span<const double> weights;   // of each row in the PCA, or none
  absl::Span<const float> centroids;  // 2^bits, ascending; none: Gaussian
  const Pca* basis = nullptr;         // of all blocks, from elsewhere (a sketch); none: fitted
  StageTrace* trace = nullptr;
};

// The most coordinates that a row of `dim` may keep; 0: no limit.
int RankCap(const StreamParams& params, int dim);

// `rows` is [n][dim], 1 <= n <= 2^24, finite. Appends the section to `out`. OUT_OF_RANGE when a
// number is beyond its dtype (t beyond fp16, say): the rows must then be kept some other way.
absl::Status EncodeSection(absl::Span<const float> rows, int dim, const StreamParams& params,
                           const SectionContext& context, std::vector<uint8_t>* out);

// A section of bytes that are not trusted. Points into them.
class SectionView {
 public:
  // DATA_LOSS when the bytes are not exactly one section of `rows` rows of `dim`. `centroids`
  // are what a section with calibrated ones was coded with: [bits - 1], empty where there are
  // none.
  static absl::StatusOr<SectionView> Parse(absl::Span<const uint8_t> bytes, int64_t rows, int dim,
                                           const std::vector<std::vector<float>>* centroids);

  // Rows [begin, end) to out[(end - begin)][dim]. DATA_LOSS: a cluster, index or number that
  // there is not.
  absl::Status DecodeRows(int64_t begin, int64_t end, float* out) const;

  // Bytes of bases, centres and means: the price of blocks, whatever the rows.
  size_t skeleton_bytes() const { return skeleton_bytes_; }
  // Of each block.
  std::vector<int> ranks() const;

 private:
  struct Basis {
    int rank = 0;
    absl::Span<const uint8_t> mean, vectors;
  };
  struct Block {
    int64_t begin = 0;
    int rows = 0, clusters = 0;
    int basis = 0;  // of bases_
    absl::Span<const uint8_t> centres, ids, lengths;
    absl::Span<const uint8_t> values, indices;  // kSparse
    absl::Span<const uint8_t> scales, codes;    // kCoded
    absl::Span<const uint8_t> counts, outliers;
  };
  struct Skeleton {  // of one block, in fp32
    std::vector<float> mean, vectors, centres;
  };
  class Cursor;

  absl::Status ReadBasis(Cursor& cursor);
  absl::Status ReadBlock(Cursor& cursor, int64_t begin, int rows);
  Skeleton Load(const Block& block) const;
  absl::Status DecodeBlock(const Block& block, int begin, int end, float* out) const;
  absl::Status ReadSparse(const Block& block, int row, float* coordinates) const;
  absl::Status ReadCoded(const Block& block, int row, size_t first_outlier,
                         float* coordinates) const;

  Residual residual_ = Residual::kSparse;
  Dtype skeleton_ = Dtype::kBf16;
  bool shared_basis_ = false, has_outliers_ = false;
  int dim_ = 0, bits_ = 0, clusters_ = 0, sparse_count_ = 0;
  std::vector<float> centroids_;
  std::vector<float> signs_;
  std::vector<Basis> bases_;
  std::vector<Block> blocks_;
  size_t skeleton_bytes_ = 0;
};

}  // namespace kvcask::kakeya
