// int4 and turbo2 to turbo4 on a device: the CPU's bytes and elements, bit for bit, in batches of
// random jobs; what the kernels do not do is left to the CPU.
//
// Prints its seed and the device; KVCASK_SEED repeats a run. Runs on a GPU, and in small on the CPU
// (device/emulation).
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "codec/fixed/cuda/fixed_cuda.h"
#include "codec/fixed/fixed_codec.h"
#include "codec/fixed/presets.h"
#include "tests/gpu/gpu_testing.h"

namespace kvcask {
namespace {

#ifdef KVCASK_CUDA_EMULATION
constexpr int kJobs = 4;
#else
constexpr int kJobs = 40;
#endif

constexpr Dtype kDtypes[] = {Dtype::kBf16, Dtype::kF16, Dtype::kF32};

struct Both {
  Both(CodecId id, const Geometry& geometry) : g(geometry) {
    int heads = 0;
    for (const StreamGeometry& s : g.layers[0].streams) heads = std::max(heads, s.heads);
    const CodecSpec spec{g, {0, 1, 0, static_cast<int>(g.layers.size()), 0, heads}, nullptr};
    cpu = *MakePresetCodec(id, spec);
    auto made = MakeFixedEngine(id, spec);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) gpu = *std::move(made);
  }
  Geometry g;
  std::unique_ptr<Codec> cpu;
  std::unique_ptr<CudaEngine> gpu;
};

// A job both ways, and what the CPU makes of it.
struct Trial {
  int group, tokens;
  std::vector<uint32_t> positions;
  std::unique_ptr<Reachable> source, back;
  std::unique_ptr<TestCache> expected_back;
  std::unique_ptr<ReachableBytes> out;
  std::vector<uint8_t> tile;  // the CPU's
  absl::Status encoded;
  DecodeJob decode, expected;
  std::string what;
};

EncodeJob EncodeOf(Trial& t) {
  EncodeJob job;
  job.group = t.group;
  job.tokens = t.tokens;
  job.source = (*t.source)->const_view();
  job.positions = t.positions;
  return job;
}

std::unique_ptr<Trial> MakeTrial(const Both& b, int tokens, std::mt19937& rng) {
  auto t = std::make_unique<Trial>();
  t->group = static_cast<int>(rng() % b.cpu->groups().size());
  t->tokens = tokens;
  t->positions = PositionsFrom(rng() % 4000, tokens);
  const Dtype dtype = kDtypes[rng() % 3];
  const Layout layout = kAllLayouts[rng() % 5];
  t->source = std::make_unique<Reachable>(b.g, b.cpu->groups()[t->group], tokens, dtype, layout);
  const float scales[] = {1, 1, 1e-6f, 300};
  (*t->source)->FillRandom(rng, scales[rng() % 4]);
  t->what = absl::StrCat("group ", t->group, ", ", tokens, " tokens, dtype ",
                         static_cast<int>(dtype), ", ", LayoutName(layout));
  return t;
}

void EncodeOnCpu(const Codec& codec, Trial* t) {
  Workspace workspace;
  EncodeJob job = EncodeOf(*t);
  t->tile.resize(codec.MaxTileBytes(t->group, t->tokens, job.source.dtype));
  job.destination = absl::MakeSpan(t->tile);
  ASSERT_TRUE(codec.Encode({&job, 1}, workspace).ok());
  t->encoded = job.status;
  t->tile.resize(job.bytes);
}

// A part of the tile's tokens, in any dtype and layout.
void PlanDecode(const Both& b, Trial* t, std::mt19937& rng) {
  DecodeJob& job = t->decode;
  job.group = t->group;
  job.tokens = t->tokens;
  job.source_dtype = (*t->source)->dtype();
  job.tile = t->tile;
  job.positions = t->positions;
  job.token_begin = static_cast<int>(rng() % t->tokens);
  job.token_end = job.token_begin + 1 + static_cast<int>(rng() % (t->tokens - job.token_begin));
  if (rng() % 2 == 0) job.token_begin = 0, job.token_end = t->tokens;
  const Group& layers = b.cpu->groups()[t->group];
  job.layer_begin = layers.layer_begin;
  job.layer_end = layers.layer_end;
  const Dtype dtype = kDtypes[rng() % 3];
  const Layout layout = kAllLayouts[rng() % 5];
  const int tokens = job.token_end - job.token_begin;
  t->back = std::make_unique<Reachable>(b.g, layers, tokens, dtype, layout);
  t->expected_back =
      std::make_unique<TestCache>(b.g, layers.layer_begin, layers.layer_end, tokens, dtype, layout);
  t->expected = job;
  t->expected.destination = t->expected_back->view();
  job.destination = (*t->back)->view();
  absl::StrAppend(&t->what, "; tokens ", job.token_begin, " to ", job.token_end, " to dtype ",
                  static_cast<int>(dtype), ", ", LayoutName(layout));
}

using Trials = std::vector<std::unique_ptr<Trial>>;

// On the device, and by the CPU; returns how many the device decoded. What it leaves is left.
int DecodeBoth(Both& b, Trials& trials, bool tiles_on_device) {
  std::vector<DecodeJob> jobs;
  std::vector<std::unique_ptr<ReachableBytes>> copies;
  std::vector<const uint8_t*> tiles;
  for (auto& t : trials) {
    jobs.push_back(t->decode);
    if (!tiles_on_device) continue;
    copies.push_back(std::make_unique<ReachableBytes>(t->decode.tile.size()));
    std::copy(t->decode.tile.begin(), t->decode.tile.end(), copies.back()->data());
    tiles.push_back(copies.back()->data());
  }
  const absl::Status status = b.gpu->Decode(absl::MakeSpan(jobs), tiles);
  EXPECT_TRUE(status.ok()) << status;
  Workspace workspace;
  int decoded = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    Trial& t = *trials[i];
    EXPECT_TRUE(b.cpu->Decode({&t.expected, 1}, workspace).ok());
    EXPECT_TRUE((*t.back)->PaddingIntact()) << t.what;
    if (absl::IsUnimplemented(jobs[i].status)) continue;
    EXPECT_EQ(jobs[i].status.code(), t.expected.status.code())
        << t.what << ": " << jobs[i].status << " / " << t.expected.status;
    if (!jobs[i].status.ok()) continue;
    ++decoded;
    EXPECT_EQ(FirstDifference(**t.back, *t.expected_back), "") << t.what;
  }
  return decoded;
}

