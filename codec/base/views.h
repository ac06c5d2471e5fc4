// Strided views of KV data in memory: how codecs see the layouts of engines (vLLM NHD
// and HND, FlashInfer, contiguous, and vLLM's CPU backend, whose pages hold K transposed
// next to V) without repacking.
//
// A view owns nothing; what it points to must outlive it.
#pragma once

#include <absl/types/span.h>

#include <cstdint>

#include "codec/base/dtype.h"

namespace kvcask {

// One plane, [head][token][dim]. Strides are in bytes and may be any value, so that any
// axis order fits. The byte of element (h, t, d) is
//   data + h * head_stride + TokenOffset(t) + d * dim_stride
template <typename Byte>
struct BasicPlaneView {
  Byte* data = nullptr;
  int64_t head_stride = 0;
  int64_t token_stride = 0;
  int64_t dim_stride = 0;
};

// Where tokens lie when they lie in pages: token t of the view is token
// t % page_tokens of page t / page_tokens, whose data begins `offsets[page]` bytes from
// the plane's `data`. No offsets: one page that holds all.
struct PageTable {
  absl::Span<const int64_t> offsets;
  int page_tokens = 0;
};

// A run of tokens of a range of layers. `planes` are those of Geometry in its order,
// beginning with the first plane of the job's first layer.
template <typename Byte>
struct BasicKvView {
  Dtype dtype = Dtype::kBf16;
  absl::Span<const BasicPlaneView<Byte>> planes;
  PageTable pages;

  int64_t TokenOffset(const BasicPlaneView<Byte>& p, int64_t t) const {
    if (pages.offsets.empty()) return t * p.token_stride;
    return pages.offsets[t / pages.page_tokens] + (t % pages.page_tokens) * p.token_stride;
  }
  Byte* At(int plane, int64_t head, int64_t token, int64_t dim) const {
    const auto& p = planes[plane];
    return p.data + head * p.head_stride + TokenOffset(p, token) + dim * p.dim_stride;
  }
};

using ConstPlaneView = BasicPlaneView<const uint8_t>;
using PlaneView = BasicPlaneView<uint8_t>;
using ConstKvView = BasicKvView<const uint8_t>;
using KvView = BasicKvView<uint8_t>;

}  // namespace kvcask
