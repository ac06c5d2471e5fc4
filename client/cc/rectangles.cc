#include "client/cc/rectangles.h"

#include <absl/strings/str_cat.h>

#include <algorithm>

namespace kvcask {
namespace {

constexpr uint64_t kPage = 128;

bool Wanted(const v1::Rectangle& r, StreamKind kind) {
  if (r.streams().empty()) return true;
  for (const int s : r.streams()) {
    if (s == static_cast<int>(kind)) return true;
  }
  return false;
}

int HeadsOf(const Geometry& g, int layer_begin, int layer_end) {
  int heads = 0;
  for (int l = layer_begin; l < layer_end; ++l) {
    for (const StreamGeometry& s : g.layers[l].streams) heads = std::max(heads, s.heads);
  }
  return heads;
}

// Bytes that one token has in one layer of the shard.
uint64_t LayerBytes(const Geometry& g, int layer, int head_begin, int head_end, Dtype dtype) {
  uint64_t elements = 0;
  for (const StreamGeometry& s : g.layers[layer].streams) {
    const int heads = std::min(head_end, s.heads) - head_begin;
    if (heads > 0) elements += static_cast<uint64_t>(heads) * s.head_dim;
  }
  return elements * DtypeSize(dtype);
}

class Cutter {
 public:
  Cutter(const Geometry& g, const v1::Shard& shard, Dtype dtype, uint64_t target_bytes)
      : g_(g), target_bytes_(target_bytes), dtype_(dtype) {
    layer_begin_ = static_cast<int>(shard.layer_begin());
    layer_end_ = shard.layer_end() == 0 ? static_cast<int>(g.layers.size())
                                        : static_cast<int>(shard.layer_end());
    head_begin_ = static_cast<int>(shard.head_begin());
    const int heads = HeadsOf(g, layer_begin_, layer_end_);
    head_end_ = shard.head_end() == 0 ? heads : static_cast<int>(shard.head_end());
    all_heads_ = head_begin_ == 0 && head_end_ == heads;
  }

  // All layers of the tokens [begin, end) of one page.
  void CutPage(uint64_t begin, uint64_t end) {
    const uint64_t tokens = end - begin;
    for (int l = layer_begin_; l < layer_end_;) {
      uint64_t bytes = BytesOf(l) * tokens;
      if (bytes == 0) {
        ++l;
        continue;
      }
      if (bytes > target_bytes_) {
        CutLayer(l++, begin, end);
        continue;
      }
      int next = l + 1;
      while (next < layer_end_ && BytesOf(next) > 0 &&
             bytes + BytesOf(next) * tokens <= target_bytes_) {
        bytes += BytesOf(next++) * tokens;
      }
      Add(l, next, begin, end);
      l = next;
    }
  }

  // One layer of the tokens [begin, end).
  void CutLayer(int layer, uint64_t begin, uint64_t end) {
    const uint64_t token_bytes = BytesOf(layer);
    if (token_bytes == 0) return;
    uint64_t step = std::max<uint64_t>(1, target_bytes_ / token_bytes);
    if (step > kPage) step -= step % kPage;
    for (uint64_t t = begin; t < end;) {
      const uint64_t next = std::min(end, t + step);
      Add(layer, layer + 1, t, next);
      t = next;
    }
  }

  int layer_begin() const { return layer_begin_; }
  int layer_end() const { return layer_end_; }
  std::vector<v1::Rectangle> Take() { return std::move(out_); }

 private:
  uint64_t BytesOf(int layer) const {
    return LayerBytes(g_, layer, head_begin_, head_end_, dtype_);
  }
  void Add(int layer_begin, int layer_end, uint64_t token_begin, uint64_t token_end) {
    v1::Rectangle r;
    r.set_layer_begin(static_cast<uint32_t>(layer_begin));
    r.set_layer_count(static_cast<uint32_t>(layer_end - layer_begin));
    if (!all_heads_) {  // all: 0, which fits layers with different numbers of them
      r.set_head_begin(static_cast<uint32_t>(head_begin_));
      r.set_head_count(static_cast<uint32_t>(head_end_ - head_begin_));
    }
    r.set_token_begin(token_begin);
    r.set_token_count(static_cast<uint32_t>(token_end - token_begin));
    out_.push_back(std::move(r));
  }

  const Geometry& g_;
  const uint64_t target_bytes_;
  const Dtype dtype_;
  int layer_begin_, layer_end_, head_begin_, head_end_;
  bool all_heads_;
  std::vector<v1::Rectangle> out_;
};

}  // namespace

absl::StatusOr<std::vector<RectanglePlane>> PlanesOf(const Geometry& geometry,
                                                     const v1::Rectangle& r) {
  const uint64_t layers = geometry.layers.size();
  if (r.layer_count() == 0 || r.layer_begin() >= layers ||
      r.layer_count() > layers - r.layer_begin()) {
    return absl::InvalidArgumentError(absl::StrCat("rectangle of layers ", r.layer_begin(), " to ",
                                                   uint64_t{r.layer_begin()} + r.layer_count(),
                                                   "; the geometry has ", layers));
  }
  std::vector<RectanglePlane> planes;
  int plane = FirstPlane(geometry, static_cast<int>(r.layer_begin()));
  for (uint32_t l = r.layer_begin(); l < r.layer_begin() + r.layer_count(); ++l) {
    for (const StreamGeometry& s : geometry.layers[l].streams) {
      const int this_plane = plane++;
      if (!Wanted(r, s.kind)) continue;
      const uint64_t heads = static_cast<uint64_t>(s.heads);
      const uint64_t end =
          r.head_count() == 0
              ? heads
              : std::min<uint64_t>(heads, uint64_t{r.head_begin()} + r.head_count());
      if (r.head_begin() >= end) continue;
      planes.push_back({static_cast<int>(l), this_plane, static_cast<int>(r.head_begin()),
                        static_cast<int>(end), s.head_dim});
    }
  }
  if (planes.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a rectangle that holds nothing: layers ", r.layer_begin(), " to ",
        r.layer_begin() + r.layer_count(), " have no such stream or head ", r.head_begin()));
  }
  return planes;
}

int64_t RectangleBytes(absl::Span<const RectanglePlane> planes, int64_t tokens, Dtype dtype) {
  int64_t elements = 0;
  for (const RectanglePlane& p : planes) {
    elements += static_cast<int64_t>(p.head_end - p.head_begin) * p.head_dim;
  }
  return elements * tokens * static_cast<int64_t>(DtypeSize(dtype));
}

int FirstPlane(const Geometry& geometry, int layer) {
  int plane = 0;
  for (int l = 0; l < layer; ++l) plane += static_cast<int>(geometry.layers[l].streams.size());
  return plane;
}

std::vector<v1::Rectangle> CutRun(const Geometry& geometry, const v1::Shard& shard, Dtype dtype,
                                  uint64_t token_begin, uint64_t token_end, PutOrder order,
                                  uint64_t target_bytes) {
  Cutter cutter(geometry, shard, dtype, target_bytes);
  if (order == PutOrder::kLayerMajor) {
    for (int l = cutter.layer_begin(); l < cutter.layer_end(); ++l) {
      cutter.CutLayer(l, token_begin, token_end);
    }
    return cutter.Take();
  }
  for (uint64_t t = token_begin; t < token_end;) {
    const uint64_t next = std::min(token_end, t - t % kPage + kPage);
    cutter.CutPage(t, next);
    t = next;
  }
  return cutter.Take();
}

}  // namespace kvcask
