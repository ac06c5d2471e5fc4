// A bare rANS decode kernel on real symbols: is the segment layout of codec/fklt/FORMAT.md fast on
// a GPU? Everything a decoder of section 3 does is here (token classes, places, tables chosen in
// integers, refills, shift bits, escapes, the checks at the end); no transform.
//
//   bazel run --config=opt //bench/codec:fklt_benchmark -- --dump=/tmp     (writes /tmp/*.rans)
//   nvcc -O3 -std=c++17 -arch=sm_90 -I. -o rans_decode_bench bench/gpu/rans_decode_bench.cu
//   ./rans_decode_bench /tmp/synthetic_4x3x64.rans ...
//
// Every symbol is compared with the CPU's before and after the timing; a difference ends the
// program with status 1. GB/s count the bf16 side, 10^9 bytes.
//
// decode_segments: grid = segments / warps per block, one warp a segment; block = `warps` warps.
// Shared memory: kCoarse: 88 KiB of tables a block; both: 1 KiB a warp (terms of places, ranges of
// rows). The stream's words are read 32 at a time, coalesced, and handed to lanes by shuffles in
// ballot order. Bound: latency of one step (table lookup, multiply, ballot, shuffle) times 512
// for one block; issue slots and table bandwidth for many.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <cuda_runtime.h>

#include "codec/fklt/tile_layout.h"

