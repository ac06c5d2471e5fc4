// Launches of the kernels of codec/fixed's codecs; each returns cudaGetLastError's. Nothing waits.
//
// What they do of its coders: uniform, 4 bits, groups of 32 (int4), and turbo of 2, 3 and 4 bits
// with signs, norm-corrected (turbo2, turbo3, turbo4); all tokens coded, no means, keys as they
// are.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "codec/cuda/device_plane.h"

namespace kvcask {

constexpr int kFixedHeaderBytes = 4, kFixedSpecBytes = 8;  // of a tile, of each stream in it

// Frozen in the file format (codec/fixed/FORMAT.md).
constexpr int kInt4Bits = 4, kInt4Group = 32;

constexpr int kTurboCells = 16;

enum FixedCoder : int {
  kNoCoder = 0,
  kInt4Coder = 1,
  kTurbo2Coder = 2,  // turbo: its bits
  kTurbo3Coder = 3,
  kTurbo4Coder = 4
};

// What rows of one codebook share. Of 2^bits codes.
struct alignas(8) TurboTable {
  float levels[16];     // by code
  float thresholds[8];  // [m]: from here on a magnitude belongs to level m or a higher one
  int squares[8];       // of the levels' integers
  // Where the level of a magnitude is looked up: cells of 1/4, the last one without end.
  float cell_thresholds[kTurboCells][2];  // the one in the cell, twice; infinity: none
  uint32_t cell_words[kTurboCells][2];    // below it, from it on: m << (32 - bits) | its square
};

// One stream of one tile.
struct FixedStream {
  const DevicePlane* plane;
  const int64_t* pages;     // null: one page
  const TurboTable* table;  // turbo's
  uint8_t* tile;            // at the header
  uint64_t body;            // where the stream's rows begin
  int coder;                // FixedCoder
  int index;                // among the tile's streams
  int heads, head_dim, row_bytes;
  int tokens, page_tokens;
  int dtype;  // of source or destination
  int wide;   // elements of 16 bits, side by side, rows aligned to 16; turbo: the table has cells
  int token_begin, token_end;     // decoding: wanted
  uint8_t spec[kFixedSpecBytes];  // encoding: what the tile says of the stream
};

// Each codes the streams of one coder, turbo's of one head_dim and width, and leaves the others
// alone. `heads`: of a stream at most. Sets failed[stream] where encoding: an element is not
// finite, or what its form needs is no finite half; decoding: a wanted row has a number that no
// encoder writes.
struct FixedLaunch {
  const FixedStream* streams;
  int count, heads;
  int* failed;
  cudaStream_t stream;
};
cudaError_t LaunchInt4Encode(const FixedLaunch& launch);
cudaError_t LaunchInt4Decode(const FixedLaunch& launch);
cudaError_t LaunchTurboEncode(const FixedLaunch& launch, int bits, int head_dim, bool wide);
cudaError_t LaunchTurboDecode(const FixedLaunch& launch, int bits, int head_dim, bool wide);

}  // namespace kvcask
