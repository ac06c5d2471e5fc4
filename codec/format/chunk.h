// Chunks: one encoded page of one shard. FORMAT.md beside this file is the
// specification; this reads and writes it.
//
//   header | tile directory | tiles | CRC32C
//
// A chunk is self-describing: geometry or profile fingerprint, codec, dtype, quality,
// token range, positions and (where known) token ids are in it. The checksum of each tile
// is in the directory, that of everything at the end.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "codec/api/codec.h"

namespace kvcask {

struct ChunkHeader {
  CodecId codec = CodecId::kRaw;
  Quality quality = Quality::kDefault;
  Dtype dtype = Dtype::kBf16;
  ShardRange shard;
  Fingerprint geometry{};  // of the whole model
  std::optional<Fingerprint> profile;
  uint64_t token_begin = 0;         // index in the session; a multiple of kPageTokens
  int tokens = 0;                   // 1..kPageTokens
  std::vector<uint32_t> positions;  // `tokens` of them; 4 bytes when consecutive
  std::vector<uint32_t> token_ids;  // `tokens` of them, or none
};

struct TileEntry {
  int group = 0;
  int token_begin = 0;  // within the chunk: sliding layers may lack the oldest
  int tokens = 0;       // 0: nothing was put for this group
  uint64_t offset = 0;  // of its bytes, from the chunk's first
  uint64_t bytes = 0;
  uint32_t crc32c = 0;
  Certificate certificate;
};

// A chunk that was parsed: spans point into the bytes given, which must outlive it.
struct ChunkView {
  ChunkHeader header;
  std::vector<TileEntry> tiles;  // in order of group, one each
  absl::Span<const uint8_t> bytes;
  absl::Span<const uint8_t> tile(int i) const {
    return bytes.subspan(tiles[i].offset, tiles[i].bytes);
  }
};

// At most so many bytes is everything but the tiles.
size_t ChunkOverheadBytes(int groups, const ChunkHeader& header);

// Exactly what BuildChunk makes of tiles of so many bytes.
size_t ChunkSize(const ChunkHeader& header, absl::Span<const size_t> tile_bytes);

// One encoded tile for BuildChunk.
struct EncodedTile {
  int group = 0;
  int token_begin = 0;
  int tokens = 0;
  absl::Span<const uint8_t> bytes;
  Certificate certificate;
};

// Serialises; computes the checksums. Tiles must be in order of group, one each, under 4 GiB
// each; certificates are kept as fp32. A header that breaks its own limits ends the program.
std::vector<uint8_t> BuildChunk(const ChunkHeader& header, absl::Span<const EncodedTile> tiles);

// --- a chunk whose tiles are written where they will stay: lay it out, write the tiles, seal it.

// Where a chunk's tiles begin, and its size. Tiles of the same sizes as BuildChunk's.
struct ChunkLayout {
  std::vector<uint64_t> tiles;
  uint64_t bytes = 0;
};
ChunkLayout LayOutChunk(const ChunkHeader& header, absl::Span<const size_t> tile_bytes);

// A tile that lies at its place.
struct PlacedTile {
  int token_begin = 0;
  int tokens = 0;
  size_t bytes = 0;
  uint32_t crc32c = 0;  // of its bytes; taken at its word
  Certificate certificate;
};

// Writes everything but the tiles into `chunk`, which has LayOutChunk's size: then it is what
// BuildChunk makes of the same. Does not read the tiles. Limits as BuildChunk.
void SealChunk(const ChunkHeader& header, absl::Span<const PlacedTile> tiles,
               absl::Span<uint8_t> chunk);

// Reads header and directory. Offsets are recomputed with checked arithmetic; bytes
// bounded before anything is allocated. DATA_LOSS says what is wrong and at which byte;
// UNIMPLEMENTED: an unknown version or codec. `verify` checks the whole chunk's CRC32C
// too (one pass over the bytes); VerifyTile checks one.
enum class Verify { kHeaderOnly, kAll };
absl::StatusOr<ChunkView> ParseChunk(absl::Span<const uint8_t> bytes, Verify verify);
absl::Status VerifyTile(const ChunkView& chunk, int tile);

}  // namespace kvcask