// Encodes all in one batch; returns how many the device did, and the CPU refused or wrote raw none
// of them.
int EncodeBoth(Both& b, Trials& trials) {
  std::vector<EncodeJob> jobs;
  std::vector<uint8_t*> out;
  for (auto& t : trials) {
    EncodeOnCpu(*b.cpu, t.get());
    jobs.push_back(EncodeOf(*t));
    t->out = std::make_unique<ReachableBytes>(
        b.cpu->MaxTileBytes(t->group, t->tokens, (*t->source)->dtype()));
    out.push_back(t->out->data());
  }
  const absl::Status status = b.gpu->Encode(absl::MakeSpan(jobs), out);
  EXPECT_TRUE(status.ok()) << status;
  int encoded = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    Trial& t = *trials[i];
    EXPECT_TRUE(jobs[i].status.ok()) << t.what << ": " << jobs[i].status;
    const bool coded = t.encoded.ok() && t.tile[0] == 1;
    EXPECT_EQ(jobs[i].bytes > 0, coded) << t.what;
    if (jobs[i].bytes == 0 || !coded) continue;
    ++encoded;
    EXPECT_EQ(std::vector<uint8_t>(out[i], out[i] + jobs[i].bytes), t.tile) << t.what;
  }
  return encoded;
}

Geometry Heads(int heads, int head_dim) {
  return UniformGeometry(
      2, heads, head_dim,
      head_dim % 2 == 0 ? StandardRope(RopeStyle::kRotateHalf, head_dim, 10000) : Rope());
}

// A page in the layout that the fastest kernels take, with rows as data seldom are: all zero, all
// minus zero, minus zeros that stay so in the transform, squares that are no normal floats or
// vanish.
void AddOddRows(const Both& b, Trial* t, std::mt19937& rng) {
  t->source = std::make_unique<Reachable>(b.g, b.cpu->groups()[t->group], t->tokens, Dtype::kBf16,
                                          Layout::kContiguous);
  TestCache& source = **t->source;
  source.FillRandom(rng);
  for (int d = 0; d < source.head_dim(0); ++d) {
    const float sign = d % 3 == 0 ? -1.f : 1.f;
    const float rows[] = {0.f,
                          -0.f,
                          d % 4 < 2    ? -0.f
                          : d % 4 == 2 ? 1.f
                                       : -1.f,
                          sign * 1e-20f,
                          d == 0 ? 4e-23f : sign * 1e-23f,
                          sign * 1e-30f,
                          d == 1 ? -100.f : 0.f};
    for (int p = 0; p < 2; ++p) {
      for (size_t r = 0; r < std::size(rows); ++r) {
        source.Set(p, 1, static_cast<int>(r) + 40 * p, d, rows[r]);
      }
    }
  }
}

