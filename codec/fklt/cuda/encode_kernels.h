// Launches of the encoder's kernels, in this order; each returns cudaGetLastError's. All is
// enqueued on the stream; nothing waits. Tiles share one table set.
#pragma once

#include <cuda_runtime.h>

#include "codec/fklt/cuda/plan.h"

namespace kvcask::fklt {

struct EncodeBatch {
  const EncodeTileDesc* tiles;
  int tile_count;
  const DeviceGroup* groups;
  const DeviceRope* ropes;
  int rope_count, all_pairs;
  int sinks;  // positions below are
  DeviceTables tables;
  EncodeState* states;
  uint16_t* symbols;  // of all tiles: plan.h's kEncodeEntries says what they are
  int16_t* integers;  // where a symbol has no byte
  uint32_t* segment_bytes;  // [tile_count][segments_most]
  int segments_most;
  int step_limit_shift;  // a lane has at most 512 >> this steps
};

// x - mu, K un-rotated, in fp16; sinks left out. At most so many tokens, elements of a head and
// members have the tiles and their groups.
cudaError_t LaunchGather(const EncodeBatch& batch, int tokens, int head_dim, int members,
                         cudaStream_t stream);
// Token classes, integers, certificate, header. A block for a tile.
cudaError_t LaunchQuantise(const EncodeBatch& batch, cudaStream_t stream);
// rANS, last symbol first: a warp a segment. Bound as LaunchSegments.
cudaError_t LaunchEncodeSegments(const EncodeBatch& batch, cudaStream_t stream);
// Segments one after another into the tile. A block for a tile.
cudaError_t LaunchAssemble(const EncodeBatch& batch, cudaStream_t stream);

}  // namespace kvcask::fklt
