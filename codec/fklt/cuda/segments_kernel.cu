// rANS: symbols of segments to coordinates of the tile, in fp16.
//
// A warp a segment. What decides the time of one segment is the chain of steps, each of which needs
// the state that the last one left; what decides that of many is instructions. So:
// - Tables of all classes are in shared memory, in two parts: which symbol a slot is (a byte), and of
//   each symbol its frequency, where it begins and its value. Both addresses are the class's begin
//   with bits of the state.
// - Where a symbol goes, and its class, depend on its number alone: what they are worked out from is
//   asked for four steps ahead of the chain.
// - Words come from a ring in shared memory that is filled 128 words at a time.
// - Four steps are done as if all symbols were plain. Where one was an escape, the state before them
//   comes back and they are done again with all that the format has; so are four steps with a class
//   of shifted symbols, and a segment's last ones.
#include "codec/fklt/cuda/decode_kernels.h"
#include "codec/fklt/cuda/lanes_device.h"
#include "device/launch.h"

namespace kvcask::fklt {
namespace {

constexpr unsigned kAll = kAllOfWarp;
constexpr int kMaxWarps = 24;
constexpr int kSteps = 4;  // done at a time
constexpr uint32_t kSlots = kTableSlots - 1;
constexpr uint32_t kRingBytes = 512;
constexpr uint32_t kIndexBytes = kClasses * kTableSlots;
constexpr uint32_t kEntriesAt = kIndexBytes;
constexpr uint32_t kRingsAt = kEntriesAt + kMostEntries * sizeof(SymbolEntry);
constexpr uint32_t kSharedBytes = kRingsAt + kMaxWarps * kRingBytes;
static_assert(kRingsAt % kRingBytes == 0);
static_assert(kSharedBytes <= 226 * 1024);

// The words of one segment: those that come next, in a ring of 256 in shared memory.
struct Words {
  const uint8_t* at;
  uint32_t size;         // words
  uint32_t ring;         // begins there, in shared memory
  uint32_t cursor;       // of the next word, in bytes
  uint32_t filled;       // up to here they are in the ring, in bytes
  uint32_t next[4];      // those of this lane that follow; not joined before they are needed

  __device__ __forceinline__ uint32_t One(uint32_t i) const {
    return i < size ? at[2 * i] | at[2 * i + 1] << 8 : 0;
  }
  __device__ __forceinline__ void Load(int lane) {
    const uint32_t i = filled / 2 + 4 * lane;
    if (i + 4 <= size && (reinterpret_cast<uintptr_t>(at) & 1) == 0) {
      const uint16_t* const p = reinterpret_cast<const uint16_t*>(at) + i;
#pragma unroll
      for (int k = 0; k < 4; ++k) next[k] = p[k];
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) next[k] = One(i + k);
    }
  }
  __device__ void Start(const uint8_t* p, uint32_t words, uint32_t begin, uint32_t ring_at,
                        int lane) {
    at = p;
    size = words;
    ring = ring_at;
    cursor = 2 * begin;
    filled = 2 * (begin & ~127u);  // whole parts of the ring
    Load(lane);
  }
  // At least 128 words are in the ring. All lanes call.
  __device__ __forceinline__ void Fill(uint8_t* shared, int lane) {
    while (static_cast<int>(filled - cursor) < 256) {
      __syncwarp();  // who still reads what goes
      *reinterpret_cast<uint2*>(shared + ring + ((filled + 8 * lane) & (kRingBytes - 1))) =
          make_uint2(next[0] | next[1] << 16, next[2] | next[3] << 16);
      filled += 256;
      Load(lane);
      __syncwarp();
    }
  }
};

// Where a lane's symbols go, one after another.
struct Walk {
  const TileState* state;
  const int16_t* sigma;
  uint32_t symbol;       // of the range
  uint32_t end, row, count, magic;  // of the range
  int range;

  __device__ __forceinline__ void Enter(int r) {
    range = r;
    const TileRange g = state->range[r];
    end = g.symbols;
    row = g.row;
    count = g.count;
    magic = g.magic;
  }
  // `at`: in the tile, from the first coordinate's on.
  __device__ __forceinline__ void Start(const TileState* s, const int16_t* sigmas, uint32_t at) {
    state = s;
    sigma = sigmas;
    symbol = at - s->first_symbol;
    Enter(0);
    Settle();
  }
  __device__ __forceinline__ void Settle() {
    while (symbol >= end && range < state->ranges) {
      symbol -= end;
      Enter(range + 1);  // the last one has no end
    }
  }
};

// A symbol on its way: what its class is worked out from, when that has come from memory.
struct Coming {
  TilePlace place;
  int sigma;
  uint32_t to;
};
struct Symbol {
  uint32_t index;    // of its class's slots, in shared memory: class << 12
  uint32_t entries;  // DeviceTables::class_entries of its class
  uint32_t to;       // in y
  float scale;
};

// Asks for the walk's next symbol, which must be there.
__device__ __forceinline__ Coming Ask(Walk* w, uint32_t y_stride, uint32_t lanes) {
  const uint32_t in_range = __umulhi(2 * w->symbol, w->magic);
  const uint32_t place = w->symbol - in_range * w->count;
  const uint32_t row = w->row + in_range;
  w->symbol += lanes;
  w->Settle();
  return {w->state->place[place], w->sigma[row], row * y_stride + place};
}
__device__ __forceinline__ Symbol Arrived(const Coming& c, const uint32_t* class_entries) {
  const int number = max(0, min(kClasses - 1, (5 * c.sigma + c.place.term) >> 5));
  return {static_cast<uint32_t>(number) << 12, class_entries[number], c.to, c.place.step};
}

__device__ __forceinline__ __half Rounded(float v) {
  // |q| of 32,767 at the coarsest step class is beyond fp16.
  return __float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f));
}

