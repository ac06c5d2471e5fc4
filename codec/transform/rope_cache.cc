#include "codec/transform/rope_cache.h"

#include <algorithm>

namespace kvcask {
namespace {

// More than a model has kinds of ropes; old ones make room.
constexpr size_t kMaxEntries = 8;

bool Same(const Rope& a, const Rope& b) {
  return a.style == b.style && a.dims == b.dims && a.attention_scale == b.attention_scale &&
         a.inv_freq == b.inv_freq;
}

}  // namespace

const RopeTable& RopeCache::Get(const Rope& rope, absl::Span<const uint32_t> positions,
                                int64_t offset, RopeDirection direction) {
  const bool rotate = direction == RopeDirection::kRotate;
  return Find(rotate ? Kind::kRotate : Kind::kUnrotate, rope, positions, offset);
}

const RopeTable& RopeCache::GetShift(const Rope& rope, int64_t offset) {
  return Find(Kind::kShift, rope, {}, offset);
}

const RopeTable& RopeCache::Find(Kind kind, const Rope& rope, absl::Span<const uint32_t> positions,
                                 int64_t offset) {
  for (const auto& e : entries_) {
    if (e->kind == kind && e->offset == offset && Same(e->rope, rope) &&
        absl::MakeConstSpan(e->positions) == positions) {
      return e->table;
    }
  }
  if (entries_.size() == kMaxEntries) entries_.erase(entries_.begin());
  auto entry = std::make_unique<Entry>();
  entry->kind = kind;
  entry->rope = rope;
  entry->positions.assign(positions.begin(), positions.end());
  entry->offset = offset;
  entry->table = kind == Kind::kShift
                     ? MakeRopeShift(rope, offset)
                     : MakeRopeTable(rope, positions, offset,
                                     kind == Kind::kRotate ? RopeDirection::kRotate
                                                           : RopeDirection::kUnrotate);
  entries_.push_back(std::move(entry));
  return entries_.back()->table;
}

}  // namespace kvcask
