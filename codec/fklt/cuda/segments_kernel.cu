// rANS: symbols of segments to coordinates of the tile, in fp16.
//
// A warp a segment. What decides the time of one segment is the chain of steps, each of which needs
// the state that the last one left; what decides that of many is instructions. So:
// - Tables of all classes are in shared memory, in two parts: which symbol a slot is (a byte), and
// of
//   each symbol its frequency, where it begins and its value. Both addresses are the class's begin
//   with bits of the state.
// - Where a symbol goes, and its class, depend on its number alone: what they are worked out from
// is
//   asked for four steps ahead of the chain. A warp's next symbols nearly always lie in one range
//   of rows, whose numbers all lanes share.
// - Words come from a ring in shared memory that is filled 128 words at a time.
// - Escapes and shifted symbols, whose value is NaN in the tables, leave the chain for a call.
// - A segment's last steps, tables without room for all classes and steps beyond fp16 go through
//   FullStep, which has all that the format has.
#include "codec/fklt/cuda/decode_kernels.h"
#include "codec/fklt/cuda/lanes_device.h"
#include "device/launch.h"
#include "device/ptx.h"

namespace kvcask::fklt {
namespace {

constexpr unsigned kAll = kAllOfWarp;
constexpr int kMaxWarps = 20;  // with more, registers spill
constexpr int kSteps = 4;      // done at a time
constexpr uint32_t kSlots = kTableSlots - 1;
constexpr uint32_t kRingBytes = 512;
// Shared memory: the classes' entries, then from a multiple of 4,096 on the slots' symbols, the
// symbols' entries, and of each warp the ring and what it needs of its tile's state.
constexpr uint32_t kIndexBytes = kClasses * kTableSlots;
constexpr uint32_t kEntriesAt = kIndexBytes;
constexpr uint32_t kRingsAt = kEntriesAt + kMostEntries * sizeof(SymbolEntry);
constexpr uint32_t kPlacesAt = kRingsAt + kMaxWarps * kRingBytes;
constexpr uint32_t kPlaceBytes = kMaxTokens * sizeof(TilePlace);
constexpr uint32_t kRangesAt = kPlacesAt + kMaxWarps * kPlaceBytes;
constexpr uint32_t kRangeBytes = 16 * 16;  // a range has 12 bytes in 16
constexpr uint32_t kAlignedBytes = kRangesAt + kMaxWarps * kRangeBytes;
static_assert(sizeof(TileRange) == 12 && kMaxRanges + 1 <= 16);
constexpr uint32_t kSharedBytes = kAlignedBytes + kTableSlots - 1024;  // what CUDA keeps is 1,024
static_assert(kRingsAt % kRingBytes == 0);
static_assert(kSharedBytes <= 227 * 1024 - 1024);

// The words of one segment: those that come next, in a ring of 256 in shared memory.
struct Words {
  const uint8_t* at;
  uint32_t size;     // words
  uint32_t ring;     // begins there, in shared memory
  uint32_t cursor;   // of the next word, in bytes
  uint32_t filled;   // up to here they are in the ring, in bytes
  uint32_t next[4];  // those of this lane that follow; not joined before they are needed

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
  __device__ __forceinline__ void Fill(SharedSpace shared, int lane) {
    while (static_cast<int>(filled - cursor) < 256) {
      __syncwarp();  // who still reads what goes
      shared.Store64(ring + ((filled + 8 * lane) & (kRingBytes - 1)),
                     make_uint2(next[0] | next[1] << 16, next[2] | next[3] << 16));
      filled += 256;
      Load(lane);
      __syncwarp();
    }
  }
};

// What a warp has of its tile in shared memory, and the rest that is asked there.
struct Tile {
  SharedSpace shared;
  uint32_t places, ranges_at;  // there
  const int16_t* sigma;
  uint32_t y_stride;
  uint32_t symbols;  // coordinates
  int ranges;
};

// A range of rows with equally many places: the same for all lanes but for `offset`.
struct Range {
  uint32_t end;     // in the segment: symbols from there on are of other ranges
  uint32_t offset;  // from a lane's symbol in the segment to its number in the range
  uint32_t row;
  uint32_t minus_count;
  uint32_t magic;

