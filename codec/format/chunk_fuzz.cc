// Any bytes as a chunk. What parses must lie within the bytes, and building it again must
// give the same bytes: there is one way to write a chunk.
#include <cstdlib>
#include <cstring>

#include "codec/base/crc32c.h"
#include "codec/format/chunk.h"

namespace kvcask {
namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

void Store(std::vector<uint8_t>& bytes, size_t at, uint32_t v) { std::memcpy(&bytes[at], &v, 4); }

// Makes size and checksums right, as far as the header tells where they are: a mutation
// alone would never get past them.
void Repair(std::vector<uint8_t>& bytes) {
  if (bytes.size() < 104) return;
  const uint64_t size = bytes.size();
  std::memcpy(&bytes[24], &size, 8);
  const uint8_t flags = bytes[10], tokens = bytes[11];
  uint32_t groups;
  std::memcpy(&groups, &bytes[12], 4);
  const size_t covered = 96 + ((flags & 1) ? 32 : 0) + ((flags & 4) ? 4 * tokens : 4) +
                         ((flags & 2) ? 4 * tokens : 0) + size_t{16} * groups;
  if (covered + 8 > bytes.size()) return;
  Store(bytes, covered, Crc32c({bytes.data(), covered}));
  Store(bytes, bytes.size() - 4, Crc32c({bytes.data(), bytes.size() - 4}));
}

void ParseAndRebuild(absl::Span<const uint8_t> bytes) {
  (void)ParseChunk(bytes, Verify::kHeaderOnly);
  const auto chunk = ParseChunk(bytes, Verify::kAll);
  if (!chunk.ok()) return;
  std::vector<EncodedTile> tiles;
  for (size_t i = 0; i < chunk->tiles.size(); ++i) {
    const TileEntry& t = chunk->tiles[i];
    Check(t.offset <= bytes.size() && t.bytes <= bytes.size() - t.offset);
    Check(t.token_begin + t.tokens <= chunk->header.tokens);
    if (!VerifyTile(*chunk, static_cast<int>(i)).ok()) return;
    tiles.push_back({t.group, t.token_begin, t.tokens, chunk->tile(i), t.certificate});
  }
  const std::vector<uint8_t> again = BuildChunk(chunk->header, tiles);
  Check(again.size() == bytes.size());
  Check(std::memcmp(again.data(), bytes.data(), again.size()) == 0);
}

}  // namespace
}  // namespace kvcask

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvcask::ParseAndRebuild({data, size});
  std::vector<uint8_t> repaired(data, data + size);
  kvcask::Repair(repaired);
  kvcask::ParseAndRebuild(repaired);
  return 0;
}
