// Tables of one call: jobs of one page and layers of one model mostly share theirs.
//
// Belongs to one call at a time.
#pragma once

#include <absl/types/span.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "codec/transform/rope.h"

namespace kvcask {

class RopeCache {
 public:
  // As MakeRopeTable and MakeRopeShift. The reference holds until the next call.
  const RopeTable& Get(const Rope& rope, absl::Span<const uint32_t> positions, int64_t offset,
                       RopeDirection direction);
  const RopeTable& GetShift(const Rope& rope, int64_t offset);

 private:
  enum class Kind { kRotate, kUnrotate, kShift };
  struct Entry {
    Kind kind;
    Rope rope;
    std::vector<uint32_t> positions;
    int64_t offset;
    RopeTable table;
  };
  const RopeTable& Find(Kind kind, const Rope& rope, absl::Span<const uint32_t> positions,
                        int64_t offset);

  std::vector<std::unique_ptr<Entry>> entries_;  // a handful: ropes of a model x directions
};

}  // namespace kvcask
