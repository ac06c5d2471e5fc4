// What the CPU's decoders are fuzzed with, through the device's: the same verdict and the same
// elements, nothing written outside; or the tile is left to the CPU. The kept tiles, the fuzz
// targets' corpora as their targets ask for them, and mutations of them.
//
// Prints its seed and the device; KVCASK_SEED repeats a run. Runs on a GPU, and on the CPU
// (device/emulation). The files are found from the folder that it is run in.
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "codec/fixed/cuda/fixed_cuda.h"
#include "codec/fixed/presets.h"
#include "codec/fklt/cuda/fklt_cuda.h"
#include "codec/fklt/fklt.h"
#include "codec/fklt/golden_tiles.h"
#include "codec/scalar/cuda/int8_cuda.h"
#include "codec/scalar/int8.h"
#include "tests/gpu/gpu_testing.h"

namespace kvcask {
namespace {

constexpr int kMutations = 400, kBatch = 40;

// A request of 8 bytes, then a tile: as the fuzz targets take it.
using Input = std::vector<uint8_t>;
constexpr size_t kAskBytes = 8;

Input Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

// What an input asks for: all of a DecodeJob but tile and destination.
struct Request {
  DecodeJob job;
  std::vector<uint32_t> positions;
  Dtype dtype = Dtype::kBf16;
  Layout layout = Layout::kContiguous;
};

struct Decoders {
  Geometry g;
  std::unique_ptr<Codec> cpu;
  std::unique_ptr<CudaEngine> gpu;
  std::function<Request(const uint8_t* ask)> request;
  bool exact = true;  // else as near as fp16 operands are, but for a few
};

struct Counts {
  int decoded = 0, refused = 0, left = 0;  // by the device
  int far = 0;                             // decoded to something else: never where exact
};

// Of fklt: fp16 operands, then the output's dtype.
double RelativeError(const TestCache& a, const TestCache& b) {
  if (FirstDifference(a, b).empty()) return 0;
  double squares = 0, error = 0;
  for (int p = 0; p < a.planes(); ++p) {
    for (int h = 0; h < a.heads(p); ++h) {
      for (int t = 0; t < a.tokens(); ++t) {
        for (int d = 0; d < a.head_dim(p); ++d) {
          const double x = a.Get(p, h, t, d), y = b.Get(p, h, t, d);
          if (std::isnan(x) && std::isnan(y)) continue;
          squares += y * y;
          error += (x - y) * (x - y);
        }
      }
    }
  }
  return std::sqrt(error / squares);
}

// All in batches, so that the good ones stand beside the bad ones. `shift`: with the position
// offset that is asked for, else none.
Counts Drive(Decoders& d, const std::vector<Input>& inputs, bool shift) {
  struct Prepared {
    Request request;
    std::vector<uint8_t> tile;  // exactly as long
    DecodeJob cpu;
    std::unique_ptr<Reachable> to;
    std::unique_ptr<TestCache> expected;
  };
  Counts counts;
  Workspace workspace;
  for (size_t first = 0; first < inputs.size(); first += kBatch) {
    std::vector<std::unique_ptr<Prepared>> batch;
    std::vector<DecodeJob> jobs;
    for (size_t i = first; i < std::min(inputs.size(), first + kBatch); ++i) {
      if (inputs[i].size() < kAskBytes) continue;
      auto p = std::make_unique<Prepared>();
      p->request = d.request(inputs[i].data());
      p->tile.assign(inputs[i].begin() + kAskBytes, inputs[i].end());
      DecodeJob& job = p->request.job;
      job.positions = p->request.positions;
      job.tile = p->tile;
      if (!shift) job.position_offset = 0;
      const int tokens = job.token_end - job.token_begin;
      p->to = std::make_unique<Reachable>(d.g, Group{job.layer_begin, job.layer_end}, tokens,
                                          p->request.dtype, p->request.layout);
      p->expected = std::make_unique<TestCache>(d.g, job.layer_begin, job.layer_end, tokens,
                                                p->request.dtype, p->request.layout);
      p->cpu = job;
      p->cpu.destination = p->expected->view();
      job.destination = (*p->to)->view();
      jobs.push_back(job);
      batch.push_back(std::move(p));
    }
    const absl::Status status = d.gpu->Decode(absl::MakeSpan(jobs));
    EXPECT_TRUE(status.ok()) << status;
    for (size_t i = 0; i < jobs.size(); ++i) {
      Prepared& p = *batch[i];
      EXPECT_TRUE(d.cpu->Decode({&p.cpu, 1}, workspace).ok());
      const std::string what = absl::StrCat("input ", first + i, ", ", p.tile.size(), " bytes");
      EXPECT_TRUE((*p.to)->PaddingIntact()) << what;
      if (absl::IsUnimplemented(jobs[i].status)) {
        ++counts.left;
        continue;
      }
      EXPECT_EQ(jobs[i].status.code(), p.cpu.status.code())
          << what << ": " << jobs[i].status << " / " << p.cpu.status;
      if (!jobs[i].status.ok()) {
        ++counts.refused;
        continue;
      }
      ++counts.decoded;
      if (d.exact) {
        EXPECT_EQ(FirstDifference(**p.to, *p.expected), "") << what;
      } else {
        counts.far += !(RelativeError(**p.to, *p.expected) <= .004);
      }
    }
  }
  return counts;
}

std::vector<Input> Mutations(const std::vector<Input>& corpus, std::mt19937& rng) {
  std::vector<Input> out;
  while (out.size() < kMutations) {
    Input input = corpus[rng() % corpus.size()];
    for (int n = 1 + rng() % 3; n > 0 && !input.empty(); --n) {
      const size_t at = rng() % input.size();
      switch (rng() % 8) {
        case 0:
          input.resize(at);
          break;
        case 1:
          input.insert(input.begin() + at, 1 + rng() % 16, static_cast<uint8_t>(rng()));
          break;
        case 2:
          input[at] = static_cast<uint8_t>(rng());
          break;
        case 3:  // the request, and what a tile says of itself
          input[rng() % std::min<size_t>(input.size(), 28)] ^= static_cast<uint8_t>(1 << rng() % 8);
          break;
        case 4:
        case 5:  // a half that is none
          for (size_t i = at; i < std::min(input.size(), at + 4); ++i) input[i] = 0xff;
          break;
        default:
          input[at] ^= static_cast<uint8_t>(1 << rng() % 8);
      }
    }
    out.push_back(std::move(input));
  }
  return out;
}

// The geometry and the requests of codec/fixed's and codec/scalar's targets.
Geometry SmallGeometry(int last_head_dim) {
  Geometry g = UniformGeometry(2, 2, 8, StandardRope(RopeStyle::kRotateHalf, 8, 1e4));
  g.layers[1].rope = StandardRope(RopeStyle::kInterleaved, 4, 1e4);
  g.layers[1].streams[1].head_dim = last_head_dim;
  return g;
}
Request SmallRequest(const uint8_t* ask) {
  Request r;
  r.job.group = ask[0] & 1;
  r.job.tokens = 1 + ask[1] % 9;
  r.job.source_dtype = static_cast<Dtype>(1 + ask[2] % 3);
  r.positions = PositionsFrom(ask[0] >> 4, r.job.tokens);
  r.job.token_begin = ask[3] % r.job.tokens;
  r.job.token_end = r.job.token_begin + 1 + ask[4] % (r.job.tokens - r.job.token_begin);
  r.job.layer_begin = r.job.group;
  r.job.layer_end = r.job.group + 1;
  r.job.position_offset = ask[5] * 30;
  r.dtype = static_cast<Dtype>(1 + ask[6] % 3);
  r.layout = kAllLayouts[ask[7] % 5];
  return r;
}

// Requests with the CPU's tiles for them.
std::vector<Input> Answered(const Decoders& d, const Codec& codec, int count, std::mt19937& rng) {
  std::vector<Input> inputs;
  Workspace workspace;
  for (int i = 0; i < count; ++i) {
    Input input(kAskBytes);
    for (uint8_t& byte : input) byte = static_cast<uint8_t>(rng());
    const Request r = d.request(input.data());
    TestCache source(d.g, r.job.group, r.job.group + 1, r.job.tokens, r.job.source_dtype,
                     Layout::kContiguous);
    source.FillRandom(rng);
    EncodeJob job;
    job.group = r.job.group;
    job.tokens = r.job.tokens;
    job.source = source.const_view();
    job.positions = r.positions;
    input.resize(kAskBytes + codec.MaxTileBytes(job.group, job.tokens, r.job.source_dtype));
    job.destination = absl::MakeSpan(input).subspan(kAskBytes);
    EXPECT_TRUE(codec.Encode({&job, 1}, workspace).ok());
    EXPECT_TRUE(job.status.ok()) << job.status;
    input.resize(kAskBytes + job.bytes);
    inputs.push_back(std::move(input));
  }
  return inputs;
}

TEST(CorpusGpuTest, FixedsKeptTilesAreTheCpus) {
  Decoders d;
  d.g = UniformGeometry(1, 1, 24, Rope());
  const CodecSpec spec{d.g, {0, 1, 0, 1, 0, 1}, nullptr};
  d.cpu = *MakePresetCodec(CodecId::kTurbo4, spec);
  d.gpu = *MakeFixedEngine(CodecId::kTurbo4, spec);
  d.request = [](const uint8_t* ask) {
    Request r;
    r.job.tokens = 33;
    r.job.token_begin = ask[0];
    r.job.token_end = ask[1];
    r.job.layer_end = 1;
    r.positions = PositionsFrom(0, 33);
    r.dtype = static_cast<Dtype>(1 + ask[2] % 3);
    return r;
  };
  std::vector<Input> inputs;
  const char* names[] = {"int4",    "turbo2",   "turbo3", "turbo4", "3bit_nc", "4bit_nc",
                         "k3v4_nc", "k8v4",     "kivi2",  "kivi4",  "fp8",     "d4",
                         "e8",      "d4_small", "odd",    "sinks"};
  for (const char* name : names) {
    Input input = Read(absl::StrCat("codec/fixed/testdata/", name, ".tile"));
    for (const Input& ask : {Input{0, 33, 0, 0, 0, 0, 0, 0}, Input{7, 20, 2, 0, 0, 0, 0, 0}}) {
      inputs.push_back(ask);
      inputs.back().insert(inputs.back().end(), input.begin(), input.end());
    }
  }
  const Counts kept = Drive(d, inputs, true);
  EXPECT_EQ(kept.decoded, 2 * 4) << "int4, turbo2, turbo3 and turbo4";
  EXPECT_EQ(kept.left, 2 * 12);
}

TEST(CorpusGpuTest, FixedsFuzzInputsHaveTheCpusVerdict) {
  std::mt19937 rng(Seed());
  Decoders d;
  d.g = SmallGeometry(21);
  const CodecSpec spec{d.g, {0, 1, 0, 2, 0, 2}, nullptr};
  d.cpu = *MakePresetCodec(CodecId::kTurbo4, spec);
  d.gpu = *MakeFixedEngine(CodecId::kTurbo4, spec);
  d.request = SmallRequest;
  std::vector<Input> corpus;
  for (const FixedPreset& preset : FixedPresets()) {
    corpus.push_back(Read(absl::StrCat("codec/fixed/testdata/", preset.name, ".tile")));
    const auto codec = *MakePresetCodec(preset.id, spec);
    // More of those that the device decodes.
    const int count = HasFixedEngine(preset.id) ? 20 : 2;
    for (Input& input : Answered(d, *codec, count, rng)) corpus.push_back(std::move(input));
  }
  const Counts whole = Drive(d, corpus, false);
  EXPECT_EQ(whole.decoded, 4 * 20);
  Drive(d, corpus, true);
  const Counts damaged = Drive(d, Mutations(corpus, rng), false);
  EXPECT_GT(damaged.decoded, kMutations / 20);
  EXPECT_GT(damaged.refused, 0);
}

TEST(CorpusGpuTest, Int8sFuzzInputsHaveTheCpusVerdict) {
  std::mt19937 rng(Seed() + 1);
  Decoders d;
  d.g = SmallGeometry(8);
  const CodecSpec spec{d.g, {0, 1, 0, 2, 0, 2}, nullptr};
  d.cpu = *MakeInt8Codec(spec);
  d.gpu = *MakeInt8Engine(spec);
  d.request = [](const uint8_t* ask) {
    Request r = SmallRequest(ask);
    r.positions = PositionsFrom(5000, r.job.tokens);
    r.job.position_offset = (ask[5] - 128) * 30;
    return r;
  };
  std::vector<Input> corpus;
  for (const char* name : {"int8", "int8_raw_form", "raw"}) {
    corpus.push_back(Read(absl::StrCat("codec/scalar/testdata/", name, ".tile")));
  }
  const Counts kept = Drive(d, corpus, false);
  EXPECT_EQ(kept.decoded, 1) << "int8.tile";
  for (Input& input : Answered(d, *d.cpu, 20, rng)) corpus.push_back(std::move(input));
  EXPECT_EQ(Drive(d, corpus, false).decoded, 21);
  Drive(d, corpus, true);
  const Counts damaged = Drive(d, Mutations(corpus, rng), false);
  EXPECT_GT(damaged.decoded, kMutations / 20);
  EXPECT_GT(damaged.refused, 0);
}

TEST(CorpusGpuTest, FkltsFuzzInputsHaveTheCpusVerdict) {
  std::mt19937 rng(Seed() + 2);
  const auto profile = ParseOrDie(fklt::MakeSyntheticProfile(fklt::TinyOptions()));
  Decoders d;
  d.g = profile->geometry();
  d.exact = false;
  const CodecSpec spec{d.g, {0, 1, 0, 2, 0, 2}, profile};
  d.cpu = *MakeFkltCodec(spec);
  auto made = fklt::MakeFkltEngine(spec);
  ASSERT_TRUE(made.ok()) << made.status();
  d.gpu = *std::move(made);
  d.request = [](const uint8_t* ask) {
    Request r;
    r.job.tokens = 1 + ask[1] % 128;
    r.job.source_dtype = static_cast<Dtype>(1 + ask[2] % 3);
    r.positions = PositionsFrom(ask[0] % 2 ? ask[0] % 8 : ask[0] == 16 ? 0 : 500, r.job.tokens);
    r.job.token_begin = ask[3] % r.job.tokens;
    r.job.token_end = r.job.token_begin + 1 + ask[4] % (r.job.tokens - r.job.token_begin);
    r.job.layer_begin = ask[7] % 3 == 1;
    r.job.layer_end = ask[7] % 3 == 2 ? 1 : 2;
    r.job.position_offset = ask[5] >= 128 ? (ask[5] - 128) * 30 : 0;
    r.dtype = static_cast<Dtype>(1 + ask[6] % 3);
    r.layout = kAllLayouts[ask[7] % 5];
    return r;
  };
  std::vector<Input> corpus;
  for (int i = 0; i < fklt::kGoldenTiles; ++i) {
    corpus.push_back(Read(absl::StrCat("codec/fklt/testdata/fuzz_tile_", i)));
  }
  const Counts kept = Drive(d, corpus, true);
  // Number 4 has symbols of up to 32,767 at coarse steps: coordinates beyond fp16 are the CPU's.
  EXPECT_EQ(kept.decoded, fklt::kGoldenTiles - 1);
  EXPECT_EQ(kept.left, 1);
  EXPECT_EQ(kept.far, 0);
  const Counts damaged = Drive(d, Mutations(corpus, rng), true);
  EXPECT_GT(damaged.refused, kMutations / 4);
  EXPECT_GT(damaged.decoded, kMutations / 40);
  // Coordinates that fp16 holds can still add up to elements that it does not: no encoder makes such.
  EXPECT_LE(damaged.far, damaged.decoded / 10);
}

}  // namespace
}  // namespace kvcask
