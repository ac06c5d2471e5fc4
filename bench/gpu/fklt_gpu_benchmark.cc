// Decoding and encoding of `fklt` on a GPU: GB/s counted on the bf16 side and of stored bytes, by
// batch size, beside a copy of the same bytes on the device and the parts alone (rANS, GEMM).
//
//   fklt_gpu_benchmark [--mib=N] [NAME PROFILE CACHE]...
//
// Without arguments: synthetic profiles of D 512 and D 2,048. With: pages of a real cache
// (safetensors) under a profile. --mib: batches of one size alone. Tiles and destination are on the
// device, descriptions come from the host. Medians of 15 rounds; p99 of 200 for the smallest batch;
// the parts' times are those of 15 more rounds, whose events keep kernels from beginning early.
// Every row checks the result against the CPU's: relative RMS error, of the reader's bf16; a tile
// that is refused ends the program with status 1. At 1 GiB also what two engines do at once, by the
// clock, in batches of 128 MiB: the median of three. GB = 10^9 bytes, MiB = 2^20.
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/string_view.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/fklt/cuda/fklt_cuda.h"
#include "codec/fklt/fklt.h"
#include "codec/fklt/group_coder.h"
#include "codec/fklt/synthetic_profile.h"

namespace kvcask {
namespace {

using fklt::FkltCuda;
using fklt::FkltProfile;
using fklt::GroupCoder;
using fklt::GroupModel;
using fklt::Member;

double g_only_mib = 0;

void Die(const std::string& why) {
  std::fprintf(stderr, "fklt_gpu_benchmark: %s\n", why.c_str());
  std::exit(1);
}

void Cuda(cudaError_t e, const char* what) {
  if (e != cudaSuccess) Die(absl::StrCat(what, ": ", cudaGetErrorString(e)));
}

// Pages of one group, each [plane][head][token][dim] in bf16.
struct Data {
  std::string name;
  Geometry geometry;
  std::shared_ptr<const Profile> profile;
  int group = 0;
  std::vector<std::vector<uint16_t>> pages;
  std::vector<std::vector<uint32_t>> positions;
};

uint16_t Bf16(float v) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
float Float(uint16_t v) {
  const uint32_t u = static_cast<uint32_t>(v) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

template <typename Byte>
std::vector<BasicPlaneView<Byte>> Planes(const Geometry& g, const Group& group, Byte* data) {
  std::vector<BasicPlaneView<Byte>> out;
  for (int l = group.layer_begin; l < group.layer_end; ++l) {
    for (const StreamGeometry& s : g.layers[l].streams) {
      BasicPlaneView<Byte> v;
      v.data = data;
      v.dim_stride = 2;
      v.token_stride = 2 * s.head_dim;
      v.head_stride = int64_t{2} * kPageTokens * s.head_dim;
      data += v.head_stride * s.heads;
      out.push_back(v);
    }
  }
  return out;
}

Data Synthetic(const std::string& name, const Geometry& g, int layers_each) {
  fklt::SyntheticOptions o;
  o.geometry = g;
  o.partition = fklt::LayerGroups(g, layers_each);
  Data data;
  data.name = name;
  data.geometry = g;
  data.profile = ParseOrDie(MakeSyntheticProfile(o));
  const auto profile = *FkltProfile::Read(data.profile);
  const GroupModel& model = profile->groups[0];
  std::mt19937 rng(1);
  std::normal_distribution<double> normal;
  for (int p = 0; p < 4; ++p) {
    std::vector<uint16_t> page(static_cast<size_t>(model.dimensions) * kPageTokens);
    std::vector<uint32_t> positions;
    for (int t = 0; t < kPageTokens; ++t) {
      positions.push_back(1000 + p * kPageTokens + t);
      const std::vector<double> x = fklt::DrawToken(model, std::exp2(.5 * normal(rng)), rng);
      size_t at = 0;  // of the plane of a member
      for (const Member& m : model.members) {
        const Rope& rope = g.layers[m.layer].rope;
        const int half = rope.dims / 2;
        for (int d = 0; d < m.head_dim; ++d) {
          double v = x[m.offset + d];
          if (m.stream == StreamKind::kK && d < rope.dims) {
            const double angle = static_cast<double>(positions[t]) * rope.inv_freq[d % half];
            const double other = x[m.offset + (d < half ? d + half : d - half)];
            v = v * std::cos(angle) + (d < half ? -other : other) * std::sin(angle);
          }
          const int heads = g.layers[m.layer].streams[0].heads;
          const size_t plane = (m.layer * 2 + (m.stream == StreamKind::kV)) * size_t{1} * heads;
          at = (plane + m.head) * kPageTokens * m.head_dim;
          page[at + static_cast<size_t>(t) * m.head_dim + d] = Bf16(static_cast<float>(v));
        }
      }
    }
    data.pages.push_back(std::move(page));
    data.positions.push_back(std::move(positions));
  }
  return data;
}

std::vector<uint8_t> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) Die("can't read " + path);
  return std::vector<uint8_t>((std::istreambuf_iterator<char>(in)),
                              std::istreambuf_iterator<char>());
}

Data Real(const std::string& name, const std::string& profile_path, const std::string& cache_path,
          int group) {
  Data data;
  data.name = name;
  auto profile = Profile::Parse(ReadFile(profile_path));
  if (!profile.ok()) Die(profile.status().ToString());
  data.profile = *profile;
  data.group = group;
  const std::vector<uint8_t> file = ReadFile(cache_path);
  const auto header = ParseSafetensorsHeader(file, file.size());
  if (!header.ok()) Die(header.status().ToString());
  const auto meta = ParseCacheMetadata(header->metadata);
  if (!meta.ok()) Die(meta.status().ToString());
  data.geometry = meta->geometry;
  CodecSpec spec;
  spec.model = data.geometry;
  int heads = 0;
  for (const auto& l : spec.model.layers) {
    for (const auto& s : l.streams) heads = std::max(heads, s.heads);
  }
  spec.shard = {0, 1, 0, static_cast<int>(spec.model.layers.size()), 0, heads};
  spec.profile = data.profile;
  const auto codec = MakeFkltCodec(spec);
  if (!codec.ok()) Die(codec.status().ToString());
  const Group g = (*codec)->groups()[group];
  for (int64_t p = 1; (p + 1) * kPageTokens <= meta->tokens; ++p) {
    std::vector<uint16_t> page;
    for (int l = g.layer_begin; l < g.layer_end; ++l) {
      for (const char* stream : {"k", "v"}) {
        const std::string tensor = absl::StrCat(stream, ".", l < 10 ? "0" : "", l);
        const auto it = header->tensors.find(tensor);
        if (it == header->tensors.end()) Die("no tensor " + tensor);
        const int64_t h = it->second.shape[0], dim = it->second.shape[2];
        const uint8_t* base = file.data() + it->second.offset;
        for (int64_t i = 0; i < h; ++i) {
          const uint8_t* from = base + 2 * ((i * meta->tokens) + p * kPageTokens) * dim;
          const size_t at = page.size();
          page.resize(at + kPageTokens * dim);
          std::memcpy(&page[at], from, 2 * kPageTokens * dim);
        }
      }
    }
    data.pages.push_back(std::move(page));
    std::vector<uint32_t> positions;
    for (int t = 0; t < kPageTokens; ++t) {
      positions.push_back(static_cast<uint32_t>(meta->first_position + p * kPageTokens + t));
    }
    data.positions.push_back(std::move(positions));
  }
  return data;
}

// GB/s where two threads, each with an engine of its own, code a batch after another: what one
// copies or plans goes beside the other's kernels. `code(engine, first, end)` codes jobs [first, end).
template <typename Code>
double TwoInFlight(FkltCuda* const engines[2], size_t jobs, double bytes, const Code& code) {
  constexpr size_t kParts = 8, kRounds = 4;
  std::vector<double> rates;
  for (int go = 0; go < 4; ++go) {  // the first makes the engines' buffers
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (size_t e = 0; e < 2; ++e) {
      threads.emplace_back([&, e] {
        for (size_t r = 0; r < kRounds; ++r) {
          for (size_t p = e; p < kParts; p += 2) {
            code(*engines[e], jobs * p / kParts, jobs * (p + 1) / kParts);
          }
        }
      });
    }
    for (std::thread& t : threads) t.join();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (go > 0) rates.push_back(kRounds * bytes / seconds * 1e-9);
  }
  std::sort(rates.begin(), rates.end());
  return rates[1];
}

double Median(std::vector<double> v, double at = .5) {
  std::sort(v.begin(), v.end());
  return v[std::min(v.size() - 1, static_cast<size_t>(at * v.size()))];
}

void Run(const Data& data, int step_limit_shift) {
  CodecSpec spec;
  spec.model = data.geometry;
  int heads = 0;
  for (const auto& l : spec.model.layers) {
    for (const auto& s : l.streams) heads = std::max(heads, s.heads);
  }
  spec.shard = {0, 1, 0, static_cast<int>(spec.model.layers.size()), 0, heads};
  spec.profile = data.profile;
  auto cpu = MakeFkltCodecWith(spec, {RansPath::kBest, step_limit_shift});
  if (!cpu.ok()) Die(cpu.status().ToString());
  const auto profile = *FkltProfile::Read(data.profile);
  std::vector<std::unique_ptr<GroupCoder>> coders;
  std::vector<const GroupCoder*> pointers;
  for (const GroupModel& g : profile->groups) {
    coders.push_back(*GroupCoder::Make(g, data.geometry, spec.shard));
    pointers.push_back(coders.back().get());
  }
  auto made = FkltCuda::Make(profile, pointers, data.geometry, step_limit_shift);
  if (!made.ok()) Die(made.status().ToString());
  FkltCuda& gpu = **made;
  auto second = FkltCuda::Make(profile, pointers, data.geometry, step_limit_shift);
  if (!second.ok()) Die(second.status().ToString());
  FkltCuda* const engines[2] = {&gpu, second->get()};
  const Group group = (*cpu)->groups()[data.group];
  const size_t page_bytes = data.pages[0].size() * 2;

  // Tiles by the CPU, and what it decodes them to.
  Workspace workspace;
  std::vector<std::vector<uint8_t>> tiles;
  std::vector<std::vector<uint16_t>> want;
  double stored = 0, predicted = 0;
  for (size_t p = 0; p < data.pages.size(); ++p) {
    std::vector<uint8_t> out((*cpu)->MaxTileBytes(data.group, kPageTokens, Dtype::kBf16));
    const auto in = Planes<const uint8_t>(
        data.geometry, group, reinterpret_cast<const uint8_t*>(data.pages[p].data()));
    EncodeJob e;
    e.group = data.group;
    e.tokens = kPageTokens;
    e.source.planes = in;
    e.positions = data.positions[p];
    e.quality = Quality::kBalanced;
    e.destination = absl::MakeSpan(out);
    (void)(*cpu)->Encode(absl::MakeSpan(&e, 1), workspace);
    if (!e.status.ok()) Die(e.status.ToString());
    out.resize(e.bytes);
    stored += e.bytes;
    predicted += e.certificate.predicted_kld / data.pages.size();
    tiles.push_back(out);
    want.emplace_back(data.pages[p].size());
    const auto planes =
        Planes<uint8_t>(data.geometry, group, reinterpret_cast<uint8_t*>(want.back().data()));
    DecodeJob d;
    d.group = data.group;
    d.tokens = d.token_end = kPageTokens;
    d.tile = tiles.back();
    d.positions = data.positions[p];
    d.layer_begin = group.layer_begin;
    d.layer_end = group.layer_end;
    d.destination.planes = planes;
    (void)(*cpu)->Decode(absl::MakeSpan(&d, 1), workspace);
    if (!d.status.ok()) Die(d.status.ToString());
  }
  const double ratio = page_bytes * static_cast<double>(data.pages.size()) / stored;

  for (const double mib : {1.0, 16.0, 256.0, 1024.0}) {
    if (g_only_mib > 0 && mib != g_only_mib) continue;
    const size_t count = std::max<size_t>(1, std::lround(mib * (1 << 20) / page_bytes));
    uint8_t *memory, *tile_memory, *copy;
    Cuda(cudaMalloc(reinterpret_cast<void**>(&memory), count * page_bytes), "malloc");
    Cuda(cudaMalloc(reinterpret_cast<void**>(&copy), count * page_bytes), "malloc");
    size_t tile_bytes = 0;
    for (size_t i = 0; i < count; ++i) tile_bytes += (tiles[i % tiles.size()].size() + 15) / 16 * 16;
    Cuda(cudaMalloc(reinterpret_cast<void**>(&tile_memory), tile_bytes), "malloc");
    std::vector<DecodeJob> jobs(count);
    std::vector<std::vector<PlaneView>> planes(count);
    std::vector<const uint8_t*> device_tiles;
    size_t at = 0;
    for (size_t i = 0; i < count; ++i) {
      const size_t p = i % tiles.size();
      planes[i] = Planes<uint8_t>(data.geometry, group, memory + i * page_bytes);
      DecodeJob& d = jobs[i];
      d.group = data.group;
      d.tokens = d.token_end = kPageTokens;
      d.tile = tiles[p];
      d.positions = data.positions[p];
      d.layer_begin = group.layer_begin;
      d.layer_end = group.layer_end;
      d.destination.planes = planes[i];
      Cuda(cudaMemcpy(tile_memory + at, tiles[p].data(), tiles[p].size(), cudaMemcpyHostToDevice),
           "tiles");
      device_tiles.push_back(tile_memory + at);
      at += (tiles[p].size() + 15) / 16 * 16;
    }
    std::vector<double> wall, device, copies;
    std::map<std::string, std::vector<double>> parts;
    cudaEvent_t begin, end;
    Cuda(cudaEventCreate(&begin), "event");
    Cuda(cudaEventCreate(&end), "event");
    const int rounds = mib <= 1 ? 200 : 15, with_parts = 15;
    for (int r = 0; r < rounds + 2 + with_parts; ++r) {
      gpu.TimeParts(r >= rounds + 2);
      const auto start = std::chrono::steady_clock::now();
      const absl::Status status = gpu.Decode(absl::MakeSpan(jobs), device_tiles);
      const double seconds =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (!status.ok()) Die(status.ToString());
      for (const DecodeJob& d : jobs) {
        if (!d.status.ok()) Die(d.status.ToString());
      }
      for (const auto& [name, ms] : gpu.LastParts()) parts[name].push_back(ms * 1e3);
      if (r < 2 || r >= rounds + 2) continue;
      wall.push_back(seconds);
      device.push_back(gpu.LastSeconds());
      if (copies.size() < 15) {
        Cuda(cudaEventRecord(begin, gpu.stream()), "event");
        Cuda(cudaMemcpyAsync(copy, memory, count * page_bytes, cudaMemcpyDeviceToDevice,
                             gpu.stream()),
             "copy");
        Cuda(cudaEventRecord(end, gpu.stream()), "event");
        Cuda(cudaEventSynchronize(end), "event");
        float ms;
        Cuda(cudaEventElapsedTime(&ms, begin, end), "event");
        copies.push_back(ms * 1e-3);
      }
    }
    double decode_flight = 0, encode_flight = 0;
    if (mib >= 1024) {
      decode_flight = TwoInFlight(
          engines, count, static_cast<double>(count) * page_bytes,
          [&](FkltCuda& engine, size_t first, size_t end) {
            const auto part = absl::MakeSpan(jobs).subspan(first, end - first);
            const absl::Status status = engine.Decode(
                part, absl::MakeConstSpan(device_tiles).subspan(first, end - first));
            if (!status.ok()) Die(status.ToString());
            for (const DecodeJob& d : part) {
              if (!d.status.ok()) Die(d.status.ToString());
            }
          });
    }
    // Encoding of what was just decoded: the same values but for a last bit, the same speed.
    std::vector<EncodeJob> encodes(count);
    std::vector<std::vector<ConstPlaneView>> sources(count);
    std::vector<uint8_t*> device_out;
    uint8_t* out_memory;
    const size_t slot = ((*cpu)->MaxTileBytes(data.group, kPageTokens, Dtype::kBf16) + 255) / 256 * 256;
    Cuda(cudaMalloc(reinterpret_cast<void**>(&out_memory), count * slot), "malloc");
    for (size_t i = 0; i < count; ++i) {
      Cuda(cudaMemcpy(copy + i * page_bytes, data.pages[i % tiles.size()].data(), page_bytes,
                      cudaMemcpyHostToDevice),
           "source");
      sources[i] = Planes<const uint8_t>(data.geometry, group, copy + i * page_bytes);
      encodes[i].group = data.group;
      encodes[i].tokens = kPageTokens;
      encodes[i].source.planes = sources[i];
      encodes[i].positions = data.positions[i % tiles.size()];
      encodes[i].quality = Quality::kBalanced;
      device_out.push_back(out_memory + i * slot);
    }
    std::vector<double> encode_device, encode_wall;
    std::map<std::string, std::vector<double>> encode_parts;
    for (int r = 0; r < rounds + 2 + with_parts; ++r) {
      gpu.TimeParts(r >= rounds + 2);
      const auto start = std::chrono::steady_clock::now();
      const absl::Status status = gpu.Encode(absl::MakeSpan(encodes), device_out);
      if (!status.ok()) Die(status.ToString());
      for (const auto& [name, ms] : gpu.LastParts()) encode_parts[name].push_back(ms * 1e3);
      if (r < 2 || r >= rounds + 2) continue;
      encode_wall.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      encode_device.push_back(gpu.LastSeconds());
    }
    if (mib >= 1024) {
      encode_flight = TwoInFlight(
          engines, count, static_cast<double>(count) * page_bytes,
          [&](FkltCuda& engine, size_t first, size_t end) {
            const auto part = absl::MakeSpan(encodes).subspan(first, end - first);
            const absl::Status status =
                engine.Encode(part, absl::MakeConstSpan(device_out).subspan(first, end - first));
            if (!status.ok()) Die(status.ToString());
          });
    }
    size_t encoded = 0, left = 0;
    double encoded_kld = 0;
    for (const EncodeJob& e : encodes) {
      if (!e.status.ok()) Die(e.status.ToString());
      left += e.bytes == 0;
      encoded += e.bytes == 0 ? page_bytes : e.bytes;
      encoded_kld += e.certificate.predicted_kld / static_cast<double>(count);
    }
    // The CPU decodes the first of them.
    double first_error = 0, first_squares = 0;
    if (encodes[0].bytes > 0) {
      std::vector<uint8_t> tile(encodes[0].bytes);
      Cuda(cudaMemcpy(tile.data(), out_memory, tile.size(), cudaMemcpyDeviceToHost), "tile");
      std::vector<uint16_t> back(page_bytes / 2);
      const auto to = Planes<uint8_t>(data.geometry, group, reinterpret_cast<uint8_t*>(back.data()));
      DecodeJob d;
      d.group = data.group;
      d.tokens = d.token_end = kPageTokens;
      d.tile = tile;
      d.positions = data.positions[0];
      d.layer_begin = group.layer_begin;
      d.layer_end = group.layer_end;
      d.destination.planes = to;
      (void)(*cpu)->Decode(absl::MakeSpan(&d, 1), workspace);
      if (!d.status.ok()) Die("encoded by the GPU: " + d.status.ToString());
      for (size_t j = 0; j < back.size(); ++j) {
        const double a = Float(back[j]), c = Float(data.pages[0][j]);
        first_squares += c * c;
        first_error += (a - c) * (a - c);
      }
    }
    {
      const double bytes = static_cast<double>(count) * page_bytes;
      std::printf("%-26s ENCODE   D %5zu %7.1f MiB ratio %5.2f KLD %.4f | to source %.4f, %zu left to "
                  "the CPU | device %8.1f us (p99 %.1f) %7.1f GB/s, two in flight %.1f GB/s, wall "
                  "%8.1f us |",
                  data.name.c_str(), page_bytes / 2 / kPageTokens, bytes / (1 << 20),
                  bytes / static_cast<double>(encoded), encoded_kld,
                  std::sqrt(first_error / std::max(first_squares, 1e-30)), left,
                  Median(encode_device) * 1e6, Median(encode_device, .99) * 1e6,
                  bytes / Median(encode_device) * 1e-9, encode_flight, Median(encode_wall) * 1e6);
      for (const auto& [name, us] : encode_parts) std::printf(" %s %.1f", name.c_str(), Median(us));
      std::printf(" us\n");
    }
    cudaFree(out_memory);
    // The result, of every tile.
    std::vector<uint16_t> got(count * page_bytes / 2);
    Cuda(cudaMemcpy(got.data(), memory, count * page_bytes, cudaMemcpyDeviceToHost), "result");
    double squares = 0, error = 0, source_error = 0;
    for (size_t i = 0; i < count; ++i) {
      const std::vector<uint16_t>& w = want[i % want.size()];
      const std::vector<uint16_t>& s = data.pages[i % want.size()];
      for (size_t j = 0; j < w.size(); ++j) {
        const double a = Float(got[i * w.size() + j]), b = Float(w[j]), c = Float(s[j]);
        squares += c * c;
        error += (a - b) * (a - b);
        source_error += (a - c) * (a - c);
      }
    }
    const double bytes = static_cast<double>(count) * page_bytes;
    std::printf("%-26s n=%d D %5zu %7.1f MiB ratio %5.2f KLD %.4f | err to CPU %.5f, to source %.4f "
                "| device %8.1f us (p99 %.1f) %7.1f GB/s, stored %5.1f GB/s, two in flight %.1f GB/s, "
                "wall %8.1f us | copy %6.0f GB/s |",
                data.name.c_str(), step_limit_shift, page_bytes / 2 / kPageTokens,
                bytes / (1 << 20), ratio, predicted, std::sqrt(error / squares),
                std::sqrt(source_error / squares), Median(device) * 1e6,
                Median(device, .99) * 1e6, bytes / Median(device) * 1e-9,
                bytes / ratio / Median(device) * 1e-9, decode_flight, Median(wall) * 1e6,
                bytes / Median(copies) * 1e-9);
    for (const auto& [name, us] : parts) std::printf(" %s %.1f", name.c_str(), Median(us));
    std::printf(" us\n");
    std::fflush(stdout);
    if (!(std::sqrt(error / squares) < .01)) Die("the result differs from the CPU's");
    cudaFree(memory);
    cudaFree(copy);
    cudaFree(tile_memory);
  }
}

Geometry Uniform(int layers, int heads, int head_dim) {
  return UniformGeometry(layers, heads, head_dim,
                         StandardRope(RopeStyle::kRotateHalf, head_dim, 1000000));
}

}  // namespace
}  // namespace kvcask

int main(int argc, char** argv) {
  using namespace kvcask;
  cudaDeviceProp p{};
  Cuda(cudaGetDeviceProperties(&p, 0), "device");
  std::printf("%s, %d multiprocessors\n", p.name, p.multiProcessorCount);
  int i = 1;
  for (; i < argc && std::strncmp(argv[i], "--", 2) == 0; ++i) {
    const absl::string_view option = argv[i];
    double value;
    if (!absl::SimpleAtod(option.substr(option.find('=') + 1), &value) || value <= 0) {
      Die(absl::StrCat("bad option ", option));
    }
    if (!absl::StartsWith(option, "--mib=")) Die(absl::StrCat("no option ", option));
    g_only_mib = value;
  }
  std::vector<Data> all;
  for (; i + 2 < argc; i += 3) all.push_back(Real(argv[i], argv[i + 1], argv[i + 2], 1));
  if (all.empty()) {
    all.push_back(Synthetic("synthetic 1 layer", Uniform(1, 2, 128), 1));
    all.push_back(Synthetic("synthetic 4 layers", Uniform(4, 2, 128), 4));
  }
  for (const Data& d : all) {
    for (int shift : {0, 2}) Run(d, shift);
  }
  return 0;
}
