// Any bytes as a tile of the Kakeya codecs: a status, or numbers, and never a byte written
// outside the destination. The first 8 bytes of the input say what is asked for, and of which
// codec: one without a profile, or one with factors and tables.
#include <cstdlib>

#include "codec/kakeya/kakeya.h"
#include "codec/kakeya/test_profile.h"
#include "codec/testing/test_cache.h"

namespace kvcask {
namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

const Geometry& FuzzGeometry() {
  static const Geometry* const kGeometry = [] {
    auto* g = new Geometry(UniformGeometry(2, 2, 8, StandardRope(RopeStyle::kRotateHalf, 8, 1e4)));
    g->layers[1].rope = StandardRope(RopeStyle::kInterleaved, 4, 1e4);
    return g;
  }();
  return *kGeometry;
}

}  // namespace
}  // namespace kvcask

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvcask;
  static const Codec* const kCodecs[] = {
      MakeKakeya13Codec({FuzzGeometry(), {0, 1, 0, 2, 0, 2}, nullptr})->release(),
      MakeKakeya13PplCodec(
          {FuzzGeometry(),
           {0, 1, 0, 2, 0, 2},
           kakeya::MakeTestProfile(FuzzGeometry(), R"({"preset": "kakeya-1.3-ppl"})",
                                   kakeya::DyadicTensors(FuzzGeometry()))})
          ->release()};
  if (size < 8) return 0;
  const Codec* const codec = kCodecs[data[0] >> 1 & 1];
  DecodeJob job;
  job.group = data[0] & 1;
  job.tokens = 1 + data[1] % 128;
  job.source_dtype = static_cast<Dtype>(1 + data[2] % 3);
  const std::vector<uint32_t> positions = PositionsFrom(data[5] < 128 ? 0 : 5000, job.tokens);
  job.positions = positions;
  job.token_begin = data[3] % job.tokens;
  job.token_end = job.token_begin + 1 + data[4] % (job.tokens - job.token_begin);
  job.layer_begin = job.group;
  job.layer_end = job.group + 1;
  job.position_offset = data[5] % 128 * 30;
  TestCache out(FuzzGeometry(), job.group, job.group + 1, job.token_end - job.token_begin,
                static_cast<Dtype>(1 + data[6] % 3), kAllLayouts[data[7] % 5]);
  job.destination = out.view();
  job.tile = {data + 8, size - 8};
  Workspace workspace;
  Check(codec->Decode({&job, 1}, workspace).ok());
  const absl::StatusCode code = job.status.code();
  Check(code == absl::StatusCode::kOk || code == absl::StatusCode::kDataLoss);
  Check(out.PaddingIntact());
  return 0;
}
