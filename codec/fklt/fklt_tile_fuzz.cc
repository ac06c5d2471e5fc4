// Any bytes as a tile of fklt: a status, or numbers, and never a byte written outside the
// destination; both paths agree. The first 8 bytes of the input say what is asked for.
#include <cstdlib>

#include "codec/fklt/fklt.h"
#include "codec/fklt/golden_tiles.h"
#include "codec/testing/test_cache.h"

namespace kvcask {
namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

const Codec& FuzzCodec(RansPath path) {
  static const std::shared_ptr<const Profile> profile =
      ParseOrDie(fklt::MakeSyntheticProfile(fklt::TinyOptions()));
  auto make = [](RansPath p) {
    return MakeFkltCodecWith({profile->geometry(), {0, 1, 0, 2, 0, 2}, profile}, {p, 0})->release();
  };
  static const Codec* const portable = make(RansPath::kPortable);
  static const Codec* const best = make(RansPath::kBest);
  return path == RansPath::kPortable ? *portable : *best;
}

absl::Status DecodeOne(const Codec& codec, absl::Span<const uint8_t> tile, TestCache* out,
                       DecodeJob job) {
  job.destination = out->view();
  job.tile = tile;
  Workspace workspace;
  Check(codec.Decode({&job, 1}, workspace).ok());
  const absl::StatusCode code = job.status.code();
  Check(code == absl::StatusCode::kOk || code == absl::StatusCode::kDataLoss);
  Check(out->PaddingIntact());
  return job.status;
}

}  // namespace
}  // namespace kvcask

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvcask;
  if (size < 8) return 0;
  DecodeJob job;
  job.tokens = 1 + data[1] % 128;
  job.source_dtype = static_cast<Dtype>(1 + data[2] % 3);
  const std::vector<uint32_t> positions = PositionsFrom(data[0] % 2     ? data[0] % 8
                                                        : data[0] == 16 ? 0
                                                                        : 500,
                                                        job.tokens);
  job.positions = positions;
  job.token_begin = data[3] % job.tokens;
  job.token_end = job.token_begin + 1 + data[4] % (job.tokens - job.token_begin);
  job.layer_begin = data[7] % 3 == 1;
  job.layer_end = data[7] % 3 == 2 ? 1 : 2;
  job.position_offset = data[5] >= 128 ? (data[5] - 128) * 30 : 0;
  const auto dtype = static_cast<Dtype>(1 + data[6] % 3);
  const Layout layout = kAllLayouts[data[7] % 5];
  const Codec& portable = FuzzCodec(RansPath::kPortable);
  const int tokens = job.token_end - job.token_begin;
  TestCache a(portable.geometry(), job.layer_begin, job.layer_end, tokens, dtype, layout);
  TestCache b(portable.geometry(), job.layer_begin, job.layer_end, tokens, dtype, layout);
  const absl::Span<const uint8_t> tile(data + 8, size - 8);
  const absl::Status x = DecodeOne(portable, tile, &a, job);
  const absl::Status y = DecodeOne(FuzzCodec(RansPath::kBest), tile, &b, job);
  Check(x == y);
  if (x.ok()) Check(FirstDifference(a, b).empty());
  return 0;
}
