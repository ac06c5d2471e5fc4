// The GPU decodes what the CPU encoded, and refuses what the CPU refuses.
//
// Prints its seed and the device; KVCASK_SEED repeats a run. Runs on a GPU, and in small on the CPU
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

#include "codec/fklt/cuda/fklt_cuda.h"
#include "codec/fklt/fklt.h"
#include "codec/fklt/group_coder.h"
#include "codec/fklt/synthetic_profile.h"
#include "codec/testing/test_cache.h"

namespace kvcask {
namespace {

using fklt::FkltCuda;
using fklt::FkltProfile;
using fklt::GroupCoder;
using fklt::GroupModel;
using fklt::Member;

#ifdef KVCASK_CUDA_EMULATION
constexpr int kFewer = 20;  // times fewer tiles: fibers are slow
#else
constexpr int kFewer = 1;
#endif

uint32_t Seed() {
  static const uint32_t seed = [] {
    const char* given = std::getenv("KVCASK_SEED");
    const uint32_t s =
        given != nullptr ? static_cast<uint32_t>(std::atoll(given)) : std::random_device{}();
    cudaDeviceProp p{};
    const cudaError_t e = cudaGetDeviceProperties(&p, 0);
    std::printf("seed %u, backend cuda: %s\n", s,
                e == cudaSuccess ? p.name : cudaGetErrorString(e));
    return s;
  }();
  return seed;
}

// A cache that the device can reach.
class Reachable {
 public:
  Reachable(const Geometry& g, const Group& group, int tokens, Dtype dtype, Layout layout)
      : cache_(g, group.layer_begin, group.layer_end, tokens, dtype, layout) {
    EXPECT_EQ(cudaHostRegister(cache_.memory().data(), cache_.memory().size(),
                               cudaHostRegisterDefault),
              cudaSuccess);
  }
  ~Reachable() { cudaHostUnregister(cache_.memory().data()); }
  TestCache& operator*() { return cache_; }
  TestCache* operator->() { return &cache_; }

 private:
  TestCache cache_;
};

// CPU codec and GPU engine of one profile.
struct Both {
  explicit Both(const fklt::SyntheticOptions& options, int step_limit_shift = 0)
      : file(ParseOrDie(MakeSyntheticProfile(options))), profile(*FkltProfile::Read(file)) {
    geometry = options.geometry;
    CodecSpec spec;
    spec.model = geometry;
    const int layers = static_cast<int>(geometry.layers.size());
    spec.shard = {0, 1, 0, layers, 0, geometry.layers[0].streams[0].heads};
    spec.profile = file;
    cpu = *MakeFkltCodecWith(spec, {RansPath::kBest, step_limit_shift});
    std::vector<const GroupCoder*> pointers;
    for (const GroupModel& g : profile->groups) {
      coders.push_back(*GroupCoder::Make(g, geometry, spec.shard));
      pointers.push_back(coders.back().get());
    }
    auto made = FkltCuda::Make(profile, pointers, geometry, step_limit_shift);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) gpu = *std::move(made);
  }

