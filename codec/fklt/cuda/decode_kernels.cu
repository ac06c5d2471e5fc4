#include "codec/fklt/cuda/decode_kernels.h"

#include "codec/cuda/elements_device.h"
#include "codec/fklt/cuda/angles_device.h"
#include "codec/fklt/cuda/lanes_device.h"
#include "device/launch.h"

namespace kvcask::fklt {
namespace {

constexpr unsigned kAll = kAllOfWarp;
constexpr int kMostPrepareThreads = 512;
constexpr float kLargestPlainStep = 65504.0f / 127;

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

// Of one table's tokens and all pairs.
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
    t.angles[i] = PackAngle(c, s);
  }
}

__global__ void AnglesKernel(const AngleBatch batch) {
  // In this order: whoever comes next and begins early finds the batch's inputs, which a copy
  // before this brought.
  AwaitLast();
  LetNextBegin();
  FillAngles(batch.tables[blockIdx.x], batch.ropes, batch.rope_count, batch.all_pairs,
             blockIdx.y * blockDim.x + threadIdx.x, gridDim.y * blockDim.x);
}

// The order of tokens and where rows lie (FORMAT.md 3.1), from the token classes in shared memory:
// amplitudes of n tokens, then their step classes. One warp; lane l looks after step class 6 - l.
// `first_place`: [4][32] in shared memory, to work in. Returns the number of symbols.
__device__ uint32_t Arrange(const DecodeTileDesc& t, const int8_t* classes, uint8_t (*first_place)[32],
                            int lane, TileState* s) {
  const int n = t.coded;
  const uint32_t below = (1u << lane) - 1;
  // Of 32 tokens at a time: how many of each class there are, and a token's number among its own.
  int number[4], own[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) first_place[i][lane] = 0;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = lane + 32 * i;
    const int l = token < n ? kMaxStepClass - classes[n + token] : kMaxRanges;
    own[i] = l < 0 || l > kMaxRanges ? kMaxRanges : l;  // kMaxRanges: not there
    const unsigned same = __match_any_sync(kAll, own[i]);
    number[i] = __popc(same & below);
    if (number[i] == 0) first_place[i][own[i]] = static_cast<uint8_t>(__popc(same));
  }
  __syncwarp();
  // Finer steps first, then in the order of tokens. At most 128 places: a class's end has a byte.
  int end = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) end += first_place[i][lane];
  if (lane >= kMaxRanges) end = 0;
  const bool any = end != 0;
  const int mine = end;
  for (int d = 1; d < 16; d *= 2) {
    const int v = __shfl_up_sync(kAll, end, d);
    if (lane >= d) end += v;
  }
  int at = end - mine;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int here = first_place[i][lane];
    first_place[i][lane] = static_cast<uint8_t>(at);
    at += here;
  }
  __syncwarp();
  bool coarse = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = lane + 32 * i;
    if (own[i] == kMaxRanges) continue;
    const int k = kMaxStepClass - own[i];
    const int place = first_place[i][own[i]] + number[i];
    // CoordinateClass is (5 sigma + term) >> 5, within bounds.
    const float step = StepOf(t.step_exponent, k) * t.y_scale;
    coarse |= !(step <= kLargestPlainStep);
    s->place_of[token] = static_cast<uint8_t>(place);
    s->place[place] = {step,
                       5 * (TokenTerm(classes[token], k) + RowTerm(0, t.step_exponent)) + 528};
  }
  // From the coarsest class up, which is lane 12's: rows [those of the coarser classes that are
  // there, those of this one) have `end` places.
  const int k = kMaxStepClass - lane;
  const int rows =
      lane < kMaxRanges ? t.active.rows[(k < t.kcap ? k : t.kcap) + kMaxStepClass] : 0;
  const int other = max(0, kMaxRanges - 1 - lane);
  const int places = __shfl_sync(kAll, end, other);
  const bool there = __shfl_sync(kAll, static_cast<int>(any), other) != 0 && lane < kMaxRanges;
  int to = __shfl_sync(kAll, rows, other);
  if (!there) to = 0;
  for (int d = 1; d < 16; d *= 2) {
    const int v = __shfl_up_sync(kAll, to, d);
    if (lane >= d) to = max(to, v);
  }
  int from = __shfl_up_sync(kAll, to, 1);
  if (lane == 0) from = 0;
  const bool range = there && to > from;
  const unsigned all = __ballot_sync(kAll, range);
  const uint32_t here = range ? static_cast<uint32_t>(to - from) * places : 0;
  if (range) {
    // symbol / places = 2 symbol * magic >> 32, exactly: there are fewer than 2^21.
    const uint32_t magic = ((1u << 31) + places - 1) / places;
    s->range[__popc(all & below)] = {here, magic, static_cast<uint16_t>(from),
                                     static_cast<uint16_t>(places)};
  }
  uint32_t symbols = here;
  for (int d = 16; d > 0; d /= 2) symbols += __shfl_xor_sync(kAll, symbols, d);
  const uint32_t first = ClassSymbols(n);
  coarse = __any_sync(kAll, coarse);
  if (lane == kMaxRanges - 1) {
    s->coarse = coarse;
    s->range[__popc(all)] = {0, 0, static_cast<uint16_t>(to), 0};
    s->first_symbol = first;
    s->symbols = symbols;
    s->ranges = __popc(all);
  }
  return first + symbols;
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
                        uint8_t (*places)[32], int lane, TileState* state) {
  const DeviceGroup& g = batch.groups[t.group];
  const SegmentDesc& segment = batch.segments[t.first_segment];
  const uint8_t* const p = t.bytes + segment.at;
  const int lanes = segment.lanes;
  uint32_t x, begin = 0;
  if (!OpenLanes(p, segment.bytes, lanes, lane, &x, &begin)) return kBrokenStates;
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
  const uint32_t symbols = Arrange(t, classes, places, lane, state);
  if ((symbols + kGroupSymbols - 1) / kGroupSymbols != static_cast<uint32_t>(t.groups)) {
    return kWrongGroups;
  }
  if (words.cursor > words.size) return kEarlyEnd;
  return StraySinkBits(t, g) ? kStraySinkBits : kGood;
}

