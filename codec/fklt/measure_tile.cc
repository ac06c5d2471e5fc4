#include <algorithm>
#include <cmath>
#include <vector>

#include "codec/base/strided.h"
#include "codec/fklt/tile_codec.h"

namespace kvcask::fklt {
namespace {

// x - mu of all tokens, K un-rotated: [tokens][D].
std::vector<float> LoadAll(const GroupCoder& group, const ConstKvView& view, int tokens,
                           absl::Span<const uint32_t> positions, RopeCache* ropes) {
  const size_t d = group.dimensions();
  std::vector<float> x(tokens * d), head(static_cast<size_t>(tokens) * group.max_head_dim());
  for (const MemberPlace& m : group.members()) {
    LoadHead(view, m.plane, m.head, 0, tokens, m.head_dim, head.data());
    if (m.rope != nullptr) {
      const RopeTable& table = ropes->Get(m, positions, 0, RopeDirection::kUnrotate);
      ApplyRope(*m.rope, table, tokens, m.head_dim, head.data());
    }
    for (int t = 0; t < tokens; ++t) {
      for (int i = 0; i < m.head_dim; ++i) {
        x[t * d + m.offset + i] =
            head[static_cast<size_t>(t) * m.head_dim + i] - group.model().mu[m.offset + i];
      }
    }
  }
  return x;
}

}  // namespace

double MeasureTile(const FkltProfile& profile, const GroupCoder& group, const EncodeJob& job,
                   const ConstKvView& decoded) {
  const GroupModel& g = group.model();
  const int tokens = job.tokens, d = group.dimensions(), m = g.leading();
  RopeCache ropes;
  std::vector<float> x = LoadAll(group, job.source, tokens, job.positions, &ropes);
  const std::vector<float> back = LoadAll(group, decoded, tokens, job.positions, &ropes);
  std::vector<float> y(static_cast<size_t>(d) * tokens);  // [D][tokens]
  std::vector<double> weight(tokens, kSinkSensitivity);
  if (m > 0) group.Forward(0, m, tokens, x.data(), y.data(), tokens);
  for (int t = 0; t < tokens; ++t) {
    if (job.positions[t] < profile.sinks) continue;
    double eta = g.sensitivity[0];
    for (int r = 0; r < m; ++r) {
      const double u =
          std::clamp<double>(y[static_cast<size_t>(r) * tokens + t] * group.inverse_sigma(r), -8, 8);
      eta += g.sensitivity[1 + r] * u + g.sensitivity[1 + m + r] * u * u;
    }
    weight[t] = std::exp(std::clamp(eta, -8.0, 8.0));
  }
  for (size_t i = 0; i < x.size(); ++i) x[i] -= back[i];
  group.Forward(0, d, tokens, x.data(), y.data(), tokens);
  double loss = 0;
  for (int r = 0; r < d; ++r) {
    for (int t = 0; t < tokens; ++t) {
      const double e = y[static_cast<size_t>(r) * tokens + t];
      loss += .5 * weight[t] * e * e;
    }
  }
  return loss == 0 ? 0 : profile.kappa[PresetOf(job.quality)] * loss / tokens + g.bf16_floor;
}

}  // namespace kvcask::fklt
