#include "codec/format/chunk.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "codec/base/checked_math.h"
#include "codec/base/crc32c.h"

namespace kvcask {
namespace {

// Frozen in the file format.
constexpr uint8_t kMagic[4] = {'K', 'V', 'C', 'K'};
constexpr uint16_t kVersion = 1;
constexpr size_t kFixedBytes = 96;
constexpr size_t kEntryBytes = 16;
constexpr size_t kTileAlignment = 16;
constexpr size_t kCrcBytes = 4;
constexpr uint8_t kHasProfile = 1, kHasTokenIds = 2, kHasPositions = 4, kKnownFlags = 7;

size_t RoundUp(size_t n) { return (n + kTileAlignment - 1) & ~(kTileAlignment - 1); }

bool Consecutive(const std::vector<uint32_t>& positions) {
  for (size_t i = 1; i < positions.size(); ++i) {
    if (positions[i] != static_cast<uint64_t>(positions[i - 1]) + 1) return false;
  }
  return true;
}

class Writer {
 public:
  explicit Writer(uint8_t* p) : p_(p) {}
  void U8(uint8_t v) { *p_++ = v; }
  void U16(uint16_t v) { Little(v, 2); }
  void U32(uint32_t v) { Little(v, 4); }
  void U64(uint64_t v) { Little(v, 8); }
  void F32(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    U32(u);
  }
  void Bytes(const uint8_t* p, size_t n) {
    if (n > 0) std::memcpy(p_, p, n);
    p_ += n;
  }
  uint8_t* at() const { return p_; }