  Geometry geometry;
  std::shared_ptr<const Profile> file;
  std::shared_ptr<const FkltProfile> profile;
  std::unique_ptr<Codec> cpu;
  std::vector<std::unique_ptr<GroupCoder>> coders;
  std::unique_ptr<FkltCuda> gpu;
};

// Tokens drawn from the profile, keys turned.
void Fill(const Both& b, int group, const std::vector<uint32_t>& positions, std::mt19937& rng,
          TestCache* cache) {
  const GroupModel& g = b.profile->groups[group];
  const int first = b.cpu->groups()[group].layer_begin;
  std::normal_distribution<double> normal;
  for (size_t t = 0; t < positions.size(); ++t) {
    const std::vector<double> x = fklt::DrawToken(g, std::exp2(.7 * normal(rng)), rng);
    for (const Member& m : g.members) {
      const Rope& rope = b.geometry.layers[m.layer].rope;
      const int half = rope.dims / 2;
      for (int d = 0; d < m.head_dim; ++d) {
        double v = x[m.offset + d];
        if (m.stream == StreamKind::kK && d < rope.dims) {
          const int i = d % half;
          const double angle = static_cast<double>(positions[t]) * rope.inv_freq[i];
          const double other = x[m.offset + (d < half ? d + half : d - half)];
          v = v * std::cos(angle) + (d < half ? -other : other) * std::sin(angle);
        }
        const int plane = (m.layer - first) * 2 + (m.stream == StreamKind::kV);
        cache->Set(plane, m.head, static_cast<int>(t), d, static_cast<float>(v));
      }
    }
  }
}

std::vector<uint8_t> Encode(const Both& b, int group, const TestCache& cache,
                            const std::vector<uint32_t>& positions, Quality quality) {
  Workspace workspace;
  std::vector<uint8_t> out(b.cpu->MaxTileBytes(group, cache.tokens(), cache.dtype()));
  EncodeJob job;
  job.group = group;
  job.tokens = cache.tokens();
  job.source = cache.const_view();
  job.positions = positions;
  job.quality = quality;
  job.destination = absl::MakeSpan(out);
  EXPECT_TRUE(b.cpu->Encode(absl::MakeSpan(&job, 1), workspace).ok());
  EXPECT_TRUE(job.status.ok()) << job.status;
  out.resize(job.bytes);
  return out;
}

// fp16 operands: 11 bits of every coordinate and of every matrix element; then the output's dtype.
void ExpectClose(const TestCache& gpu, const TestCache& cpu, const std::string& what) {
  if (FirstDifference(gpu, cpu).empty()) return;  // a damaged raw tile may hold NaN
  double squares = 0, error = 0;
  for (int p = 0; p < cpu.planes(); ++p) {
    for (int h = 0; h < cpu.heads(p); ++h) {
      for (int t = 0; t < cpu.tokens(); ++t) {
        for (int d = 0; d < cpu.head_dim(p); ++d) {
          const double a = gpu.Get(p, h, t, d), c = cpu.Get(p, h, t, d);
          if (std::isnan(a) && std::isnan(c)) continue;
          squares += c * c;
          error += (a - c) * (a - c);
        }
      }
    }
  }
  EXPECT_LE(std::sqrt(error / squares), .004) << what;
}

fklt::SyntheticOptions Options(const Geometry& g, fklt::Partition partition, uint32_t seed) {
  fklt::SyntheticOptions o;
  o.geometry = g;
  o.partition = std::move(partition);
  o.seed = seed;
  return o;
}

struct Prepared {
  std::vector<uint32_t> positions;
  std::vector<uint8_t> tile;
  std::unique_ptr<Reachable> gpu;
  std::unique_ptr<TestCache> cpu;
  DecodeJob gpu_job, cpu_job;
};

// A tile of random size, encoded by the CPU, and jobs that decode a random part of it.
std::unique_ptr<Prepared> Prepare(const Both& b, int group, int tokens, std::mt19937& rng) {
  auto out = std::make_unique<Prepared>();
  auto pick = [&rng](int n) { return static_cast<int>(rng() % n); };
  const uint32_t first = pick(3) == 0 ? pick(4) : 100 + pick(5000);
  out->positions = PositionsFrom(first, tokens);
  const Dtype dtypes[] = {Dtype::kBf16, Dtype::kF16, Dtype::kF32};
  const Dtype source_dtype = dtypes[pick(3)];
  const Group& g = b.cpu->groups()[group];
  TestCache source(b.geometry, g.layer_begin, g.layer_end, tokens, source_dtype,
                   Layout::kContiguous);
  Fill(b, group, out->positions, rng, &source);
  out->tile = Encode(b, group, source, out->positions, static_cast<Quality>(1 + pick(3)));
  DecodeJob job;
  job.group = group;
  job.tokens = tokens;
  job.source_dtype = source_dtype;
  job.tile = out->tile;
  job.positions = out->positions;
  job.token_begin = pick(2) == 0 ? 0 : pick(tokens);
  job.token_end = job.token_begin + 1 + pick(tokens - job.token_begin);
  job.layer_begin = g.layer_begin;
  job.layer_end = g.layer_end;
  if (pick(2) == 0) {
    job.layer_begin += pick(g.layer_end - g.layer_begin);
    job.layer_end = job.layer_begin + 1 + pick(g.layer_end - job.layer_begin);
  }
  job.position_offset = pick(3) == 0 ? pick(1000) : 0;
  const Layout layout = kAllLayouts[pick(5)];
  const Dtype dtype = pick(2) == 0 ? source_dtype : dtypes[pick(3)];
  const int wanted = job.token_end - job.token_begin;
  const Group layers{job.layer_begin, job.layer_end};
  out->gpu = std::make_unique<Reachable>(b.geometry, layers, wanted, dtype, layout);
  out->cpu = std::make_unique<TestCache>(b.geometry, layers.layer_begin, layers.layer_end, wanted,
                                         dtype, layout);
  out->gpu_job = out->cpu_job = job;
  out->gpu_job.destination = (**out->gpu).view();
  out->cpu_job.destination = out->cpu->view();
  return out;
}

void RunBoth(const Both& b, std::vector<std::unique_ptr<Prepared>>& all) {
  std::vector<DecodeJob> jobs;
  Workspace workspace;
  for (auto& p : all) {
    jobs.push_back(p->gpu_job);
    ASSERT_TRUE(b.cpu->Decode(absl::MakeSpan(&p->cpu_job, 1), workspace).ok());
  }
  const absl::Status status = b.gpu->Decode(absl::MakeSpan(jobs));
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < all.size(); ++i) {
    const std::string what = absl::StrCat("job ", i, ", ", all[i]->gpu_job.tokens, " tokens from ",
                                          all[i]->positions[0], ", tile of ",
                                          all[i]->tile.size(), " bytes, mode ",
                                          all[i]->tile.empty() ? -1 : all[i]->tile[0]);
    ASSERT_EQ(jobs[i].status.code(), all[i]->cpu_job.status.code())
        << what << ": GPU " << jobs[i].status << ", CPU " << all[i]->cpu_job.status;
    EXPECT_TRUE((*all[i]->gpu)->PaddingIntact()) << what;
    if (jobs[i].status.ok()) ExpectClose(**all[i]->gpu, *all[i]->cpu, what);
  }
}