class FixedGpuTest : public testing::TestWithParam<CodecId> {};

TEST_P(FixedGpuTest, IsTheCpusBitForBit) {
  std::mt19937 rng(Seed() + static_cast<int>(GetParam()));
  for (const int head_dim : {5, 21, 40, 64, 80, 96, 128, 200}) {
    SCOPED_TRACE(absl::StrCat("head_dim ", head_dim));
    Both b(GetParam(), Heads(3, head_dim));
    ASSERT_NE(b.gpu, nullptr);
    Trials trials;
    for (int i = 0; i < kJobs; ++i) {
      trials.push_back(MakeTrial(b, i == 0 ? 128 : 1 + static_cast<int>(rng() % 128), rng));
    }
    AddOddRows(b, trials[0].get(), rng);
    EXPECT_EQ(EncodeBoth(b, trials), kJobs);
    for (auto& t : trials) PlanDecode(b, t.get(), rng);
    EXPECT_EQ(DecodeBoth(b, trials, false), kJobs);
    EXPECT_EQ(DecodeBoth(b, trials, true), kJobs);
  }
}

// Streams that differ within a layer, as those of latent attention do.
TEST_P(FixedGpuTest, StreamsOfOneTileMayDiffer) {
  std::mt19937 rng(Seed() + 10 + static_cast<int>(GetParam()));
  Geometry g = Heads(2, 64);
  g.layers[0].streams[1].head_dim = 96;
  g.layers[1].streams[0].head_dim = 128;
  g.layers[1].streams[1].head_dim = 24;
  Both b(GetParam(), g);
  ASSERT_NE(b.gpu, nullptr);
  Trials trials;
  for (int i = 0; i < kJobs; ++i) {
    trials.push_back(MakeTrial(b, 1 + static_cast<int>(rng() % 128), rng));
  }
  EXPECT_EQ(EncodeBoth(b, trials), kJobs);
  for (auto& t : trials) PlanDecode(b, t.get(), rng);
  EXPECT_EQ(DecodeBoth(b, trials, false), kJobs);
}

TEST_P(FixedGpuTest, WhatNoFormHoldsIsLeftToTheCpu) {
  std::mt19937 rng(Seed() + 20 + static_cast<int>(GetParam()));
  Both b(GetParam(), Heads(2, 64));
  ASSERT_NE(b.gpu, nullptr);
  Trials trials;
  for (int i = 0; i < 8; ++i) {
    auto t = MakeTrial(b, 1 + static_cast<int>(rng() % 40), rng);
    t->source =
        std::make_unique<Reachable>(b.g, b.cpu->groups()[t->group], t->tokens,
                                    i % 2 == 0 ? Dtype::kF32 : Dtype::kBf16, kAllLayouts[i % 5]);
    TestCache& source = **t->source;
    source.FillRandom(rng);
    // NaN, infinity: refused. Too large for a half, too large for a sum of squares: the raw form.
    const float values[] = {std::nanf(""), -INFINITY, 1e6f, 3e38f};
    if (i > 0) {
      source.Set(static_cast<int>(rng() % 2), static_cast<int>(rng() % 2),
                 static_cast<int>(rng() % t->tokens), static_cast<int>(rng() % 64), values[i % 4]);
    }
    trials.push_back(std::move(t));
  }
  EXPECT_EQ(EncodeBoth(b, trials), 1);
}

