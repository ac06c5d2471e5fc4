#include "codec/kakeya/params.h"

namespace kvcask::kakeya {
namespace {

// The files of recipes/, which kakeya_test.cc holds against these.
constexpr Recipe kRecipes[] = {
    {"boundary", R"({"raw_layers": [0, 1, -2, -1]}
)"},
    {"boundary-deepseek", R"({"raw_layers": [0, 1, 7, 14, 26, 27]}
)"},
    {"guarded", R"({
  "rows": "per_head", "sink_tokens": 4, "raw_layers": [0, 1, -2, -1],
  "k": {"bits": 3, "variance_ratio": 1, "outlier_threshold": 2}
}
)"},
    {"hot-ends", R"({"hot_layers": [0, 1, -2, -1], "hot_bits": 4}
)"},
    {"k-only", R"({"v": {"coded": false}}
)"},
    {"per-head", R"({"rows": "per_head"}
)"},
    {"sinks", R"({"sink_tokens": 4}
)"},
    {"v-only", R"({"k": {"coded": false}}
)"},
};

}  // namespace

absl::Span<const Recipe> Recipes() { return kRecipes; }

}  // namespace kvcask::kakeya
