// Gathers items into batches and hands each batch to a sink. A batch closes when it holds
// enough bytes or items, or its oldest item is old enough. The batcher does not know what
// it batches.
//
// Thread-safe. The sink is called without a lock held, from Add, Flush or the batcher's
// own timer thread (real clock), possibly from several threads at once.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include <absl/time/time.h>

namespace kvcask {

struct BatchLimits {
  size_t max_bytes = 8 << 20;
  size_t max_items = 256;
  absl::Duration max_age = absl::Milliseconds(1);
};

// Item: movable. See batcher_inl for the implementation; used as
//   Batcher<Task> b(limits, [](std::vector<Task> batch) {...});
template <typename Item>
class Batcher;

}  // namespace kvcask
