#include "codec/fklt/cuda/decode_kernels.h"

namespace kvcask::fklt {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kTableShared = kClasses * kTableSlots + kClasses * 256 * 4;
constexpr int kMaxWarps = 24;
constexpr int kRowsPerBlock = 32;

__device__ __forceinline__ uint32_t U16(const uint8_t* p) { return p[0] | p[1] << 8; }

// The words of one segment, read ahead: 96 of them in registers, one a lane.
struct Words {
  const uint8_t* at;
  uint32_t size, cursor, base;
  uint32_t now, next, after;

  __device__ void Start(const uint8_t* p, uint32_t words, uint32_t begin, int lane) {
    at = p;
    size = words;
    cursor = begin;
    base = begin & ~31u;
    now = Load(base + lane);
    next = Load(base + lane + 32);
    after = Load(base + lane + 64);
  }
  __device__ uint32_t Load(uint32_t i) const { return i < size ? U16(at + 2 * i) : 0; }
  // The next words for the lanes in `mask`, in rising order.
  __device__ __forceinline__ uint32_t Take(unsigned mask, int lane) {
    const uint32_t i = cursor - base + __popc(mask & ((1u << lane) - 1));
    const uint32_t a = __shfl_sync(kAll, now, i & 31);
    const uint32_t b = __shfl_sync(kAll, next, i & 31);
    cursor += __popc(mask);
    if (cursor - base >= 32) {
      base += 32;
      now = next;
      next = after;
      after = Load(base + 64 + lane);
    }
    return i < 32 ? a : b;
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

__global__ void AnglesKernel(DecodeBatch batch) {
  const DecodeTileDesc& t = batch.tiles[blockIdx.x];
  const int n = t.tokens * batch.all_pairs;
  for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < n; i += gridDim.y * blockDim.x) {
    const int token = i / batch.all_pairs, pair = i % batch.all_pairs;
    int r = 0;
    while (r + 1 < batch.rope_count && batch.ropes[r + 1].first_angle <= pair) ++r;
    const DeviceRope rope = batch.ropes[r];
    const double position = static_cast<double>(t.positions[token]) +
                            static_cast<double>(t.position_offset);
    const double angle =
        position * static_cast<double>(rope.inv_freq[pair - rope.first_angle]);
    double s, c;
    sincos(angle, &s, &c);
    t.angles[i] = static_cast<float>(c * rope.scale);
    t.angles[n + i] = static_cast<float>(s * rope.scale);
  }
}

// The order of tokens and where rows lie (FORMAT.md 3.1), from the token classes in shared memory:
// amplitudes of n tokens, then their step classes. One warp. Returns the number of symbols.
__device__ uint32_t Arrange(const DecodeTileDesc& t, const DeviceGroup& g, const int8_t* classes,
                            int lane, TileState* s) {
  const int n = t.coded;
  // Lane l looks after step class 6 - l.
  const int k = kMaxStepClass - lane;
  int mine = 0;
  for (int i = 0; i < n; ++i) mine += classes[n + i] == k;
  if (lane > 12) mine = 0;
  int end = mine;
  for (int d = 1; d < 16; d *= 2) {
    const int v = __shfl_up_sync(kAll, end, d);
    if (lane >= d) end += v;
  }
  if (lane <= 12) {
    int place = end - mine;
    for (int i = 0; i < n; ++i) {
      if (classes[n + i] != k) continue;
      s->token_at[place] = static_cast<uint8_t>(i);
      s->place_of[i] = static_cast<uint8_t>(place);
      s->terms[place] = static_cast<int16_t>(TokenTerm(classes[i], k));
      s->step[place] = StepOf(t.step_exponent, k);
      ++place;
    }
  }
  // Rows [those of the next coarser class that is there, those of this one) have `end` places.
  const int rows = lane <= 12 ? ActiveRows(g.sigma, g.dimensions, t.step_exponent,
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

__global__ void OpenKernel(DecodeBatch batch) {
  __shared__ int8_t classes[2 * kMaxTokens];
  const DecodeTileDesc& t = batch.tiles[blockIdx.x];
  TileState* const state = batch.states + blockIdx.x;
  const int lane = threadIdx.x;
  if (t.mode == kRawMode) {
    if (lane == 0) state->failed = kGood;
    return;
  }
  const SegmentDesc& segment = batch.segments[t.first_segment];
  const uint8_t* const p = t.bytes + segment.at;
  const int lanes = segment.lanes;
  uint32_t x, begin = 0;
  int failed = Open(p, segment.bytes, lanes, lane, &x, &begin) ? kGood : kBrokenStates;
  Words words;
  if (failed == kGood) {
    words.Start(p + begin, (segment.bytes - begin) / 2, 0, lane);
    const int n = 2 * t.coded;
    // Up to a whole number of groups: the rest is absent and passes states unchanged.
    for (int j = 0; j < n; j += lanes) {
      const int i = j + lane;
      const bool there = lane < lanes && i < n;
      const int c = i < t.coded ? 40 : 41;
      uint32_t e = 0;
      if (there) {
        e = __ldg(batch.tables.decode + c * kTableSlots + (x & 4095));
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
    if (words.cursor > words.size) failed = kEarlyEnd;
    state->x[lane] = x;
    if (lane == 0) state->cursor = words.cursor + begin / 2;
    __syncwarp();
    const uint32_t symbols =
        Arrange(t, batch.groups[t.group], classes, lane, state);
    if ((symbols + kGroupSymbols - 1) / kGroupSymbols != static_cast<uint32_t>(t.groups)) {
      failed = kWrongGroups;
    }
  }
  if (lane == 0) state->failed = failed;
}

// The range that a row is in, `ranges` for rows that no place has.
__device__ __forceinline__ int RangeOf(const TileState& s, int row) {
  int r = 0;
  while (r < s.ranges && s.row[r + 1] <= row) ++r;
  return r;
}

__global__ void ClassesKernel(DecodeBatch batch) {
  const DecodeTileDesc& t = batch.tiles[blockIdx.x];
  const TileState& s = batch.states[blockIdx.x];
  if (t.mode == kRawMode || s.failed != kGood) return;
  const DeviceGroup& g = batch.groups[t.group];
  uint8_t* const out = batch.classes + t.symbols;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int terms[4];
  for (int i = 0; i < 4; ++i) terms[i] = lane + 32 * i < t.coded ? s.terms[lane + 32 * i] : 0;
  const int end = min(static_cast<int>(blockIdx.y + 1) * kRowsPerBlock, t.rows);
  for (int r = blockIdx.y * kRowsPerBlock + warp; r < end; r += blockDim.x / 32) {
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
  if (blockIdx.y == 0 && threadIdx.x < kGroupSymbols) {
    const uint32_t i = s.start[s.ranges] + threadIdx.x;
    if (i < static_cast<uint32_t>(t.groups) * kGroupSymbols) out[i] = kAbsent;
  }
}

// Shared memory: of 40 classes, the number of each slot's symbol, then each symbol's entry.
__global__ void __launch_bounds__(kMaxWarps * 32) SegmentsKernel(DecodeBatch batch, int warps) {
  extern __shared__ __align__(16) uint8_t shared[];
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
    TileState* const state = batch.states + (s.tile - batch.first_tile);
    // Another segment's warp may set it meanwhile: all lanes must see the same.
    if (__any_sync(kAll, *static_cast<volatile int*>(&state->failed) != kGood)) continue;
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
        if (lane == 0) state->failed = kBrokenStates;
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
          v = Extras(v, there ? batch.tables.shift[c] : 0, there, lane, &x, &words);
        }
        const uint32_t at = j + i * lanes + lane;
        if (mine && at < s.symbols) out[at] = static_cast<int16_t>(v);
      }
    }
    const bool ended = __all_sync(kAll, !mine || x == 4096) && words.cursor == words.size;
    if (lane == 0 && !ended) {
      state->failed = words.cursor > words.size ? kEarlyEnd : kWrongEnd;
    }
  }
}

__global__ void DequantiseKernel(DecodeBatch batch) {
  const DecodeTileDesc& t = batch.tiles[blockIdx.x];
  const TileState& s = batch.states[blockIdx.x];
  const bool coded = t.mode != kRawMode && s.failed == kGood;
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
        const float centre = n > 3 ? static_cast<float>(n) : batch.tables.centroids[c * 4 + n];
        value = (q < 0 ? -centre : centre) * step[i];
      }
      // |q| of 32,767 at the coarsest step class is beyond fp16.
      to[p] = __float2half_rn(fminf(fmaxf(value, -65504.0f), 65504.0f));
    }
  }
}

