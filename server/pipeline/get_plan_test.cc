#include "server/pipeline/get_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace kvcask {
namespace {

// Every (layer, token) that is held and wanted comes exactly once.
void Check(const GetPlanInput& in) {
  std::map<std::pair<int, uint64_t>, int> seen;
  for (const GetRectangle& r : PlanGet(in)) {
    uint64_t token_bytes = 0;
    for (int l = r.layer_begin; l < r.layer_end; ++l) {
      token_bytes += in.layer_token_bytes[l];
      for (uint64_t t = r.token_begin; t < r.token_end; ++t) ++seen[{l, t}];
    }
    EXPECT_EQ(r.bytes, token_bytes * (r.token_end - r.token_begin));
    EXPECT_GT(r.bytes, 0u);
    if (r.token_end - r.token_begin > 1) {
      EXPECT_LE(r.bytes, in.max_bytes);
    }
  }
  size_t expected = 0;
  for (int l = in.layer_begin; l < in.layer_end; ++l) {
    if (in.layer_token_bytes[l] == 0) continue;
    for (const auto& [b, e] : in.held[l]) {
      for (uint64_t t = std::max(b, in.token_begin); t < std::min(e, in.token_end); ++t) {
        ++expected;
        EXPECT_EQ((seen[{l, t}]), 1) << "layer " << l << " token " << t;
      }
    }
  }
  for (auto it = seen.begin(); it != seen.end();) {
    it = in.layer_token_bytes[it->first.first] == 0 ? seen.erase(it) : std::next(it);
  }
  EXPECT_EQ(seen.size(), expected);
}

TEST(GetPlan, CoversExactlyWhatIsHeldAndWanted) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  for (int round = 0; round < 300; ++round) {
    const int layers = 1 + static_cast<int>(rng() % 12);
    std::vector<Group> groups;
    for (int l = 0; l < layers;) {
      const int n = std::min<int>(layers - l, 1 + static_cast<int>(rng() % 4));
      groups.push_back({l, l + n});
      l += n;
    }
    GetPlanInput in;
    in.groups = groups;
    in.layer_begin = static_cast<int>(rng() % layers);
    in.layer_end = in.layer_begin + 1 + static_cast<int>(rng() % (layers - in.layer_begin));
    in.token_begin = rng() % 500;
    in.token_end = in.token_begin + 1 + rng() % 700;
    in.layer_major = rng() % 2;
    in.target_bytes = 1 << (8 + rng() % 10);
    in.max_bytes = in.target_bytes * (1 + rng() % 8);
    for (int l = 0; l < layers; ++l) {
      in.layer_token_bytes.push_back(rng() % 5 == 0 ? 0 : 16 * (1 + rng() % 4));
      TokenRanges held;
      if (rng() % 3 == 0) {
        const uint64_t a = rng() % 600, b = a + 1 + rng() % 200, c = b + 1 + rng() % 100;
        held = {{a, b}, {c, c + 1 + rng() % 300}};
      } else {
        held = {{0, 1300}};
      }
      in.held.push_back(held);
    }
    Check(in);
  }
}

TEST(GetPlan, MessagesEndAtPageAndGroupEdges) {
  GetPlanInput in;
  const std::vector<Group> groups = {{0, 4}, {4, 8}};
  in.groups = groups;
  in.layer_end = 8;
  in.token_begin = 100;
  in.token_end = 600;
  in.held.assign(8, {{0, 600}});
  in.layer_token_bytes.assign(8, 1024);
  in.target_bytes = 600 << 10;  // one page of one group is 512 KiB
  for (const GetRectangle& r : PlanGet(in)) {
    EXPECT_TRUE((r.layer_begin == 0 && r.layer_end == 4) || (r.layer_begin == 4 && r.layer_end == 8));
    EXPECT_TRUE(r.token_begin == 100 || r.token_begin % kPageTokens == 0);
    EXPECT_TRUE(r.token_end == 600 || r.token_end % kPageTokens == 0);
  }
}

}  // namespace
}  // namespace kvcask