TEST_P(FixedGpuTest, DamagedTilesAreRefusedWhereTheCpuRefusesThem) {
  std::mt19937 rng(Seed() + 30 + static_cast<int>(GetParam()));
  Both b(GetParam(), Heads(2, 64));
  ASSERT_NE(b.gpu, nullptr);
  int refused = 0, decoded = 0;
  for (int round = 0; round < 3; ++round) {
    Trials trials;
    for (int i = 0; i < 3 * kJobs; ++i) {
      trials.push_back(MakeTrial(b, 1 + static_cast<int>(rng() % 20), rng));
      Trial& t = *trials.back();
      EncodeOnCpu(*b.cpu, &t);
      ASSERT_TRUE(t.encoded.ok());
      std::vector<uint8_t>& tile = t.tile;
      switch (rng() % 6) {
        case 0:  // what the streams are said to be
          tile[rng() % 20] ^= static_cast<uint8_t>(1 << rng() % 8);
          break;
        case 1:
          tile.resize(rng() % (tile.size() + 1));
          break;
        case 2:
          tile.push_back(static_cast<uint8_t>(rng()));
          break;
        case 3:  // a first row's half
          tile[21] |= 0x80;
          break;
        default:
          for (int n = 0; n < 4; ++n) tile[rng() % tile.size()] = static_cast<uint8_t>(rng());
      }
      PlanDecode(b, &t, rng);
    }
    decoded += DecodeBoth(b, trials, round == 1);
    for (auto& t : trials) refused += !t->expected.status.ok();
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(decoded, 0);
}

TEST_P(FixedGpuTest, KeysAtAnotherPositionAreLeftToTheCpu) {
  std::mt19937 rng(Seed() + 40);
  Both b(GetParam(), Heads(1, 64));
  ASSERT_NE(b.gpu, nullptr);
  Trials trials;
  trials.push_back(MakeTrial(b, 9, rng));
  EXPECT_EQ(EncodeBoth(b, trials), 1);
  PlanDecode(b, trials[0].get(), rng);
  trials[0]->decode.position_offset = trials[0]->expected.position_offset = 5;
  EXPECT_EQ(DecodeBoth(b, trials, false), 0);
  EXPECT_TRUE(trials[0]->expected.status.ok());
  trials[0]->decode.position_offset = trials[0]->expected.position_offset = 0;
  EXPECT_EQ(DecodeBoth(b, trials, false), 1);
}

INSTANTIATE_TEST_SUITE_P(Codecs, FixedGpuTest,
                         testing::Values(CodecId::kInt4, CodecId::kTurbo2, CodecId::kTurbo3,
                                         CodecId::kTurbo4),
                         [](const auto& info) {
                           for (const FixedPreset& preset : FixedPresets()) {
                             if (preset.id == info.param) return std::string(preset.name);
                           }
                           return std::string("none");
                         });

// A tile says how it was coded: a coder of another codec reads it.
TEST(FixedTilesGpuTest, AnyCodersTilesAreReadOrLeftToTheCpu) {
  std::mt19937 rng(Seed() + 50);
  Both b(CodecId::kTurbo4, Heads(2, 64));
  ASSERT_NE(b.gpu, nullptr);
  const CodecSpec spec{b.g, {0, 1, 0, 2, 0, 2}, nullptr};
  for (const FixedPreset& preset : FixedPresets()) {
    SCOPED_TRACE(preset.name);
    const auto codec = *MakePresetCodec(preset.id, spec);
    Trials trials;
    for (int i = 0; i < 3; ++i) {
      trials.push_back(MakeTrial(b, 40, rng));
      EncodeOnCpu(*codec, trials.back().get());
      ASSERT_TRUE(trials.back()->encoded.ok());
      PlanDecode(b, trials.back().get(), rng);
    }
    EXPECT_EQ(DecodeBoth(b, trials, false), HasFixedEngine(preset.id) ? 3 : 0);
    for (auto& t : trials) EXPECT_TRUE(t->expected.status.ok());
  }
  // Keys one way, values another; with sinks.
  for (const int sinks : {0, 2}) {
    const auto mixed =
        *MakeFixedCodec(CodecId::kRecipe, "recipe", spec, [&](int layer, const PlaneInfo& plane) {
          const bool keys = plane.kind == StreamKind::kK;
          const auto id = keys == (layer == 0) ? "int4" : "turbo3";
          CoderSpec coder = FindFixedPreset(id)->key;
          coder.minus_mean = false;
          coder.sinks = sinks;
          return coder;
        });
    Trials trials;
    for (int i = 0; i < 4; ++i) {
      trials.push_back(MakeTrial(b, 30, rng));
      trials.back()->positions = PositionsFrom(0, 30);
      EncodeOnCpu(*mixed, trials.back().get());
      PlanDecode(b, trials.back().get(), rng);
    }
    EXPECT_EQ(DecodeBoth(b, trials, false), sinks == 0 ? 4 : 0);
  }
}

}  // namespace
}  // namespace kvcask
