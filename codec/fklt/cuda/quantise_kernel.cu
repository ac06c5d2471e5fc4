// Token classes, integers and the certificate of a tile: FORMAT.md 5.1 to 5.4.
//
// A block a tile. For integers a thread has a place, that is a token in its order, and a part of the
// rows; for sums along the rows two tokens that lie side by side, and half as large a part.
// Bound: instructions, about 30 a coordinate, and the latency of reads of y: three times the rows in
// use, 2 bytes each, mostly from the caches.
#include <type_traits>

#include "codec/fklt/cuda/encode_kernels.h"
#include "device/launch.h"
#include "device/ptx.h"

namespace kvcask::fklt {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kStepClasses = 13;
constexpr int kFewTiles = 256;

// A class's centroids of 0 to 3 less those integers; the rest, 0.
constexpr int kOffCentre = 5;
constexpr float kWhole = 8388608.0f;  // 2^23: a float's last bit is 1 there

// kParts: of the rows, for each token. Few parts where there are tiles for all multiprocessors, many
// where a tile's time counts.
template <int kParts, int kBlocks>
__global__ void __launch_bounds__(kParts * kMaxTokens, kBlocks)
    QuantiseKernel(const __grid_constant__ EncodeBatch batch) {
  constexpr int kQuantiseThreads = kParts * kMaxTokens;
  // Rows whose loads are under way at once: what registers hold.
  constexpr int kTogether = kBlocks == 1 ? 6 : 3;
  [[maybe_unused]] constexpr int kUnroll = kBlocks == 1 ? 8 : 4;
  LetNextBegin();
  AwaitLast();
  const EncodeTileDesc& t = batch.tiles[blockIdx.x];
  EncodeState* const state = batch.states + blockIdx.x;
  if (state->failed != kEncoded) return;
  const DeviceGroup& g = batch.groups[t.group];
  constexpr int kShares = 2 * kParts;
  __shared__ float sum[kShares][kMaxTokens];
  __shared__ float weight[kMaxTokens];  // by token
  __shared__ int8_t k_of[kMaxTokens];   // by token
  __shared__ uint8_t a_of[kMaxTokens];  // by token
  __shared__ uint8_t token_at[kMaxTokens];
  __shared__ int rows_of[kStepClasses];    // by k + 6
  __shared__ int16_t rows_at[kMaxTokens];  // by place
  __shared__ int counts[kStepClasses];     // of tokens, by k + 6
  __shared__ uint32_t start[kMaxRanges + 1];
  __shared__ uint16_t first_row[kMaxRanges + 1], places[kMaxRanges + 1];
  __shared__ int ranges, kcap, outside;
  __shared__ int warp_counts[4][kStepClasses];  // of tokens, by 32 of them and k + 6
  __shared__ float off_centre[kClasses * kOffCentre];
  const int n = t.coded;
  const int p = threadIdx.x % kMaxTokens, part = threadIdx.x / kMaxTokens;
  const int two = threadIdx.x % (kMaxTokens / 2) * 2, share = threadIdx.x / (kMaxTokens / 2);
  const __half* const y = Opaque(t.y + t.column);
  const __half* const y_two = y + two;
  const size_t stride = t.y_stride;

  // All of y is wanted, soon: a row has two lines.
  for (int r = static_cast<int>(threadIdx.x) / 2; r < t.gemm_rows; r += kQuantiseThreads / 2) {
    PrefetchL2(y + r * stride + threadIdx.x % 2 * (kMaxTokens / 2));
  }

  // Sensitivities.
  {
    float2 eta = make_float2(0, 0);
    const float* const linear = g.sensitivity + 1;
    const float* const square = linear + g.leading;
#pragma unroll kUnroll
    for (int r = share; r < g.leading; r += kShares) {
      const float2 v = LoadTwo(y_two + r * stride);
      const float scale = t.y_scale * g.inverse_sigma[r], c = linear[r], d = square[r];
      const float a = fminf(fmaxf(v.x * scale, -8.0f), 8.0f);
      const float b = fminf(fmaxf(v.y * scale, -8.0f), 8.0f);
      eta.x += (c + d * a) * a;
      eta.y += (c + d * b) * b;
    }
    sum[share][two] = eta.x;  // of a token that is not there: anything
    sum[share][two + 1] = eta.y;
  }
  if (threadIdx.x < kStepClasses) counts[threadIdx.x] = 0;
  if (threadIdx.x == 0) outside = 0;
  for (int i = threadIdx.x; i < kClasses * kOffCentre; i += kQuantiseThreads) {
    const int c = i / kOffCentre, n = i % kOffCentre;
    off_centre[i] = n < 4 ? batch.tables.centroids[c * 4 + n] - static_cast<float>(n) : 0.0f;
  }
  __syncthreads();
  int k_here = -128;  // of token p
  int before = 0;     // tokens of its class before it, among its 32
  if (part == 0) {
    if (p < n) {
      float eta = g.sensitivity[0];
      for (int i = 0; i < kShares; ++i) eta += sum[i][p];
      eta = isfinite(eta) ? fminf(fmaxf(eta, -8.0f), 8.0f) : 0.0f;
      weight[p] = expf(eta);
      k_here = max(-kMaxStepClass,
                   min(kMaxStepClass, static_cast<int>(lrintf(.5f * eta / 0.69314718f))));
      k_of[p] = static_cast<int8_t>(k_here);
    }
    for (int i = 0; i < kStepClasses; ++i) {
      const unsigned mask = __ballot_sync(kAll, k_here == i - kMaxStepClass);
      if (k_here == i - kMaxStepClass) before = __popc(mask & ((1u << p % 32) - 1));
      if (p % 32 == 0) {
        warp_counts[p / 32][i] = __popc(mask);
        if (mask != 0) atomicAdd(&counts[i], __popc(mask));
      }
    }
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
    rows_of[threadIdx.x] = t.active.rows[min(k, kcap) + kMaxStepClass];
  }
  if (part == 0 && p < n) {
    // Finer steps first, then in the order of tokens.
    const int own = k_here + kMaxStepClass;
    int place = before;
    for (int i = own + 1; i < kStepClasses; ++i) place += counts[i];
    for (int w = 0; w < p / 32; ++w) place += warp_counts[w][own];
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
  const int rows0 = t.active.rows[kMaxStepClass];
  const int rows_a = two < n ? rows_of[k_of[two] + 6] : 0;
  const int rows_b = two + 1 < n ? rows_of[k_of[two + 1] + 6] : 0;
  {
    float2 total = make_float2(0, 0);
    const int end = min(rows0, max(rows_a, rows_b));
#pragma unroll kUnroll
    for (int r = share; r < end; r += kShares) {
      const float2 v = LoadTwo(y_two + r * stride);
      const float scale = g.inverse_sigma[r], a = v.x * scale, b = v.y * scale;
      total.x += r < rows_a ? a * a : 0;
      total.y += r < rows_b ? b * b : 0;
    }
    sum[share][two] = total.x;
    sum[share][two + 1] = total.y;
  }
  __syncthreads();
  if (part == 0 && p < n) {
    float total = 0;
    for (int i = 0; i < kShares; ++i) total += sum[i][token];
    total *= t.y_scale * t.y_scale;
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
  uint16_t* const symbols = Opaque(batch.symbols + t.symbols);
  int16_t* const integers = batch.integers + t.symbols;
  float error = 0;
  bool wide = false;
  if (p < n) {
    const int k = k_of[token];
    const int term = 5 * (TokenTerm(a_of[token], k) + RowTerm(0, t.step_exponent)) + 528;
    const float steps = StepOf(-t.step_exponent, -k) * t.y_scale;   // a unit of y has
    const uint32_t apart = kParts * static_cast<uint32_t>(stride);  // of y, a thread's rows
    float squares = 0;                                              // of errors in steps
    const float rounding = t.rounding;
    // `together` rows from `r` on, kParts apart; their symbols are `each` apart.
    const int16_t* const sigma = Opaque(g.sigma);
    const auto quantise = [&](auto together, uint32_t from, int r, uint32_t at, int each) {
      constexpr int kRows = decltype(together)::value;
      float values[kRows];
      int sigmas[kRows];
      // Stores could be to what is loaded: all loads before them.
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        values[i] = __half2float(y[from + i * apart]);
        sigmas[i] = sigma[r + i * kParts];
      }
      bool large = false;  // an integer that has no byte
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int c = max(0, min(kClasses - 1, (5 * sigmas[i] + term) >> 5));
        const float magnitude = fabsf(values[i]) * steps;
        const float a = magnitude + rounding;
        large |= !(a < 128.0f);
        const float whole = __fadd_rz(a, kWhole);  // its last bits are the integer
        const int q = static_cast<int>(__float_as_uint(whole) & 0x7fffff);
        const float e = magnitude - (whole - kWhole) - off_centre[c * kOffCentre + min(q, 4)];
        squares += e * e;
        const int byte = values[i] < 0 ? 128 - q : 128 + q;
        symbols[at + i * each] = static_cast<uint16_t>(c << 8 | (byte & 255));
      }
      if (large) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const float a = fabsf(values[i]) * steps + rounding;
          if (a < 128.0f) continue;
          wide |= !(a < 32768.0f);
          const int q = static_cast<int>(fminf(a, 32767.0f));
          symbols[at + i * each] &= 0xff00;
          integers[at + i * each] = static_cast<int16_t>(values[i] < 0 ? -q : q);
        }
      }
    };
    for (int m = 0; m < ranges && p < places[m]; ++m) {
      const int end = first_row[m + 1], count = places[m], each = kParts * count;
      int r = first_row[m] + part;
      uint32_t from = r * static_cast<uint32_t>(stride) + token;
      uint32_t at = start[m] + static_cast<uint32_t>(part * count) + p;
      for (; r + (kTogether - 1) * kParts < end; r += kTogether * kParts) {
        quantise(std::integral_constant<int, kTogether>(), from, r, at, each);
        from += kTogether * apart;
        at += kTogether * each;
      }
      for (; r < end; r += kParts) {
        quantise(std::integral_constant<int, 1>(), from, r, at, each);
        from += apart;
        at += each;
      }
    }
    const float step = StepOf(t.step_exponent, k);
    error = squares * step * step * weight[token];
  }
  // Of rows that have no integers, and of what has but a sketch.
  {
    float2 rest = make_float2(0, 0), sketched = make_float2(0, 0);
    const int end = min(t.gemm_rows, g.dimensions);
    const int begin = two + 1 < n ? min(rows_a, rows_b) : two < n ? rows_a : end;
#pragma unroll kUnroll
    for (int r = begin + share; r < end; r += kShares) {
      const float2 v = LoadTwo(y_two + r * stride);
      rest.x += r >= rows_a ? v.x * v.x : 0;
      rest.y += r >= rows_b ? v.y * v.y : 0;
    }
    const int sketches = (g.dimensions + 15) / 16 - t.gemm_rows / 16;
    for (int i = share; i < sketches; i += kShares) {
      const float2 v = LoadTwo(y_two + (t.gemm_rows + i) * stride);
      sketched.x += v.x * v.x;
      sketched.y += v.y * v.y;
    }
    const float scale = t.y_scale * t.y_scale, sketch_scale = t.sketch_scale * t.sketch_scale;
    if (two < n) error += (rest.x * scale + sketched.x * sketch_scale) * weight[two];
    if (two + 1 < n) error += (rest.y * scale + sketched.y * sketch_scale) * weight[two + 1];
  }
  if (wide) outside = 1;
  sum[part][p] = error;
  __syncthreads();
  if (part == 0) {
    for (int i = 1; i < kParts; ++i) sum[0][p] += sum[i][p];
    // Token classes, and absent symbols up to the next group of 32.
    const int class_end = ClassSymbols(n);
    for (int i = p; i < class_end; i += kMaxTokens) {
      const int symbol = i < n       ? 40 << 8 | (128 + a_of[i])
                         : i < 2 * n ? 41 << 8 | (128 + k_of[i - n])
                                     : kAbsentSymbol;
      symbols[i] = static_cast<uint16_t>(symbol);
    }
    const uint32_t end = start[ranges];
    const uint32_t padded = (end + kGroupSymbols - 1) / kGroupSymbols * kGroupSymbols;
    for (uint32_t i = end + p; i < padded; i += kMaxTokens) symbols[i] = kAbsentSymbol;
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
    const float predicted = t.kappa * .5f * loss / static_cast<float>(t.tokens) + t.bf16_floor;
    const int groups = static_cast<int>((start[ranges] + kGroupSymbols - 1) / kGroupSymbols);
    const SegmentCut cut = CutSegments(groups, batch.step_limit_shift);
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
      t.out[1] = static_cast<uint8_t>((kcap + kMaxStepClass) | t.table_set << 4 |
                                      batch.step_limit_shift << 6);
      t.out[2] = static_cast<uint8_t>(step);
      t.out[3] = static_cast<uint8_t>(step >> 8);
      t.out[4] = static_cast<uint8_t>(groups);
      t.out[5] = static_cast<uint8_t>(groups >> 8);
    }
  }
}

}  // namespace

cudaError_t LaunchQuantise(const EncodeBatch& batch, cudaStream_t stream) {
  if (batch.tile_count < kFewTiles) {
    KVCASK_LAUNCH_EARLY((QuantiseKernel<8, 1>), batch.tile_count, 8 * kMaxTokens, 0, stream, batch);
  } else {
    KVCASK_LAUNCH_EARLY((QuantiseKernel<4, 3>), batch.tile_count, 4 * kMaxTokens, 0, stream, batch);
  }
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
