#include "codec/fklt/cuda/decode_kernels.h"

#include "codec/fklt/cuda/rows_device.h"
#include "device/launch.h"

namespace kvcask::fklt {
namespace {

constexpr unsigned kAll = kAllLanes;
constexpr int kTableShared = kClasses * kTableSlots + kClasses * 256 * 4;
constexpr int kMaxWarps = 24;
constexpr int kRowsPerBlock = 32;
constexpr int kMostPrepareThreads = 512;

// The words of one segment, read ahead: 128 of them in registers, four a lane.
struct Words {
  const uint8_t* at;
  uint32_t size, cursor, base;
  uint32_t now, next;  // words base + 2 lane and the one after it; those 64 later

  __device__ void Start(const uint8_t* p, uint32_t words, uint32_t begin, int lane) {
    at = p;
    size = words;
    cursor = begin;
    base = begin & ~63u;
    now = Load(base + 2 * lane);
    next = Load(base + 64 + 2 * lane);
  }
  __device__ uint32_t Load(uint32_t i) const {
    const uint32_t low = i < size ? U16(at + 2 * i) : 0;
    return i + 1 < size ? low | U16(at + 2 * i + 2) << 16 : low;
  }
  // The next words for the lanes in `mask`, in rising order.
  __device__ __forceinline__ uint32_t Take(unsigned mask, int lane) {
    const uint32_t i = cursor - base + __popc(mask & ((1u << lane) - 1));
    const uint32_t end = cursor - base + __popc(mask);
    uint32_t two = __shfl_sync(kAll, now, i / 2 & 31);
    if (end > 64) {
      const uint32_t later = __shfl_sync(kAll, next, i / 2 & 31);
      if (i >= 64) two = later;
    }
    cursor = base + end;
    if (end >= 64) {
      base += 64;
      now = next;
      next = Load(base + 64 + 2 * lane);
    }
    return i % 2 == 0 ? two & 0xffff : two >> 16;
  }
};

// Lane states and where the words begin. False: too short, or unused bits are set.
__device__ bool Open(const uint8_t* p, uint32_t bytes, int lanes, int lane, uint32_t* x,
                     uint32_t* begin) {
  const uint32_t head = (lanes + 1) / 2;
  if (bytes < head || bytes % 2 != 0) return false;
  const int length = lane < lanes ? (p[lane / 2] >> (lane % 2 * 4) & 15) + 12 : 0;
  int end = length;  // prefix sum of bits
  for (int d = 1; d < 32; d *= 2) {
    const int v = __shfl_up_sync(kAll, end, d);
    if (lane >= d) end += v;
  }
  const int total = __shfl_sync(kAll, end, 31);
  *begin = (head + (total + 7) / 8 + 1) / 2 * 2;
  if (bytes < *begin) return false;
  const int bit = end - length;
  uint64_t bits = 0;
  for (int b = 0; b < 5; ++b) {
    const uint32_t i = head + bit / 8 + b;
    if (i < *begin) bits |= static_cast<uint64_t>(p[i]) << (8 * b);
  }
  bits >>= bit % 8;
  *x = length == 0 ? 1u << 12 : 1u << length | (static_cast<uint32_t>(bits) & ((1u << length) - 1));
  // What is left after the last lane's bits must be zero.
  bool stray = lanes == 1 && p[0] >> 4 != 0;
  if (lane == 31) {
    uint32_t i = head + total / 8;
    if (i < *begin && total % 8 != 0) stray |= p[i++] >> total % 8 != 0;
    for (; i < *begin; ++i) stray |= p[i] != 0;
  }
  return !__any_sync(kAll, stray);
}

// Shift bits and escapes of one step, after its table symbols. kStateful lanes only.
__device__ __forceinline__ int Extras(int v, int shift, bool there, int lane, uint32_t* x,
                                      Words* words) {
  const bool escape = there && v == -128;
  const bool shifted = there && shift != 0 && !escape;
  if (shifted) {
    v = v * (1 << shift) + static_cast<int>(*x & ((1u << shift) - 1));
    *x >>= shift;
  }
  const bool need = shifted && *x < 4096;
  unsigned mask = __ballot_sync(kAll, need);
  if (mask != 0) {
    const uint32_t w = words->Take(mask, lane);
    if (need) *x = *x << 16 | w;
  }
  mask = __ballot_sync(kAll, escape);
  if (mask != 0) {
    const uint32_t w = words->Take(mask, lane);
    if (escape) v = static_cast<int16_t>(w);
  }
  return v;
}

// Cosines, then sines, of one table's tokens and all pairs; the scale is in them.
__device__ void FillAngles(const AngleDesc& t, const DeviceRope* ropes, int rope_count,
                           int all_pairs, int first, int stride) {
  const int n = t.tokens * all_pairs;
  for (int i = first; i < n; i += stride) {
    const int token = i / all_pairs, pair = i % all_pairs;
    int r = 0;
    while (r + 1 < rope_count && ropes[r + 1].first_angle <= pair) ++r;
    const DeviceRope rope = ropes[r];
    const double position =
        static_cast<double>(t.positions[token]) + static_cast<double>(t.position_offset);
    const double angle = position * static_cast<double>(rope.inv_freq[pair - rope.first_angle]);
    double s, c;
    sincos(angle, &s, &c);
    t.angles[i] = static_cast<float>(c * rope.scale);
    t.angles[n + i] = static_cast<float>(s * rope.scale);
  }
}

__global__ void AnglesKernel(const AngleBatch batch) {
  FillAngles(batch.tables[blockIdx.x], batch.ropes, batch.rope_count, batch.all_pairs,
             blockIdx.y * blockDim.x + threadIdx.x, gridDim.y * blockDim.x);
}

// The order of tokens and where rows lie (FORMAT.md 3.1), from the token classes in shared memory:
// amplitudes of n tokens, then their step classes. One warp. Returns the number of symbols.
__device__ uint32_t Arrange(const DecodeTileDesc& t, const DeviceGroup& g, const int8_t* classes,
                            int lane, TileState* s) {
  const int n = t.coded;
  int step_class[4];
  for (int i = 0; i < 4; ++i) {
    step_class[i] = lane + 32 * i < n ? classes[n + lane + 32 * i] : -128;
  }
  // Lane l looks after step class 6 - l: how many tokens it has, and where they end.
  int mine = 0, end = 0, before = 0;
  for (int j = 0; j < kMaxRanges; ++j) {
    const int k = kMaxStepClass - j;
    const int begin = before;
    for (int i = 0; i < 4; ++i) {
      const unsigned mask = __ballot_sync(kAll, step_class[i] == k);
      if (step_class[i] == k) {
        const int token = lane + 32 * i;
        const int place = before + __popc(mask & ((1u << lane) - 1));
        s->token_at[place] = static_cast<uint8_t>(token);
        s->place_of[token] = static_cast<uint8_t>(place);
        s->terms[place] = static_cast<int16_t>(TokenTerm(classes[token], k));
        s->step[place] = StepOf(t.step_exponent, k);
      }
      before += __popc(mask);
    }
    if (lane == j) {
      mine = before - begin;
      end = before;
    }
  }
  const int k = kMaxStepClass - lane;
  // Rows [those of the next coarser class that is there, those of this one) have `end` places.
  const int rows = lane < kMaxRanges ? ActiveRows(g.sigma, g.dimensions, t.step_exponent,
                                                  k < t.kcap ? k : t.kcap, t.threshold)
                                     : 0;
  uint32_t start = ClassSymbols(n);
  int from = 0, ranges = 0;
  for (int i = 0; i <= 12; ++i) {  // from the coarsest class up
    const int places = __shfl_sync(kAll, end, 12 - i);
    const int to = __shfl_sync(kAll, rows, 12 - i);
    const bool there = __shfl_sync(kAll, mine, 12 - i) != 0;
    if (!there || to <= from) continue;
    if (lane == 0) {
      s->row[ranges] = static_cast<uint16_t>(from);
      s->start[ranges] = start;
      s->count[ranges] = static_cast<uint16_t>(places);
    }
    ++ranges;
    start += static_cast<uint32_t>(to - from) * places;
    from = to;
  }
  if (lane == 0) {
    s->row[ranges] = static_cast<uint16_t>(from);
    s->start[ranges] = start;
    s->count[ranges] = 0;
    s->ranges = ranges;
  }
  return start;
}

// Unused bits after 10-bit sinks must be zero.
__device__ bool StraySinkBits(const DecodeTileDesc& t, const DeviceGroup& g) {
  if (t.mode != kCodedSinksMode) return false;
  const int sinks = t.tokens - t.coded;
  const int elements = g.dimensions * sinks;
  const uint8_t* const low = t.bytes + t.segment_bytes + g.members * sinks + elements;
  return elements % 4 != 0 && low[elements / 4] >> elements % 4 * 2 != 0;
}

// Token classes of a tile, by one warp. A Failure.
__device__ int OpenTile(const DecodeBatch& batch, const DecodeTileDesc& t, int8_t* classes,
                        int lane, TileState* state) {
  const DeviceGroup& g = batch.groups[t.group];
  const SegmentDesc& segment = batch.segments[t.first_segment];
  const uint8_t* const p = t.bytes + segment.at;
  const int lanes = segment.lanes;
  uint32_t x, begin = 0;
  if (!Open(p, segment.bytes, lanes, lane, &x, &begin)) return kBrokenStates;
  Words words;
  words.Start(p + begin, (segment.bytes - begin) / 2, 0, lane);
  const int n = 2 * t.coded;
  // Up to a whole number of groups: the rest is absent and passes states unchanged.
  for (int j = 0; j < n; j += lanes) {
    const int i = j + lane;
    const bool there = lane < lanes && i < n;
    const int c = i < t.coded ? 40 : 41;
    if (there) {
      const uint32_t e = __ldg(batch.tables.decode + c * kTableSlots + (x & 4095));
      x = ((e >> 8 & 4095) + 1) * (x >> 12) + (e >> 20);
      classes[i] = static_cast<int8_t>(e & 255);
    }
    const bool need = there && x < 4096;
    const unsigned mask = __ballot_sync(kAll, need);
    if (mask != 0) {
      const uint32_t w = words.Take(mask, lane);
      if (need) x = x << 16 | w;
    }
  }
  state->x[lane] = x;
  if (lane == 0) state->cursor = words.cursor + begin / 2;
  __syncwarp();
  const uint32_t symbols = Arrange(t, g, classes, lane, state);
  if ((symbols + kGroupSymbols - 1) / kGroupSymbols != static_cast<uint32_t>(t.groups)) {
    return kWrongGroups;
  }
  if (words.cursor > words.size) return kEarlyEnd;
  return StraySinkBits(t, g) ? kStraySinkBits : kGood;
}

// The range that a row is in, `ranges` for rows that no place has.
__device__ __forceinline__ int RangeOf(const TileState& s, int row) {
  int r = 0;
  while (r < s.ranges && s.row[r + 1] <= row) ++r;
  return r;
}

// The table of every symbol of a tile. By a whole block.
__device__ void FillClasses(const DecodeBatch& batch, const DecodeTileDesc& t, const TileState& s) {
  const DeviceGroup& g = batch.groups[t.group];
  uint8_t* const out = batch.classes + t.symbols;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int terms[4];
  for (int i = 0; i < 4; ++i) terms[i] = lane + 32 * i < t.coded ? s.terms[lane + 32 * i] : 0;
  for (int r = warp; r < t.rows; r += blockDim.x / 32) {
    const int range = RangeOf(s, r);
    const int count = s.count[range];
    if (count == 0) break;
    const uint32_t at = s.start[range] + static_cast<uint32_t>(r - s.row[range]) * count;
    const int row_term = RowTerm(g.sigma[r], t.step_exponent);
    for (int i = 0; i < 4; ++i) {
      const int p = lane + 32 * i;
      if (p < count) out[at + p] = static_cast<uint8_t>(CoordinateClass(row_term, terms[i]));
    }
  }
  if (threadIdx.x < kGroupSymbols) {
    const uint32_t i = s.start[s.ranges] + threadIdx.x;
    if (i < static_cast<uint32_t>(t.groups) * kGroupSymbols) out[i] = kAbsent;
  }
}

__global__ void __launch_bounds__(kMostPrepareThreads)
    PrepareKernel(const __grid_constant__ DecodeBatch batch) {
  __shared__ int8_t classes[2 * kMaxTokens];
  __shared__ int failed;
  const DecodeTileDesc& t = batch.tiles[blockIdx.x];
  TileState* const state = batch.states + blockIdx.x;
  if (threadIdx.x < 32) {
    const int f = t.mode == kRawMode
                      ? static_cast<int>(kGood)
                      : OpenTile(batch, t, classes, static_cast<int>(threadIdx.x), state);
    if (threadIdx.x == 0) batch.failed[blockIdx.x] = failed = f;
  }
  __syncthreads();
  if (t.mode != kRawMode && failed == kGood) FillClasses(batch, t, *state);
}

// Shared memory: of 40 classes, the number of each slot's symbol, then each symbol's entry.
__global__ void __launch_bounds__(kMaxWarps * 32)
    SegmentsKernel(const __grid_constant__ DecodeBatch batch, int warps) {
  KVCASK_DYNAMIC_SHARED(shared);
  __shared__ uint8_t shifts[kAllTables];
  if (threadIdx.x < kAllTables) shifts[threadIdx.x] = batch.tables.shift[threadIdx.x];
  {
    const uint4* const index = reinterpret_cast<const uint4*>(batch.tables.index);
    const uint4* const entry = reinterpret_cast<const uint4*>(batch.tables.entry);
    uint4* const to = reinterpret_cast<uint4*>(shared);
    constexpr int kIndex = kClasses * kTableSlots / 16, kEntry = kClasses * 256 / 4;
#pragma unroll 4
    for (int i = threadIdx.x; i < kIndex; i += blockDim.x) to[i] = index[i];
#pragma unroll 4
    for (int i = threadIdx.x; i < kEntry; i += blockDim.x) to[kIndex + i] = entry[i];
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp >= warps) return;
  const uint32_t* const entries =
      reinterpret_cast<const uint32_t*>(shared + kClasses * kTableSlots);
  const int first_shifted = batch.tables.first_shifted;
  for (int n = blockIdx.x * warps + warp; n < batch.segment_count; n += gridDim.x * warps) {
    const SegmentDesc s = batch.segments[batch.first_segment + n];
    const DecodeTileDesc& t = batch.tiles[s.tile - batch.first_tile];
    const TileState* const state = batch.states + (s.tile - batch.first_tile);
    int* const failed = batch.failed + (s.tile - batch.first_tile);
    // Another segment's warp may set it meanwhile: all lanes must see the same.
    if (__any_sync(kAll, *static_cast<volatile int*>(failed) != kGood)) continue;
    const uint8_t* const p = t.bytes + s.at;
    const int lanes = s.lanes;
    uint32_t x, begin = 0, j = 0;
    Words words;
    if (s.first == 0) {  // the token classes are done
      x = state->x[lane];
      begin = state->cursor * 2;
      words.Start(p, s.bytes / 2, state->cursor, lane);
      j = ClassSymbols(t.coded);
    } else {
      if (!Open(p, s.bytes, lanes, lane, &x, &begin)) {
        if (lane == 0) *failed = kBrokenStates;
        continue;
      }
      words.Start(p + begin, (s.bytes - begin) / 2, 0, lane);
    }
    const uint8_t* const classes = batch.classes + t.symbols + s.first;
    int16_t* const out = batch.symbols + t.symbols + s.first;
    const bool mine = lane < lanes;
    // Classes are read four steps ahead: the chain that decides the time is x alone.
    uint32_t ahead[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t at = j + i * lanes + lane;
      ahead[i] = mine && at < s.symbols ? classes[at] : kAbsent;
    }
    for (; j < s.symbols && words.cursor <= words.size; j += 4 * lanes) {
      uint32_t now[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        now[i] = ahead[i];
        const uint32_t at = j + (4 + i) * lanes + lane;
        ahead[i] = mine && at < s.symbols ? classes[at] : kAbsent;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t c = now[i];
        const bool there = c < kClasses;
        int v = 0;
        if (there) {
          const uint32_t slot = x & 4095;
          const uint32_t e = entries[c * 256 + shared[c * kTableSlots + slot]];
          x = ((e >> 12 & 4095) + 1) * (x >> 12) + slot - (e & 4095);
          v = static_cast<int8_t>(e >> 24);
        }
        const bool need = there && x < 4096;
        const unsigned mask = __ballot_sync(kAll, need);
        const bool extra =
            there && (v == -128 || static_cast<int>(c) >= first_shifted);
        if (mask != 0) {
          const uint32_t w = words.Take(mask, lane);
          if (need) x = x << 16 | w;
        }
        if (__any_sync(kAll, extra)) {
          v = Extras(v, there ? shifts[c] : 0, there, lane, &x, &words);
        }
        const uint32_t at = j + i * lanes + lane;
        if (mine && at < s.symbols) out[at] = static_cast<int16_t>(v);
      }
    }
    const bool ended = __all_sync(kAll, !mine || x == 4096) && words.cursor == words.size;
    if (lane == 0 && !ended) {
      *failed = words.cursor > words.size ? kEarlyEnd : kWrongEnd;
    }
  }
}

__global__ void DequantiseKernel(const __grid_constant__ DecodeBatch batch) {
  __shared__ float centroids[kAllTables * 4];
  for (int i = threadIdx.x; i < kAllTables * 4; i += blockDim.x) {
    centroids[i] = batch.tables.centroids[i];
  }
  __syncthreads();
  const DecodeTileDesc& t = batch.tiles[blockIdx.x];
  const TileState& s = batch.states[blockIdx.x];
  const bool coded = t.mode != kRawMode && batch.failed[blockIdx.x] == kGood;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float step[4];
  for (int i = 0; i < 4; ++i) {
    step[i] = coded && lane + 32 * i < t.coded ? s.step[lane + 32 * i] * t.y_scale : 0.0f;
  }
  const int end = min(static_cast<int>(blockIdx.y + 1) * kRowsPerBlock, t.gemm_rows);
  for (int r = blockIdx.y * kRowsPerBlock + warp; r < end; r += blockDim.x / 32) {
    int count = 0;
    uint32_t at = 0;
    if (coded && r < t.rows) {
      const int range = RangeOf(s, r);
      count = s.count[range];
      at = s.start[range] + static_cast<uint32_t>(r - s.row[range]) * count;
    }
    __half* const to = t.y + static_cast<size_t>(r) * t.y_stride + t.column;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int p = lane + 32 * i;
      float value = 0;
      if (p < count) {
        const int q = batch.symbols[t.symbols + at + p];
        const int c = batch.classes[t.symbols + at + p];
        const int n = abs(q);
        const float centre = n > 3 ? static_cast<float>(n) : centroids[c * 4 + n];
        value = (q < 0 ? -centre : centre) * step[i];
      }
      // |q| of 32,767 at the coarsest step class is beyond fp16.
      to[p] = __float2half_rn(fminf(fmaxf(value, -65504.0f), 65504.0f));
    }
  }
}

dim3 Blocks(int tiles, int rows) {
  return dim3(tiles, (rows + kRowsPerBlock - 1) / kRowsPerBlock);
}

}  // namespace

