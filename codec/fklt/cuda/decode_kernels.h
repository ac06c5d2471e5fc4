// Launches of the decoder's kernels, in this order; each returns cudaGetLastError's. All is
// enqueued on the stream; nothing waits.
#pragma once

#include <cuda_runtime.h>

#include "codec/fklt/cuda/plan.h"

namespace kvcask::fklt {

// A run of a batch's tiles that share a table set.
struct DecodeBatch {
  const DecodeTileDesc* tiles;
  int first_tile, tile_count;  // `tiles` and `states` begin at the first
  const SegmentDesc* segments;  // of all tiles; they name tiles by their number in the whole batch
  int first_segment, segment_count;
  const DeviceGroup* groups;
  const DeviceRope* ropes;
  int rope_count, all_pairs;
  int sinks;  // positions below are
  DeviceTables tables;  // the set that all of the tiles use
  TileState* states;
  int* failed;  // a Failure of each tile
};

// Cosines, then sines, of positions that tiles share.
struct AngleBatch {
  const AngleDesc* tables;
  int count;
  const DeviceRope* ropes;
  int rope_count, all_pairs;
};

// What rotated keys turn by; `tokens` a table has at most.
cudaError_t LaunchAngles(const AngleBatch& batch, int tokens, cudaStream_t stream);
// Token classes: the order of tokens, the rows' places; zeros in y where a row has no coordinate. A
// block a tile.
cudaError_t LaunchPrepare(const DecodeBatch& batch, cudaStream_t stream);
// rANS: symbols to coordinates in fp16, in y. A warp a segment. Bound for one segment: the chain of
// dependent steps; for many: instructions.
cudaError_t LaunchSegments(const DecodeBatch& batch, cudaStream_t stream);
// Adds mu, turns keys, stores in the reader's layout; elements kept as received and 10-bit sinks
// too. At most so many tokens, elements of a head and members have the tiles and their groups.
cudaError_t LaunchStore(const DecodeBatch& batch, int tokens, int head_dim, int members,
                        cudaStream_t stream);

}  // namespace kvcask::fklt
