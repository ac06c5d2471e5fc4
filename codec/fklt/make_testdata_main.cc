// Writes codec/fklt/testdata: the tiny profile, golden tiles, seeds for the fuzz targets. Run only
// when the format's version changes:
//   bazel run //codec/fklt:make_testdata -- $PWD/codec/fklt/testdata
#include <cstdio>
#include <fstream>
#include <string>

#include "codec/fklt/golden_tiles.h"

namespace kvcask::fklt {
namespace {

void Write(const std::string& path, const std::vector<uint8_t>& bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::printf("%s: %zu bytes\n", path.c_str(), bytes.size());
}

void WriteAll(const std::string& folder) {
  const std::vector<uint8_t> file = MakeSyntheticProfile(TinyOptions()).Serialize();
  Write(folder + "/tiny_profile.safetensors", file);
  const auto profile = FkltProfile::Read(*Profile::Parse(file));
  for (int i = 0; i < kGoldenTiles; ++i) {
    GoldenTile tile = MakeGoldenTile(**profile, i);
    std::vector<uint8_t> bytes = WriteGoldenTile(**profile, tile, RansPath::kPortable);
    Write(folder + "/golden_v1_" + std::to_string(i) + ".tile", bytes);
    // As a fuzz input: what is asked for, then the tile.
    const int tokens = tile.tokens + tile.sink_tokens;
    const uint8_t first = static_cast<uint8_t>(tile.sink_tokens == 0   ? 0
                                               : tile.sink_tokens == 4 ? 16
                                                                       : 1);
    const uint8_t ask[8] = {first, static_cast<uint8_t>(tokens - 1), 0, 0, 255, 128, 0, 0};
    bytes.insert(bytes.begin(), ask, ask + 8);
    if (bytes.size() < 20000) Write(folder + "/fuzz_tile_" + std::to_string(i), bytes);
  }
  Write(folder + "/golden_v1.chunk", MakeGoldenChunk(**profile));
}

}  // namespace
}  // namespace kvcask::fklt

int main(int argc, char** argv) {
  if (argc != 2) return 1;
  kvcask::fklt::WriteAll(argv[1]);
}