__device__ __forceinline__ float LoadAs(int dtype, const uint8_t* p) {
  if (dtype == 3) {
    return __uint_as_float(p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24);
  }
  const uint32_t u = U16(p);
  if (dtype == 1) return __uint_as_float(u << 16);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(u)));
}

__device__ __forceinline__ uint32_t BitsAs(int dtype, float v) {
  if (dtype == 3) return __float_as_uint(v);
  if (dtype == 1) {  // to nearest, ties to even
    const uint32_t u = __float_as_uint(v);
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
  }
  return __half_as_ushort(__float2half_rn(v));
}

__device__ __forceinline__ void StoreBits(int dtype, uint32_t bits, uint8_t* p) {
  if (dtype == 3) {
    if (reinterpret_cast<uintptr_t>(p) % 4 == 0) {
      *reinterpret_cast<uint32_t*>(p) = bits;
      return;
    }
    p[2] = static_cast<uint8_t>(bits >> 16);
    p[3] = static_cast<uint8_t>(bits >> 24);
  } else if (reinterpret_cast<uintptr_t>(p) % 2 == 0) {
    *reinterpret_cast<uint16_t*>(p) = static_cast<uint16_t>(bits);
    return;
  }
  p[0] = static_cast<uint8_t>(bits);
  p[1] = static_cast<uint8_t>(bits >> 8);
}

