#include "codec/kakeya/plane.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstring>

namespace kvcask::kakeya {
namespace {

// [heads][tokens][dim] to [tokens][heads][dim].
std::vector<float> Pool(absl::Span<const float> rows, int heads, int tokens, int dim) {
  std::vector<float> out(rows.size());
  for (int h = 0; h < heads; ++h) {
    for (int t = 0; t < tokens; ++t) {
      std::copy_n(&rows[(static_cast<size_t>(h) * tokens + t) * dim], dim,
                  &out[(static_cast<size_t>(t) * heads + h) * dim]);
    }
  }
  return out;
}

bool Contains(const std::vector<int>& layers, int layer) {
  return std::find(layers.begin(), layers.end(), layer) != layers.end();
}

const Whitening* WhiteningOf(const Calibration& c, const PlaneShape& shape, int head) {
  const auto it = c.whitening.find({shape.layer, shape.first_head + head});
  return it == c.whitening.end() ? nullptr : &it->second;
}

}  // namespace

StreamParams ParamsOf(const Calibration& c, const PlaneShape& shape) {
  if (shape.kind != StreamKind::kK) return c.params.v;
  StreamParams params = c.params.k;
  if (Contains(c.params.hot_layers, shape.layer)) params.bits = c.params.hot_bits;
  return params;
}

const std::vector<std::vector<float>>& TablesOf(const Calibration& c, StreamKind kind) {
  return kind == StreamKind::kK ? c.k_centroids : c.v_centroids;
}

PlaneForm FormOf(const Calibration& c, const PlaneShape& shape) {
  PlaneForm form;
  form.pooled = c.params.rows == RowOrder::kPooled;
  const bool keys = shape.kind == StreamKind::kK;
  form.unrotated = keys && c.params.unrotate_keys && shape.rope->style != RopeStyle::kNone;
  form.whitened = keys && c.params.whiten_keys;
  return form;
}

bool IsCoded(const Calibration& c, const PlaneShape& shape) {
  return ParamsOf(c, shape).coded && !Contains(c.params.raw_layers, shape.layer);
}

absl::Status EncodePlane(const Calibration& c, const PlaneShape& shape,
                         absl::Span<const uint32_t> positions, absl::Span<const double> weights,
                         absl::Span<float> rows, StageTrace* trace, std::vector<uint8_t>* out) {
  const PlaneForm form = FormOf(c, shape);
  const StreamParams params = ParamsOf(c, shape);
  const int tokens = static_cast<int>(positions.size());
  RopeTable table;
  if (form.unrotated) table = MakeRopeTable(*shape.rope, positions, 0, RopeDirection::kUnrotate);
  for (int h = 0; h < shape.heads; ++h) {
    float* head = &rows[static_cast<size_t>(h) * tokens * shape.dim];
    if (form.unrotated) ApplyRope(*shape.rope, table, tokens, shape.dim, head);
    if (!form.whitened) continue;
    const Whitening* w = WhiteningOf(c, shape, h);
    for (int t = 0; t < tokens; ++t) {
      float* row = head + static_cast<size_t>(t) * shape.dim;
      MultiplyRow(row, w->factor, shape.dim, row);
    }
  }
  if (form.pooled) {
    const std::vector<float> pooled = Pool(rows, shape.heads, tokens, shape.dim);
    std::copy(pooled.begin(), pooled.end(), rows.begin());
  }
  std::vector<double> row_weights;
  for (int i = 0; !weights.empty() && i < tokens * shape.heads; ++i) {
    row_weights.push_back(weights[form.pooled ? i / shape.heads : i % tokens]);
  }
  SectionContext context;
  context.block_rows = c.params.block_rows;
  context.runs = form.pooled ? 1 : shape.heads;  // one head's rows share no block with another's
  context.seed = c.params.seed;
  context.weights = row_weights;
  if (params.calibrated_centroids) context.centroids = TablesOf(c, shape.kind)[params.bits - 1];
  context.trace = trace;
  return EncodeSection(rows, shape.dim, params, context, out);
}

// Of the tokens that `positions` are.
static void Restore(const Calibration& c, const PlaneShape& shape, const PlaneForm& form,
                    absl::Span<const uint32_t> positions, int64_t offset, float* rows) {
  const int tokens = static_cast<int>(positions.size());
  const bool keys = shape.kind == StreamKind::kK && shape.rope->style != RopeStyle::kNone;
  const bool turn = keys && (form.unrotated || offset != 0);
  RopeTable table;
  if (turn) {
    table = form.unrotated ? MakeRopeTable(*shape.rope, positions, offset, RopeDirection::kRotate)
                           : MakeRopeShift(*shape.rope, offset);
  }
  for (int h = 0; h < shape.heads; ++h, rows += static_cast<size_t>(tokens) * shape.dim) {
    if (form.whitened) {
      const Whitening* w = WhiteningOf(c, shape, h);
      for (int t = 0; t < tokens; ++t) {
        float* row = rows + static_cast<size_t>(t) * shape.dim;
        MultiplyRow(row, w->inverse, shape.dim, row);
      }
    }
    if (turn) ApplyRope(*shape.rope, table, tokens, shape.dim, rows);
  }
}

absl::Status DecodePlane(const Calibration& c, const PlaneShape& shape, const PlaneForm& form,
                         absl::Span<const uint8_t> section, absl::Span<const uint32_t> positions,
                         int begin, int end, int64_t offset, float* out) {
  if ((form.unrotated && (shape.kind != StreamKind::kK || shape.rope->style == RopeStyle::kNone)) ||
      (form.whitened && (shape.kind != StreamKind::kK || WhiteningOf(c, shape, 0) == nullptr))) {
    return absl::DataLossError("kakeya section: said to be un-rotated or whitened, which it can't");
  }
  const int64_t tokens = static_cast<int64_t>(positions.size());
  absl::StatusOr<SectionView> view =
      SectionView::Parse(section, tokens * shape.heads, shape.dim, &TablesOf(c, shape.kind));
  if (!view.ok()) return view.status();
  const int wanted = end - begin;
  const size_t row = shape.dim;
  if (form.pooled) {
    std::vector<float> pooled(row * wanted * shape.heads);
    absl::Status s = view->DecodeRows(static_cast<int64_t>(begin) * shape.heads,
                                      static_cast<int64_t>(end) * shape.heads, pooled.data());
    if (!s.ok()) return s;
    // Token by token back to head by head: the same exchange with the axes' names swapped.
    const std::vector<float> apart = Pool(pooled, wanted, shape.heads, shape.dim);
    std::copy(apart.begin(), apart.end(), out);
  } else {
    for (int h = 0; h < shape.heads; ++h) {
      absl::Status s =
          view->DecodeRows(h * tokens + begin, h * tokens + end, out + h * wanted * row);
      if (!s.ok()) return s;
    }
  }
  Restore(c, shape, form, positions.subspan(begin, wanted), offset, out);
  return absl::OkStatus();
}

std::vector<float> RestoreRows(const Calibration& c, const PlaneShape& shape, const PlaneForm& form,
                               absl::Span<const uint32_t> positions,
                               absl::Span<const float> coded_rows, int64_t offset) {
  const int tokens = static_cast<int>(positions.size());
  std::vector<float> rows = form.pooled ? Pool(coded_rows, tokens, shape.heads, shape.dim)
                                        : std::vector<float>(coded_rows.begin(), coded_rows.end());
  Restore(c, shape, form, positions, offset, rows.data());
  return rows;
}

}  // namespace kvcask::kakeya
