#include "codec/api/jobs.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace kvcask {
namespace {

template <typename... Args>
absl::Status Bad(const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("codec job: ", what...));
}

size_t CountPlanes(const Geometry& g, int layer_begin, int layer_end) {
  size_t n = 0;
  for (int l = layer_begin; l < layer_end; ++l) n += g.layers[l].streams.size();
  return n;
}

absl::Status CheckCommon(absl::Span<const Group> groups, int group, int tokens, size_t positions,
                         size_t token_ids) {
  if (group < 0 || static_cast<size_t>(group) >= groups.size()) {
    return Bad("group ", group, "; expected 0 to ", groups.size(), " - 1");
  }
  if (tokens < 1 || tokens > kPageTokens) {
    return Bad(tokens, " tokens; expected 1 to ", kPageTokens);
  }
  if (positions != static_cast<size_t>(tokens)) {
    return Bad(positions, " positions for ", tokens, " tokens");
  }
  if (token_ids != 0 && token_ids != static_cast<size_t>(tokens)) {
    return Bad(token_ids, " token ids for ", tokens, " tokens; expected as many or none");
  }
  return absl::OkStatus();
}

template <typename Byte>
absl::Status CheckView(const BasicKvView<Byte>& view, size_t planes, int tokens) {
  if (!IsValidDtype(static_cast<uint8_t>(view.dtype))) {
    return Bad("unknown dtype ", static_cast<int>(view.dtype));
  }
  if (view.planes.size() != planes) {
    return Bad(view.planes.size(), " planes; expected ", planes, " for its layers");
  }
  if (!view.pages.offsets.empty()) {
    const int64_t held = static_cast<int64_t>(view.pages.offsets.size()) * view.pages.page_tokens;
    if (view.pages.page_tokens < 1 || held < tokens) {
      return Bad(view.pages.offsets.size(), " pages of ", view.pages.page_tokens,
                 " tokens; expected room for ", tokens);
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<PlaneInfo> ListPlanes(const Geometry& g, int layer_begin, int layer_end) {
  std::vector<PlaneInfo> planes;
  for (int l = layer_begin; l < layer_end; ++l) {
    for (const StreamGeometry& s : g.layers[l].streams) {
      planes.push_back({l, s.kind, s.heads, s.head_dim});
    }
  }
  return planes;
}

std::vector<Group> OneGroupPerLayer(const Geometry& g) {
  std::vector<Group> groups;
  for (int l = 0; l < static_cast<int>(g.layers.size()); ++l) {
    if (!g.layers[l].streams.empty()) groups.push_back({l, l + 1});
  }
  return groups;
}

absl::string_view StreamName(StreamKind kind) {
  return kind == StreamKind::kK ? "K" : kind == StreamKind::kV ? "V" : "latent";
}

absl::Status CheckEncodeJob(const Geometry& g, absl::Span<const Group> groups, const EncodeJob& job,
                            size_t max_tile_bytes) {
  absl::Status s =
      CheckCommon(groups, job.group, job.tokens, job.positions.size(), job.token_ids.size());
  if (!s.ok()) return s;
  const Group& group = groups[job.group];
  s = CheckView(job.source, CountPlanes(g, group.layer_begin, group.layer_end), job.tokens);
  if (!s.ok()) return s;
  if (job.destination.size() < max_tile_bytes) {
    return Bad("destination of ", job.destination.size(), " bytes; expected ", max_tile_bytes);
  }
  return absl::OkStatus();
}

absl::Status CheckDecodeJob(const Geometry& g, absl::Span<const Group> groups,
                            const DecodeJob& job) {
  absl::Status s =
      CheckCommon(groups, job.group, job.tokens, job.positions.size(), job.token_ids.size());
  if (!s.ok()) return s;
  if (job.token_begin < 0 || job.token_begin > job.token_end || job.token_end > job.tokens) {
    return Bad("tokens ", job.token_begin, " to ", job.token_end, " of a tile of ", job.tokens);
  }
  const Group& group = groups[job.group];
  if (job.layer_begin < group.layer_begin || job.layer_begin > job.layer_end ||
      job.layer_end > group.layer_end) {
    return Bad("layers ", job.layer_begin, " to ", job.layer_end, "; group ", job.group, " has ",
               group.layer_begin, " to ", group.layer_end);
  }
  if (!IsValidDtype(static_cast<uint8_t>(job.source_dtype))) {
    return Bad("unknown dtype ", static_cast<int>(job.source_dtype));
  }
  s = CheckView(job.destination, CountPlanes(g, job.layer_begin, job.layer_end),
                job.token_end - job.token_begin);
  if (!s.ok()) return s;
  if (job.position_offset == 0) return absl::OkStatus();
  constexpr int64_t kMaxPosition = std::numeric_limits<uint32_t>::max();
  if (job.position_offset < -kMaxPosition || job.position_offset > kMaxPosition) {
    return Bad("position offset ", job.position_offset, "; expected at most ", kMaxPosition);
  }
  const auto [low, high] = std::minmax_element(job.positions.begin(), job.positions.end());
  if (*low + job.position_offset < 0 || *high + job.position_offset > kMaxPosition) {
    return Bad("position offset ", job.position_offset, " moves positions ", *low, " to ", *high,
               " outside 0 to ", kMaxPosition);
  }
  return absl::OkStatus();
}

}  // namespace kvcask
