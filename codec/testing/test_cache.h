// A small KV cache in memory for tests, in the layouts that engines use. Every byte that is
// no element holds a sentinel, so that a write outside is seen.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "codec/api/codec.h"

namespace kvcask {

enum class Layout {
  kContiguous,   // [head][token][dim] for each plane
  kPadded,       // the same at an odd address, with 3 bytes after each row
  kPagedNhd,     // vLLM NHD, FlashInfer: pages of 16 tokens, [token][head][dim], shuffled
  kPagedHnd,     // [head][token][dim]
  kTransposedK,  // vLLM's CPU backend: K pages [head][dim][token] next to V [head][token][dim]
};
inline constexpr Layout kAllLayouts[] = {Layout::kContiguous, Layout::kPadded, Layout::kPagedNhd,
                                         Layout::kPagedHnd, Layout::kTransposedK};
const char* LayoutName(Layout layout);

class TestCache {
 public:
  // Holds layers [layer_begin, layer_end) of `g` and `tokens` tokens, all sentinels.
  TestCache(const Geometry& g, int layer_begin, int layer_end, int tokens, Dtype dtype,
            Layout layout);
  TestCache(const TestCache&) = delete;  // views point into it
  TestCache& operator=(const TestCache&) = delete;

  int tokens() const { return tokens_; }
  Dtype dtype() const { return dtype_; }
  int planes() const { return static_cast<int>(shapes_.size()); }
  int heads(int plane) const { return shapes_[plane].heads; }
  int head_dim(int plane) const { return shapes_[plane].head_dim; }

  KvView view();
  ConstKvView const_view() const;

  const uint8_t* At(int plane, int head, int token, int dim) const;
  float Get(int plane, int head, int token, int dim) const;
  void Set(int plane, int head, int token, int dim, float value);
  // Every element: normal numbers with a channel offset, as keys with a bias have.
  void FillRandom(std::mt19937& rng, float scale = 1);
  // Every element: random bits, NaN and infinity among them.
  void FillRandomBits(std::mt19937& rng);

  // All of it, for tests that make it reachable from a device.
  absl::Span<uint8_t> memory() { return absl::MakeSpan(memory_); }

  // Bytes that are no element are as they were made.
  bool PaddingIntact() const;

 private:
  struct Shape {
    int heads, head_dim;
  };
  std::vector<Shape> shapes_;
  int tokens_;
  Dtype dtype_;
  std::vector<uint8_t> memory_;
  std::vector<PlaneView> plane_views_;
  std::vector<ConstPlaneView> const_plane_views_;
  std::vector<int64_t> offsets_;
  int page_tokens_ = 0;
};

// `count` positions from `first`.
std::vector<uint32_t> PositionsFrom(uint32_t first, int count);

// The first element in which the caches differ, in bits, as text; "" when they are equal.
std::string FirstDifference(const TestCache& a, const TestCache& b);

}  // namespace kvcask
