// Symbols a second of rANS alone, per core, each way, and bits a symbol beside them. One segment
// of a whole page: classes spread as in a tile (sigma falls from 16 steps to .4 over its rows).
//   bazel run -c opt //codec/entropy:rans_benchmark
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "codec/entropy/rans.h"
#include "codec/entropy/rans_test_tables.h"

namespace kvcask {
namespace {

struct Tile {
  TableSet tables;
  int lanes;
  std::vector<uint8_t> classes;
  std::vector<int16_t> symbols;
  std::vector<uint8_t> bytes;
};

Tile MakeTile(int n, RansPath path) {
  const RawTables raw = GaussianTables();
  Tile t{*TableSet::Make(raw.shape, raw.freq), SegmentLanes(n), {}, {}, {}};
  std::mt19937 rng(1);
  std::normal_distribution<double> normal;
  t.classes.resize(n);
  t.symbols.resize(n);
  for (int i = 0; i < n; ++i) {
    const double log2_sigma = 4 - 5.3 * std::sqrt(static_cast<double>(i / 128 * 128) / n);
    const double token = (i * 7 % 5 - 2) * .5;  // amplitude and step classes
    const int c =
        std::max(0, std::min(39, static_cast<int>(std::lround(2.5 * (log2_sigma + token))) + 16));
    t.classes[i] = static_cast<uint8_t>(c);
    t.symbols[i] = static_cast<int16_t>(std::lround(normal(rng) * ClassSigma(c)));
  }
  t.bytes.resize(MaxSegmentBytes(n));
  t.bytes.resize(
      EncodeSegment(t.tables, t.lanes, t.classes, t.symbols.data(), t.bytes.data(), path));
  return t;
}

void Report(benchmark::State& state, const Tile& t) {
  state.SetItemsProcessed(state.iterations() * t.symbols.size());
  state.counters["bits_per_symbol"] = t.bytes.size() * 8.0 / t.symbols.size();
  state.counters["lanes"] = t.lanes;
}

void BM_Encode(benchmark::State& state, RansPath path) {
  const Tile t = MakeTile(static_cast<int>(state.range(0)), path);
  std::vector<uint8_t> out(MaxSegmentBytes(static_cast<int>(t.symbols.size())));
  size_t bytes = 0;
  for (auto _ : state) {
    bytes = EncodeSegment(t.tables, t.lanes, t.classes, t.symbols.data(), out.data(), path);
    benchmark::DoNotOptimize(bytes);
  }
  if (bytes != t.bytes.size()) std::abort();
  Report(state, t);
}

void BM_Decode(benchmark::State& state, RansPath path) {
  const Tile t = MakeTile(static_cast<int>(state.range(0)), path);
  std::vector<int16_t> back(t.symbols.size());
  bool ok = true;
  for (auto _ : state) {
    SegmentDecoder d;
    ok &= d.Open(t.bytes, t.lanes, path) && d.Decode(t.tables, t.classes, back.data()) &&
          d.Finished();
  }
  if (!ok || back != t.symbols) {
    std::fprintf(stderr, "decoded symbols differ\n");
    std::abort();
  }
  Report(state, t);
}

BENCHMARK_CAPTURE(BM_Encode, portable, RansPath::kPortable)->Arg(16384);
BENCHMARK_CAPTURE(BM_Decode, portable, RansPath::kPortable)->Arg(16384);
BENCHMARK_CAPTURE(BM_Encode, best, RansPath::kBest)->Arg(16384)->Arg(4096)->Arg(1024);
BENCHMARK_CAPTURE(BM_Decode, best, RansPath::kBest)->Arg(16384)->Arg(4096)->Arg(1024);

}  // namespace
}  // namespace kvcask

BENCHMARK_MAIN();
