#include "codec/fklt/group_coder.h"

#include <algorithm>
#include <cmath>

#include <absl/strings/str_cat.h>
#include <cblas.h>

#include "codec/api/jobs.h"

namespace kvcask::fklt {
namespace {

bool SameRope(const Rope& a, const Rope& b) {
  return a.style == b.style && a.dims == b.dims && a.inv_freq == b.inv_freq &&
         a.attention_scale == b.attention_scale;
}

// The first layer of the shard whose keys turn as those of `layer`.
int RopeId(const Geometry& g, int layer) {
  for (int l = 0; l < layer; ++l) {
    if (SameRope(g.layers[l].rope, g.layers[layer].rope)) return l;
  }
  return layer;
}

// +-1, the same on every machine.
float SketchSign(int row) {
  uint32_t h = static_cast<uint32_t>(row) * 0x9e3779b9u + 0x7f4a7c15u;
  h = (h ^ h >> 15) * 0x2c1b3c6du;
  h = (h ^ h >> 12) * 0x297a2d39u;
  return h >> 31 ? 1.0f : -1.0f;
}

}  // namespace

void UseOneBlasThread() { openblas_set_num_threads(1); }

absl::StatusOr<std::unique_ptr<GroupCoder>> GroupCoder::Make(const GroupModel& model,
                                                             const Geometry& shard,
                                                             const ShardRange& range) {
  std::unique_ptr<GroupCoder> out(new GroupCoder());
  out->model_ = &model;
  int first = shard.layers.size(), end = 0;
  for (const Member& m : model.members) {
    first = std::min(first, m.layer - range.layer_begin);
    end = std::max(end, m.layer - range.layer_begin + 1);
  }
  out->group_ = {first, end};
  const std::vector<PlaneInfo> planes = ListPlanes(shard, first, end);
  for (int l = first, count = 0; l <= end; ++l) {
    out->first_plane_.push_back(count);
    if (l < end) count += static_cast<int>(shard.layers[l].streams.size());
  }
  std::vector<float> l;  // dense lower triangles, one after another
  std::vector<size_t> l_at;
  for (const Member& m : model.members) {
    MemberPlace place;
    place.layer = m.layer - range.layer_begin;
    place.head = m.head - range.head_begin;
    place.stream = m.stream;
    place.head_dim = m.head_dim;
    place.offset = m.offset;
    for (size_t p = 0; p < planes.size(); ++p) {
      if (planes[p].layer == place.layer && planes[p].kind == m.stream) {
        place.plane = static_cast<int>(p);
      }
    }
    const Rope& rope = shard.layers[place.layer].rope;
    if (m.stream == StreamKind::kK && rope.style != RopeStyle::kNone) {
      place.rope = &rope;
      place.rope_id = RopeId(shard, place.layer);
    }
    out->max_head_dim_ = std::max(out->max_head_dim_, m.head_dim);
    out->members_.push_back(place);
    l_at.push_back(l.size());
    size_t at = m.l_offset;
    for (int i = 0; i < m.head_dim; ++i) {
      for (int j = 0; j < m.head_dim; ++j) l.push_back(j <= i ? model.l[at + j] : 0.0f);
      at += i + 1;
    }
  }
  const int d = model.dimensions;
  const size_t size = static_cast<size_t>(d) * d;
  out->forward_.resize(size);
  for (int r = 0; r < d; ++r) {
    LoadRowOfU(model, r, out->forward_.data() + static_cast<size_t>(r) * d);
  }
  out->inverse_ = out->forward_;
  for (size_t m = 0; m < out->members_.size(); ++m) {
    const MemberPlace& place = out->members_[m];
    cblas_strmm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, d,
                place.head_dim, 1, l.data() + l_at[m], place.head_dim,
                out->forward_.data() + place.offset, d);
    cblas_strsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, d,
                place.head_dim, 1, l.data() + l_at[m], place.head_dim,
                out->inverse_.data() + place.offset, d);
  }
  out->sketch_.resize(static_cast<size_t>(out->sketch_blocks()) * d);
  for (int r = 0; r < d; ++r) {
    const float sign = SketchSign(r);
    float* sum = out->sketch_.data() + static_cast<size_t>(r / kSketchRows) * d;
    for (int i = 0; i < d; ++i) sum[i] += sign * out->forward_[static_cast<size_t>(r) * d + i];
  }
  for (const std::vector<float>* matrix : {&out->forward_, &out->inverse_}) {
    for (float v : *matrix) {
      if (std::isfinite(v)) continue;
      return absl::InvalidArgumentError(absl::StrCat("fklt profile: the metric of layers ", first,
                                                     " to ", end, " can't be inverted in fp32"));
    }
  }
  for (int r = 0; r < d; ++r) out->inverse_sigma_.push_back(std::exp2(-model.sigma[r] / 16.0f));
  return out;
}

void GroupCoder::Forward(int row_begin, int row_end, int tokens, const float* x, float* y,
                         int stride) const {
  if (row_begin >= row_end) return;
  const int d = dimensions();
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, row_end - row_begin, tokens, d, 1,
              forward_.data() + static_cast<size_t>(row_begin) * d, d, x, d, 0, y, stride);
}

void GroupCoder::Sketch(int block_begin, int tokens, const float* x, float* y, int stride) const {
  const int blocks = sketch_blocks() - block_begin;
  if (blocks <= 0) return;
  const int d = dimensions();
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, blocks, tokens, d, 1,
              sketch_.data() + static_cast<size_t>(block_begin) * d, d, x, d, 0, y, stride);
}

void GroupCoder::StartInverse(int tokens, int column_begin, int column_end, float* x) const {
  const int columns = column_end - column_begin;
  for (int t = 0; t < tokens; ++t) {
    std::copy_n(model_->mu.begin() + column_begin, columns, x + static_cast<size_t>(t) * columns);
  }
}

void GroupCoder::AddInverse(int row_begin, int row_end, int tokens, const float* y, int stride,
                            int column_begin, int column_end, float* x) const {
  if (row_begin >= row_end || tokens == 0) return;
  const int columns = column_end - column_begin;
  cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, tokens, columns, row_end - row_begin, 1, y,
              stride, inverse_.data() + static_cast<size_t>(row_begin) * dimensions() + column_begin,
              dimensions(), 1, x, columns);
}

}  // namespace kvcask::fklt
