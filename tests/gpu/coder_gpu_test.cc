// Codecs through host memory, as the daemon runs them: int8 is the CPU's bit for bit in every
// layout and dtype; fklt meets the CPU's elements. A lost device costs no job.
//
// Prints its seed and the device; KVCASK_SEED repeats a run. Runs on a GPU, and on the CPU
// (device/emulation).
#include <absl/strings/str_cat.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "codec/builtin_codecs.h"
#include "codec/fklt/fklt_profile.h"
#include "codec/fklt/synthetic_profile.h"
#include "codec/testing/test_cache.h"
#include "server/exec/device_codec.h"

namespace kvcask {
namespace {

uint32_t Seed() {
  static const uint32_t seed = [] {
    const char* given = std::getenv("KVCASK_SEED");
    const uint32_t s =
        given != nullptr ? static_cast<uint32_t>(std::atoll(given)) : std::random_device{}();
    auto backend = FindCudaBackend();
    std::printf("seed %u, backend cuda: %s\n", s,
                backend.ok() ? (*backend)->detail().c_str() : backend.status().ToString().c_str());
    return s;
  }();
  return seed;
}

struct Rig {
  Rig(CodecId id, const CodecSpec& spec) {
    auto found = FindCudaBackend();
    EXPECT_TRUE(found.ok()) << found.status();
    if (!found.ok()) return;
    backend = *std::move(found);
    cpu = *FindCodec(id)->make(spec);
    gpu = *MakeCodecOn(backend.get(), &state, *FindCodec(id), spec);
    EXPECT_FALSE(state.lost()) << state.why();
  }
  std::unique_ptr<DeviceBackend> backend;
  DeviceState state;
  std::unique_ptr<Codec> cpu, gpu;
};

std::vector<uint8_t> Encode(const Codec& codec, int group,
                            const TestCache& source, const std::vector<uint32_t>& positions,
                            absl::Status* status) {
  Workspace workspace;
  std::vector<uint8_t> out(codec.MaxTileBytes(group, source.tokens(), source.dtype()));
  EncodeJob job;
  job.group = group;
  job.tokens = source.tokens();
  job.source = source.const_view();
  job.positions = positions;
  job.quality = Quality::kBalanced;
  job.destination = absl::MakeSpan(out);
  EXPECT_TRUE(codec.Encode({&job, 1}, workspace).ok());
  *status = job.status;
  out.resize(job.bytes);
  return out;
}

absl::Status Decode(const Codec& codec, DecodeJob job, TestCache* out) {
  Workspace workspace;
  job.destination = out->view();
  EXPECT_TRUE(codec.Decode({&job, 1}, workspace).ok());
  return job.status;
}

TEST(CoderGpuTest, Int8IsTheCpusBitForBit) {
  std::mt19937 rng(Seed());
  const Dtype dtypes[] = {Dtype::kBf16, Dtype::kF16, Dtype::kF32};
  for (int head_dim : {1, 3, 20, 64, 128, 300}) {
    const Geometry g = UniformGeometry(
        2, 3, head_dim,
        head_dim % 2 == 0 ? StandardRope(RopeStyle::kRotateHalf, head_dim, 10000) : Rope());
    Rig s(CodecId::kInt8, {g, {0, 1, 0, 2, 0, 3}, nullptr});
    ASSERT_NE(s.gpu, nullptr);
    for (int i = 0; i < 12; ++i) {
      const int tokens = i == 0 ? 128 : 1 + static_cast<int>(rng() % 128);
      const int group = static_cast<int>(rng() % 2);
      const auto positions = PositionsFrom(rng() % 4000, tokens);
      TestCache source(g, group, group + 1, tokens, dtypes[rng() % 3], kAllLayouts[rng() % 5]);
      if (i == 11) {
        source.FillRandomBits(rng);  // NaN among them: refused, by the CPU's words
      } else {
        source.FillRandom(rng, i % 4 == 3 ? 1e-6f : 1.0f);
      }
      const std::string what = absl::StrCat("head_dim ", head_dim, ", job ", i, ", ", tokens,
                                            " tokens, dtype ", static_cast<int>(source.dtype()));
      absl::Status cpu_status, gpu_status;
      const auto expected =
          Encode(*s.cpu, group, source, positions, &cpu_status);
      const auto got =
          Encode(*s.gpu, group, source, positions, &gpu_status);
      ASSERT_EQ(gpu_status, cpu_status) << what;
      ASSERT_EQ(got, expected) << what;
      if (!cpu_status.ok()) continue;
      DecodeJob job;
      job.group = group;
      job.tokens = tokens;
      job.source_dtype = source.dtype();
      job.tile = expected;
      job.positions = positions;
      job.token_begin = static_cast<int>(rng() % tokens);
      job.token_end = job.token_begin + 1 + static_cast<int>(rng() % (tokens - job.token_begin));
      job.layer_begin = group;
      job.layer_end = group + 1;
      job.position_offset = rng() % 4 == 0 ? 17 : 0;
      const Dtype dtype = dtypes[rng() % 3];
      const Layout layout = kAllLayouts[rng() % 5];
      TestCache a(g, group, group + 1, job.token_end - job.token_begin, dtype, layout);
      TestCache b(g, group, group + 1, job.token_end - job.token_begin, dtype, layout);
      ASSERT_TRUE(Decode(*s.cpu, job, &a).ok());
      ASSERT_TRUE(Decode(*s.gpu, job, &b).ok());
      ASSERT_EQ(FirstDifference(b, a), "") << what;
      EXPECT_TRUE(b.PaddingIntact()) << what;
      // A damaged tile: refused where the CPU refuses it.
      std::vector<uint8_t> damaged = expected;
      damaged[rng() % std::min<size_t>(damaged.size(), 4 + 2 * 2 * 3 * tokens)] ^= 0x80;
      job.tile = damaged;
      EXPECT_EQ(Decode(*s.gpu, job, &b).code(), Decode(*s.cpu, job, &a).code()) << what;
    }
    EXPECT_FALSE(s.state.lost()) << s.state.why();
    if (head_dim > 2) {
      EXPECT_GT(s.state.tiles, 8u);
    }
  }
}

// Groups that share layers: each reads and writes its own heads alone.
TEST(CoderGpuTest, FkltMeetsTheCpuWithGroupsOfEveryKind) {
  std::mt19937 rng(Seed() + 1);
  const Geometry g = UniformGeometry(2, 2, 32, Rope());  // tokens as they are drawn
  for (const fklt::Partition& partition : {fklt::OneHeadGroups(g), fklt::LayerGroups(g, 2)}) {
    fklt::SyntheticOptions options;
    options.geometry = g;
    options.partition = partition;
    options.seed = rng();
    const auto profile = ParseOrDie(MakeSyntheticProfile(options));
    const auto fklt_profile = *fklt::FkltProfile::Read(profile);
    Rig s(CodecId::kFklt, {g, {0, 1, 0, 2, 0, 2}, profile});
    ASSERT_NE(s.gpu, nullptr);
    const auto positions = PositionsFrom(200, 100);
    TestCache source(g, 0, 2, 100, Dtype::kBf16, Layout::kPagedNhd);
    for (const fklt::GroupModel& model : fklt_profile->groups) {
      for (int t = 0; t < 100; ++t) {
        const std::vector<double> x = fklt::DrawToken(model, 1, rng);
        for (const fklt::Member& m : model.members) {
          for (int d = 0; d < 32; ++d) {
            source.Set(m.layer * 2 + (m.stream == StreamKind::kV), m.head, t, d,
                       static_cast<float>(x[m.offset + d]));
          }
        }
      }
    }
    TestCache a(g, 0, 2, 100, Dtype::kBf16, Layout::kPagedHnd);
    TestCache b(g, 0, 2, 100, Dtype::kBf16, Layout::kPagedHnd);
    double gpu_bytes = 0, cpu_bytes = 0;
    for (size_t group = 0; group < s.cpu->groups().size(); ++group) {
      const Group layers = s.cpu->groups()[group];
      const auto from = source.const_view();
      const auto to_a = a.view(), to_b = b.view();
      const int first = layers.layer_begin * 2;
      Workspace workspace;
      std::vector<uint8_t> tiles[2];
      double klds[2];
      for (int on_gpu = 0; on_gpu < 2; ++on_gpu) {
        const Codec& codec = on_gpu ? *s.gpu : *s.cpu;
        tiles[on_gpu].resize(codec.MaxTileBytes(static_cast<int>(group), 100, Dtype::kBf16));
        EncodeJob job;
        job.group = static_cast<int>(group);
        job.tokens = 100;
        job.source = from;
        job.source.planes = from.planes.subspan(first, 2 * (layers.layer_end - layers.layer_begin));
        job.positions = positions;
        job.quality = Quality::kBalanced;
        job.destination = absl::MakeSpan(tiles[on_gpu]);
        ASSERT_TRUE(codec.Encode({&job, 1}, workspace).ok());
        ASSERT_TRUE(job.status.ok()) << job.status;
        tiles[on_gpu].resize(job.bytes);
        EXPECT_GE(job.certificate.predicted_kld, 0);
        klds[on_gpu] = job.certificate.predicted_kld;
        (on_gpu ? gpu_bytes : cpu_bytes) += static_cast<double>(job.bytes);
      }
      // What the CPU makes of either tile is as near to the source.
      double apart[2] = {0, 0};
      for (int of_gpu = 0; of_gpu < 2; ++of_gpu) {
        TestCache back(g, 0, 2, 100, Dtype::kBf16, Layout::kContiguous);
        DecodeJob job;
        job.group = static_cast<int>(group);
        job.tokens = job.token_end = 100;
        job.tile = tiles[of_gpu];
        job.positions = positions;
        job.layer_begin = layers.layer_begin;
        job.layer_end = layers.layer_end;
        job.destination = back.view();
        job.destination.planes =
            job.destination.planes.subspan(first, 2 * (layers.layer_end - layers.layer_begin));
        ASSERT_TRUE(s.cpu->Decode({&job, 1}, workspace).ok());
        ASSERT_TRUE(job.status.ok()) << job.status;
        for (const fklt::Member& m : fklt_profile->groups[group].members) {
          const int p = m.layer * 2 + (m.stream == StreamKind::kV);
          for (int t = 0; t < 100; ++t) {
            for (int d = 0; d < 32; ++d) {
              apart[of_gpu] += std::pow(back.Get(p, m.head, t, d) - source.Get(p, m.head, t, d), 2);
            }
          }
        }
      }
      EXPECT_NEAR(std::sqrt(apart[1] / apart[0]), 1, .03) << "group " << group;
      EXPECT_NEAR(klds[1], klds[0], .1 * klds[0]) << "group " << group;
      // The GPU's tile is decoded by both.
      for (int on_gpu = 0; on_gpu < 2; ++on_gpu) {
        DecodeJob job;
        job.group = static_cast<int>(group);
        job.tokens = job.token_end = 100;
        job.tile = tiles[1];
        job.positions = positions;
        job.layer_begin = layers.layer_begin;
        job.layer_end = layers.layer_end;
        job.destination = on_gpu ? to_b : to_a;
        job.destination.planes =
            job.destination.planes.subspan(first, 2 * (layers.layer_end - layers.layer_begin));
        ASSERT_TRUE((on_gpu ? *s.gpu : *s.cpu).Decode({&job, 1}, workspace).ok());
        ASSERT_TRUE(job.status.ok()) << job.status;
      }
    }
    double squares = 0, error = 0;
    for (int p = 0; p < a.planes(); ++p) {
      for (int h = 0; h < 2; ++h) {
        for (int t = 0; t < 100; ++t) {
          for (int d = 0; d < 32; ++d) {
            squares += std::pow(a.Get(p, h, t, d), 2);
            error += std::pow(a.Get(p, h, t, d) - b.Get(p, h, t, d), 2);
          }
        }
      }
    }
    EXPECT_LE(std::sqrt(error / squares), .004);
    EXPECT_TRUE(b.PaddingIntact());
    EXPECT_NEAR(gpu_bytes, cpu_bytes, .02 * cpu_bytes);
    EXPECT_FALSE(s.state.lost()) << s.state.why();
  }
}

// Of a tile that is on the device the host reads the first bytes alone: in host memory the others are
// zeros here.
TEST(CoderGpuTest, TilesThatAreOnTheDeviceAreReadThere) {
  std::mt19937 rng(Seed() + 4);
  constexpr size_t kHostReads = 64;
  const Geometry g = UniformGeometry(1, 2, 64, Rope());
  fklt::SyntheticOptions options;
  options.geometry = g;
  options.partition = fklt::LayerGroups(g, 1);
  const auto profile = ParseOrDie(MakeSyntheticProfile(options));
  const auto fklt_profile = *fklt::FkltProfile::Read(profile);
  for (CodecId id : {CodecId::kInt8, CodecId::kInt4, CodecId::kTurbo3, CodecId::kFklt}) {
    Rig s(id, {g, {0, 1, 0, 1, 0, 2}, id == CodecId::kFklt ? profile : nullptr});
    ASSERT_NE(s.gpu, nullptr);
    const auto positions = PositionsFrom(200, 100);
    TestCache source(g, 0, 1, 100, Dtype::kBf16, Layout::kContiguous);
    const fklt::GroupModel& model = fklt_profile->groups[0];
    for (int t = 0; t < 100; ++t) {
      const std::vector<double> x = fklt::DrawToken(model, 1, rng);
      for (const fklt::Member& m : model.members) {
        for (int d = 0; d < m.head_dim; ++d) {
          source.Set(m.layer * 2 + (m.stream == StreamKind::kV), m.head, t, d,
                     static_cast<float>(x[m.offset + d]));
        }
      }
    }
    absl::Status status;
    const std::vector<uint8_t> tile = Encode(*s.cpu, 0, source, positions, &status);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_GT(tile.size(), 2 * kHostReads);
    std::vector<uint8_t> hollow(tile.size());
    std::copy(tile.begin(), tile.begin() + kHostReads, hollow.begin());
    uint8_t* memory = nullptr;
    ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&memory), tile.size() + 1), cudaSuccess);
    for (size_t at : {0, 1}) {  // a chunk's tiles begin anywhere
      ASSERT_EQ(cudaMemcpy(memory + at, tile.data(), tile.size(), cudaMemcpyHostToDevice),
                cudaSuccess);
      std::vector<std::unique_ptr<TestCache>> out;
      std::vector<KvView> views;
      std::vector<DecodeJob> jobs(4);
      for (size_t i = 0; i < jobs.size(); ++i) {
        out.push_back(std::make_unique<TestCache>(g, 0, 1, 100, Dtype::kBf16, kAllLayouts[i]));
        jobs[i].tokens = jobs[i].token_end = 100;
        jobs[i].layer_end = 1;
        jobs[i].positions = positions;
        jobs[i].tile = i % 2 == 0 ? hollow : tile;
        jobs[i].device_tile = i % 2 == 0 ? memory + at : nullptr;
        jobs[i].destination = out[i]->view();
      }
      const uint64_t before = s.state.tiles;
      Workspace workspace;
      ASSERT_TRUE(s.gpu->Decode(absl::MakeSpan(jobs), workspace).ok());
      EXPECT_EQ(s.state.tiles - before, jobs.size()) << "some were left to the CPU";
      for (size_t i = 0; i < jobs.size(); ++i) {
        EXPECT_TRUE(jobs[i].status.ok()) << jobs[i].status;
        EXPECT_EQ(FirstDifference(*out[i], *out[1]), "")
            << "codec " << static_cast<int>(id) << ", job " << i << ", at " << at;
      }
    }
    cudaFree(memory);
  }
}

