#include "codec/kakeya/cache.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace kvcask::kakeya {
namespace {

// Rows [head][tokens] -> the chosen tokens of each.
std::vector<float> Select(absl::Span<const float> rows, int heads, int64_t tokens, int dim,
                          int64_t begin, int64_t end) {
  std::vector<float> out;
  for (int h = 0; h < heads; ++h) {
    const auto* first = &rows[(h * tokens + begin) * dim];
    out.insert(out.end(), first, first + (end - begin) * dim);
  }
  return out;
}

void Place(absl::Span<const float> part, int heads, int64_t tokens, int dim, int64_t begin,
           int64_t end, std::vector<float>* rows) {
  for (int h = 0; h < heads; ++h) {
    std::copy_n(&part[h * (end - begin) * dim], (end - begin) * dim,
                &(*rows)[(h * tokens + begin) * dim]);
  }
}

}  // namespace

int64_t SealedTokens(int64_t length, const Sealing& sealing) {
  const int64_t old = std::max<int64_t>(0, length - sealing.residual_tokens);
  return old / sealing.block_tokens * sealing.block_tokens;
}

double PublishedBlockBytes(int rank, int dim, int clusters, int kept, int rows, int width) {
  const double skeleton = static_cast<double>(rank) * dim + dim + clusters * rank;
  return (skeleton + static_cast<double>(rows) * (2 + 2 * kept)) * width;
}

Fidelity Compare(absl::Span<const float> original, absl::Span<const float> decoded) {
  const double n = static_cast<double>(original.size());
  double mean_a = 0, mean_b = 0;
  for (size_t i = 0; i < original.size(); ++i) mean_a += original[i], mean_b += decoded[i];
  mean_a /= n, mean_b /= n;
  double aa = 0, bb = 0, ab = 0, error = 0, power = 0;
  for (size_t i = 0; i < original.size(); ++i) {
    const double a = original[i] - mean_a, b = decoded[i] - mean_b;
    aa += a * a, bb += b * b, ab += a * b;
    const double e = static_cast<double>(original[i]) - decoded[i];
    error += e * e, power += static_cast<double>(original[i]) * original[i];
  }
  Fidelity f;
  f.mse = error / n;
  f.snr = error > 0 ? aa / error : HUGE_VAL;
  f.correlation = aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
  f.relative_l2 = power > 0 ? std::sqrt(error / power) : 0;
  return f;
}

absl::StatusOr<PlaneResult> RoundTripPlane(const Calibration& calibration, const PlaneShape& shape,
                                           const Sealing& sealing, uint32_t first_position,
                                           absl::Span<const float> rows,
                                           absl::Span<const double> weights, bool stages) {
  const int64_t tokens = static_cast<int64_t>(rows.size()) / (shape.heads * shape.dim);
  PlaneResult result;
  result.rows.assign(rows.begin(), rows.end());
  result.raw_bytes = result.stored_bytes = 2 * rows.size();
  const int64_t sealed = SealedTokens(tokens, sealing);
  // Sinks by absolute position, kept as received; they are the first tokens of a sequence.
  const int64_t sinks = std::min<int64_t>(
      sealed, std::max<int64_t>(0, calibration.params.sink_tokens - int64_t{first_position}));
  if (sealed == sinks || !IsCoded(calibration, shape)) return result;
  std::vector<uint32_t> positions(sealed - sinks);
  std::iota(positions.begin(), positions.end(), first_position + static_cast<uint32_t>(sinks));
  std::vector<float> coded_rows = Select(rows, shape.heads, tokens, shape.dim, sinks, sealed);
  std::vector<uint8_t> section;
  StageTrace trace;
  absl::Status s = EncodePlane(calibration, shape, positions,
                               weights.empty() ? weights : weights.subspan(sinks, sealed - sinks),
                               absl::MakeSpan(coded_rows), stages ? &trace : nullptr, &section);
  if (absl::IsOutOfRange(s)) return result;
  if (!s.ok()) return s;
  const PlaneForm form = FormOf(calibration, shape);
  std::vector<float> decoded(coded_rows.size());
  const int count = static_cast<int>(positions.size());
  s = DecodePlane(calibration, shape, form, section, positions, 0, count, 0, decoded.data());
  if (!s.ok()) return s;
  absl::StatusOr<SectionView> view =
      SectionView::Parse(section, static_cast<int64_t>(positions.size()) * shape.heads, shape.dim,
                         &TablesOf(calibration, shape.kind));
  if (!view.ok()) return view.status();
  result.coded = true;
  result.sealed_tokens = sealed;
  result.section_bytes = section.size();
  result.skeleton_bytes = view->skeleton_bytes();
  result.ranks = view->ranks();
  result.stored_bytes = section.size() + 2 * (rows.size() - coded_rows.size());
  Place(decoded, shape.heads, tokens, shape.dim, sinks, sealed, &result.rows);
  if (!stages) return result;
  double squares = 0;
  for (float x : trace.quantiser_input) squares += static_cast<double>(x) * x;
  if (!trace.quantiser_input.empty()) {
    result.quantiser_variance = squares / static_cast<double>(trace.quantiser_input.size());
  }
  const StreamParams params = ParamsOf(calibration, shape);
  result.quantiser_input = std::move(trace.quantiser_input);
  for (auto [name, stage] : {std::pair<const char*, const std::vector<float>*>{"pca", &trace.pca},
                             {"centres", &trace.centres},
                             {"rotated", &trace.rotated},
                             {"coded", &trace.coded}}) {
    if (params.residual == Residual::kSparse && stage == &trace.rotated) continue;
    result.stages.push_back({name, RestoreRows(calibration, shape, form, positions, *stage, 0)});
  }
  return result;
}

}  // namespace kvcask::kakeya