// Relative RMS error of `got` against `source`, elements of all planes.
double RelativeError(const TestCache& got, const TestCache& source) {
  double squares = 0, error = 0;
  for (int p = 0; p < source.planes(); ++p) {
    for (int h = 0; h < source.heads(p); ++h) {
      for (int t = 0; t < source.tokens(); ++t) {
        for (int d = 0; d < source.head_dim(p); ++d) {
          const double a = got.Get(p, h, t, d), c = source.Get(p, h, t, d);
          squares += c * c;
          error += (a - c) * (a - c);
        }
      }
    }
  }
  return std::sqrt(error / squares);
}

Geometry Heads(int layers, int heads, int head_dim) {
  return UniformGeometry(layers, heads, head_dim,
                         StandardRope(RopeStyle::kRotateHalf, head_dim, 10000));
}

TEST(FkltGpuTest, DecodesEveryPartitionAsTheCpuDoes) {
  std::mt19937 rng(Seed());
  const Geometry g = Heads(4, 2, 64);
  for (const fklt::Partition& partition :
       {fklt::OneHeadGroups(g), fklt::OneStreamGroups(g), fklt::LayerGroups(g, 1),
        fklt::LayerGroups(g, 4), fklt::LayerGroups(g, 3)}) {
    Both b(Options(g, partition, rng()), static_cast<int>(rng() % 3));
    ASSERT_NE(b.gpu, nullptr);
    std::vector<std::unique_ptr<Prepared>> jobs;
    for (int i = 0; i < std::max(3, 24 / kFewer); ++i) {
      const int tokens = i < (kFewer > 1 ? 1 : 4) ? 128 : 1 + static_cast<int>(rng() % 128);
      jobs.push_back(Prepare(b, static_cast<int>(rng() % partition.size()), tokens, rng));
    }
    RunBoth(b, jobs);
  }
}

