// `int8` on a GPU beside a copy of the same bytes on the device: GB/s of the bf16 side by batch
// size, source, tiles and destination on the device.
//
// Medians of 15 rounds. Every row is checked: the tiles of one job are the CPU's bit for bit, and
// so are the decoded elements. GB = 10^9 bytes, MiB = 2^20.
#include <absl/strings/str_cat.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "codec/scalar/cuda/int8_cuda.h"
#include "codec/scalar/int8.h"

namespace kvcask {
namespace {

void Die(const std::string& why) {
  std::fprintf(stderr, "int8_gpu_benchmark: %s\n", why.c_str());
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

// One layer of 8 heads of 128: a job is a page of it, 512 KiB of bf16.
constexpr int kHeads = 8, kHeadDim = 128, kRounds = 15;
constexpr size_t kJobBytes = size_t{2} * kHeads * kHeadDim * kPageTokens * 2;

template <typename Byte>
std::vector<BasicPlaneView<Byte>> Planes(Byte* data) {
  constexpr int64_t kHead = int64_t{2} * kPageTokens * kHeadDim;
  return {{data, kHead, 2 * kHeadDim, 2}, {data + kHeads * kHead, kHead, 2 * kHeadDim, 2}};
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

void Run() {
  const Geometry g = UniformGeometry(1, kHeads, kHeadDim, Rope());
  const CodecSpec spec{g, {0, 1, 0, 1, 0, kHeads}, nullptr};
  auto cpu = MakeInt8Codec(spec);
  auto engine = MakeInt8Engine(spec);
  if (!cpu.ok()) Die(cpu.status().ToString());
  if (!engine.ok()) Die(engine.status().ToString());
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
  const size_t most = (*cpu)->MaxTileBytes(0, kPageTokens, Dtype::kBf16);

  // The CPU's tile, and what it decodes to.
  std::vector<uint8_t> tile(most), decoded(kJobBytes), back(kJobBytes);
  Workspace workspace;
  const auto source = Planes(reinterpret_cast<const uint8_t*>(page.data()));
  EncodeJob e;
  e.tokens = kPageTokens;
  e.source.planes = source;
  e.positions = positions;
  e.destination = absl::MakeSpan(tile);
  if (!(*cpu)->Encode({&e, 1}, workspace).ok() || !e.status.ok()) Die("the CPU did not encode");
  tile.resize(e.bytes);
  const auto to = Planes(decoded.data());
  DecodeJob d;
  d.tokens = d.token_end = kPageTokens;
  d.tile = tile;
  d.positions = positions;
  d.layer_end = 1;
  d.destination.planes = to;
  if (!(*cpu)->Decode({&d, 1}, workspace).ok() || !d.status.ok()) Die("the CPU did not decode");

  const cudaStream_t stream = (*engine)->stream();
  std::printf(
      "| bf16 | encode GB/s | decode GB/s | copy GB/s | encode / copy | decode / copy | "
      "us, encode | us, decode | ratio | bytes | elements "
      "|\n|---|---|---|---|---|---|---|---|---|---|---|\n");
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
      from[i] = Planes<const uint8_t>(in + i * kJobBytes);
      into[i] = Planes<uint8_t>(out + i * kJobBytes);
      encodes[i].source.planes = from[i];
      decodes[i].destination.planes = into[i];
      tile_from[i] = tile_at[i] = tiles + i * most;
    }
    const double encode = Time(stream, [&] {
      const absl::Status s = (*engine)->Encode(absl::MakeSpan(encodes), tile_at);
      if (!s.ok() || encodes[n - 1].bytes != tile.size()) Die("encode " + s.ToString());
    });
    const double decode = Time(stream, [&] {
      const absl::Status s = (*engine)->Decode(absl::MakeSpan(decodes), tile_from);
      if (!s.ok() || !decodes[n - 1].status.ok()) Die("decode " + s.ToString());
    });
    std::vector<uint8_t> got(tile.size());
    Cuda(cudaMemcpy(got.data(), tile_at[n - 1], got.size(), cudaMemcpyDeviceToHost), "copy");
    Cuda(cudaMemcpy(back.data(), out + (n - 1) * kJobBytes, kJobBytes, cudaMemcpyDeviceToHost),
         "copy");
    const bool same_bytes = got == tile, same_elements = back == decoded;
    const double copy = Time(stream, [&] {
      Cuda(cudaMemcpyAsync(out, in, n * kJobBytes, cudaMemcpyDeviceToDevice, stream), "copy");
    });
    const double bytes = static_cast<double>(n * kJobBytes);
    std::printf("| %zu MiB | %.0f | %.0f | %.0f | %.2f | %.2f | %.0f | %.0f | %.2f | %s | %s |\n",
                mib, bytes / encode / 1e9, bytes / decode / 1e9, bytes / copy / 1e9, copy / encode,
                copy / decode, encode * 1e6, decode * 1e6,
                static_cast<double>(kJobBytes) / static_cast<double>(tile.size()),
                same_bytes ? "the CPU's" : "DIFFER", same_elements ? "the CPU's" : "DIFFER");
    if (!same_bytes || !same_elements) Die("a result differs from the CPU's");
    cudaFree(in);
    cudaFree(out);
    cudaFree(tiles);
  }
}

}  // namespace
}  // namespace kvcask

int main() {
  kvcask::Run();
  return 0;
}