// Of element e of a row that turns: its partner, and the sign of the sine.
struct Pair {
  int pair, partner;
  float sign;
};
__device__ __forceinline__ Pair PairOf(const DeviceRope& rope, int e) {
  if (rope.style == 1) {  // rotate-half
    const bool low = e < rope.pairs;
    return {low ? e : e - rope.pairs, low ? e + rope.pairs : e - rope.pairs, low ? -1.0f : 1.0f};
  }
  return {e / 2, e ^ 1, e % 2 == 0 ? -1.0f : 1.0f};
}

__global__ void StoreKernel(DecodeBatch batch) {
  const DecodeTileDesc& t = batch.tiles[blockIdx.x];
  const TileState& s = batch.states[blockIdx.x];
  const DeviceGroup& g = batch.groups[t.group];
  if (static_cast<int>(blockIdx.y) >= g.members || s.failed != kGood) return;
  const DeviceMember m = g.member[blockIdx.y];
  if (m.layer < t.layer_begin || m.layer >= t.layer_end) return;
  const DevicePlane plane = t.planes[m.plane - t.first_plane];
  uint8_t* const base = plane.data + m.head * plane.head_stride;
  DeviceRope rope{};
  if (m.rope >= 0) rope = batch.ropes[m.rope];
  const int angles = t.tokens * batch.all_pairs;
  const int element = t.source_dtype == 3 ? 4 : 2;
  const int sinks = t.tokens - t.coded;
  // Elements that were kept: of all tokens (raw) or of the sinks.
  const bool raw = t.mode == kRawMode;
  const int kept = raw ? t.tokens : sinks;
  const uint8_t* const received = t.bytes + t.segment_bytes;
  const uint8_t* const exponents = received;
  const int sink_elements = g.dimensions * sinks;
  const uint8_t* const high = received + g.members * sinks;
  const uint8_t* const low = high + sink_elements;
  const int n = (t.token_end - t.token_begin) * m.head_dim;
  __shared__ uint8_t index_of[kMaxTokens];  // of a token among its kind
  __shared__ bool is_sink[kMaxTokens];
  if (threadIdx.x < 32) {  // sinks are told by position, and so is nothing else
    int coded = 0, kept_so_far = 0;
    if (threadIdx.x == 0) {
      for (int i = 0; i < t.tokens; ++i) {
        is_sink[i] = !raw && t.positions[i] < static_cast<uint32_t>(batch.sinks);
        index_of[i] = static_cast<uint8_t>(raw ? i : is_sink[i] ? kept_so_far++ : coded++);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const int token = t.token_begin + i / m.head_dim, e = i % m.head_dim;
    const bool turns = m.rope >= 0 && e < 2 * rope.pairs;
    const Pair pair = turns ? PairOf(rope, e) : Pair{0, e, 0.0f};
    float v, w = 0;
    uint32_t bits;
    bool done = false;
    if (raw || (is_sink[token] && t.mode == kCodedMode)) {
      const uint8_t* const from =
          received + (static_cast<size_t>(m.offset) * kept +
                      static_cast<size_t>(index_of[token]) * m.head_dim) * element;
      const uint8_t* const p = from + e * element;
      if (!(turns && t.position_offset != 0)) {
        if (t.dtype == t.source_dtype) {  // byte for byte
          bits = U16(p) | (element == 4 ? U16(p + 2) << 16 : 0);
          done = true;
        }
        v = LoadAs(t.source_dtype, p);
      } else {
        double sn, cs;
        sincos(static_cast<double>(t.position_offset) * static_cast<double>(rope.inv_freq[pair.pair]),
               &sn, &cs);
        v = LoadAs(t.source_dtype, p) * static_cast<float>(cs) +
            pair.sign * LoadAs(t.source_dtype, from + pair.partner * element) *
                static_cast<float>(sn);
      }
    } else {
      const float* const mu = g.mu + m.offset;
      if (is_sink[token]) {
        const int row = m.offset * sinks + index_of[token] * m.head_dim;
        int before = 0;  // exponent bytes of the members before this
        before = static_cast<int>(blockIdx.y) * sinks + index_of[token];
        const float step = SinkStep(exponents[before]);
        auto load = [&](int d) {
          const int at = row + d;
          const int u = high[at] << 2 | (low[at / 4] >> at % 4 * 2 & 3);
          return mu[d] + static_cast<float>(u - kSinkBias) * step;
        };
        v = load(e);
        if (turns) w = load(pair.partner);
      } else {
        const __half* const x =
            t.x + static_cast<size_t>(t.column + s.place_of[index_of[token]]) * g.dimensions +
            m.offset;
        v = __half2float(x[e]) + mu[e];
        if (turns) w = __half2float(x[pair.partner]) + mu[pair.partner];
      }
      if (turns) {
        const int at = token * batch.all_pairs + rope.first_angle + pair.pair;
        v = v * t.angles[at] + pair.sign * w * t.angles[angles + at];
      }
    }
    if (!done) bits = BitsAs(t.dtype, v);
    const int to = token - t.token_begin;
    const int64_t offset =
        t.pages == nullptr
            ? to * plane.token_stride
            : t.pages[to / t.page_tokens] + (to % t.page_tokens) * plane.token_stride;
    StoreBits(t.dtype, bits, base + offset + e * plane.dim_stride);
  }
}

// Unused bits after 10-bit sinks must be zero.
__global__ void SinkBitsKernel(DecodeBatch batch) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= batch.tile_count) return;
  const DecodeTileDesc& t = batch.tiles[i];
  if (t.mode != kCodedSinksMode) return;
  const DeviceGroup& g = batch.groups[t.group];
  const int sinks = t.tokens - t.coded;
  const int elements = g.dimensions * sinks;
  const uint8_t* const low = t.bytes + t.segment_bytes + g.members * sinks + elements;
  if (elements % 4 != 0 && low[elements / 4] >> elements % 4 * 2 != 0) {
    batch.states[i].failed = kStraySinkBits;
  }
}