// Zeros where a row of y has no coordinate of this tile, in whole sectors of 16 places: what is
// a coordinate, the next kernel writes. By a whole block, after a barrier.
__device__ void ClearRest(const DecodeTileDesc& t, const TileState& s) {
  __shared__ TileRange range[kMaxRanges + 1];
  const int ranges = s.ranges;
  if (static_cast<int>(threadIdx.x) <= ranges) range[threadIdx.x] = s.range[threadIdx.x];
  __syncthreads();
  constexpr int kUnits = kMaxTokens / 8;
  const int first = threadIdx.x % kUnits * 8, apart = blockDim.x / kUnits;  // a thread's rows
  const size_t step = static_cast<size_t>(apart) * t.y_stride;
  // From row `begin` on the sector has places without a coordinate, from `least` on the last one:
  // places never rise with rows.
  const int sector_end = first / 16 * 16 + 16;
  int begin = range[ranges].row, least = begin;
  for (int r = ranges - 1; r >= 0; --r) {
    if (range[r].count < sector_end) begin = range[r].row;
    if (range[r].count < kMaxTokens) least = range[r].row;
  }
  // All lanes go along the same rows, so that a warp writes whole lines.
  int row = threadIdx.x / kUnits + least / apart * apart;
  __half* to = t.y + static_cast<size_t>(row) * t.y_stride + t.column + first;
#pragma unroll 4
  for (; row < t.gemm_rows; row += apart, to += step) {
    if (row >= begin) *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
  }
}

__global__ void __launch_bounds__(kMostPrepareThreads)
    PrepareKernel(const __grid_constant__ DecodeBatch batch) {
  LetNextBegin();
  __shared__ int8_t classes[2 * kMaxTokens];
  __shared__ uint8_t places[4][32];
  __shared__ int failed;
  const DecodeTileDesc& t = batch.tiles[blockIdx.x];
  TileState* const state = batch.states + blockIdx.x;
  if (threadIdx.x < 32) {
    const int f = t.mode == kRawMode
                      ? static_cast<int>(kGood)
                      : OpenTile(batch, t, classes, places, static_cast<int>(threadIdx.x), state);
    if (threadIdx.x == 0) batch.failed[blockIdx.x] = failed = f;
  }
  __syncthreads();
  if (t.mode != kRawMode && failed == kGood) ClearRest(t, *state);
  AwaitLast();  // of the angles nothing is needed here
}

}  // namespace

cudaError_t LaunchAngles(const AngleBatch& batch, int tokens, cudaStream_t stream) {
  const int n = tokens * batch.all_pairs;
  if (n == 0 || batch.count == 0) return cudaSuccess;
  KVCASK_LAUNCH_EARLY(AnglesKernel, dim3(batch.count, min(32, (n + 255) / 256)), 256, 0, stream,
                      batch);
  return cudaGetLastError();
}

cudaError_t LaunchPrepare(const DecodeBatch& batch, cudaStream_t stream) {
  // Of many tiles, more side by side: their first part is one warp's.
  const int threads = batch.tile_count >= 1024 ? 64 : kMostPrepareThreads;
  if (batch.all_pairs == 0) {  // no angles were before it, but the copy that it reads
    KVCASK_LAUNCH(PrepareKernel, batch.tile_count, threads, 0, stream, batch);
  } else {
    KVCASK_LAUNCH_EARLY(PrepareKernel, batch.tile_count, threads, 0, stream, batch);
  }
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