// Appends the next words to the states of lanes with `need`, in rising order; at most 32. `cursor` is
// in bytes, of the ring that begins at `ring`.
__device__ __forceinline__ void Take(const uint8_t* shared, uint32_t ring, bool need,
                                     uint32_t below, uint32_t* cursor, uint32_t* x) {
  const unsigned mask = __ballot_sync(kAll, need);
  const uint32_t from = ((*cursor + 2 * __popc(mask & below)) & (kRingBytes - 1)) | ring;
  const uint32_t word = *reinterpret_cast<const uint16_t*>(shared + from);  // no branch
  *x = need ? *x << 16 | word : *x;
  *cursor += 2 * __popc(mask);
}

// One step of any kind, from a state and a cursor to those after it. By value: what has an address
// is not in registers.
__device__ __attribute__((noinline)) uint2 FullStep(const DeviceTables& tables,
                                                    const uint8_t* shared, uint32_t ring, Symbol s,
                                                    bool there, uint32_t below, __half* y,
                                                    uint32_t x, uint32_t cursor) {
  const uint32_t c = s.index >> 12;
  int v = 0, shift = 0;
  float value = 0;
  if (there) {
    const uint32_t slot = x & kSlots;
    if (s.entries != kNoEntries) {
      const SymbolEntry e = *reinterpret_cast<const SymbolEntry*>(
          shared + kEntriesAt + (s.entries & 0xffff) + shared[s.index | slot] * sizeof(SymbolEntry));
      x = ((e.code >> 20) + 1) * (x >> 12) + slot - (e.code & 4095);
      v = static_cast<int8_t>(e.code >> 12);
      value = e.value;
      shift = static_cast<int>(s.entries >> 16);
    } else {
      const uint32_t e = __ldg(tables.decode + c * kTableSlots + slot);
      x = ((e >> 8 & 4095) + 1) * (x >> 12) + (e >> 20);
      v = static_cast<int8_t>(e & 255);
      shift = tables.shift[c];
    }
  }
  Take(shared, ring, there && x < 4096, below, &cursor, &x);
  const bool escape = there && v == -128;
  const bool shifted = there && shift != 0 && !escape;
  if (shifted) {
    v = v * (1 << shift) + static_cast<int>(x & ((1u << shift) - 1));
    x >>= shift;
  }
  Take(shared, ring, shifted && x < 4096, below, &cursor, &x);
  uint32_t whole = 0;
  Take(shared, ring, escape, below, &cursor, &whole);
  if (escape) v = static_cast<int16_t>(whole & 0xffff);
  if (shift != 0 || escape || s.entries == kNoEntries) {
    const int n = abs(v);
    const float centre = n > 3 ? static_cast<float>(n) : tables.centroids[c * 4 + n];
    value = v < 0 ? -centre : centre;
  }
  if (there) y[s.to] = Rounded(value * s.scale);
  return make_uint2(x, cursor);
}

