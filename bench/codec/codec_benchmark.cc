// Speed of the profile-free codecs on one core, with what it bought: each row also has its
// ratio, its largest error, and memcpy of the same bytes.
//
//   GBps      bf16 side, 10^9 bytes a second of CPU time
//   memcpy    the same of copying the bf16 bytes once, best of five, measured beside it
//   ratio     bf16 bytes / encoded bytes
//   max_err   largest |x^ - x| / largest |x| of its row (0: byte-exact)
//
// A row whose output is wrong ends the program with status 1. The rows `int8+mean` use a
// profile of means for K and V, so that keys are un-rotated and rotated again.
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "codec/base/dtype.h"
#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/builtin_codecs.h"
#include "codec/profile/profile.h"

namespace kvcask {
namespace {

int g_megabytes = 64;  // of bf16: beyond every cache

enum class Pages { kHnd, kNhd, kTransposedK };

struct Shape {
  const char* name;
  int layers, heads, head_dim;
};
constexpr Shape kShapes[] = {{"smollm2_135m", 30, 3, 64}, {"llama_8b", 32, 8, 128}};

void Die(const std::string& why) {
  std::fprintf(stderr, "codec_benchmark: %s\n", why.c_str());
  std::exit(1);
}

double CpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + t.tv_nsec * 1e-9;
}

// Means of 10 for every channel.
std::shared_ptr<const Profile> MeanProfile(const Geometry& g) {
  std::vector<uint8_t> file;
  SafetensorsWriter writer([&](absl::Span<const uint8_t> b) {
    file.insert(file.end(), b.begin(), b.end());
    return absl::OkStatus();
  });
  writer.SetMetadata("kvcask.profile", "1");
  writer.SetMetadata("codec", "int8");
  writer.SetMetadata("name", "benchmark");
  writer.SetMetadata("model", "benchmark");
  writer.SetMetadata("geometry", GeometryToJson(g));
  const StreamGeometry& s = g.layers[0].streams[0];
  for (size_t l = 0; l < g.layers.size(); ++l) {
    for (const char* stream : {"k", "v"}) {
      (void)writer.Declare(absl::StrFormat("mean.%02d.%s", l, stream), "F32",
                           {s.heads, s.head_dim});
    }
  }
  if (!writer.Begin().ok()) Die("profile");
  const std::vector<float> mean(s.heads * s.head_dim, 10);
  for (size_t i = 0; i < 2 * g.layers.size(); ++i) {
    if (!writer.Write({reinterpret_cast<const uint8_t*>(mean.data()), mean.size() * 4}).ok()) {
      Die("profile");
    }
  }
  auto profile = Profile::Parse(std::move(file));
  if (!profile.ok()) Die(profile.status().ToString());
  return *profile;
}

// Pages of one layer each, [page][K, V], filled with normal numbers.
class Work {
 public:
  Work(const Codec& codec, const Shape& shape, Pages layout) : codec_(codec), shape_(shape) {
    const int64_t plane = int64_t{2} * kPageTokens * shape.heads * shape.head_dim;
    pages_ = std::max<int64_t>(1, int64_t{g_megabytes} * 1000000 / (2 * plane));
    bytes_ = pages_ * 2 * plane;
    source_.resize(bytes_);
    output_.resize(bytes_);
    std::mt19937 rng(1);
    std::normal_distribution<float> normal(0, 1);
    std::vector<uint16_t> some(1 << 16);
    for (auto& v : some) v = FloatToBf16(normal(rng) * 3);
    for (int64_t i = 0; i < bytes_ / 2; ++i) {
      std::memcpy(&source_[2 * i], &some[(i * 7 + i / 65536) & 65535], 2);
    }
    const int64_t e = 2, d = shape.head_dim, h = shape.heads, t = kPageTokens;
    for (int64_t p = 0; p < 2 * pages_; ++p) {
      PlaneView v;
      if (layout == Pages::kNhd) {
        v.token_stride = h * d * e, v.head_stride = d * e, v.dim_stride = e;
      } else if (layout == Pages::kTransposedK && p % 2 == 0) {
        v.head_stride = t * d * e, v.dim_stride = t * e, v.token_stride = e;
      } else {
        v.head_stride = t * d * e, v.token_stride = d * e, v.dim_stride = e;
      }
      v.data = &output_[p * plane];
      out_planes_.push_back(v);
      in_planes_.push_back({&source_[p * plane], v.head_stride, v.token_stride, v.dim_stride});
    }
    for (int i = 0; i < kPageTokens; ++i) positions_.push_back(5000 + i);
    slot_ = codec.MaxTileBytes(0, kPageTokens, Dtype::kBf16);
    tiles_.resize(slot_ * pages_);
    MakeJobs();
  }

