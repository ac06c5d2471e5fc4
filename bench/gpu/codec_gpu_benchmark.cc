// int8, int4 and turbo2 to turbo4 on a GPU beside a copy of the same bytes on the device: GB/s of
// the bf16 side by batch size, source, tiles and destination on the device.
//
//   codec_gpu_benchmark [CODEC[/HEAD_DIM]...]     default: all at 128, int4 and turbo3 also at 64
//
// Normal elements; medians of 15 rounds: of the device's time from the copy of descriptions to that
// of verdicts, and ("wall") of the host's clock, with its planning, which is not done beside the
// kernels here. Every row is checked: the tiles of the first and of the last job are the CPU's bit
// for bit, and so are the decoded elements. "error": relative RMS of what comes back. GB = 10^9 bytes, MiB = 2^20.
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "codec/fixed/cuda/fixed_cuda.h"
#include "codec/fixed/presets.h"
#include "codec/scalar/cuda/int8_cuda.h"
#include "codec/scalar/int8.h"

namespace kvcask {
namespace {

void Die(const std::string& why) {
  std::fprintf(stderr, "codec_gpu_benchmark: %s\n", why.c_str());
  std::exit(1);
}
void Cuda(cudaError_t e, const char* what) {
  if (e != cudaSuccess) Die(absl::StrCat(what, ": ", cudaGetErrorString(e)));
}
uint8_t* Allocate(size_t bytes) {
  void* p = nullptr;
  Cuda(cudaMalloc(&p, bytes), "cudaMalloc");
  return static_cast<uint8_t*>(p);
}

using Clock = std::chrono::steady_clock;
double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}
double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

// One layer of 8 heads of 128, or 16 of 64: a job is a page of it, 512 KiB of bf16.
constexpr int kElements = 1024, kRounds = 15;  // of a token, K or V
constexpr size_t kJobBytes = size_t{2} * kElements * kPageTokens * 2;

template <typename Byte>
std::vector<BasicPlaneView<Byte>> Planes(Byte* data, int head_dim) {
  const int64_t head = int64_t{2} * kPageTokens * head_dim, row = int64_t{2} * head_dim;
  return {{data, head, row, 2}, {data + kJobBytes / 2, head, row, 2}};
}

float Bf16(uint16_t bits) {
  const uint32_t u = static_cast<uint32_t>(bits) << 16;
  float v;
  std::memcpy(&v, &u, 4);
  return v;
}

struct Both {
  std::unique_ptr<Codec> cpu;
  std::unique_ptr<CudaEngine> engine;
};
Both Make(const std::string& name, const CodecSpec& spec) {
  const bool int8 = name == "int8";
  const FixedPreset* const preset = FindFixedPreset(name);
  if (!int8 && (preset == nullptr || !HasFixedEngine(preset->id))) Die("no codec " + name);
  auto cpu = int8 ? MakeInt8Codec(spec) : MakePresetCodec(preset->id, spec);
  auto engine = int8 ? MakeInt8Engine(spec) : MakeFixedEngine(preset->id, spec);
  if (!cpu.ok()) Die(cpu.status().ToString());
  if (!engine.ok()) Die(engine.status().ToString());
  return {*std::move(cpu), *std::move(engine)};
}

// Median seconds of what `f` enqueues, until it is done: host time included.
template <typename F>
double Time(cudaStream_t stream, F f) {
  std::vector<double> seconds;
  for (int r = 0; r < kRounds + 2; ++r) {
    Cuda(cudaStreamSynchronize(stream), "synchronise");
    const auto start = Clock::now();
    f();
    Cuda(cudaStreamSynchronize(stream), "synchronise");
    if (r >= 2) seconds.push_back(Since(start));
  }
  return Median(seconds);
}

void Run(const std::string& name, int head_dim) {
  if (head_dim < 1 || kElements % head_dim != 0) Die("head_dim does not divide 1024");
  const int heads = kElements / head_dim;
  const Geometry g = UniformGeometry(1, heads, head_dim, Rope());
  const auto [cpu, engine] = Make(name, {g, {0, 1, 0, 1, 0, heads}, nullptr});
  std::vector<uint16_t> page(kJobBytes / 2);
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  for (uint16_t& v : page) {
    const float x = normal(rng);
    uint32_t u;
    std::memcpy(&u, &x, 4);
    v = static_cast<uint16_t>(u >> 16);
  }
  std::vector<uint32_t> positions(kPageTokens);
  for (int i = 0; i < kPageTokens; ++i) positions[i] = i;
  const size_t most = cpu->MaxTileBytes(0, kPageTokens, Dtype::kBf16);

  // The CPU's tile, and what it decodes to.
  std::vector<uint8_t> tile(most), decoded(kJobBytes), back(kJobBytes);
  Workspace workspace;
  const auto source = Planes(reinterpret_cast<const uint8_t*>(page.data()), head_dim);
  EncodeJob e;
  e.tokens = kPageTokens;
  e.source.planes = source;
  e.positions = positions;
  e.destination = absl::MakeSpan(tile);
  if (!cpu->Encode({&e, 1}, workspace).ok() || !e.status.ok()) Die("the CPU did not encode");
  tile.resize(e.bytes);
  const auto to = Planes(decoded.data(), head_dim);
  DecodeJob d;
  d.tokens = d.token_end = kPageTokens;
  d.tile = tile;
  d.positions = positions;
  d.layer_end = 1;
  d.destination.planes = to;
  if (!cpu->Decode({&d, 1}, workspace).ok() || !d.status.ok()) Die("the CPU did not decode");

  double squares = 0, error = 0;
  for (size_t i = 0; i < page.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, &decoded[2 * i], 2);
    squares += std::pow(Bf16(page[i]), 2);
    error += std::pow(Bf16(page[i]) - Bf16(bits), 2);
  }