__global__ void __launch_bounds__(kMaxWarps * 32)
    SegmentsKernel(const __grid_constant__ DecodeBatch batch, int warps) {
  KVCASK_DYNAMIC_SHARED(shared);
  __shared__ uint32_t class_entries[kClasses];
  if (threadIdx.x < kClasses) class_entries[threadIdx.x] = batch.tables.class_entries[threadIdx.x];
  {
    const uint4* const index = reinterpret_cast<const uint4*>(batch.tables.index);
    const uint4* const entry = reinterpret_cast<const uint4*>(batch.tables.entry);
    uint4* const to = reinterpret_cast<uint4*>(shared);
    constexpr int kIndex = kIndexBytes / 16;
    const int entries = (batch.tables.entries * static_cast<int>(sizeof(SymbolEntry)) + 15) / 16;
#pragma unroll 4
    for (int i = threadIdx.x; i < kIndex; i += blockDim.x) to[i] = index[i];
#pragma unroll 4
    for (int i = threadIdx.x; i < entries; i += blockDim.x) to[kIndex + i] = entry[i];
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp >= warps) return;
  const uint32_t below = (1u << lane) - 1;
  const DeviceTables& tables = batch.tables;
  for (int n = blockIdx.x * warps + warp; n < batch.segment_count; n += gridDim.x * warps) {
    const SegmentDesc s = batch.segments[batch.first_segment + n];
    const DecodeTileDesc& t = batch.tiles[s.tile - batch.first_tile];
    const TileState* const state = batch.states + (s.tile - batch.first_tile);
    int* const failed = batch.failed + (s.tile - batch.first_tile);
    // Another segment's warp may set it meanwhile: all lanes must see the same.
    if (__any_sync(kAll, *static_cast<volatile int*>(failed) != kGood)) continue;
    const uint8_t* const p = t.bytes + s.at;
    const uint32_t lanes = s.lanes, ring = kRingsAt + warp * kRingBytes;
    uint32_t x, j = 0;
    Words words;
    if (s.first == 0) {  // the token classes are done
      x = state->x[lane];
      words.Start(p, s.bytes / 2, state->cursor, ring, lane);
      j = ClassSymbols(t.coded);
    } else {
      uint32_t begin = 0;
      if (!OpenLanes(p, s.bytes, s.lanes, lane, &x, &begin)) {
        if (lane == 0) *failed = kBrokenStates;
        continue;
      }
      words.Start(p + begin, (s.bytes - begin) / 2, 0, ring, lane);
    }
    // Symbols [j, end) of the segment are coordinates.
    const uint32_t last = state->first_symbol + state->symbols;
    const uint32_t end = min(s.symbols, last - min(last, s.first));
    const bool mine = lane < static_cast<int>(lanes);
    const uint32_t stride = t.y_stride;
    __half* const y = t.y + t.column;
    // Lanes without a part do what lane 0 does, and keep nothing of it.
    const uint32_t my = mine ? lane : 0;
    Walk walk;
    walk.Start(state, batch.groups[t.group].sigma, s.first + j + my);
    Coming next[kSteps] = {};
    const auto look_ahead = [&](uint32_t from) {
      if (from + kSteps * lanes <= end) {
#pragma unroll
        for (int i = 0; i < kSteps; ++i) next[i] = Ask(&walk, stride, lanes);
      } else {
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          if (from + i * lanes + my < end) next[i] = Ask(&walk, stride, lanes);
        }
      }
    };
    look_ahead(j);
    for (; j < end && words.cursor <= 2 * words.size; j += kSteps * lanes) {
      Symbol now[kSteps];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) now[i] = Arrived(next[i], class_entries);
      look_ahead(j + kSteps * lanes);
      words.Fill(shared, lane);
      bool plain = j + kSteps * lanes <= end;
      if (plain) {
        bool other = false;
#pragma unroll
        for (int i = 0; i < kSteps; ++i) other |= now[i].entries > 0xffff;
        plain = !__any_sync(kAll, other && mine);
      }
      if (plain) {
        uint32_t z = x, cursor = words.cursor;
        bool escape = false;
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          const uint32_t slot = z & kSlots;
          const uint32_t symbol = shared[now[i].index | slot];
          const SymbolEntry e = *reinterpret_cast<const SymbolEntry*>(
              shared + kEntriesAt + now[i].entries + symbol * sizeof(SymbolEntry));
          const uint32_t high = z >> 12;
          z = (e.code >> 20) * high + (high + slot) - (e.code & 4095);
          Take(shared, ring, mine && z < 4096, below, &cursor, &z);
          escape |= e.value != e.value;
          if (mine) y[now[i].to] = Rounded(e.value * now[i].scale);
        }
        if (!__any_sync(kAll, escape && mine)) {
          x = z;
          words.cursor = cursor;
          continue;
        }
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const uint32_t first = j + i * lanes;
        if (first >= end) break;
        words.Fill(shared, lane);
        const uint2 after = FullStep(tables, shared, ring, now[i], mine && first + lane < end,
                                     below, y, x, words.cursor);
        x = after.x;
        words.cursor = after.y;
      }
    }
    const bool ended =
        __all_sync(kAll, !mine || x == 4096) && words.cursor == 2 * words.size;
    if (lane == 0 && !ended) {
      *failed = words.cursor > 2 * words.size ? kEarlyEnd : kWrongEnd;
    }
  }
}

}  // namespace

cudaError_t LaunchSegments(const DecodeBatch& batch, cudaStream_t stream) {
  if (batch.segment_count == 0) return cudaSuccess;
  static const cudaError_t once = cudaFuncSetAttribute(
      SegmentsKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (once != cudaSuccess) return once;
  int device = 0, sms = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  // Few segments: a warp each on as many multiprocessors as there are.
  const int warps = min(kMaxWarps, max(1, (batch.segment_count + sms - 1) / sms));
  const int blocks = min(sms, (batch.segment_count + warps - 1) / warps);
  KVCASK_LAUNCH(SegmentsKernel, blocks, max(256, warps * 32), kSharedBytes, stream, batch, warps);
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