  void Encode() {
    (void)codec_.Encode(absl::MakeSpan(encodes_), workspace_);
    for (int64_t p = 0; p < pages_; ++p) {
      if (!encodes_[p].status.ok()) Die(encodes_[p].status.ToString());
      decodes_[p].tile = encodes_[p].destination.first(encodes_[p].bytes);
    }
  }
  void Decode() {
    (void)codec_.Decode(absl::MakeSpan(decodes_), workspace_);
    for (const DecodeJob& job : decodes_) {
      if (!job.status.ok()) Die(job.status.ToString());
    }
  }

  int64_t bytes() const { return bytes_; }
  double Ratio() const {
    double encoded = 0;
    for (const EncodeJob& job : encodes_) encoded += job.bytes;
    return bytes_ / encoded;
  }
  // Of the first and the last page.
  double MaxError() const {
    double worst = 0;
    for (int64_t page : {int64_t{0}, pages_ - 1}) {
      for (int p = 0; p < 2; ++p) {
        for (int h = 0; h < shape_.heads; ++h) {
          for (int t = 0; t < kPageTokens; ++t) {
            double largest = 0, error = 0;
            for (int d = 0; d < shape_.head_dim; ++d) {
              const double x = LoadElement(encodes_[page].source.At(p, h, t, d), Dtype::kBf16);
              const double y = LoadElement(decodes_[page].destination.At(p, h, t, d), Dtype::kBf16);
              largest = std::max(largest, std::fabs(x));
              error = std::max(error, std::fabs(x - y));
            }
            worst = std::max(worst, error / largest);
          }
        }
      }
    }
    return worst;
  }
  // Best of five.
  double MemcpyGBps() {
    double best = 0;
    std::vector<uint8_t> to(bytes_);
    for (int i = 0; i < 5; ++i) {
      const double start = CpuSeconds();
      std::memcpy(to.data(), source_.data(), bytes_);
      benchmark::ClobberMemory();
      best = std::max(best, bytes_ / (CpuSeconds() - start) / 1e9);
    }
    return best;
  }

 private:
  void MakeJobs() {
    for (int64_t p = 0; p < pages_; ++p) {
      EncodeJob e;
      e.group = static_cast<int>(p % shape_.layers);
      e.tokens = kPageTokens;
      e.source.planes = {&in_planes_[2 * p], 2};
      e.positions = positions_;
      e.destination = {&tiles_[slot_ * p], slot_};
      encodes_.push_back(e);
      DecodeJob d;
      d.group = e.group;
      d.tokens = d.token_end = kPageTokens;
      d.positions = positions_;
      d.layer_begin = e.group;
      d.layer_end = e.group + 1;
      d.destination.planes = {&out_planes_[2 * p], 2};
      decodes_.push_back(d);
    }
  }