  // That of coordinate `at` of the tile, which is symbol at - first of the segment.
  __device__ __forceinline__ void Find(const Tile& t, uint32_t at, uint32_t first, uint32_t my) {
    uint32_t begin = 0;
    int r = 0;
    uint2 g = t.shared.Ordered64(t.ranges_at);  // symbols, magic
    while (at - begin >= g.x && r < t.ranges) {
      begin += g.x;
      g = t.shared.Ordered64(t.ranges_at + 16 * ++r);
    }
    const uint32_t rows = t.shared.Ordered64(t.ranges_at + 16 * r + 8).x;
    end = begin + g.x - first;
    offset = first + my - begin;
    row = rows & 0xffff;
    minus_count = 0u - (rows >> 16);
    magic = g.y;
  }
};

// A symbol on its way: what its class is worked out from, when that has come from memory.
struct Coming {
  float step;
  int term;
  int sigma;
  uint32_t to;  // in y
};

// Of symbol `at` of the range.
__device__ __forceinline__ Coming AskWithin(const Range& range, const Tile& t, uint32_t at) {
  const uint32_t in_range = __umulhi(2 * at, range.magic);
  const uint32_t place = at + in_range * range.minus_count;
  const uint32_t row = range.row + in_range;
  const uint2 p = t.shared.Ordered64(t.places + place * sizeof(TilePlace));
  return {__uint_as_float(p.x), static_cast<int>(p.y), t.sigma[row], row * t.y_stride + place};
}

// Of coordinate `at` of the tile. Beyond the last one: anything that may be read.
__device__ __attribute__((noinline)) Coming AskAnywhere(Tile t, uint32_t at) {
  if (at >= t.symbols) return {0, 0, t.sigma[0], 0};
  Range range;
  range.Find(t, at, 0, 0);
  return AskWithin(range, t, at + range.offset);
}

struct Symbol {
  uint32_t index;    // where its class's slots are in shared memory: a multiple of 4,096
  uint32_t entries;  // where its class's entries are; kNoEntries
};

__device__ __forceinline__ Symbol Arrived(const Coming& c, SharedSpace shared, uint32_t index) {
  const int number = max(0, min(kClasses - 1, (5 * c.sigma + c.term) >> 5));
  return {index + (static_cast<uint32_t>(number) << 12),
          shared.U32(shared.begin() + 4 * static_cast<uint32_t>(number))};
}

// |q| of 32,767 at the coarsest step class is beyond fp16: such a tile is the CPU's.
__device__ __forceinline__ bool Beyond(float v) { return !(fabsf(v) <= 65504.0f); }

__device__ __forceinline__ void Keep(bool there, __half* y, float v) {
  StoreIf(there, y, __half_as_ushort(__float2half_rn(v)));
}

// Appends the next words to the states of lanes with `need`, in rising order; at most 32. `cursor`
// is in bytes, of the ring that begins at `ring`.
__device__ __forceinline__ void Take(SharedSpace shared, uint32_t ring, bool need, uint32_t below,
                                     uint32_t* cursor, uint32_t* x) {
  const unsigned mask = __ballot_sync(kAll, need);
  const uint32_t from = ((*cursor + 2 * __popc(mask & below)) & (kRingBytes - 1)) | ring;
  const uint32_t word = shared.U16(from);  // no branch
  *x = need ? *x << 16 | word : *x;
  *cursor += 2 * __popc(mask);
}

struct After {
  uint32_t x, cursor;
  float value;
};

// The value of v, and in the format's order what follows a symbol that is shifted or an escape.
template <typename Words>
__device__ __forceinline__ After Finish(const DeviceTables& tables, uint32_t c, int v, bool there,
                                        uint32_t x, uint32_t cursor, const Words& take) {
  const int shift = there ? tables.shift[c] : 0;
  const bool escape = there && v == -128;
  const bool shifted = there && shift != 0 && !escape;
  if (shifted) {
    v = v * (1 << shift) + static_cast<int>(x & ((1u << shift) - 1));
    x >>= shift;
  }
  take(shifted && x < 4096, &cursor, &x);
  uint32_t whole = 0;
  take(escape, &cursor, &whole);
  if (escape) v = static_cast<int16_t>(whole & 0xffff);
  float value = 0;
  if (there) {
    const int n = abs(v);
    const float centre = n > 3 ? static_cast<float>(n) : tables.centroids[c * 4 + n];
    value = v < 0 ? -centre : centre;
  }
  return {x, cursor, value};
}

// After the plain part of a step, where the symbols of some lanes (`special`) need more. Reads
// words past the ring.
__device__ __attribute__((noinline)) After Special(const DeviceTables& tables, const uint8_t* at,
                                                   uint32_t size, uint32_t below, uint32_t c, int v,
                                                   bool special, uint32_t x, uint32_t cursor) {
  return Finish(tables, c, v, special, x, cursor, [&](bool need, uint32_t* from, uint32_t* state) {
    const unsigned mask = __ballot_sync(kAll, need);
    if (mask == 0) return;
    const uint32_t i = *from / 2 + __popc(mask & below);
    if (need) {
      *state = *state << 16 | (i < size ? at[2 * i] | at[2 * i + 1] << 8 : 0);
    }
    *from += 2 * __popc(mask);
  });
}

// One step of any kind, from a state and a cursor to those after it. By value: what has an address
// is not in registers.
__device__ __attribute__((noinline)) After FullStep(const DeviceTables& tables, SharedSpace shared,
                                                    uint32_t ring, uint32_t c, bool there,
                                                    uint32_t below, uint32_t x, uint32_t cursor) {
  int v = 0;
  if (there) {
    const uint32_t e = __ldg(tables.decode + c * kTableSlots + (x & kSlots));
    x = ((e >> 8 & 4095) + 1) * (x >> 12) + (e >> 20);
    v = static_cast<int8_t>(e & 255);
  }
  Take(shared, ring, there && x < 4096, below, &cursor, &x);
  return Finish(tables, c, v, there, x, cursor, [&](bool need, uint32_t* from, uint32_t* state) {
    Take(shared, ring, need, below, from, state);
  });
}

__global__ void __launch_bounds__(kMaxWarps * 32)
    SegmentsKernel(const __grid_constant__ DecodeBatch batch, int warps) {
  KVCASK_DYNAMIC_SHARED(dynamic);
  SharedSpace shared(dynamic);
  // Of what is aligned.
  const uint32_t index = (shared.begin() + 4 * kClasses + kTableSlots - 1) & ~(kTableSlots - 1u);
  {
    uint8_t* const aligned = dynamic + (index - shared.begin());
    if (threadIdx.x < kClasses) {
      const uint32_t at = batch.tables.class_entries[threadIdx.x];
      reinterpret_cast<uint32_t*>(dynamic)[threadIdx.x] =
          at == kNoEntries ? index + kEntriesAt : index + kEntriesAt + at;
    }
    const uint4* const from = reinterpret_cast<const uint4*>(batch.tables.index);
    const uint4* const entry = reinterpret_cast<const uint4*>(batch.tables.entry);
    uint4* const to = reinterpret_cast<uint4*>(aligned);
    constexpr int kIndex = kIndexBytes / 16;
    const int entries = (batch.tables.entries * static_cast<int>(sizeof(SymbolEntry)) + 15) / 16;
#pragma unroll 4
    for (int i = threadIdx.x; i < kIndex; i += blockDim.x) to[i] = from[i];
#pragma unroll 4
    for (int i = threadIdx.x; i < entries; i += blockDim.x) to[kIndex + i] = entry[i];
  }
  __syncthreads();
  AwaitLast();
  const int warp = threadIdx.x / 32;
  if (warp >= warps) return;
  // From a shuffle, or the compiler works them out again wherever they are used.
  const int lane = __shfl_sync(kAll, static_cast<int>(threadIdx.x % 32), threadIdx.x % 32);
  const uint32_t below = __shfl_sync(kAll, (1u << threadIdx.x % 32) - 1, threadIdx.x % 32);
  const uint32_t ring = index + kRingsAt + warp * kRingBytes;
  const DeviceTables& tables = batch.tables;
  for (int n = blockIdx.x * warps + warp; n < batch.segment_count; n += gridDim.x * warps) {
    const SegmentDesc s = batch.segments[batch.first_segment + n];
    const DecodeTileDesc& t = batch.tiles[s.tile - batch.first_tile];
    const TileState* const state = batch.states + (s.tile - batch.first_tile);
    int* const failed = batch.failed + (s.tile - batch.first_tile);
    // Another segment's warp may set it meanwhile: all lanes must see the same.
    if (__any_sync(kAll, *static_cast<volatile int*>(failed) != kGood)) continue;
    const uint8_t* const p = t.bytes + s.at;
    const uint32_t lanes = s.lanes;
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
    const bool plain = tables.complete && !state->coarse;
    __half* const y = Opaque(t.y + t.column);
    // Lanes without a part do what lane 0 does, and keep nothing of it.
    const uint32_t my = mine ? lane : 0;
    const Tile tile{shared,
                    index + kPlacesAt + warp * kPlaceBytes,
                    index + kRangesAt + warp * kRangeBytes,
                    Opaque(batch.groups[t.group].sigma),
                    static_cast<uint32_t>(t.y_stride),
                    state->symbols,
                    state->ranges};
    __syncwarp();  // who still reads the last one's
    for (int i = lane; i < kMaxTokens; i += 32) {
      const TilePlace& place = state->place[i];
      shared.Store64(tile.places + i * sizeof(TilePlace),
                     make_uint2(__float_as_uint(place.step), static_cast<uint32_t>(place.term)));
    }
    if (lane <= tile.ranges) {
      const TileRange& g = state->range[lane];
      shared.Store64(tile.ranges_at + 16 * lane, make_uint2(g.symbols, g.magic));
      shared.Store64(tile.ranges_at + 16 * lane + 8,
                     make_uint2(g.row | static_cast<uint32_t>(g.count) << 16, 0));
    }
    __syncwarp();
    Range range;
    {
      const uint32_t first = s.first - state->first_symbol;  // modulo 2^32, as all of these
      range.Find(tile, j + first, first, my);
    }
    const auto look_ahead = [&](uint32_t from, Coming* next) {
      if (from + kSteps * lanes <= range.end) {
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          next[i] = AskWithin(range, tile, from + range.offset + i * lanes);
        }
        return;
      }
      const uint32_t first = batch.segments[batch.first_segment + n].first - state->first_symbol;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        next[i] = AskAnywhere(tile, from + first + my + i * lanes);
      }
      range.Find(tile, from + first + kSteps * lanes, first, my);
    };
    bool beyond = false;
    // Steps [j, j + 4) of each lane, and asks for the four after them.
    const auto round = [&](const Coming* now, Coming* next) {
      Symbol symbol[kSteps];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) symbol[i] = Arrived(now[i], shared, index);
      look_ahead(j + kSteps * lanes, next);
      words.Fill(shared, lane);
      int done = 0;
      if (plain && j + kSteps * lanes <= end) {
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          const uint32_t slot = x & kSlots, high = x >> 12;
          const uint2 e = shared.U64(symbol[i].entries + shared.U8(symbol[i].index | slot) * 8);
          const int code = static_cast<int>(e.x);
          const float value = __uint_as_float(e.y);
          x = x - (e.x & kSlots) + static_cast<uint32_t>(code >> 12) * high;
          Take(shared, ring, mine && x < 4096, below, &words.cursor, &x);
          done = i + 1;
          // Special ones follow, to the same place.
          Keep(mine, y + now[i].to, value * now[i].step);
          const bool special = mine && value != value;
          if (__any_sync(kAll, special)) {
            const After after =
                Special(tables, words.at, words.size, below, (symbol[i].index - index) >> 12,
                        static_cast<int8_t>(e.y), special, x, words.cursor);
            x = after.x;
            words.cursor = after.cursor;
            const float v = after.value * now[i].step;
            beyond |= special && Beyond(v);
            Keep(special, y + now[i].to, v);
            // What the ring has is enough for 32 words a step, no longer for all of them.
            if (static_cast<int>(words.filled - words.cursor) < 64 * (kSteps - 1 - i)) break;
          }
        }
        if (done == kSteps) return;
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const uint32_t at = j + i * lanes;
        if (i < done || at >= end) continue;
        words.Fill(shared, lane);
        const bool there = mine && at + lane < end;
        const After after = FullStep(tables, shared, ring, (symbol[i].index - index) >> 12, there,
                                     below, x, words.cursor);
        x = after.x;
        words.cursor = after.cursor;
        const float v = after.value * now[i].step;
        beyond |= there && Beyond(v);
        Keep(there, y + now[i].to, v);
      }
    };
    Coming even[kSteps], odd[kSteps];
    look_ahead(j, even);
    while (true) {
      if (j >= end || words.cursor > 2 * words.size) break;
      round(even, odd);
      j += kSteps * lanes;
      if (j >= end || words.cursor > 2 * words.size) break;
      round(odd, even);
      j += kSteps * lanes;
    }
    const bool ended = __all_sync(kAll, !mine || x == 4096) && words.cursor == 2 * words.size;
    beyond = __any_sync(kAll, beyond);
    if (lane == 0 && !ended) {
      *failed = words.cursor > 2 * words.size ? kEarlyEnd : kWrongEnd;
    } else if (lane == 0 && beyond) {
      *failed = kBeyondHalf;
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
  KVCASK_LAUNCH_EARLY(SegmentsKernel, blocks, max(512, warps * 32), kSharedBytes, stream, batch,
                      warps);
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
