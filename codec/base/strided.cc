#include "codec/base/strided.h"

#include <algorithm>
#include <cstring>

namespace kvcask {
namespace {

// Calls f(first token, count, bytes of the first token's first element) for each run of
// tokens that lies in one page.
template <typename Byte, typename F>
void ForEachRun(const BasicKvView<Byte>& view, int plane, int head, int begin, int end, F f) {
  const int page = view.pages.offsets.empty() ? 0 : view.pages.page_tokens;
  for (int t = begin; t < end;) {
    const int run = page == 0 ? end - t : std::min(end - t, page - t % page);
    f(t - begin, run, view.At(plane, head, t, 0));
    t += run;
  }
}

// out[i * out_x + j * out_y] = in[i * in_x + j * in_y] for a grid of elements: strides in
// bytes. The axis that is contiguous on the strided side should be j.
template <typename T>
void CopyGrid(const uint8_t* in, int64_t in_x, int64_t in_y, uint8_t* out, int64_t out_x,
              int64_t out_y, int x, int y) {
  // Blocks small enough that both sides' lines stay in L1 in a transposition.
  constexpr int kBlock = 32;
  for (int x0 = 0; x0 < x; x0 += kBlock) {
    const int x1 = std::min(x, x0 + kBlock);
    for (int y0 = 0; y0 < y; y0 += kBlock) {
      const int y1 = std::min(y, y0 + kBlock);
      for (int i = x0; i < x1; ++i) {
        for (int j = y0; j < y1; ++j) {
          T v;
          std::memcpy(&v, in + i * in_x + j * in_y, sizeof(T));
          std::memcpy(out + i * out_x + j * out_y, &v, sizeof(T));
        }
      }
    }
  }
}

void CopyGrid(size_t element, const uint8_t* in, int64_t in_x, int64_t in_y, uint8_t* out,
              int64_t out_x, int64_t out_y, int x, int y) {
  if (element == 2) {
    CopyGrid<uint16_t>(in, in_x, in_y, out, out_x, out_y, x, y);
  } else {
    CopyGrid<uint32_t>(in, in_x, in_y, out, out_x, out_y, x, y);
  }
}

}  // namespace

void GatherHead(const ConstKvView& view, int plane, int head, int token_begin, int token_end,
                int head_dim, uint8_t* out) {
  const auto& p = view.planes[plane];
  const int64_t element = static_cast<int64_t>(DtypeSize(view.dtype));
  const int64_t row = element * head_dim;
  ForEachRun(view, plane, head, token_begin, token_end, [&](int t, int n, const uint8_t* src) {
    uint8_t* dst = out + t * row;
    if (p.dim_stride != element) {
      CopyGrid(element, src, p.dim_stride, p.token_stride, dst, element, row, head_dim, n);
    } else if (p.token_stride == row) {
      std::memcpy(dst, src, row * n);
    } else {
      for (int i = 0; i < n; ++i) std::memcpy(dst + i * row, src + i * p.token_stride, row);
    }
  });
}

void ScatterHead(const uint8_t* in, const KvView& view, int plane, int head, int token_begin,
                 int token_end, int head_dim) {
  const auto& p = view.planes[plane];
  const int64_t element = static_cast<int64_t>(DtypeSize(view.dtype));
  const int64_t row = element * head_dim;
  ForEachRun(view, plane, head, token_begin, token_end, [&](int t, int n, uint8_t* dst) {
    const uint8_t* src = in + t * row;
    if (p.dim_stride != element) {
      CopyGrid(element, src, element, row, dst, p.dim_stride, p.token_stride, head_dim, n);
    } else if (p.token_stride == row) {
      std::memcpy(dst, src, row * n);
    } else {
      for (int i = 0; i < n; ++i) std::memcpy(dst + i * p.token_stride, src + i * row, row);
    }
  });
}

void LoadHead(const ConstKvView& view, int plane, int head, int token_begin, int token_end,
              int head_dim, float* out) {
  const auto& p = view.planes[plane];
  const int64_t element = static_cast<int64_t>(DtypeSize(view.dtype));
  ForEachRun(view, plane, head, token_begin, token_end, [&](int t, int n, const uint8_t* src) {
    float* dst = out + static_cast<int64_t>(t) * head_dim;
    if (p.dim_stride == element && p.token_stride == element * head_dim) {
      LoadRow(src, element, view.dtype, static_cast<size_t>(n) * head_dim, dst);
      return;
    }
    for (int i = 0; i < n; ++i) {
      LoadRow(src + i * p.token_stride, p.dim_stride, view.dtype, head_dim, dst + i * head_dim);
    }
  });
}

void StoreHead(const float* in, const KvView& view, int plane, int head, int token_begin,
               int token_end, int head_dim) {
  const auto& p = view.planes[plane];
  const int64_t element = static_cast<int64_t>(DtypeSize(view.dtype));
  ForEachRun(view, plane, head, token_begin, token_end, [&](int t, int n, uint8_t* dst) {
    const float* src = in + static_cast<int64_t>(t) * head_dim;
    if (p.dim_stride == element && p.token_stride == element * head_dim) {
      StoreRow(src, static_cast<size_t>(n) * head_dim, view.dtype, dst, element);
      return;
    }
    for (int i = 0; i < n; ++i) {
      StoreRow(src + i * head_dim, head_dim, view.dtype, dst + i * p.token_stride, p.dim_stride);
    }
  });
}

}  // namespace kvcask