 private:
  void Little(uint64_t v, int n) {
    for (int i = 0; i < n; ++i) U8(static_cast<uint8_t>(v >> (8 * i)));
  }
  uint8_t* p_;
};

// Reads within bounds that the caller has checked.
class Reader {
 public:
  explicit Reader(const uint8_t* p) : p_(p) {}
  uint8_t U8() { return *p_++; }
  uint16_t U16() { return static_cast<uint16_t>(Little(2)); }
  uint32_t U32() { return static_cast<uint32_t>(Little(4)); }
  uint64_t U64() { return Little(8); }
  float F32() {
    const uint32_t u = U32();
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  void Bytes(uint8_t* out, size_t n) {
    std::memcpy(out, p_, n);
    p_ += n;
  }

 private:
  uint64_t Little(int n) {
    uint64_t v = 0;
    for (int i = 0; i < n; ++i) v |= static_cast<uint64_t>(p_[i]) << (8 * i);
    p_ += n;
    return v;
  }
  const uint8_t* p_;
};

template <typename... Args>
absl::Status Corrupt(size_t at, const Args&... what) {
  return absl::DataLossError(absl::StrCat("chunk: byte ", at, ": ", what...));
}

struct Layout {
  size_t positions = 0;  // words: all, or the first alone
  size_t directory = 0;  // offset
  size_t header = 0;     // bytes of header and directory, with their CRC
};

Layout LayoutOf(uint8_t flags, size_t tokens, size_t groups) {
  Layout layout;
  layout.positions = (flags & kHasPositions) ? tokens : 1;
  layout.directory = kFixedBytes + ((flags & kHasProfile) ? 32 : 0) +
                     4 * (layout.positions + ((flags & kHasTokenIds) ? tokens : 0));
  layout.header = layout.directory + groups * kEntryBytes + kCrcBytes;
  return layout;
}

uint8_t FlagsOf(const ChunkHeader& h) {
  return static_cast<uint8_t>((h.profile ? kHasProfile : 0) |
                              (h.token_ids.empty() ? 0 : kHasTokenIds) |
                              (Consecutive(h.positions) ? 0 : kHasPositions));
}

void WriteHeader(const ChunkHeader& h, uint8_t flags, size_t groups, uint64_t total, Writer& w) {
  w.Bytes(kMagic, 4);
  w.U16(kVersion);
  w.U16(static_cast<uint16_t>(h.codec));
  w.U8(static_cast<uint8_t>(h.quality));
  w.U8(static_cast<uint8_t>(h.dtype));
  w.U8(flags);
  w.U8(static_cast<uint8_t>(h.tokens));
  w.U32(static_cast<uint32_t>(groups));
  w.U64(h.token_begin);
  w.U64(total);
  for (int v : {h.shard.index, h.shard.count, h.shard.layer_begin, h.shard.layer_end,
                h.shard.head_begin, h.shard.head_end}) {
    w.U32(static_cast<uint32_t>(v));
  }
  w.U64(0);  // reserved
  w.Bytes(h.geometry.data(), h.geometry.size());
  if (h.profile) w.Bytes(h.profile->data(), h.profile->size());
  const size_t positions = (flags & kHasPositions) ? h.positions.size() : 1;
  for (size_t i = 0; i < positions; ++i) w.U32(h.positions[i]);
  for (uint32_t id : h.token_ids) w.U32(id);
}

// Ours, not the file's: a caller that breaks these has a bug.
void Require(bool holds) {
  if (!holds) std::abort();
}

// The fixed part. `groups` and `total` are the file's claims, not yet compared with anything.
absl::Status ReadFixed(absl::Span<const uint8_t> bytes, ChunkHeader* h, uint8_t* flags,
                       uint32_t* groups) {
  if (bytes.size() < kFixedBytes) {
    return Corrupt(0, bytes.size(), " bytes; expected at least ", kFixedBytes);
  }
  if (std::memcmp(bytes.data(), kMagic, 4) != 0) return Corrupt(0, "no chunk (wrong magic)");
  Reader r(bytes.data() + 4);
  const uint16_t version = r.U16(), codec = r.U16();
  if (version != kVersion) {
    return absl::UnimplementedError(
        absl::StrCat("chunk: byte 4: format version ", version, "; expected ", kVersion));
  }
  if (codec < 1 || codec > static_cast<uint16_t>(kLastCodecId)) {
    return absl::UnimplementedError(absl::StrCat("chunk: byte 6: unknown codec ", codec));
  }
  h->codec = static_cast<CodecId>(codec);
  const uint8_t quality = r.U8(), dtype = r.U8();
  *flags = r.U8();
  h->tokens = r.U8();
  *groups = r.U32();
  h->token_begin = r.U64();
  const uint64_t total = r.U64();
  if (quality > static_cast<uint8_t>(Quality::kCompact)) {
    return Corrupt(8, "unknown quality ", static_cast<int>(quality));
  }
  if (!IsValidDtype(dtype)) return Corrupt(9, "unknown dtype ", static_cast<int>(dtype));
  if (*flags & ~kKnownFlags) return Corrupt(10, "unknown flags ", static_cast<int>(*flags));
  if (h->tokens < 1 || h->tokens > kPageTokens) {
    return Corrupt(11, h->tokens, " tokens; expected 1 to ", kPageTokens);
  }
  if (h->token_begin % kPageTokens != 0) {
    return Corrupt(16, "first token ", h->token_begin, "; expected a multiple of ", kPageTokens);
  }
  if (total != bytes.size()) {
    return Corrupt(24, "chunk of ", total, " bytes; found ", bytes.size());
  }
  h->quality = static_cast<Quality>(quality);
  h->dtype = static_cast<Dtype>(dtype);
  uint32_t shard[6];
  for (uint32_t& v : shard) {
    v = r.U32();
    if (v > static_cast<uint32_t>(kMaxLayers)) return Corrupt(32, "shard number ", v);
  }
  static_assert(kMaxHeads <= kMaxLayers, "one limit for all shard numbers");
  h->shard.index = static_cast<int>(shard[0]);
  h->shard.count = static_cast<int>(shard[1]);
  h->shard.layer_begin = static_cast<int>(shard[2]);
  h->shard.layer_end = static_cast<int>(shard[3]);
  h->shard.head_begin = static_cast<int>(shard[4]);
  h->shard.head_end = static_cast<int>(shard[5]);
  if (h->shard.index >= h->shard.count || h->shard.layer_begin >= h->shard.layer_end ||
      h->shard.head_begin >= h->shard.head_end) {
    return Corrupt(32, "empty shard range");
  }
  if (r.U64() != 0) return Corrupt(56, "reserved bytes are not zero");
  r.Bytes(h->geometry.data(), h->geometry.size());
  return absl::OkStatus();
}

absl::Status ReadVariable(absl::Span<const uint8_t> bytes, uint8_t flags, const Layout& layout,
                          ChunkHeader* h) {
  Reader r(bytes.data() + kFixedBytes);
  if (flags & kHasProfile) {
    h->profile.emplace();
    r.Bytes(h->profile->data(), h->profile->size());
  }
  for (size_t i = 0; i < layout.positions; ++i) h->positions.push_back(r.U32());
  if (!(flags & kHasPositions)) {
    if (h->positions[0] > std::numeric_limits<uint32_t>::max() - (h->tokens - 1)) {
      return Corrupt(kFixedBytes, "positions from ", h->positions[0], " exceed 32 bits");
    }
    for (int i = 1; i < h->tokens; ++i) h->positions.push_back(h->positions[0] + i);
  } else if (Consecutive(h->positions)) {
    return Corrupt(10, "consecutive positions written one by one");
  }
  if (flags & kHasTokenIds) {
    for (int i = 0; i < h->tokens; ++i) h->token_ids.push_back(r.U32());
  }
  return absl::OkStatus();
}

absl::Status ReadDirectory(absl::Span<const uint8_t> bytes, const Layout& layout, uint32_t groups,
                           ChunkView* view) {
  Reader r(bytes.data() + layout.directory);
  size_t end = layout.header;  // of the tile before
  const size_t limit = bytes.size() - kCrcBytes;
  view->tiles.reserve(groups);
  for (uint32_t g = 0; g < groups; ++g) {
    const size_t at = layout.directory + g * kEntryBytes;
    TileEntry tile;
    tile.group = static_cast<int>(g);
    tile.token_begin = r.U8();
    tile.tokens = r.U8();
    if (r.U16() != 0) return Corrupt(at + 2, "reserved bytes are not zero");
    tile.bytes = r.U32();
    tile.crc32c = r.U32();
    tile.certificate.predicted_kld = r.F32();
    if (tile.token_begin + tile.tokens > view->header.tokens) {
      return Corrupt(at, "tile ", g, " has tokens ", tile.token_begin, " to ",
                     tile.token_begin + tile.tokens, " of ", view->header.tokens);
    }
    if (tile.tokens == 0 && (tile.bytes != 0 || tile.token_begin != 0 || tile.crc32c != 0)) {
      return Corrupt(at, "tile ", g, " has no tokens but ", tile.bytes, " bytes");
    }
    if (std::isnan(tile.certificate.predicted_kld)) {
      return Corrupt(at + 12, "tile ", g, "'s certificate is not a number");
    }
    const size_t begin = RoundUp(end);
    if (begin > limit || tile.bytes > limit - begin) {
      return Corrupt(at + 4, "tile ", g, " of ", tile.bytes, " bytes at ", begin,
                     " leaves the chunk of ", bytes.size());
    }
    for (size_t i = end; i < begin; ++i) {
      if (bytes[i] != 0) return Corrupt(i, "padding is not zero");
    }
    tile.offset = begin;
    end = begin + tile.bytes;
    view->tiles.push_back(tile);
  }
  if (end != limit) return Corrupt(end, limit - end, " bytes after the last tile");
  return absl::OkStatus();
}

uint32_t LoadU32(const uint8_t* p) { return Reader(p).U32(); }

}  // namespace

size_t ChunkOverheadBytes(int groups, const ChunkHeader& header) {
  const Layout layout = LayoutOf(FlagsOf(header), header.tokens, groups);
  return layout.header + groups * (kTileAlignment - 1) + kCrcBytes;
}

size_t ChunkSize(const ChunkHeader& header, absl::Span<const size_t> tile_bytes) {
  return LayOutChunk(header, tile_bytes).bytes;
}

ChunkLayout LayOutChunk(const ChunkHeader& header, absl::Span<const size_t> tile_bytes) {
  ChunkLayout layout;
  layout.tiles.reserve(tile_bytes.size());
  layout.bytes = LayoutOf(FlagsOf(header), header.tokens, tile_bytes.size()).header;
  for (size_t bytes : tile_bytes) {
    layout.tiles.push_back(RoundUp(layout.bytes));
    layout.bytes = layout.tiles.back() + bytes;
  }
  layout.bytes += kCrcBytes;
  return layout;
}

void SealChunk(const ChunkHeader& header, absl::Span<const PlacedTile> tiles,
               absl::Span<uint8_t> chunk) {
  Require(header.tokens >= 1 && header.tokens <= kPageTokens);
  Require(header.positions.size() == static_cast<size_t>(header.tokens));
  Require(header.token_ids.empty() || header.token_ids.size() == header.positions.size());
  Require(header.token_begin % kPageTokens == 0);
  const uint8_t flags = FlagsOf(header);
  const size_t head = LayoutOf(flags, header.tokens, tiles.size()).header;
  size_t end = head;
  for (const PlacedTile& tile : tiles) {
    Require(tile.bytes <= std::numeric_limits<uint32_t>::max());
    Require(tile.tokens > 0 || tile.bytes == 0);
    end = RoundUp(end) + tile.bytes;
  }
  Require(chunk.size() == end + kCrcBytes);
  Writer w(chunk.data());
  WriteHeader(header, flags, tiles.size(), chunk.size(), w);
  for (const PlacedTile& tile : tiles) {
    w.U8(static_cast<uint8_t>(tile.tokens ? tile.token_begin : 0));
    w.U8(static_cast<uint8_t>(tile.tokens));
    w.U16(0);
    w.U32(static_cast<uint32_t>(tile.bytes));
    w.U32(tile.crc32c);
    w.F32(static_cast<float>(tile.certificate.predicted_kld));
  }
  w.U32(Crc32c({chunk.data(), head - kCrcBytes}));
  // The sum of all is made from the tiles': their bytes are not read again.
  uint32_t whole = Crc32c({chunk.data(), head});
  end = head;
  for (const PlacedTile& tile : tiles) {
    const size_t begin = RoundUp(end);
    std::fill(chunk.data() + end, chunk.data() + begin, uint8_t{0});
    whole = Crc32cExtend(whole, {chunk.data() + end, begin - end});
    whole = Crc32cConcat(whole, tile.crc32c, tile.bytes);
    end = begin + tile.bytes;
  }
  Writer(chunk.data() + end).U32(whole);
}

std::vector<uint8_t> BuildChunk(const ChunkHeader& header, absl::Span<const EncodedTile> tiles) {
  std::vector<size_t> sizes;
  for (const EncodedTile& tile : tiles) sizes.push_back(tile.bytes.size());
  const ChunkLayout layout = LayOutChunk(header, sizes);
  std::vector<uint8_t> chunk(layout.bytes);
  std::vector<PlacedTile> placed;
  for (size_t i = 0; i < tiles.size(); ++i) {
    Require(tiles[i].group == static_cast<int>(i));
    const uint32_t crc =
        Crc32cCopy(chunk.data() + layout.tiles[i], tiles[i].bytes.data(), tiles[i].bytes.size());
    placed.push_back({tiles[i].token_begin, tiles[i].tokens, tiles[i].bytes.size(), crc,
                      tiles[i].certificate});
  }
  SealChunk(header, placed, absl::MakeSpan(chunk));
  return chunk;
}

absl::StatusOr<ChunkView> ParseChunk(absl::Span<const uint8_t> bytes, Verify verify) {
  ChunkView view;
  view.bytes = bytes;
  uint8_t flags = 0;
  uint32_t groups = 0;
  if (absl::Status s = ReadFixed(bytes, &view.header, &flags, &groups); !s.ok()) return s;
  if (groups > bytes.size() / kEntryBytes) {
    return Corrupt(12, groups, " tiles in a chunk of ", bytes.size(), " bytes");
  }
  const Layout layout = LayoutOf(flags, view.header.tokens, groups);
  if (layout.header + kCrcBytes > bytes.size()) {
    return Corrupt(0, bytes.size(), " bytes; expected at least ", layout.header + kCrcBytes,
                   " for header and directory");
  }
  const size_t covered = layout.header - kCrcBytes;
  const uint32_t stored = LoadU32(bytes.data() + covered);
  const uint32_t computed = Crc32c(bytes.first(covered));
  if (stored != computed) {
    return Corrupt(covered, "CRC32C of header and directory is ", absl::Hex(computed),
                   "; expected ", absl::Hex(stored));
  }
  if (absl::Status s = ReadVariable(bytes, flags, layout, &view.header); !s.ok()) return s;
  if (absl::Status s = ReadDirectory(bytes, layout, groups, &view); !s.ok()) return s;
  if (verify == Verify::kAll) {
    const size_t end = bytes.size() - kCrcBytes;
    const uint32_t whole = Crc32c(bytes.first(end));
    if (whole != LoadU32(bytes.data() + end)) {
      return Corrupt(end, "CRC32C of the chunk is ", absl::Hex(whole), "; expected ",
                     absl::Hex(LoadU32(bytes.data() + end)));
    }
  }
  return view;
}

absl::Status VerifyTile(const ChunkView& chunk, int tile) {
  const uint32_t crc = Crc32c(chunk.tile(tile));
  const TileEntry& entry = chunk.tiles[tile];
  if (crc == entry.crc32c) return absl::OkStatus();
  return Corrupt(entry.offset, "CRC32C of tile ", tile, " is ", absl::Hex(crc), "; expected ",
                 absl::Hex(entry.crc32c));
}

}  // namespace kvcask
