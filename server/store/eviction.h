// What goes first when a tier is full.
//
// A page is worth what computing its tokens again costs, times how likely it is to be wanted,
// for each byte it takes. Likelihood falls as one over the time since the last use, and grows
// with the logarithm of the uses. Only leaves are compared: pages go from the ends of sessions,
// of their longest shards first, so that attention sinks, which are in the first page, go last,
// and no page outlives one that it needs.
//
// eviction_benchmark.cc compares this with LRU on the shapes of recorded conversations. There,
// counting a later token's attention as a higher cost saved less, not more, than counting all
// tokens alike: it keeps the ends of long documents that are read once. So it is not counted.
//
// Pure functions.
#pragma once

#include <cmath>
#include <cstdint>

namespace kvcask {

// Of one page: smaller goes first. `elapsed`: uses of any page since its last one.
inline double EvictionScore(uint32_t tokens, uint64_t bytes, float uses, uint32_t elapsed) {
  const double likelihood = (1 + std::log2(1.0 + uses)) / (1.0 + elapsed);
  return tokens * likelihood / static_cast<double>(bytes + 1);
}

}  // namespace kvcask
