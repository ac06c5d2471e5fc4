// Moves one head of one plane of a view to and from contiguous memory, [token][dim]: the
// only place that knows how to walk strides and page tables fast.
//
// The view's plane has at least `head` + 1 heads, `token_end` tokens and `head_dim` elements.
//
// Thread-safe: pure functions.
#pragma once

#include <cstdint>

#include "codec/base/views.h"

namespace kvcask {

// Tokens [token_begin, token_end) of the view, as they are.
void GatherHead(const ConstKvView& view, int plane, int head, int token_begin, int token_end,
                int head_dim, uint8_t* out);
void ScatterHead(const uint8_t* in, const KvView& view, int plane, int head, int token_begin,
                 int token_end, int head_dim);

// The same, converted to or from fp32.
void LoadHead(const ConstKvView& view, int plane, int head, int token_begin, int token_end,
              int head_dim, float* out);
void StoreHead(const float* in, const KvView& view, int plane, int head, int token_begin,
               int token_end, int head_dim);

}  // namespace kvcask