TEST(FkltGpuTest, DecodesAThousandTilesOfRandomSizes) {
  std::mt19937 rng(Seed() + 1);
  const Geometry g = Heads(3, 1, 32);
  Both b(Options(g, fklt::LayerGroups(g, 2), rng()));
  ASSERT_NE(b.gpu, nullptr);
  std::vector<std::unique_ptr<Prepared>> jobs;
  for (int i = 0; i < 1000 / kFewer; ++i) {
    jobs.push_back(Prepare(b, static_cast<int>(rng() % 2), 1 + static_cast<int>(rng() % 128), rng));
  }
  RunBoth(b, jobs);
}

TEST(FkltGpuTest, RefusesDamagedTilesWhereTheCpuDoesAndDecodesTheOthers) {
  std::mt19937 rng(Seed() + 2);
  const Geometry g = Heads(4, 2, 64);
  Both b(Options(g, fklt::LayerGroups(g, 4), rng()));
  ASSERT_NE(b.gpu, nullptr);
  std::vector<std::unique_ptr<Prepared>> jobs;
  std::vector<std::vector<uint8_t>> whole;
  for (int i = 0; i < (kFewer > 1 ? 12 : 64); ++i) {
    jobs.push_back(Prepare(b, 0, 1 + static_cast<int>(rng() % 128), rng));
    whole.push_back(jobs.back()->tile);
  }
  int refused = 0;
  for (int round = 0; round < std::max(1, 8 / kFewer); ++round) {
    for (size_t i = 0; i < jobs.size(); ++i) {
      std::vector<uint8_t>& tile = jobs[i]->tile;
      tile = whole[i];
      switch (rng() % 5) {
        case 0:
          break;
        case 1:
          tile.resize(rng() % (tile.size() + 1));
          break;
        case 2:
          for (int n = 0; n < 16; ++n) tile.push_back(static_cast<uint8_t>(rng()));
          break;
        case 3:
          tile[rng() % std::min<size_t>(tile.size(), 8)] = static_cast<uint8_t>(rng());
          break;
        default:
          for (uint32_t n = 1 + rng() % 8; n > 0; --n) {
            tile[rng() % tile.size()] ^= static_cast<uint8_t>(1 << rng() % 8);
          }
      }
      jobs[i]->gpu_job.tile = jobs[i]->cpu_job.tile = tile;
    }
    RunBoth(b, jobs);
    for (auto& p : jobs) refused += !p->cpu_job.status.ok();
  }
  EXPECT_GT(refused, kFewer > 1 ? 0 : 100);
}