#ifdef KVCASK_CUDA_EMULATION
// Its memory is the next batch's, or is let go of for larger one.
TEST(CoderGpuTest, ABatchThatIsLeftToTheCpuHasNothingUnderWayAfterwards) {
  std::mt19937 rng(Seed() + 3);
  const Geometry g = UniformGeometry(1, 2, 32, Rope());
  fklt::SyntheticOptions options;
  options.geometry = g;
  options.partition = fklt::LayerGroups(g, 1);
  Rig s(CodecId::kFklt, {g, {0, 1, 0, 1, 0, 2}, ParseOrDie(MakeSyntheticProfile(options))});
  ASSERT_NE(s.gpu, nullptr);
  TestCache source(g, 0, 1, 50, Dtype::kBf16, Layout::kContiguous);
  source.FillRandom(rng);
  absl::Status status;
  const int64_t before = emulation::Waiting();
  (void)Encode(*s.gpu, 0, source, PositionsFrom(0, 50), &status);  // with sinks
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(s.state.cpu_tiles, 1u);
  EXPECT_EQ(emulation::Waiting(), before);
}

TEST(CoderGpuTest, ADeviceLostInTheMiddleCostsNoJob) {
  std::mt19937 rng(Seed() + 2);
  const Geometry g = UniformGeometry(1, 2, 64, Rope());
  Rig s(CodecId::kInt8, {g, {0, 1, 0, 1, 0, 2}, nullptr});
  ASSERT_NE(s.gpu, nullptr);
  TestCache source(g, 0, 1, 50, Dtype::kBf16, Layout::kContiguous);
  source.FillRandom(rng);
  const auto positions = PositionsFrom(0, 50);
  absl::Status status;
  const auto expected = Encode(*s.cpu, 0, source, positions, &status);
  emulation::LoseDevice(cudaErrorIllegalAddress, 2);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(Encode(*s.gpu, 0, source, positions, &status), expected);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(s.state.lost(), i >= 2);
  }
  EXPECT_NE(s.state.why().message().find("cudaErrorIllegalAddress"), absl::string_view::npos)
      << s.state.why();
  emulation::LoseDevice(cudaSuccess);
}
#endif

}  // namespace
}  // namespace kvcask
