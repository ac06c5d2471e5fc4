// Which rectangles answer a Get, and in what order: pure arithmetic over what each group
// holds of each page.
#pragma once

#include <cstdint>
#include <vector>

#include <absl/types/span.h>

#include "codec/api/codec.h"

namespace kvcask {

// One message: layers [layer_begin, layer_end) of the shard x tokens [token_begin,
// token_end) of the session, of one shard of the plan.
struct GetRectangle {
  int shard = 0;  // index in the read plan
  int layer_begin = 0, layer_end = 0;
  uint64_t token_begin = 0, token_end = 0;
  uint64_t bytes = 0;
};

// Half-open ranges of tokens that a layer holds, in order, none empty or touching.
using TokenRanges = std::vector<std::pair<uint64_t, uint64_t>>;

struct GetPlanInput {
  int shard = 0;
  int layer_begin = 0, layer_end = 0;          // wanted, of the shard
  uint64_t token_begin = 0, token_end = 0;     // wanted
  absl::Span<const Group> groups;              // of the codec
  std::vector<TokenRanges> held;               // by layer of the shard
  std::vector<uint64_t> layer_token_bytes;     // by layer: bytes a token in the answer
  bool layer_major = false;
  uint64_t target_bytes = 2 << 20;             // of a message, where tiles allow
  uint64_t max_bytes = 16 << 20;               // of a message
};

// Rectangles that cover exactly what is held of what is wanted. They end at page and group
// edges, so that each tile is decoded once, and stay under target_bytes where one page of
// one group does; a page of a group over max_bytes is cut by layers, then by tokens.
std::vector<GetRectangle> PlanGet(const GetPlanInput& in);

}  // namespace kvcask
