// Launches of `int8`'s kernels; each returns cudaGetLastError's. Nothing waits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "codec/cuda/device_plane.h"

namespace kvcask {

// One head of one plane of a group.
struct Int8Head {
  int plane, head, head_dim;
  int heads_before, elements_before;  // in the group: elements of one token
};

struct Int8Tile {
  const DevicePlane* planes;  // of the group
  const int64_t* pages;       // null: one page
  const Int8Head* heads;      // of the group
  uint8_t* tile;              // at the header
  uint32_t codes;             // where they begin
  int head_count, tokens, page_tokens;
  int dtype;                  // of source or destination
  int token_begin, token_end;  // decoding: wanted
};

// Sets failed[tile] where an element is not finite, or no half is a scale. `heads`: of a group at
// most.
cudaError_t LaunchInt8Encode(const Int8Tile* tiles, int tile_count, int heads, int* failed,
                             cudaStream_t stream);
// Sets failed[tile] where a scale is no finite positive number.
cudaError_t LaunchInt8Decode(const Int8Tile* tiles, int tile_count, int heads, int* failed,
                             cudaStream_t stream);

}  // namespace kvcask
