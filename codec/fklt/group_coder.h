// One group of one shard, ready to code: its matrices in fp32 and where its sub-vectors lie in a
// job's planes. The fp32 transform of FORMAT.md 1, by a BLAS on the calling thread.
//
// Thread-safe: immutable once made.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <absl/status/statusor.h>

#include "codec/api/codec.h"
#include "codec/fklt/fklt_profile.h"

namespace kvcask::fklt {

// Where a member's data is, in the shard.
struct MemberPlace {
  int layer = 0;  // of the shard
  int plane = 0;  // from the first plane of the group's layers
  int head = 0;   // of the shard
  StreamKind stream = StreamKind::kK;
  int head_dim = 0;
  int offset = 0;             // in the group's vector
  const Rope* rope = nullptr; // null: nothing to turn
  int rope_id = -1;           // equal for layers that turn alike
};

class GroupCoder {
 public:
  // `shard` is the sliced geometry, which must outlive this; `model` a group whose members are
  // all in `range`. INVALID_ARGUMENT: the metric can't be inverted in fp32.
  static absl::StatusOr<std::unique_ptr<GroupCoder>> Make(const GroupModel& model,
                                                          const Geometry& shard,
                                                          const ShardRange& range);

  const GroupModel& model() const { return *model_; }
  const Group& group() const { return group_; }
  absl::Span<const MemberPlace> members() const { return members_; }
  int dimensions() const { return model_->dimensions; }
  // Planes of the group's layers before those of a layer of the shard.
  int first_plane(int layer) const { return first_plane_[layer - group_.layer_begin]; }
  int max_head_dim() const { return max_head_dim_; }
  float inverse_sigma(int row) const { return inverse_sigma_[row]; }
  // [D][D], row r is L u_r, and L^-T u_r: what a backend of another memory copies.
  absl::Span<const float> forward() const { return forward_; }
  absl::Span<const float> inverse() const { return inverse_; }
  absl::Span<const float> sketch() const { return sketch_; }  // [sketch_blocks][D]

  // y[r - row_begin][t] = U[r] . L^T x[t] for rows [row_begin, row_end), x = the centred vectors
  // [tokens][D]; y has rows of `stride`.
  void Forward(int row_begin, int row_end, int tokens, const float* x, float* y,
               int stride) const;
  // The same for sums of kSketchRows neighbouring rows with random signs, first block to last:
  // the square of such a sum has the sum of the rows' squares as its mean (Alon, Matias, Szegedy
  // 1996), at a sixteenth of the cost. Tells the energy of coordinates that are not coded.
  void Sketch(int block_begin, int tokens, const float* x, float* y, int stride) const;
  int sketch_blocks() const { return (dimensions() + kSketchRows - 1) / kSketchRows; }
  static constexpr int kSketchRows = 16;

  // x[t] = mu for the elements [column_begin, column_end), x [tokens][column_end - column_begin].
  void StartInverse(int tokens, int column_begin, int column_end, float* x) const;
  // x[t] += L^-T U^T y of coordinates [row_begin, row_end) for the first `tokens` tokens:
  // y [row_end - row_begin][stride].
  void AddInverse(int row_begin, int row_end, int tokens, const float* y, int stride,
                  int column_begin, int column_end, float* x) const;

 private:
  GroupCoder() = default;
  const GroupModel* model_ = nullptr;
  Group group_;
  std::vector<MemberPlace> members_;
  std::vector<int> first_plane_;
  int max_head_dim_ = 0;
  std::vector<float> forward_;  // [D][D], row r is L u_r
  std::vector<float> sketch_;   // [sketch_blocks][D]
  std::vector<float> inverse_;  // [D][D], row r is L^-T u_r
  std::vector<float> inverse_sigma_;
};

// Makes the BLAS use the calling thread only, for the whole process: parallelism here is over
// jobs. Called by MakeFkltCodec.
void UseOneBlasThread();

}  // namespace kvcask::fklt