namespace {

using namespace kvcask::fklt;

constexpr int kTables = 43;        // 42 and that of absent symbols
constexpr int kAbsent = 42;
constexpr int kEscape = -128;
constexpr int kMaxRanges = 13;     // of rows with equally many places: one a step class
constexpr unsigned kAll = 0xffffffffu;

#define CUDA_OK(x)                                                                      \
  do {                                                                                  \
    cudaError_t e_ = (x);                                                               \
    if (e_ != cudaSuccess) {                                                            \
      std::fprintf(stderr, "%s: %s (line %d)\n", #x, cudaGetErrorString(e_), __LINE__); \
      std::exit(1);                                                                     \
    }                                                                                   \
  } while (0)

// One segment's job.
struct Segment {
  uint64_t offset;       // of its first byte
  uint64_t zero_offset;  // of its tile's segment 0
  uint64_t out;          // of its first symbol
  uint32_t bytes, zero_bytes;
  uint32_t first, symbols;       // first symbol of the tile, count
  uint32_t zero_symbols;
  int16_t step_exponent;
  int8_t kcap;
  uint8_t pad;
};

struct Tables {
  const uint32_t* fine;   // [43][4096]: v | freq - 1 << 8 | bias << 20
  const uint8_t* coarse;  // [43][1024]: index of the first symbol that reaches slot 4 i
  const uint32_t* entry;  // [43][256]: cum | freq - 1 << 12 | v << 24
  const int16_t* sigma;
  int dimensions, threshold, tokens;
};

__constant__ uint8_t g_shift[kTables + 1];

struct WarpMemory {
  int16_t terms[128];
  uint8_t classes[256];
  uint32_t start[kMaxRanges + 1];  // first symbol of each range, counted from the coordinates
  uint16_t row[kMaxRanges + 1];
  uint16_t count[kMaxRanges + 1];
};

// The words of one segment, read ahead.
struct Words {
  const uint16_t* at;
  uint32_t size, cursor, base;
  uint32_t now, next;  // words [base, base + 32), [base + 32, base + 64), one a lane

  __device__ void Start(const uint16_t* p, uint32_t n, int lane) {
    at = p;
    size = n;
    cursor = base = 0;
    now = Load(lane);
    next = Load(lane + 32);
  }
  __device__ uint32_t Load(uint32_t i) const { return i < size ? at[i] : 0; }
  // The next words for the lanes in `mask`, in rising order.
  __device__ uint32_t Take(unsigned mask, int lane) {
    const uint32_t i = cursor - base + __popc(mask & ((1u << lane) - 1));
    const uint32_t a = __shfl_sync(kAll, now, i & 31);
    const uint32_t b = __shfl_sync(kAll, next, i & 31);
    cursor += __popc(mask);
    if (cursor - base >= 32) {
      base += 32;
      now = next;
      next = Load(base + 32 + lane);
    }
    return i < 32 ? a : b;
  }
};

__device__ __forceinline__ int LanesOf(uint32_t symbols) {
  int lanes = 1;
  while (lanes < 32 && lanes * 512u < symbols) lanes *= 2;
  return lanes;
}

// Lane states and where the words begin. False: too short.
__device__ bool Open(const uint8_t* p, uint32_t bytes, int lanes, int lane, uint32_t* x,
                     Words* words) {
  const uint32_t head = (lanes + 1) / 2;
  if (bytes < head || bytes % 2 != 0) return false;
  const int length = lane < lanes ? (p[lane / 2] >> (lane % 2 * 4) & 15) + 12 : 0;
  int end = length;  // prefix sum of bits
  for (int d = 1; d < 32; d *= 2) {
    const int v = __shfl_up_sync(kAll, end, d);
    if (lane >= d) end += v;
  }
  const int total = __shfl_sync(kAll, end, 31);
  const uint32_t begin = (head + (total + 7) / 8 + 1) / 2 * 2;
  if (bytes < begin) return false;
  const int bit = end - length;
  uint64_t bits = 0;
  if (lane < lanes) {
    for (int b = 0; b < 5; ++b) {
      const uint32_t i = head + bit / 8 + b;
      if (i < begin) bits |= static_cast<uint64_t>(p[i]) << (8 * b);
    }
  }
  bits >>= bit % 8;
  *x = length == 0 ? 1u << 12 : 1u << length | (static_cast<uint32_t>(bits) & ((1u << length) - 1));
  words->Start(reinterpret_cast<const uint16_t*>(p + begin), (bytes - begin) / 2, lane);
  return true;
}

// One step: each active lane's class in, its symbol out. An inactive lane passes kAbsent.
template <bool kCoarse>
__device__ __forceinline__ int Step(int c, int lane, const Tables& t, const uint8_t* coarse,
                                    const uint32_t* entries, uint32_t* x, Words* words) {
  const uint32_t slot = *x & 4095;
  uint32_t freq, bias;
  int v;
  if (kCoarse) {
    uint32_t s = coarse[c * 1024 + (slot >> 2)];
    uint32_t e = entries[c * 256 + s];
    while (slot > (e & 4095) + (e >> 12 & 4095)) e = entries[c * 256 + ++s];
    freq = (e >> 12 & 4095) + 1;
    bias = slot - (e & 4095);
    v = static_cast<int8_t>(e >> 24);
  } else {
    const uint32_t e = __ldg(t.fine + c * 4096 + slot);
    freq = (e >> 8 & 4095) + 1;
    bias = e >> 20;
    v = static_cast<int8_t>(e & 255);
  }
  *x = freq * (*x >> 12) + bias;
  unsigned mask = __ballot_sync(kAll, *x < 4096);
  if (mask != 0) {
    const uint32_t w = words->Take(mask, lane);
    if (*x < 4096) *x = *x << 16 | w;
  }
  const int shift = g_shift[c];
  const bool escape = v == kEscape;
  if (__any_sync(kAll, shift != 0)) {
    const bool shifted = shift != 0 && !escape;
    if (shifted) {
      v = v * (1 << shift) + static_cast<int>(*x & ((1u << shift) - 1));
      *x >>= shift;
    }
    const bool need = shifted && *x < 4096;
    mask = __ballot_sync(kAll, need);
    if (mask != 0) {
      const uint32_t w = words->Take(mask, lane);
      if (need) *x = *x << 16 | w;
    }
  }
  mask = __ballot_sync(kAll, escape);
  if (mask != 0) {
    const uint32_t w = words->Take(mask, lane);
    if (escape) v = static_cast<int16_t>(w);
  }
  return v;
}

// Classes of the tile's tokens -> terms by place and ranges of rows, in shared memory.
__device__ void Arrange(const Segment& s, const Tables& t, int lane, WarpMemory* m) {
  // Lane l looks after step class 6 - l.
  const int k = 6 - lane;
  int tokens_of_k = 0;
  for (int i = 0; i < t.tokens; ++i) {
    tokens_of_k += static_cast<int8_t>(m->classes[t.tokens + i]) == k;
  }
  if (lane > 12) tokens_of_k = 0;
  int end = tokens_of_k;
  for (int d = 1; d < 16; d *= 2) {
    const int v = __shfl_up_sync(kAll, end, d);
    if (lane >= d) end += v;
  }
  if (lane <= 12) {
    int place = end - tokens_of_k;
    for (int i = 0; i < t.tokens; ++i) {
      if (static_cast<int8_t>(m->classes[t.tokens + i]) != k) continue;
      m->terms[place++] = static_cast<int16_t>(TokenTerm(m->classes[i], k));
    }
  }
  // Coordinates [rows of the next coarser class that is there, rows of this one) have `end` places.
  const int rows = lane <= 12 ? ActiveRows(t.sigma, t.dimensions, s.step_exponent,
                                           k < s.kcap ? k : s.kcap, t.threshold)
                              : 0;
  if (lane == 0) {
    m->row[0] = 0;
    m->start[0] = 0;
  }
  // From the coarsest class up: lane 12 - i makes range i.
  uint32_t start = 0;
  int from = 0;
  for (int i = 0; i < kMaxRanges; ++i) {
    const int places = __shfl_sync(kAll, end, 12 - i);
    int to = __shfl_sync(kAll, rows, 12 - i);
    const bool there = __shfl_sync(kAll, tokens_of_k, 12 - i) != 0;
    if (!there || to < from) to = from;
    if (lane == 0) {
      m->row[i] = static_cast<uint16_t>(from);
      m->start[i] = start;
      m->count[i] = static_cast<uint16_t>(places);
    }
    start += static_cast<uint32_t>(to - from) * places;
    from = to;
  }
  if (lane == 0) {
    m->row[kMaxRanges] = static_cast<uint16_t>(from);
    m->start[kMaxRanges] = start;
    m->count[kMaxRanges] = 0;
  }
  __syncwarp();
}

template <bool kCoarse>
__global__ void decode_segments(const Segment* segments, int count, const uint8_t* bytes, Tables t,
                                int16_t* out, int* failures) {
  extern __shared__ __align__(16) uint8_t shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint8_t* coarse = shared;
  uint32_t* entries = reinterpret_cast<uint32_t*>(shared + kTables * 1024);
  const size_t table_bytes = kCoarse ? kTables * 2048 : 0;
  if (kCoarse) {
    for (unsigned i = threadIdx.x; i < kTables * 1024 / 16; i += blockDim.x) {
      reinterpret_cast<uint4*>(coarse)[i] = reinterpret_cast<const uint4*>(t.coarse)[i];
      reinterpret_cast<uint4*>(entries)[i] = reinterpret_cast<const uint4*>(t.entry)[i];
    }
    __syncthreads();
  }
  const int index = blockIdx.x * (blockDim.x / 32) + warp;
  if (index >= count) return;
  WarpMemory* const m = reinterpret_cast<WarpMemory*>(shared + table_bytes) + warp;
  const Segment s = segments[index];
  const uint32_t class_symbols = ClassSymbols(t.tokens);
  uint32_t x;
  Words words;
  int16_t* const to = out + s.out;

  // The token classes, of segment 0, whichever segment this is.
  int lanes = LanesOf(s.zero_symbols);
  bool good = Open(bytes + s.zero_offset, s.zero_bytes, lanes, lane, &x, &words);
  for (uint32_t j = 0; good && j < class_symbols; j += lanes) {
    const uint32_t i = j + lane;
    const bool there = lane < lanes && i < 2u * t.tokens;
    const int c = !there ? kAbsent : i < static_cast<uint32_t>(t.tokens) ? 40 : 41;
    const int v = Step<kCoarse>(c, lane, t, coarse, entries, &x, &words);
    if (there) m->classes[i] = static_cast<uint8_t>(v);
    if (s.first == 0 && lane < lanes) to[i] = static_cast<int16_t>(v);
  }
  __syncwarp();
  Arrange(s, t, lane, m);
  uint32_t j = class_symbols;
  if (s.first != 0) {
    lanes = LanesOf(s.symbols);
    good = good && Open(bytes + s.offset, s.bytes, lanes, lane, &x, &words);
    j = 0;
  }

  // This lane's row and place, then 32 (or `lanes`) symbols on at every step.
  const uint32_t coordinate = s.first + j + lane - class_symbols;
  int range = 0;
  while (range < kMaxRanges && m->start[range + 1] <= coordinate) ++range;
  uint32_t places = range < kMaxRanges ? m->count[range] : 1;
  uint32_t row = m->row[range], place = 0;
  if (range < kMaxRanges) {
    row += (coordinate - m->start[range]) / places;
    place = (coordinate - m->start[range]) % places;
  }
  uint32_t range_end = range < kMaxRanges ? m->row[range + 1] : 0xffffffffu;
  for (; good && j < s.symbols; j += lanes) {
    int c = kAbsent;
    if (lane < lanes && range < kMaxRanges) {
      c = CoordinateClass(RowTerm(__ldg(t.sigma + row), s.step_exponent), m->terms[place]);
    }
    const int v = Step<kCoarse>(c, lane, t, coarse, entries, &x, &words);
    if (lane < lanes) to[j + lane] = static_cast<int16_t>(v);
    good = words.cursor <= words.size;
    place += lanes;
    while (range < kMaxRanges && place >= places) {
      place -= places;
      if (++row == range_end) {
        do {
          ++range;
        } while (range < kMaxRanges && m->row[range + 1] == m->row[range]);
        if (range == kMaxRanges) break;
        places = m->count[range];
        range_end = m->row[range + 1];
      }
    }
  }
  const bool ended = __all_sync(kAll, x == 4096) && words.cursor == words.size;
  if (lane == 0 && !(good && ended)) atomicAdd(failures, 1);
}

struct Dump {
  std::vector<uint32_t> fine;
  std::vector<uint8_t> shift;
  std::vector<int16_t> sigma;
  int threshold, tokens;
  std::vector<std::vector<uint8_t>> tiles;
  std::vector<std::vector<int16_t>> symbols;
};

Dump ReadDump(const char* path) {
  std::ifstream in(path, std::ios::binary);
  std::vector<uint8_t> file{std::istreambuf_iterator<char>(in), {}};
  size_t at = 0;
  auto get = [&](void* to, size_t n) {
    if (file.size() - at < n) {
      std::fprintf(stderr, "%s: ends early\n", path);
      std::exit(1);
    }
    std::memcpy(to, file.data() + at, n);
    at += n;
  };
  auto u32 = [&] {
    uint32_t v;
    get(&v, 4);
    return v;
  };
  Dump d;
  if (u32() != 0x534e4152) {
    std::fprintf(stderr, "%s: not a dump of fklt_benchmark\n", path);
    std::exit(1);
  }
  d.fine.resize(kTables * 4096);
  get(d.fine.data(), d.fine.size() * 4);
  for (int t = 0; t < kTables; ++t) d.shift.push_back(static_cast<uint8_t>(u32()));
  const uint32_t dimensions = u32();
  for (uint32_t i = 0; i < dimensions; ++i) d.sigma.push_back(static_cast<int16_t>(u32()));
  d.threshold = static_cast<int>(u32());
  d.tokens = static_cast<int>(u32());
  const uint32_t tiles = u32();
  for (uint32_t i = 0; i < tiles; ++i) {
    d.tiles.emplace_back(u32());
    get(d.tiles.back().data(), d.tiles.back().size());
    d.symbols.emplace_back(u32());
    get(d.symbols.back().data(), 2 * d.symbols.back().size());
  }
  return d;
}

template <typename T>
T* Upload(const std::vector<T>& v) {
  T* p;
  CUDA_OK(cudaMalloc(&p, v.size() * sizeof(T) + 256));
  CUDA_OK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}

int Run(const char* path) {
  const Dump d = ReadDump(path);
  std::vector<uint8_t> coarse(kTables * 1024);
  std::vector<uint32_t> entry(kTables * 256, 0);
  for (int c = 0; c < kTables; ++c) {
    int n = -1;
    std::vector<int> index(4096);
    for (int slot = 0; slot < 4096; ++slot) {
      const uint32_t e = d.fine[c * 4096 + slot];
      if (e >> 20 == 0) {
        ++n;
        entry[c * 256 + n] = slot | (e >> 8 & 4095) << 12 | (e & 255) << 24;
      }
      index[slot] = n;
      if (slot % 4 == 0) coarse[c * 1024 + slot / 4] = static_cast<uint8_t>(n);
    }
  }
  std::vector<uint8_t> shift = d.shift;
  shift.resize(kTables + 1);
  CUDA_OK(cudaMemcpyToSymbol(g_shift, shift.data(), shift.size()));
  Tables t{Upload(d.fine), Upload(coarse), Upload(entry), Upload(d.sigma),
           static_cast<int>(d.sigma.size()), d.threshold, d.tokens};
  const double tile_bytes = 2.0 * d.sigma.size() * d.tokens;  // bf16 side
  double stored = 0;
  for (const auto& tile : d.tiles) stored += tile.size();
  std::printf("%s: D %zu, %zu tiles of %d tokens, ratio %.2f\n", path, d.sigma.size(),
              d.tiles.size(), d.tokens, tile_bytes * d.tiles.size() / stored);
  constexpr size_t kCoarseBytes = kTables * 2048;
  CUDA_OK(cudaFuncSetAttribute(decode_segments<true>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               kCoarseBytes + 16 * sizeof(WarpMemory)));
  bool failed = false;
  for (double mib : {1.0, 16.0, 256.0, 1024.0}) {
    const int copies = std::max(1, static_cast<int>(mib * 1048576 / tile_bytes + .5));
    std::vector<uint8_t> bytes;
    std::vector<Segment> segments;
    std::vector<int16_t> want;
    for (int i = 0; i < copies; ++i) {
      const std::vector<uint8_t>& tile = d.tiles[i % d.tiles.size()];
      bytes.resize((bytes.size() + 15) / 16 * 16);
      const uint64_t base = bytes.size();
      bytes.insert(bytes.end(), tile.begin(), tile.end());
      const int groups = tile[4] | tile[5] << 8;
      const SegmentCut cut = CutSegments(groups);
      uint64_t at = kHeaderBytes + 2 * (cut.segments - 1);
      Segment zero{};
      for (int k = 0; k < cut.segments; ++k) {
        Segment s{};
        s.offset = base + at;
        s.bytes = k + 1 < cut.segments ? 2u * (tile[6 + 2 * k] | tile[7 + 2 * k] << 8)
                                       : static_cast<uint32_t>(tile.size() - at);
        s.first = static_cast<uint32_t>(k * cut.groups_each) * 32;
        s.symbols = static_cast<uint32_t>(std::min(cut.groups_each, groups - k * cut.groups_each)) * 32;
        s.out = want.size() + s.first;
        if (k == 0) zero = s;
        s.zero_offset = zero.offset;
        s.zero_bytes = zero.bytes;
        s.zero_symbols = zero.symbols;
        s.step_exponent = static_cast<int16_t>(tile[2] | tile[3] << 8);
        s.kcap = static_cast<int8_t>((tile[1] & 15) - 6);
        segments.push_back(s);
        at += s.bytes;
      }
      const std::vector<int16_t>& q = d.symbols[i % d.tiles.size()];
      want.insert(want.end(), q.begin(), q.end());
    }
    uint8_t* device_bytes = Upload(bytes);
    Segment* device_segments = Upload(segments);
    int16_t* out;
    int* failures;
    CUDA_OK(cudaMalloc(&out, want.size() * 2));
    CUDA_OK(cudaMalloc(&failures, 4));
    CUDA_OK(cudaMemset(failures, 0, 4));
    const int n = static_cast<int>(segments.size());
    for (int variant = 0; variant < 2; ++variant) {
      const int most = variant == 0 ? 4 : 16;
      const int warps = std::max(1, std::min(most, (n + 263) / 264));
      const int blocks = (n + warps - 1) / warps;
      auto launch = [&] {
        if (variant == 0) {
          decode_segments<false><<<blocks, 32 * warps, warps * sizeof(WarpMemory)>>>(
              device_segments, n, device_bytes, t, out, failures);
        } else {
          decode_segments<true><<<blocks, 32 * warps, kCoarseBytes + warps * sizeof(WarpMemory)>>>(
              device_segments, n, device_bytes, t, out, failures);
        }
      };
      auto wrong = [&] {
        std::vector<int16_t> got(want.size());
        CUDA_OK(cudaMemcpy(got.data(), out, got.size() * 2, cudaMemcpyDeviceToHost));
        size_t bad = 0;
        for (size_t i = 0; i < got.size(); ++i) bad += got[i] != want[i];
        int f;
        CUDA_OK(cudaMemcpy(&f, failures, 4, cudaMemcpyDeviceToHost));
        if (bad != 0 || f != 0) {
          std::printf("  WRONG: %zu of %zu symbols differ, %d segments end wrong\n", bad,
                      got.size(), f);
        }
        return bad != 0 || f != 0;
      };
      CUDA_OK(cudaMemset(out, 0x55, want.size() * 2));
      launch();
      CUDA_OK(cudaGetLastError());
      CUDA_OK(cudaDeviceSynchronize());
      failed |= wrong();
      cudaEvent_t begin, end;
      CUDA_OK(cudaEventCreate(&begin));
      CUDA_OK(cudaEventCreate(&end));
      std::vector<float> us;
      for (int round = 0; round < 30; ++round) {
        const int repeats = mib <= 16 ? 20 : 3;
        CUDA_OK(cudaEventRecord(begin));
        for (int i = 0; i < repeats; ++i) launch();
        CUDA_OK(cudaEventRecord(end));
        CUDA_OK(cudaEventSynchronize(end));
        float ms;
        CUDA_OK(cudaEventElapsedTime(&ms, begin, end));
        us.push_back(ms * 1000 / repeats);
      }
      failed |= wrong();
      std::sort(us.begin(), us.end());
      const double median = us[us.size() / 2];
      std::printf(
          "  %-7s %7.1f MiB: %5d segments, %4d blocks of %2d warps: median %9.2f us (%.2f-%.2f), "
          "%7.1f GB/s of bf16, %6.1f G symbols/s\n",
          variant == 0 ? "fine" : "coarse", copies * tile_bytes / 1048576, n, blocks, warps, median,
          us.front(), us.back(), copies * tile_bytes / median / 1e3, want.size() / median / 1e3);
    }
    CUDA_OK(cudaFree(device_bytes));
    CUDA_OK(cudaFree(device_segments));
    CUDA_OK(cudaFree(out));
    CUDA_OK(cudaFree(failures));
  }
  return failed ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp prop;
  CUDA_OK(cudaGetDeviceProperties(&prop, 0));
  std::printf("%s, %d SMs\n", prop.name, prop.multiProcessorCount);
  int status = 0;
  for (int i = 1; i < argc; ++i) status |= Run(argv[i]);
  return status;
}
