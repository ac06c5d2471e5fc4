// Tiles whose integers come from a counter, not from floats: the same on every machine. The
// golden files in testdata/ are these, written once by make_testdata_main.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "codec/fklt/fklt_profile.h"
#include "codec/fklt/synthetic_profile.h"
#include "codec/fklt/tile.h"

namespace kvcask::fklt {

struct GoldenTile {
  TileHeader header;
  int tokens = 0;              // coded
  std::vector<uint8_t> sinks;  // their bytes, in 10 bits
  int sink_tokens = 0;
  TokenClasses classes;
  SymbolLayout layout;
  std::vector<uint8_t> symbol_classes;
  std::vector<int16_t> symbols;
};

inline constexpr int kGoldenTiles = 9;

// What testdata/tiny_profile.safetensors was made from: one group of 128 dimensions.
SyntheticOptions TinyOptions();
TileModel ModelOf(const FkltProfile& profile);
GoldenTile MakeGoldenTile(const FkltProfile& profile, int index);
std::vector<uint8_t> WriteGoldenTile(const FkltProfile& profile, GoldenTile& tile, RansPath path);
// The golden tile with sinks, as the only one of a chunk of the first page of a session.
std::vector<uint8_t> MakeGoldenChunk(const FkltProfile& profile);
inline constexpr int kGoldenTileWithSinks = 7;

}  // namespace kvcask::fklt