TEST(FkltGpuTest, TheCpuDecodesWhatTheGpuEncodedAsGoodAndAsSmallAsItsOwn) {
  std::mt19937 rng(Seed() + 3);
  const Geometry g = Heads(4, 2, 64);
  int shift = 0;  // segments of every length
  for (const fklt::Partition& partition :
       {fklt::OneHeadGroups(g), fklt::LayerGroups(g, 1), fklt::LayerGroups(g, 4)}) {
    Both b(Options(g, partition, rng()), shift++);
    ASSERT_NE(b.gpu, nullptr);
    constexpr int kJobs = kFewer > 1 ? 4 : 32;
    std::vector<std::unique_ptr<Reachable>> sources;
    std::vector<std::vector<uint32_t>> positions;
    std::vector<EncodeJob> jobs(kJobs);
    std::vector<uint8_t*> out;
    for (int i = 0; i < kJobs; ++i) {
      const int group = static_cast<int>(rng() % partition.size());
      const int tokens = i < (kFewer > 1 ? 1 : 4) ? 128 : 1 + static_cast<int>(rng() % 128);
      positions.push_back(PositionsFrom(100 + rng() % 5000, tokens));
      const Dtype dtype = i % 3 == 0 ? Dtype::kF32 : Dtype::kBf16;
      sources.push_back(std::make_unique<Reachable>(b.geometry, b.cpu->groups()[group], tokens,
                                                    dtype, kAllLayouts[rng() % 5]));
      Fill(b, group, positions.back(), rng, &**sources.back());
      const size_t most = b.cpu->MaxTileBytes(group, tokens, dtype);
      out.push_back(nullptr);
      ASSERT_EQ(cudaMallocHost(reinterpret_cast<void**>(&out.back()), most), cudaSuccess);
      jobs[i].group = group;
      jobs[i].tokens = tokens;
      jobs[i].source = (*sources[i])->const_view();
      jobs[i].quality = static_cast<Quality>(1 + rng() % 3);
    }
    for (int i = 0; i < kJobs; ++i) jobs[i].positions = positions[i];
    const absl::Status status = b.gpu->Encode(absl::MakeSpan(jobs), out);
    ASSERT_TRUE(status.ok()) << status;
    double gpu_bytes = 0, cpu_bytes = 0;
    double errors[2] = {0, 0};  // of tiles of the CPU and of the GPU
    int coded = 0;
    for (int i = 0; i < kJobs; ++i) {
      const std::string what = absl::StrCat("job ", i, ", ", jobs[i].tokens, " tokens");
      ASSERT_TRUE(jobs[i].status.ok()) << what << ": " << jobs[i].status;
      const TestCache& source = **sources[i];
      const std::vector<uint8_t> own =
          Encode(b, jobs[i].group, source, positions[i], jobs[i].quality);
      if (jobs[i].bytes == 0) continue;  // left to the CPU
      ++coded;
      gpu_bytes += static_cast<double>(jobs[i].bytes);
      cpu_bytes += static_cast<double>(own.size());
      Workspace workspace;
      double error[2];
      for (const bool gpu : {false, true}) {
        const Group& layers = b.cpu->groups()[jobs[i].group];
        TestCache back(b.geometry, layers.layer_begin, layers.layer_end, jobs[i].tokens,
                       source.dtype(), Layout::kContiguous);
        // Members of other groups of these layers keep the source's values.
        for (int p = 0; p < source.planes(); ++p) {
          for (int h = 0; h < source.heads(p); ++h) {
            for (int t = 0; t < source.tokens(); ++t) {
              for (int d = 0; d < source.head_dim(p); ++d) {
                back.Set(p, h, t, d, source.Get(p, h, t, d));
              }
            }
          }
        }
        DecodeJob job;
        job.group = jobs[i].group;
        job.tokens = job.token_end = jobs[i].tokens;
        job.source_dtype = source.dtype();
        job.tile = gpu ? absl::MakeConstSpan(out[i], jobs[i].bytes) : absl::MakeConstSpan(own);
        job.positions = positions[i];
        job.layer_begin = layers.layer_begin;
        job.layer_end = layers.layer_end;
        job.destination = back.view();
        ASSERT_TRUE(b.cpu->Decode(absl::MakeSpan(&job, 1), workspace).ok());
        ASSERT_TRUE(job.status.ok()) << what << (gpu ? ", GPU's: " : ", CPU's: ") << job.status;
        error[gpu] = RelativeError(back, source);
      }
      // In a tile of few tokens one whose sensitivity is between two step classes makes a difference.
      EXPECT_NEAR(error[1], error[0], .2 * error[0] + 1e-3) << what;
      for (const bool gpu : {false, true}) errors[gpu] += error[gpu];
    }
    EXPECT_NEAR(errors[1], errors[0], .01 * errors[0]);
    EXPECT_GE(coded, kJobs / 2);
    EXPECT_NEAR(gpu_bytes, cpu_bytes, .01 * cpu_bytes);
    for (uint8_t* p : out) cudaFreeHost(p);
  }
}

}  // namespace
}  // namespace kvcask
