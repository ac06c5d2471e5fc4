// Any bytes as a profile of fklt: a status, or a codec that encodes and decodes a page of its own
// geometry.
#include <cmath>
#include <cstdlib>

#include "codec/fklt/fklt.h"
#include "codec/profile/profile.h"
#include "codec/testing/test_cache.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvcask;
  auto profile = Profile::Parse(std::vector<uint8_t>(data, data + size));
  if (!profile.ok()) return 0;
  const Geometry& g = (*profile)->geometry();
  if (g.ElementsPerToken() > 4096) return 0;
  int heads = 0;
  for (const LayerGeometry& layer : g.layers) {
    for (const StreamGeometry& s : layer.streams) heads = std::max(heads, s.heads);
  }
  if (heads == 0) return 0;
  CodecSpec spec;
  spec.model = g;
  spec.shard = {0, 1, 0, static_cast<int>(g.layers.size()), 0, heads};
  spec.profile = *profile;
  auto codec = MakeFkltCodec(spec);
  if (!codec.ok()) return 0;
  constexpr int kTokens = 9;
  const Group& group = (*codec)->groups()[0];
  TestCache cache(g, group.layer_begin, group.layer_end, kTokens, Dtype::kBf16,
                  Layout::kContiguous);
  std::mt19937 rng(1);
  cache.FillRandom(rng);
  const std::vector<uint32_t> positions = PositionsFrom(1, kTokens);
  std::vector<uint8_t> tile((*codec)->MaxTileBytes(0, kTokens, Dtype::kBf16));
  EncodeJob encode;
  encode.tokens = kTokens;
  encode.source = cache.const_view();
  encode.positions = positions;
  encode.destination = absl::MakeSpan(tile);
  Workspace workspace;
  if (!(*codec)->Encode({&encode, 1}, workspace).ok()) std::abort();
  if (!encode.status.ok()) std::abort();  // the input is finite
  TestCache back(g, group.layer_begin, group.layer_end, kTokens, Dtype::kBf16, Layout::kPadded);
  DecodeJob decode;
  decode.tokens = decode.token_end = kTokens;
  decode.tile = absl::MakeConstSpan(tile).first(encode.bytes);
  decode.positions = positions;
  decode.layer_begin = group.layer_begin;
  decode.layer_end = group.layer_end;
  decode.destination = back.view();
  if (!(*codec)->Decode({&decode, 1}, workspace).ok()) std::abort();
  if (!decode.status.ok() || !back.PaddingIntact()) std::abort();
  return 0;
}
