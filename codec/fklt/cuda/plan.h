// What host and kernels share: a batch of tiles as plain data. The host fills it from tiles' headers
// (checked there), the kernels from the token classes.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "codec/cuda/device_plane.h"
#include "codec/fklt/tile_layout.h"

namespace kvcask::fklt {

inline constexpr int kMaxRanges = 13;   // of rows with equally many places: one a step class
inline constexpr int kTableSlots = 4096;
inline constexpr int kAllTables = 43;   // the format's 42 and that of absent symbols
inline constexpr int kAbsent = 42;

// Of one rope: pairs (a, b) of dims / 2 frequencies.
struct DeviceRope {
  int style;  // RopeStyle
  int pairs;
  double scale;
  const float* inv_freq;
  int first_angle;  // of its pairs among all ropes' pairs
};

struct DeviceMember {
  int offset, head_dim;
  int plane;  // from the first plane of the group's layers
  int layer;  // of the shard
  int head;
  int rope;   // -1: nothing to turn
};

struct DeviceGroup {
  int dimensions;
  int members;
  const DeviceMember* member;
  const float* mu;
  const int16_t* sigma;
  const float* inverse_sigma;
  const float* sensitivity;  // b, c[leading], d[leading]
  int leading;
};

// Of one symbol of one class.
struct alignas(8) SymbolEntry {
  int32_t code;   // its first slot | frequency - 4,096 << 12
  float value;    // in steps; a NaN whose last byte is the symbol: it is an escape or shifted
};
inline constexpr int kMostEntries = 3072;  // in shared memory; profiles have 2,300 to 2,600
inline constexpr uint32_t kNoEntries = 0xffffffffu;

// The encoder's symbols: class << 8 | integer + 128; a last byte of 0: the integer is beyond 127 and
// stands in EncodeBatch::integers.
inline constexpr int kEncodeEntries = kAllTables * 256;
inline constexpr int kAbsentSymbol = kAbsent << 8 | 128;

// One table set, as kernels want it.
struct DeviceTables {
  const uint32_t* decode;   // [43][4096]: TableSet::decode()
  const uint8_t* index;     // [40][4096]: number of the slot's symbol in its class
  const SymbolEntry* entry; // of the classes that have them, one after another
  const uint32_t* class_entries;  // [40]: bytes before a class's entries; kNoEntries: there was no
                                  // room for them
  int entries;
  int complete;                   // all classes have their entries
  const uint8_t* shift;     // [43]
  const float* centroids;   // [43][4]
  const uint32_t* encode;   // [43][256]: TableSet::encode()
  const uint32_t* multiplier;
  // Of an encoder's symbol (see kEncodeEntries), what a step needs: {first slot | k - 28 << 12 |
  // frequency << 16, 8 x multiplier}; bit 31 marks what is not plain.
  const uint2* encode_entry;
};

// A table of angles: of one run of positions, moved by an offset.
struct AngleDesc {
  const uint32_t* positions;
  uint32_t* angles;  // [tokens][all ropes' pairs]: PackAngle's
  int64_t position_offset;
  int tokens;
};

// Coordinates of a token, by its step class + 6: ActiveRows.
struct StepRows {
  uint16_t rows[2 * kMaxStepClass + 1];
};

// A tile to be decoded.
struct DecodeTileDesc {
  const uint8_t* bytes;  // of the tile, on the device
  const DevicePlane* planes;
  const int64_t* pages;  // null: one page
  const uint32_t* positions;
  __half* y;             // of the group's batch: [rows][y_stride], this tile's places from `column`
  const __half* x;       // of its places: [kMaxTokens][dimensions]
  const uint32_t* angles;  // of its positions: see AngleDesc
  int64_t position_offset;
  uint32_t segment_bytes;  // where the sinks begin: header and segments are before it
  int mode;
  int group;
  uint32_t first_segment;
  int tokens, coded;     // all, and those that are not sinks
  int step_exponent, kcap;
  int groups;            // of 32 symbols, as the header says
  int rows;              // most coordinates that a token can have
  int gemm_rows;         // of the group's batch: rows beyond this tile's are zero
  int threshold;
  int y_stride, column;
  int page_tokens;
  int source_dtype, dtype;
  int token_begin, token_end, layer_begin, layer_end, first_plane;
  float y_scale;
  StepRows active;
};

struct SegmentDesc {
  uint32_t tile;
  uint32_t at, bytes;      // in the tile
  uint32_t first, symbols; // of the tile's symbols
  int lanes;
};

struct alignas(8) TilePlace {
  float step;  // of y
  int term;    // of a coordinate's class: (5 sigma + term) >> 5
};
// Rows with equally many places.
struct TileRange {
  uint32_t symbols;  // in all of its rows
  uint32_t magic;    // symbol / count = 2 symbol * magic >> 32
  uint16_t row;      // the first
  uint16_t count;    // places in each row
};

// What kernels learn of a tile.
struct TileState {
  TilePlace place[kMaxTokens];
  TileRange range[kMaxRanges + 1];    // and one that begins after the last row
  uint32_t x[32];                     // lanes of segment 0 after the token classes
  uint32_t cursor;                    // its words
  uint32_t first_symbol, symbols;     // of coordinates
  int ranges;
  int coarse;                         // steps so large that plain symbols can leave fp16's range
  uint8_t place_of[kMaxTokens];       // by coded token
};

// A tile to be encoded.
struct EncodeTileDesc {
  const DevicePlane* planes;  // of the group's layers
  const int64_t* pages;       // null: one page
  const uint32_t* positions;
  const uint32_t* angles;     // of its positions: see AngleDesc
  __half* x;                  // of its tokens: [kMaxTokens][dimensions]
  const __half* y;            // [gemm_rows + sketch rows][y_stride]
  uint8_t* scratch;           // of its segments: kSegmentScratch bytes each
  uint8_t* out;               // of its bytes; null: found too large or refused
  uint64_t symbols;
  uint32_t limit;             // most bytes of header and segments
  int group, tokens, coded;
  int dtype, page_tokens;
  int step_exponent, table_set, threshold;
  int gemm_rows;              // rows of y that are coordinates; then sketches of the rest
  int kcap_most;              // no more coordinates than this class has
  int y_stride, column;
  int segments_most;
  float y_scale;              // of y as the GEMM left it, to coordinates
  float sketch_scale;         // the same of its sketches
  float rounding, kappa, bf16_floor, largest_kld;
  StepRows active;
};

// What becomes of a tile.
struct EncodeState {
  int failed;          // an EncodeFailure
  int groups, segments, groups_each;
  uint32_t bytes;      // header and segments
  float predicted;
};

enum EncodeFailure : int {
  kEncoded = 0,
  kOutOfRange,   // an element is not finite or outside fp16's range
  kTooWide,      // an integer leaves 16 bits
  kOverFloor,    // its certificate is over the profile's bound
  kTooLong,      // not smaller than the raw form
};

inline constexpr uint32_t kSegmentScratch = 32768 + 512;

enum Failure : int {
  kGood = 0,
  kBrokenStates,
  kEarlyEnd,
  kWrongGroups,
  kWrongEnd,
  kStraySinkBits,
  kBeyondHalf,  // a coordinate that fp16 does not hold: left to the CPU
};

}  // namespace kvcask::fklt
