#include "codec/testing/test_cache.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "codec/api/jobs.h"

namespace kvcask {
namespace {

constexpr uint8_t kSentinel = 0xa5;
constexpr int kPagedTokens = 16;

}  // namespace

const char* LayoutName(Layout layout) {
  switch (layout) {
    case Layout::kContiguous:
      return "contiguous";
    case Layout::kPadded:
      return "padded";
    case Layout::kPagedNhd:
      return "paged NHD";
    case Layout::kPagedHnd:
      return "paged HND";
    case Layout::kTransposedK:
      return "transposed K";
  }
  return "?";
}

TestCache::TestCache(const Geometry& g, int layer_begin, int layer_end, int tokens, Dtype dtype,
                     Layout layout)
    : tokens_(tokens), dtype_(dtype) {
  const int64_t e = static_cast<int64_t>(DtypeSize(dtype));
  const bool paged = layout != Layout::kContiguous && layout != Layout::kPadded;
  const int64_t n = paged ? kPagedTokens : tokens;
  const int64_t gap = layout == Layout::kPadded ? 3 : 0;
  int64_t page_bytes = layout == Layout::kPadded ? 1 : 0;
  for (const PlaneInfo& info : ListPlanes(g, layer_begin, layer_end)) {
    const int64_t d = info.head_dim, h = info.heads;
    PlaneView p;
    p.data = reinterpret_cast<uint8_t*>(page_bytes);  // made a pointer below
    const bool transposed = layout == Layout::kTransposedK && info.kind == StreamKind::kK;
    if (transposed) {
      p.head_stride = d * n * e, p.dim_stride = n * e, p.token_stride = e;
    } else if (layout == Layout::kPagedNhd) {
      p.token_stride = h * d * e, p.head_stride = d * e, p.dim_stride = e;
    } else {
      p.token_stride = d * e + gap, p.head_stride = n * p.token_stride, p.dim_stride = e;
    }
    shapes_.push_back({info.heads, info.head_dim});
    plane_views_.push_back(p);
    page_bytes += n * h * (d * e + gap);
  }
  const int64_t pages = paged ? (tokens + n - 1) / n : 1;
  memory_.assign(page_bytes * pages, kSentinel);
  for (PlaneView& p : plane_views_) {
    p.data = memory_.data() + reinterpret_cast<intptr_t>(p.data);
    const_plane_views_.push_back({p.data, p.head_stride, p.token_stride, p.dim_stride});
  }
  if (!paged) return;
  page_tokens_ = kPagedTokens;
  for (int64_t i = 0; i < pages; ++i) offsets_.push_back(i * page_bytes);
  std::shuffle(offsets_.begin(), offsets_.end(), std::mt19937(7));
}

KvView TestCache::view() { return {dtype_, plane_views_, {offsets_, page_tokens_}}; }

ConstKvView TestCache::const_view() const {
  return {dtype_, const_plane_views_, {offsets_, page_tokens_}};
}

const uint8_t* TestCache::At(int plane, int head, int token, int dim) const {
  return const_view().At(plane, head, token, dim);
}

float TestCache::Get(int plane, int head, int token, int dim) const {
  return LoadElement(At(plane, head, token, dim), dtype_);
}

void TestCache::Set(int plane, int head, int token, int dim, float value) {
  StoreElement(value, dtype_, view().At(plane, head, token, dim));
}

void TestCache::FillRandom(std::mt19937& rng, float scale) {
  std::normal_distribution<float> normal(0, scale);
  for (int p = 0; p < planes(); ++p) {
    for (int h = 0; h < heads(p); ++h) {
      for (int d = 0; d < head_dim(p); ++d) {
        const float offset = 3 * normal(rng);
        for (int t = 0; t < tokens_; ++t) Set(p, h, t, d, offset + normal(rng));
      }
    }
  }
}

void TestCache::FillRandomBits(std::mt19937& rng) {
  for (int p = 0; p < planes(); ++p) {
    for (int h = 0; h < heads(p); ++h) {
      for (int t = 0; t < tokens_; ++t) {
        for (int d = 0; d < head_dim(p); ++d) {
          const uint32_t bits = rng();
          std::memcpy(view().At(p, h, t, d), &bits, DtypeSize(dtype_));
        }
      }
    }
  }
}

bool TestCache::PaddingIntact() const {
  std::vector<bool> element(memory_.size());
  for (int p = 0; p < planes(); ++p) {
    for (int h = 0; h < heads(p); ++h) {
      for (int t = 0; t < tokens_; ++t) {
        for (int d = 0; d < head_dim(p); ++d) {
          const size_t at = At(p, h, t, d) - memory_.data();
          for (size_t i = 0; i < DtypeSize(dtype_); ++i) element[at + i] = true;
        }
      }
    }
  }
  for (size_t i = 0; i < memory_.size(); ++i) {
    if (!element[i] && memory_[i] != kSentinel) return false;
  }
  return true;
}

std::vector<uint32_t> PositionsFrom(uint32_t first, int count) {
  std::vector<uint32_t> positions(count);
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

std::string FirstDifference(const TestCache& a, const TestCache& b) {
  for (int p = 0; p < a.planes(); ++p) {
    for (int h = 0; h < a.heads(p); ++h) {
      for (int t = 0; t < a.tokens(); ++t) {
        for (int d = 0; d < a.head_dim(p); ++d) {
          if (std::memcmp(a.At(p, h, t, d), b.At(p, h, t, d), DtypeSize(a.dtype())) != 0) {
            return absl::StrCat("plane ", p, " head ", h, " token ", t, " dim ", d, ": ",
                                a.Get(p, h, t, d), " and ", b.Get(p, h, t, d));
          }
        }
      }
    }
  }
  return "";
}

}  // namespace kvcask