cudaError_t LaunchAngles(const AngleBatch& batch, int tokens, cudaStream_t stream) {
  const int n = tokens * batch.all_pairs;
  if (n == 0 || batch.count == 0) return cudaSuccess;
  KVCASK_LAUNCH(AnglesKernel, dim3(batch.count, min(32, (n + 255) / 256)), 256, 0, stream, batch);
  return cudaGetLastError();
}

cudaError_t LaunchPrepare(const DecodeBatch& batch, cudaStream_t stream) {
  // Of many tiles, more side by side: their first part is one warp's.
  const int threads = batch.tile_count >= 1024 ? 128 : kMostPrepareThreads;
  KVCASK_LAUNCH(PrepareKernel, batch.tile_count, threads, 0, stream, batch);
  return cudaGetLastError();
}

cudaError_t LaunchSegments(const DecodeBatch& batch, cudaStream_t stream) {
  if (batch.segment_count == 0) return cudaSuccess;
  static const cudaError_t once = cudaFuncSetAttribute(
      SegmentsKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kTableShared);
  if (once != cudaSuccess) return once;
  int device = 0, sms = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  // Few segments: a warp each on as many multiprocessors as there are.
  const int warps = min(kMaxWarps, max(1, (batch.segment_count + sms - 1) / sms));
  const int blocks = min(sms, (batch.segment_count + warps - 1) / warps);
  KVCASK_LAUNCH(SegmentsKernel, blocks, max(256, warps * 32), kTableShared, stream, batch, warps);
  return cudaGetLastError();
}

cudaError_t LaunchDequantise(const DecodeBatch& batch, int rows, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  KVCASK_LAUNCH(DequantiseKernel, Blocks(batch.tile_count, rows), 256, 0, stream, batch);
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
