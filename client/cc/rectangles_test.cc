#include "client/cc/rectangles.h"

#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <tuple>

namespace kvcask {
namespace {

// Layers of different shapes, one without streams of its own.
Geometry MixedGeometry() {
  Geometry g = UniformGeometry(5, 4, 64, Rope());
  g.layers[1].streams[0].heads = g.layers[1].streams[1].heads = 2;
  g.layers[2].kind = LayerKind::kShared;
  g.layers[2].shared_with = 1;
  g.layers[2].streams.clear();
  g.layers[3].streams[0].head_dim = 128;
  return g;
}

using Cell = std::tuple<int, int, uint64_t>;  // plane, head, token

std::map<Cell, int> CellsOf(const Geometry& g, absl::Span<const v1::Rectangle> rectangles) {
  std::map<Cell, int> cells;
  for (const v1::Rectangle& r : rectangles) {
    const auto planes = PlanesOf(g, r);
    EXPECT_TRUE(planes.ok()) << planes.status();
    for (const RectanglePlane& p : *planes) {
      for (int h = p.head_begin; h < p.head_end; ++h) {
        for (uint64_t t = r.token_begin(); t < r.token_begin() + r.token_count(); ++t) {
          ++cells[{p.plane, h, t}];
        }
      }
    }
  }
  return cells;
}

// The slow, obvious answer: every cell of the shard, once.
std::map<Cell, int> CellsOfShard(const Geometry& g, const v1::Shard& s, uint64_t begin,
                                 uint64_t end) {
  std::map<Cell, int> cells;
  int plane = 0;
  for (size_t l = 0; l < g.layers.size(); ++l) {
    for (const StreamGeometry& stream : g.layers[l].streams) {
      const bool inside =
          l >= s.layer_begin() && l < (s.layer_end() == 0 ? g.layers.size() : s.layer_end());
      for (int h = 0; inside && h < stream.heads; ++h) {
        if (h < static_cast<int>(s.head_begin())) continue;
        if (s.head_end() != 0 && h >= static_cast<int>(s.head_end())) continue;
        for (uint64_t t = begin; t < end; ++t) cells[{plane, h, t}] = 1;
      }
      ++plane;
    }
  }
  return cells;
}

TEST(RectanglesTest, ACutRunCoversItsShardExactlyOnce) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  const Geometry g = MixedGeometry();
  for (int round = 0; round < 60; ++round) {
    v1::Shard shard;
    if (round % 2 == 1) {
      shard.set_layer_begin(random() % 2);
      shard.set_layer_end(3 + random() % 3);
      shard.set_head_begin(random() % 2);
      shard.set_head_end(2 + random() % 3);
    }
    const uint64_t begin = random() % 200, end = begin + 1 + random() % 300;
    const uint64_t target = uint64_t{1} << (8 + random() % 12);
    const PutOrder order = round % 3 == 0 ? PutOrder::kLayerMajor : PutOrder::kTokenMajor;
    const auto cut = CutRun(g, shard, Dtype::kF16, begin, end, order, target);
    EXPECT_EQ(CellsOf(g, cut), CellsOfShard(g, shard, begin, end))
        << begin << ":" << end << " target " << target;
    for (const v1::Rectangle& r : cut) {
      const int64_t bytes = RectangleBytes(*PlanesOf(g, r), r.token_count(), Dtype::kF16);
      EXPECT_TRUE(bytes <= static_cast<int64_t>(target) || r.token_count() == 1)
          << r.ShortDebugString();
    }
  }
}

TEST(RectanglesTest, TokenMajorRectanglesStayInTheirPages) {
  const Geometry g = UniformGeometry(30, 3, 64, Rope());
  const auto cut = CutRun(g, {}, Dtype::kBf16, 100, 400, PutOrder::kTokenMajor, 2 << 20);
  uint64_t before = 0;
  for (const v1::Rectangle& r : cut) {
    EXPECT_EQ(r.token_begin() / 128, (r.token_begin() + r.token_count() - 1) / 128);
    EXPECT_GE(r.token_begin(), before);
    before = r.token_begin();
  }
  EXPECT_EQ(cut.front().token_count(), 28u);
}

TEST(RectanglesTest, PlanesAreInTheOrderOfTheElements) {
  v1::Rectangle r;
  r.set_layer_begin(1);
  r.set_layer_count(3);
  r.set_head_begin(1);
  r.set_head_count(3);
  r.set_token_count(1);
  const auto planes = PlanesOf(MixedGeometry(), r);
  ASSERT_TRUE(planes.ok());
  ASSERT_EQ(planes->size(), 4u);
  EXPECT_EQ((*planes)[0].plane, 2);
  EXPECT_EQ((*planes)[0].head_end, 2);  // that layer has two
  EXPECT_EQ((*planes)[1].plane, 3);
  EXPECT_EQ((*planes)[2].layer, 3);
  EXPECT_EQ((*planes)[2].head_dim, 128);
  EXPECT_EQ((*planes)[3].plane, 5);
  EXPECT_EQ(RectangleBytes(*planes, 10, Dtype::kF32), (64 + 64 + 3 * 128 + 3 * 64) * 10 * 4);
}

TEST(RectanglesTest, WhatLeavesTheGeometryIsRefused) {
  const Geometry g = MixedGeometry();
  const auto refused = [&](uint32_t layer, uint32_t count, uint32_t head) {
    v1::Rectangle r;
    r.set_layer_begin(layer);
    r.set_layer_count(count);
    r.set_head_begin(head);
    r.set_token_count(1);
    return PlanesOf(g, r).status().code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused(5, 1, 0));
  EXPECT_TRUE(refused(4, 2, 0));
  EXPECT_TRUE(refused(4, UINT32_MAX, 0));
  EXPECT_TRUE(refused(0, 0, 0));
  EXPECT_TRUE(refused(2, 1, 0));  // a shared layer holds nothing
  EXPECT_TRUE(refused(0, 1, 4));
  EXPECT_FALSE(refused(0, 5, 3));
}

}  // namespace
}  // namespace kvcask