dim3 Blocks(int tiles, int rows) {
  return dim3(tiles, (rows + kRowsPerBlock - 1) / kRowsPerBlock);
}

}  // namespace

cudaError_t LaunchAngles(const DecodeBatch& batch, int tokens, cudaStream_t stream) {
  const int n = tokens * batch.all_pairs;
  if (n == 0) return cudaSuccess;
  AnglesKernel<<<dim3(batch.tile_count, min(8, (n + 255) / 256)), 256, 0, stream>>>(batch);
  return cudaGetLastError();
}

cudaError_t LaunchOpen(const DecodeBatch& batch, cudaStream_t stream) {
  OpenKernel<<<batch.tile_count, 32, 0, stream>>>(batch);
  SinkBitsKernel<<<(batch.tile_count + 127) / 128, 128, 0, stream>>>(batch);
  return cudaGetLastError();
}

cudaError_t LaunchClasses(const DecodeBatch& batch, int rows, cudaStream_t stream) {
  if (rows == 0 || batch.segment_count == 0) return cudaSuccess;
  ClassesKernel<<<Blocks(batch.tile_count, rows), 256, 0, stream>>>(batch);
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
  SegmentsKernel<<<blocks, max(256, warps * 32), kTableShared, stream>>>(batch, warps);
  return cudaGetLastError();
}

cudaError_t LaunchDequantise(const DecodeBatch& batch, int rows, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  DequantiseKernel<<<Blocks(batch.tile_count, rows), 256, 0, stream>>>(batch);
  return cudaGetLastError();
}

cudaError_t LaunchStore(const DecodeBatch& batch, int members, cudaStream_t stream) {
  if (members == 0) return cudaSuccess;
  StoreKernel<<<dim3(batch.tile_count, members), 256, 0, stream>>>(batch);
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
