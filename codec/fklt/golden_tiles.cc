#include "codec/fklt/golden_tiles.h"

#include "codec/fklt/fklt_reference.h"
#include "codec/format/chunk.h"

namespace kvcask::fklt {

SyntheticOptions TinyOptions() {
  SyntheticOptions o;
  o.geometry = UniformGeometry(2, 2, 16, StandardRope(RopeStyle::kRotateHalf, 16, 10000));
  o.partition = LayerGroups(o.geometry, 2);
  return o;
}

TileModel ModelOf(const FkltProfile& profile) {
  return {profile.groups[0].sigma, profile.table_sets, profile.active_threshold};
}

GoldenTile MakeGoldenTile(const FkltProfile& profile, int index) {
  struct Case {
    int tokens, step_exponent, kcap, classes;  // classes: how far k strays from 0
    int step_limit_shift, sinks;
  };
  constexpr Case kCases[kGoldenTiles] = {
      {128, -16, 6, 2, 0, 0}, {128, -70, 6, 6, 0, 0}, {5, -16, 2, 2, 0, 0},
      {1, -16, 0, 0, 0, 0},   {37, -8, 1, 3, 0, 0},   {128, 90, -6, 6, 0, 0},
      {128, -70, 6, 6, 1, 0}, {124, -30, 6, 2, 2, 4}, {2, -16, 0, 1, 0, 3}};
  const Case& c = kCases[index];
  uint32_t state = 12345 + index;
  auto next = [&state](uint32_t n) {
    state = state * 1664525u + 1013904223u;
    return static_cast<int>((state >> 8) % n);
  };
  GoldenTile tile;
  tile.tokens = c.tokens;
  tile.header.step_exponent = c.step_exponent;
  tile.header.kcap = c.kcap;
  tile.header.step_limit_shift = c.step_limit_shift;
  tile.header.mode = c.sinks > 0 ? kCodedSinksMode : kCodedMode;
  tile.sink_tokens = c.sinks;
  for (int t = 0; t < c.tokens; ++t) {
    tile.classes.amplitude[t] = static_cast<uint8_t>(t % 9 == 0 ? next(16) : 7 + next(3));
    tile.classes.step[t] = static_cast<int8_t>(next(2 * c.classes + 1) - c.classes);
  }
  const TileModel model = ModelOf(profile);
  tile.layout.Reset(model, tile.header, c.tokens, tile.classes.step);
  tile.header.groups = tile.layout.groups();
  tile.symbol_classes.resize(SymbolLayout::MaxSymbols(c.tokens, 128));
  tile.symbols.resize(tile.symbol_classes.size());
  int16_t terms[kMaxTokens];
  for (int p = 0; p < c.tokens; ++p) {
    const int t = tile.layout.token_at(p);
    terms[p] = static_cast<int16_t>(TokenTerm(tile.classes.amplitude[t], tile.classes.step[t]));
  }
  for (int r = 0; r < tile.layout.rows(); ++r) {
    const size_t at = tile.layout.offset(r);
    FillRowClasses(RowTerm(model.sigma[r], c.step_exponent), tile.layout.count(r), terms,
                   &tile.symbol_classes[at]);
    for (int p = 0; p < tile.layout.count(r); ++p) {
      int q = next(7) - 3;
      if (next(64) == 0) q = next(65536) - 32768;
      tile.symbols[at + p] = static_cast<int16_t>(q);
    }
  }
  const GroupModel& group = profile.groups[0];
  tile.sinks.resize(c.sinks > 0 ? ReferenceSinkBytes(group, c.sinks) : 0);
  for (size_t i = 0; i < tile.sinks.size(); ++i) {
    const bool exponent = i < group.members.size() * c.sinks;
    tile.sinks[i] = static_cast<uint8_t>(exponent ? 140 + next(60) : next(256));
  }
  return tile;
}

std::vector<uint8_t> WriteGoldenTile(const FkltProfile& profile, GoldenTile& tile, RansPath path) {
  std::vector<uint8_t> scratch(SegmentScratchBytes()), out(1 << 18);
  out.resize(WriteTile(tile.header, profile.table_sets[0], tile.classes, tile.layout,
                       tile.symbol_classes.data(), tile.symbols.data(), scratch.data(), out.data(),
                       out.size(), path));
  out.insert(out.end(), tile.sinks.begin(), tile.sinks.end());
  return out;
}

std::vector<uint8_t> MakeGoldenChunk(const FkltProfile& profile) {
  GoldenTile tile = MakeGoldenTile(profile, kGoldenTileWithSinks);
  const std::vector<uint8_t> bytes = WriteGoldenTile(profile, tile, RansPath::kPortable);
  ChunkHeader header;
  header.codec = CodecId::kFklt;
  header.quality = Quality::kBalanced;
  header.shard = {0, 1, 0, 2, 0, 2};
  header.profile = profile.file->fingerprint();
  header.tokens = kMaxTokens;
  for (int t = 0; t < kMaxTokens; ++t) header.positions.push_back(t);
  return BuildChunk(header, {{0, 0, kMaxTokens, bytes, {.0078125}}});
}

}  // namespace kvcask::fklt
