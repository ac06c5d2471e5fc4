#include "server/pipeline/get_plan.h"

#include <algorithm>

namespace kvcask {
namespace {

struct LayerRun {
  int begin, end;
  uint64_t token_bytes;
};

class Planner {
 public:
  explicit Planner(const GetPlanInput& in) : in_(in) {}

  std::vector<GetRectangle> Run() {
    const std::vector<LayerRun> runs = LayerRuns();
    if (in_.layer_major) {
      for (const LayerRun& r : runs) {
        Window(r, in_.token_begin, in_.token_end);
      }
      return std::move(out_);
    }
    uint64_t token_bytes = 0;
    for (const LayerRun& r : runs) token_bytes += r.token_bytes;
    const uint64_t pages =
        std::max<uint64_t>(1, in_.target_bytes / std::max<uint64_t>(1, token_bytes * kPageTokens));
    const uint64_t step = pages * kPageTokens;
    for (uint64_t t = in_.token_begin; t < in_.token_end;) {
      const uint64_t end = std::min(in_.token_end, t / kPageTokens * kPageTokens + step);
      for (const LayerRun& r : runs) Window(r, t, end);
      t = end;
    }
    return std::move(out_);
  }

 private:
  // Consecutive layers that hold the same tokens, cut at group edges so that one page of a
  // run fits the target where a group does.
  std::vector<LayerRun> LayerRuns() const {
    std::vector<int> edges;  // layers at which no group is cut
    for (int l = in_.layer_begin; l <= in_.layer_end; ++l) {
      const bool cut = std::any_of(in_.groups.begin(), in_.groups.end(), [l](const Group& g) {
        return g.layer_begin < l && l < g.layer_end;
      });
      if (!cut || l == in_.layer_begin || l == in_.layer_end) edges.push_back(l);
    }
    std::vector<LayerRun> runs;
    for (size_t i = 0; i + 1 < edges.size(); ++i) {
      for (int l = edges[i]; l < edges[i + 1]; ++l) {
        const uint64_t bytes = in_.layer_token_bytes[l];
        if (bytes == 0) continue;  // keeps nothing
        LayerRun* last = runs.empty() ? nullptr : &runs.back();
        const uint64_t edge_bytes = Sum(edges[i], edges[i + 1]);
        const bool at_edge = l == edges[i];
        const bool fits =
            last != nullptr &&
            (last->token_bytes + (at_edge ? edge_bytes : bytes)) * kPageTokens <= in_.target_bytes;
        const bool same = last != nullptr && in_.held[last->begin] == in_.held[l] &&
                          NothingBetween(last->end, l);
        const bool whole = !at_edge && edge_bytes * kPageTokens <= in_.max_bytes;
        if (same && (fits || whole)) {
          last->end = l + 1;
          last->token_bytes += bytes;
        } else {
          runs.push_back({l, l + 1, bytes});
        }
      }
    }
    return runs;
  }

  uint64_t Sum(int begin, int end) const {
    uint64_t s = 0;
    for (int l = begin; l < end; ++l) s += in_.layer_token_bytes[l];
    return s;
  }
  bool NothingBetween(int begin, int end) const { return Sum(begin, end) == 0; }

  // What `run` holds of tokens [begin, end).
  void Window(const LayerRun& run, uint64_t begin, uint64_t end) {
    const uint64_t page_bytes = run.token_bytes * kPageTokens;
    const uint64_t limit =
        page_bytes <= in_.max_bytes ? std::max(in_.target_bytes, page_bytes) : in_.target_bytes;
    uint64_t most = std::max<uint64_t>(1, limit / run.token_bytes);
    if (most >= kPageTokens) most = most / kPageTokens * kPageTokens;
    for (const auto& [from, to] : in_.held[run.begin]) {
      for (uint64_t t = std::max(begin, from); t < std::min(end, to);) {
        // Whole pages where they fit: the first message ends at a page's edge.
        const uint64_t edge = most >= kPageTokens ? t / kPageTokens * kPageTokens + most : t + most;
        const uint64_t stop = std::min({edge, end, to});
        out_.push_back({in_.shard, run.begin, run.end, t, stop, (stop - t) * run.token_bytes});
        t = stop;
      }
    }
  }

  const GetPlanInput& in_;
  std::vector<GetRectangle> out_;
};

}  // namespace

std::vector<GetRectangle> PlanGet(const GetPlanInput& in) { return Planner(in).Run(); }

}  // namespace kvcask
