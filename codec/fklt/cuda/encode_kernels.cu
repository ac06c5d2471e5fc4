#include "codec/fklt/cuda/encode_kernels.h"

#include "device/launch.h"

namespace kvcask::fklt {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kQuantiseThreads = 512;
constexpr int kParts = kQuantiseThreads / kMaxTokens;  // of the rows, for each token
constexpr int kStepClasses = 13;

// FORMAT.md 5.1 to 5.4 of one tile.
__global__ void __launch_bounds__(kQuantiseThreads, 3) QuantiseKernel(EncodeBatch batch) {
  const EncodeTileDesc& t = batch.tiles[blockIdx.x];
  EncodeState* const state = batch.states + blockIdx.x;
  if (state->failed != kEncoded) return;
  const DeviceGroup& g = batch.groups[t.group];
  __shared__ float sum[kParts][kMaxTokens];
  __shared__ float weight[kMaxTokens];     // by token
  __shared__ int8_t k_of[kMaxTokens];      // by token
  __shared__ uint8_t a_of[kMaxTokens];     // by token
  __shared__ uint8_t token_at[kMaxTokens];
  __shared__ int rows_of[kStepClasses];    // by k + 6
  __shared__ int16_t rows_at[kMaxTokens];  // by place
  __shared__ int counts[kStepClasses];     // of tokens, by k + 6
  __shared__ uint32_t start[kMaxRanges + 1];
  __shared__ uint16_t first_row[kMaxRanges + 1], places[kMaxRanges + 1];
  __shared__ int ranges, kcap, outside;
  const int n = t.coded;
  const int p = threadIdx.x % kMaxTokens, part = threadIdx.x / kMaxTokens;
  const float* const y = t.y + t.column;
  const size_t stride = t.y_stride;

  // Sensitivities.
  {
    float eta = 0;
    if (p < n) {
#pragma unroll 4
      for (int r = part; r < g.leading; r += kParts) {
        float u = y[r * stride + p] * t.y_scale * g.inverse_sigma[r];
        u = fminf(fmaxf(u, -8.0f), 8.0f);
        eta += (g.sensitivity[1 + r] + g.sensitivity[1 + g.leading + r] * u) * u;
      }
    }
    sum[part][p] = eta;
  }
  if (threadIdx.x < kStepClasses) counts[threadIdx.x] = 0;
  if (threadIdx.x == 0) outside = 0;
  __syncthreads();
  if (part == 0 && p < n) {
    float eta = g.sensitivity[0];
    for (int i = 0; i < kParts; ++i) eta += sum[i][p];
    eta = isfinite(eta) ? fminf(fmaxf(eta, -8.0f), 8.0f) : 0.0f;
    weight[p] = expf(eta);
    const int k = max(-kMaxStepClass, min(kMaxStepClass, static_cast<int>(lrintf(
                                                             .5f * eta / 0.69314718f))));
    k_of[p] = static_cast<int8_t>(k);
    atomicAdd(&counts[k + kMaxStepClass], 1);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int most = kMaxStepClass;
    while (counts[most + kMaxStepClass] == 0) --most;
    kcap = min(most, t.kcap_most);
  }
  __syncthreads();
  if (threadIdx.x < kStepClasses) {
    const int k = static_cast<int>(threadIdx.x) - kMaxStepClass;
    rows_of[threadIdx.x] =
        ActiveRows(g.sigma, g.dimensions, t.step_exponent, min(k, kcap), t.threshold);
  }
  if (part == 0 && p < n) {
    int place = 0;
    for (int i = 0; i < n; ++i) place += k_of[i] > k_of[p] || (k_of[i] == k_of[p] && i < p);
    token_at[place] = static_cast<uint8_t>(p);
  }
  __syncthreads();
  if (part == 0 && p < n) rows_at[p] = static_cast<int16_t>(rows_of[k_of[token_at[p]] + 6]);
  if (threadIdx.x == 0) {
    uint32_t at = ClassSymbols(n);
    int from = 0, m = 0, end = n;
    for (int k = 0; k < kStepClasses; ++k) {  // from the coarsest class up
      if (counts[k] == 0) continue;
      const int to = rows_of[k];
      if (to > from) {
        first_row[m] = static_cast<uint16_t>(from);
        start[m] = at;
        places[m] = static_cast<uint16_t>(end);
        ++m;
        at += static_cast<uint32_t>(to - from) * end;
        from = to;
      }
      end -= counts[k];
    }
    first_row[m] = static_cast<uint16_t>(from);
    start[m] = at;
    places[m] = 0;
    ranges = m;
  }
  __syncthreads();
  const int token = p < n ? token_at[p] : 0;
  const int my_rows = p < n ? rows_at[p] : 0;

  // Amplitudes, from rows that a token of class 0 has.
  const int rows0 = ActiveRows(g.sigma, g.dimensions, t.step_exponent, 0, t.threshold);
  {
    float total = 0;
    const int end = min(rows0, my_rows);
#pragma unroll 4
    for (int r = part; r < end; r += kParts) {
      const float u = y[r * stride + token] * t.y_scale * g.inverse_sigma[r];
      total += u * u;
    }
    sum[part][p] = total;
  }
  __syncthreads();
  if (part == 0 && p < n) {
    float total = 0;
    for (int i = 0; i < kParts; ++i) total += sum[i][p];
    const int m = min(rows0, my_rows);
    int a = 8;
    if (m > 0) {
      const float mean = fminf(fmaxf(total / static_cast<float>(m), 1e-30f), 1e30f);
      a = static_cast<int>(lrintf(log2f(mean))) + 8;
    }
    a_of[token] = static_cast<uint8_t>(max(0, min(15, a)));
  }
  __syncthreads();

  // Integers, and the energy of all errors.
  uint8_t* const classes = batch.classes + t.symbols;
  int16_t* const symbols = batch.symbols + t.symbols;
  float error = 0;
  bool wide = false;
  if (p < n) {
    const int k = k_of[token];
    const int term = TokenTerm(a_of[token], k);
    const float step = StepOf(t.step_exponent, k), inverse = StepOf(-t.step_exponent, -k);
    int range = 0;
    // Loads of four rows are under way before the first is stored: stores could be to what is loaded.
    constexpr int kTogether = 4;
    for (int first = part; first < my_rows; first += kTogether * kParts) {
      float values[kTogether];
      int sigmas[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int r = min(first + i * kParts, my_rows - 1);
        values[i] = y[r * stride + token] * t.y_scale;
        sigmas[i] = g.sigma[r];
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int r = first + i * kParts;
        if (r >= my_rows) break;
        while (first_row[range + 1] <= r) ++range;
        const uint32_t at =
            start[range] + static_cast<uint32_t>(r - first_row[range]) * places[range] + p;
        const float v = values[i];
        const int c = CoordinateClass(RowTerm(sigmas[i], t.step_exponent), term);
        const float magnitude = fabsf(v);
        float a = magnitude * inverse + t.rounding;
        if (!(a < 32768.0f)) {
          wide = true;
          a = 0;
        }
        const int q = static_cast<int>(a);
        const float value = q > 3 ? static_cast<float>(q) : batch.tables.centroids[c * 4 + q];
        const float e = magnitude - value * step;
        error += e * e;
        classes[at] = static_cast<uint8_t>(c);
        symbols[at] = static_cast<int16_t>(v < 0 ? -q : q);
      }
    }
#pragma unroll 4
    for (int r = my_rows + part; r < min(t.gemm_rows, g.dimensions); r += kParts) {
      const float v = y[r * stride + token] * t.y_scale;
      error += v * v;
    }
    const int sketches = (g.dimensions + 15) / 16 - t.gemm_rows / 16;
    for (int i = part; i < sketches; i += kParts) {
      const float v = y[(t.gemm_rows + i) * stride + token] * t.sketch_scale;
      error += v * v;
    }
  }
  if (wide) outside = 1;
  sum[part][p] = p < n ? error * weight[token] : 0.0f;
  __syncthreads();
  if (part == 0) {
    for (int i = 1; i < kParts; ++i) sum[0][p] += sum[i][p];
    // Token classes, and absent symbols up to the next group of 32.
    const int class_end = ClassSymbols(n);
    for (int i = p; i < class_end; i += kMaxTokens) {
      const int which = i < n ? 0 : i < 2 * n ? 1 : 2;
      classes[i] = static_cast<uint8_t>(which == 0 ? 40 : which == 1 ? 41 : kAbsent);
      symbols[i] = which == 0 ? a_of[i] : which == 1 ? k_of[i - n] : 0;
    }
    const uint32_t end = start[ranges];
    const uint32_t padded = (end + kGroupSymbols - 1) / kGroupSymbols * kGroupSymbols;
    for (uint32_t i = end + p; i < padded; i += kMaxTokens) {
      classes[i] = kAbsent;
      symbols[i] = 0;
    }
  }
  __syncthreads();
  if (threadIdx.x < 32) {  // places without a token have 0
    float loss = 0;
    for (int i = threadIdx.x; i < kMaxTokens; i += 32) loss += sum[0][i];
    for (int d = 16; d > 0; d /= 2) loss += __shfl_xor_sync(kAll, loss, d);
    if (threadIdx.x == 0) sum[0][0] = loss;
  }
  if (threadIdx.x == 0) {
    const float loss = sum[0][0];
    const float predicted =
        t.kappa * .5f * loss / static_cast<float>(t.tokens) + t.bf16_floor;
    const int groups = static_cast<int>((start[ranges] + kGroupSymbols - 1) / kGroupSymbols);
    const SegmentCut cut = CutSegments(groups, 0);
    state->predicted = predicted;
    state->groups = groups;
    state->segments = cut.segments;
    state->groups_each = cut.groups_each;
    if (outside) {
      state->failed = kTooWide;
    } else if (!(predicted <= t.largest_kld)) {
      state->failed = kOverFloor;
    } else if (groups > kMaxGroups || cut.segments > batch.segments_most) {
      state->failed = kTooLong;
    }
    const uint32_t head = kHeaderBytes + 2 * static_cast<uint32_t>(cut.segments - 1);
    if (head > t.limit) {
      state->failed = kTooLong;
    } else {
      const uint16_t step = static_cast<uint16_t>(t.step_exponent);
      t.out[0] = kCodedMode;
      t.out[1] = static_cast<uint8_t>((kcap + kMaxStepClass) | t.table_set << 4);
      t.out[2] = static_cast<uint8_t>(step);
      t.out[3] = static_cast<uint8_t>(step >> 8);
      t.out[4] = static_cast<uint8_t>(groups);
      t.out[5] = static_cast<uint8_t>(groups >> 8);
    }
  }
}

// Words are pushed from the scratch's end down; a step's in rising lane order.
struct Pusher {
  uint8_t* end;      // of the scratch
  uint32_t cursor;   // words pushed
  uint32_t most;
  __device__ __forceinline__ void Push(bool mine, uint32_t word, int lane) {
    const unsigned mask = __ballot_sync(kAll, mine);
    if (mask == 0) return;
    const uint32_t count = __popc(mask);
    if (mine && cursor + count <= most) {
      const uint32_t above = __popc(mask >> lane) - 1;  // lanes after this one
      reinterpret_cast<uint16_t*>(end)[-static_cast<int>(cursor + above) - 1] =
          static_cast<uint16_t>(word);
    }
    cursor += count;
  }
};

// A symbol and what its class makes of it: asked for before the chain of states needs it.
struct Coming {
  uint32_t code;        // TableSet::encode(): its frequency is 0 where the symbol is not plain
  uint32_t multiplier;
  int symbol;           // class | integer << 8
};
constexpr int kSteps = 4;  // of a lane, at a time

__device__ __forceinline__ Coming Ask(const DeviceTables& tables, const uint8_t* shifts,
                                      int symbol) {
  const int c = symbol & 255, v = symbol >> 8;
  if (c == kAbsent || shifts[c] != 0 || v < -127 || v > 127) return {0, 0, symbol};
  const int at = c * 256 + v + 128;
  return {__ldg(tables.encode + at), __ldg(tables.multiplier + at), symbol};
}

// One step of any kind: FORMAT.md 3.3, backwards.
__device__ __forceinline__ uint32_t FullStep(const DeviceTables& tables, const uint8_t* shifts,
                                             int symbol, bool mine, int lane, uint32_t x,
                                             Pusher* words) {
  const int c = symbol & 255, q = symbol >> 8;
  const bool there = mine && c != kAbsent;
  int shift = 0;
  uint32_t at = 0, e = 0, multiplier = 0;
  bool escape = false;
  if (there) {
    shift = shifts[c];
    const int v = q >> shift;
    at = c * 256 + v + 128;
    escape = v < -127 || v > 127 || ((e = __ldg(tables.encode + at)) & 0x1fff) == 0;
    if (escape) e = __ldg(tables.encode + (at = c * 256));
    multiplier = __ldg(tables.multiplier + at);
  }
  words->Push(escape, static_cast<uint16_t>(q), lane);
  const bool shifted = there && shift != 0 && !escape;
  if (__any_sync(kAll, shifted)) {
    const bool full = shifted && x >> (28 - shift) != 0;
    words->Push(full, x & 0xffff, lane);
    if (full) x >>= 16;
    if (shifted) x = x << shift | (static_cast<uint32_t>(q) & ((1u << shift) - 1));
  }
  const uint32_t f = e & 0x1fff;
  const bool full = there && x >= f << 16;
  words->Push(full, x & 0xffff, lane);
  if (full) x >>= 16;
  if (there) {
    const uint32_t d =
        static_cast<uint32_t>(static_cast<uint64_t>(x) * multiplier >> (28 + (e >> 25)));
    x = (d << 12) + (x - d * f) + (e >> 13 & 0xfff);
  }
  return x;
}

__global__ void __launch_bounds__(kEncodeWarps * 32) EncodeSegmentsKernel(EncodeBatch batch) {
  __shared__ uint8_t shifts[kAllTables];
  if (threadIdx.x < kAllTables) shifts[threadIdx.x] = batch.tables.shift[threadIdx.x];
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int index = blockIdx.x * kEncodeWarps + warp;
  if (index >= batch.tile_count * batch.segments_most) return;
  const int tile = index / batch.segments_most, number = index % batch.segments_most;
  const EncodeTileDesc& t = batch.tiles[tile];
  EncodeState* const state = batch.states + tile;
  // Other segments' warps may set it meanwhile: all lanes must see the same.
  if (__any_sync(kAll, *static_cast<volatile int*>(&state->failed) != kEncoded)) return;
  if (number >= state->segments) return;
  const int group = number * state->groups_each;
  const int groups = min(state->groups_each, state->groups - group);
  const int count = groups * kGroupSymbols;
  int lanes = 1;
  while (lanes < 32 && lanes * kMaxLaneSteps < count) lanes *= 2;
  const uint8_t* const classes = batch.classes + t.symbols + group * kGroupSymbols;
  const int16_t* const symbols = batch.symbols + t.symbols + group * kGroupSymbols;
  uint8_t* const scratch = t.scratch + static_cast<size_t>(number) * kSegmentScratch;
  Pusher words{scratch + kSegmentScratch, 0, (kSegmentScratch - 512) / 2};
  uint32_t x = 1u << 12;
  const bool mine = lane < lanes;
  const DeviceTables& tables = batch.tables;
  // Steps [.., j] downwards; symbols come two rounds, their codes one round ahead of the chain.
  int far[kSteps];
  Coming next[kSteps];
  const auto read = [&](int j) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int at = j - i * lanes;
      far[i] = mine && at >= 0 ? classes[at + lane] | symbols[at + lane] * 256 : kAbsent;
    }
  };
  const auto ask = [&] {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) next[i] = Ask(tables, shifts, far[i]);
  };
  read(count - lanes);
  ask();
  read(count - (1 + kSteps) * lanes);
  for (int j = count - lanes; j >= 0; j -= kSteps * lanes) {
    Coming now[kSteps];
    bool plain = j >= (kSteps - 1) * lanes && words.cursor + kSteps * 32 <= words.most;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      now[i] = next[i];
      plain &= !mine || (now[i].code & 0x1fff) != 0;
    }
    ask();
    read(j - 2 * kSteps * lanes);
    if (__all_sync(kAll, plain)) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const uint32_t e = now[i].code, f = e & 0x1fff;
        const bool full = mine && x >= f << 16;
        const unsigned mask = __ballot_sync(kAll, full);
        if (full) {
          reinterpret_cast<uint16_t*>(words.end)[-static_cast<int>(
              words.cursor + __popc(mask >> lane))] = static_cast<uint16_t>(x);
          x >>= 16;
        }
        words.cursor += __popc(mask);
        const uint32_t d = static_cast<uint32_t>(static_cast<uint64_t>(x) * now[i].multiplier >>
                                                 (28 + (e >> 25)));
        const uint32_t after = d * (4096 - f) + x + (e >> 13 & 0xfff);
        x = mine ? after : x;
      }
      continue;
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (j - i * lanes < 0) break;
      x = FullStep(tables, shifts, now[i].symbol, mine, lane, x, &words);
    }
  }
  // States: exponents, then mantissas as one bit string (FORMAT.md 3.4). At the scratch's front,
  // which the words never reach.
  if (words.cursor > words.most) {
    if (lane == 0) state->failed = kTooLong;
    return;
  }
  const int exponent = 31 - __clz(x) - 12;
  const int other = __shfl_down_sync(kAll, exponent, 1);
  const uint32_t head = (lanes + 1) / 2;
  if (mine && lane % 2 == 0) {
    scratch[lane / 2] =
        static_cast<uint8_t>(exponent | (lane + 1 < lanes ? other << 4 : 0));
  }
  const int length = mine ? exponent + 12 : 0;
  int end = length;
  for (int d = 1; d < 32; d *= 2) {
    const int v = __shfl_up_sync(kAll, end, d);
    if (lane >= d) end += v;
  }
  const int total = __shfl_sync(kAll, end, 31);
  const uint32_t begin = (head + (total + 7) / 8 + 1) / 2 * 2;
  // 112 bytes of mantissas at most: gathered in shared memory bit by bit would be slow, so each
  // lane adds its bits to 32-bit words.
  __shared__ uint32_t bits[kEncodeWarps][32];
  bits[warp][lane] = 0;
  __syncwarp();
  if (mine) {
    const int bit = end - length;
    const uint64_t value = static_cast<uint64_t>(x & ((1u << length) - 1)) << (bit % 32);
    atomicOr(&bits[warp][bit / 32], static_cast<uint32_t>(value));
    if (value >> 32 != 0) atomicOr(&bits[warp][bit / 32 + 1], static_cast<uint32_t>(value >> 32));
  }
  __syncwarp();
  for (uint32_t i = head + lane; i < begin; i += 32) {
    const uint32_t b = i - head;
    scratch[i] = static_cast<uint8_t>(bits[warp][b / 4] >> (b % 4 * 8));
  }
  if (lane == 0) batch.segment_bytes[index] = begin | words.cursor << 10;
}