  const Codec& codec_;
  const Shape shape_;
  int64_t pages_ = 0, bytes_ = 0;
  size_t slot_ = 0;
  std::vector<uint8_t> source_, output_, tiles_;
  std::vector<ConstPlaneView> in_planes_;
  std::vector<PlaneView> out_planes_;
  std::vector<uint32_t> positions_;
  std::vector<EncodeJob> encodes_;
  std::vector<DecodeJob> decodes_;
  Workspace workspace_;
};

// Of an element, as a part of its row's largest one: half a step and a bf16 rounding; where
// rows are rotated errors have no bound, and this is what 10^7 normal numbers stay below.
double LargestError(const std::string& codec) {
  const std::pair<const char*, double> kLimits[] = {
      {"raw", 0},       {"int8", 0.0085}, {"int8+mean", 0.06}, {"fp8", 0.07}, {"int4", 0.09},
      {"turbo2", 0.9},  {"turbo3", 0.5},  {"turbo4", 0.3},     {"k8v4", 0.1}, {"4bit_nc", 0.3},
      {"3bit_nc", 0.5}, {"kivi4", 0.2},   {"e8", 0.1},         {"d4", 0.1},
  };
  for (const auto& [name, limit] : kLimits) {
    if (codec == name) return limit;
  }
  return 0;
}

void Run(benchmark::State& state, const std::string& codec_name, const Shape& shape, Pages layout,
         bool encode) {
  const Geometry g = UniformGeometry(shape.layers, shape.heads, shape.head_dim,
                                     StandardRope(RopeStyle::kRotateHalf, shape.head_dim, 1e5));
  CodecSpec spec;
  spec.model = g;
  spec.shard = {0, 1, 0, shape.layers, 0, shape.heads};
  const bool mean = absl::EndsWith(codec_name, "+mean");
  if (mean) spec.profile = MeanProfile(g);
  auto codec = FindCodec(absl::StripSuffix(codec_name, "+mean"))->make(spec);
  if (!codec.ok()) Die(codec.status().ToString());
  Work work(**codec, shape, layout);
  work.Encode();
  work.Decode();
  const double error = work.MaxError();
  const double limit = LargestError(codec_name);
  if (!(error <= limit)) Die(absl::StrCat(codec_name, ": error ", error, " over ", limit));
  for (auto _ : state) {
    if (encode) {
      work.Encode();
    } else {
      work.Decode();
    }
    benchmark::ClobberMemory();
  }
  state.counters["GBps"] = benchmark::Counter(static_cast<double>(work.bytes()) / 1e9,
                                              benchmark::Counter::kIsIterationInvariantRate);
  state.counters["memcpy"] = work.MemcpyGBps();
  state.counters["ratio"] = work.Ratio();
  state.counters["max_err"] = error;
}

void RegisterAll() {
  const std::pair<const char*, Pages> kLayouts[] = {
      {"HND", Pages::kHnd}, {"NHD", Pages::kNhd}, {"K_transposed", Pages::kTransposedK}};
  for (const char* codec : {"raw", "int8", "int8+mean", "fp8", "int4", "turbo2", "turbo3", "turbo4",
                            "k8v4", "4bit_nc", "3bit_nc", "kivi4", "e8", "d4"}) {
    const bool all_layouts = absl::StartsWith(codec, "int8") || codec == std::string("raw");
    for (const Shape& shape : kShapes) {
      for (const auto& layout : kLayouts) {
        if (!all_layouts && layout.second != Pages::kHnd) continue;
        for (bool encode : {true, false}) {
          const std::string name = absl::StrCat(encode ? "encode/" : "decode/", codec, "/",
                                                shape.name, "/", layout.first);
          const std::string codec_name = codec;
          const Pages pages = layout.second;
          benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
            Run(state, codec_name, shape, pages, encode);
          })->Unit(benchmark::kMillisecond);
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvcask

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    absl::string_view arg = argv[i];
    if (!absl::ConsumePrefix(&arg, "--megabytes=")) continue;
    if (!absl::SimpleAtoi(arg, &kvcask::g_megabytes) || kvcask::g_megabytes < 1) return 1;
    for (int j = i; j + 1 < argc; ++j) argv[j] = argv[j + 1];
    --argc;
    --i;
  }
  kvcask::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