  const cudaStream_t stream = engine->stream();
  for (size_t mib : {1, 16, 256, 1024}) {
    const size_t n = (mib << 20) / kJobBytes;
    uint8_t* const in = Allocate(n * kJobBytes);
    uint8_t* const out = Allocate(n * kJobBytes);
    uint8_t* const tiles = Allocate(n * most);
    std::vector<std::vector<ConstPlaneView>> from(n);
    std::vector<std::vector<PlaneView>> into(n);
    std::vector<EncodeJob> encodes(n, e);
    std::vector<DecodeJob> decodes(n, d);
    std::vector<uint8_t*> tile_at(n);
    std::vector<const uint8_t*> tile_from(n);
    for (size_t i = 0; i < n; ++i) {
      Cuda(cudaMemcpy(in + i * kJobBytes, page.data(), kJobBytes, cudaMemcpyHostToDevice), "copy");
      from[i] = Planes<const uint8_t>(in + i * kJobBytes, head_dim);
      into[i] = Planes<uint8_t>(out + i * kJobBytes, head_dim);
      encodes[i].source.planes = from[i];
      decodes[i].destination.planes = into[i];
      tile_from[i] = tile_at[i] = tiles + i * most;
    }
    std::vector<double> encodes_took, decodes_took;  // on the device
    const double encode_wall = Time(stream, [&] {
      const absl::Status s = engine->Encode(absl::MakeSpan(encodes), tile_at);
      if (!s.ok() || encodes[n - 1].bytes != tile.size()) Die("encode " + s.ToString());
      encodes_took.push_back(engine->LastSeconds());
    });
    const double decode_wall = Time(stream, [&] {
      const absl::Status s = engine->Decode(absl::MakeSpan(decodes), tile_from);
      if (!s.ok() || !decodes[n - 1].status.ok()) Die("decode " + s.ToString());
      decodes_took.push_back(engine->LastSeconds());
    });
    const double encode = Median(encodes_took), decode = Median(decodes_took);
    if (encode < 0 || decode < 0) Die("no time from the device");
    for (const size_t job : {size_t{0}, n - 1}) {
      std::vector<uint8_t> got(tile.size());
      Cuda(cudaMemcpy(got.data(), tile_at[job], got.size(), cudaMemcpyDeviceToHost), "copy");
      Cuda(cudaMemcpy(back.data(), out + job * kJobBytes, kJobBytes, cudaMemcpyDeviceToHost),
           "copy");
      if (got != tile) Die(absl::StrCat(name, ": the bytes differ from the CPU's"));
      if (back != decoded) Die(absl::StrCat(name, ": the elements differ from the CPU's"));
    }
    const double copy = Time(stream, [&] {
      Cuda(cudaMemcpyAsync(out, in, n * kJobBytes, cudaMemcpyDeviceToDevice, stream), "copy");
    });
    const double bytes = static_cast<double>(n * kJobBytes);
    std::printf(
        "| %s | %d | %zu MiB | %.0f | %.0f | %.0f | %.2f | %.2f | %.0f | %.0f | %.0f | %.0f | "
        "%.2f | %.4f |\n",
        name.c_str(), head_dim, mib, bytes / encode / 1e9, bytes / decode / 1e9, bytes / copy / 1e9,
        copy / encode, copy / decode, encode * 1e6, decode * 1e6, encode_wall * 1e6,
        decode_wall * 1e6,
        static_cast<double>(kJobBytes) / static_cast<double>(tile.size()),
        std::sqrt(error / squares));
    std::fflush(stdout);
    cudaFree(in);
    cudaFree(out);
    cudaFree(tiles);
  }
}

}  // namespace
}  // namespace kvcask

int main(int argc, char** argv) {
  std::vector<std::string> rows(argv + 1, argv + argc);
  if (rows.empty()) {
    rows = {"int8", "int4", "turbo2", "turbo3", "turbo4", "int4/64", "turbo3/64"};
  }
  std::printf(
      "| codec | head_dim | bf16 | encode GB/s | decode GB/s | copy GB/s | encode / copy | "
      "decode / copy | us, encode | us, decode | wall, encode | wall, decode | ratio | error "
      "|\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (const std::string& row : rows) {
    const std::vector<std::string> parts = absl::StrSplit(row, '/');
    int head_dim = 128;
    if (parts.size() > 1 && !absl::SimpleAtoi(parts[1], &head_dim)) kvcask::Die("bad " + row);
    kvcask::Run(parts[0], head_dim);
  }
  return 0;
}
