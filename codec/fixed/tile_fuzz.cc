// Any bytes as a tile of the codecs of constant size: a status, or numbers, and never a byte
// written outside the destination. The first 8 bytes of the input say what is asked for; the
// tiles themselves say which coders they need, so one codec reads them all.
#include <cstdlib>

#include "codec/fixed/presets.h"
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
    g->layers[1].streams[1].head_dim = 21;
    return g;
  }();
  return *kGeometry;
}

}  // namespace
}  // namespace kvcask

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvcask;
  static const Codec* const kCodec =
      MakePresetCodec(CodecId::kTurbo4, {FuzzGeometry(), {0, 1, 0, 2, 0, 2}, nullptr, ""})
          ->release();
  if (size < 8) return 0;
  const uint8_t* ask = data;
  DecodeJob job;
  job.group = ask[0] & 1;
  job.tokens = 1 + ask[1] % 9;
  job.source_dtype = static_cast<Dtype>(1 + ask[2] % 3);
  const std::vector<uint32_t> positions = PositionsFrom(ask[0] >> 4, job.tokens);
  job.positions = positions;
  job.token_begin = ask[3] % job.tokens;
  job.token_end = job.token_begin + 1 + ask[4] % (job.tokens - job.token_begin);
  job.layer_begin = job.group;
  job.layer_end = job.group + 1;
  job.position_offset = ask[5] * 30;
  TestCache out(FuzzGeometry(), job.group, job.group + 1, job.token_end - job.token_begin,
                static_cast<Dtype>(1 + ask[6] % 3), kAllLayouts[ask[7] % 5]);
  job.destination = out.view();
  job.tile = {data + 8, size - 8};
  Workspace workspace;
  Check(kCodec->Decode({&job, 1}, workspace).ok());
  const absl::StatusCode code = job.status.code();
  Check(code == absl::StatusCode::kOk || code == absl::StatusCode::kDataLoss);
  Check(out.PaddingIntact());
  return 0;
}