__global__ void AssembleKernel(EncodeBatch batch) {
  const EncodeTileDesc& t = batch.tiles[blockIdx.x];
  EncodeState* const state = batch.states + blockIdx.x;
  if (state->failed != kEncoded) return;
  const uint32_t* const sizes = batch.segment_bytes + static_cast<size_t>(blockIdx.x) *
                                                          batch.segments_most;
  uint32_t at = kHeaderBytes + 2 * static_cast<uint32_t>(state->segments - 1);
  bool fits = true;
  for (int s = 0; s < state->segments; ++s) {
    const uint32_t begin = sizes[s] & 1023, words = sizes[s] >> 10;
    const uint32_t bytes = begin + 2 * words;
    if (bytes > t.limit - at || bytes / 2 > 0xffff) {
      fits = false;
      break;
    }
    const uint8_t* const scratch = t.scratch + static_cast<size_t>(s) * kSegmentScratch;
    for (uint32_t i = threadIdx.x; i < begin; i += blockDim.x) t.out[at + i] = scratch[i];
    const uint16_t* const from =
        reinterpret_cast<const uint16_t*>(scratch + kSegmentScratch) - words;
    // Header and sizes are even, and so is every segment: words stay aligned.
    uint16_t* const to = reinterpret_cast<uint16_t*>(t.out + at + begin);
    for (uint32_t i = threadIdx.x; i < words; i += blockDim.x) to[i] = from[i];
    if (threadIdx.x == 0 && s + 1 < state->segments) {
      t.out[kHeaderBytes + 2 * s] = static_cast<uint8_t>(bytes / 2);
      t.out[kHeaderBytes + 2 * s + 1] = static_cast<uint8_t>(bytes / 2 >> 8);
    }
    at += bytes;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    state->bytes = at;
    if (!fits) state->failed = kTooLong;
  }
}

}  // namespace

cudaError_t LaunchQuantise(const EncodeBatch& batch, cudaStream_t stream) {
  KVCASK_LAUNCH(QuantiseKernel, batch.tile_count, kQuantiseThreads, 0, stream, batch);
  return cudaGetLastError();
}

cudaError_t LaunchEncodeSegments(const EncodeBatch& batch, cudaStream_t stream) {
  const int n = batch.tile_count * batch.segments_most;
  KVCASK_LAUNCH(EncodeSegmentsKernel, (n + kEncodeWarps - 1) / kEncodeWarps, kEncodeWarps * 32,
                0, stream, batch);
  return cudaGetLastError();
}

cudaError_t LaunchAssemble(const EncodeBatch& batch, cudaStream_t stream) {
  KVCASK_LAUNCH(AssembleKernel, batch.tile_count, 256, 0, stream, batch);
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
