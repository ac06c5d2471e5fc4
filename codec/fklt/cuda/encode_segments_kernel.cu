// rANS, last symbol first: a warp a segment; then segments one after another into the tile.
//
// As in decoding, one segment's time is the chain of steps, many segments' instructions. Of each
// class and byte a table in shared memory has what a step needs; symbols come two rounds of four
// steps ahead of the chain, what the table says of them one round. What is not plain, an escape or
// a shifted symbol, has a mark there: its step is done with all that the format has.
#include "codec/fklt/cuda/encode_kernels.h"
#include "device/launch.h"
#include "device/ptx.h"

namespace kvcask::fklt {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kMostWarps = 16;
constexpr int kBlocksEach = 2;  // on a multiprocessor
constexpr int kSteps = 4;       // of a lane, at a time
constexpr int kAssembleThreads = 256, kAssembledAtOnce = 256;
constexpr uint32_t kTableBytes = kEncodeEntries * sizeof(uint2);
constexpr uint32_t kSharedBytes = kTableBytes + kMostWarps * 32 * 4;

// Words are pushed from the scratch's end down; a step's in rising lane order.
struct Pusher {
  uint8_t* end;     // of the scratch
  uint32_t cursor;  // words pushed
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

// One step of any kind: FORMAT.md 3.3, backwards. By value: what has an address is not in
// registers.
__device__ __attribute__((noinline)) uint2 FullStep(const DeviceTables& tables,
                                                    uint8_t* scratch_end, uint32_t most, int c,
                                                    int q, bool there, int lane, uint32_t x,
                                                    uint32_t cursor) {
  Pusher words{scratch_end, cursor, most};
  int shift = 0;
  uint32_t at = 0, e = 0, multiplier = 0;
  bool escape = false;
  if (there) {
    shift = tables.shift[c];
    const int v = q >> shift;
    at = c * 256 + v + 128;
    escape = v < -127 || v > 127 || ((e = __ldg(tables.encode + at)) & 0x1fff) == 0;
    if (escape) e = __ldg(tables.encode + (at = c * 256));
    multiplier = __ldg(tables.multiplier + at);
  }
  words.Push(escape, static_cast<uint16_t>(q), lane);
  const bool shifted = there && shift != 0 && !escape;
  if (__any_sync(kAll, shifted)) {
    const bool full = shifted && x >> (28 - shift) != 0;
    words.Push(full, x & 0xffff, lane);
    if (full) x >>= 16;
    if (shifted) x = x << shift | (static_cast<uint32_t>(q) & ((1u << shift) - 1));
  }
  const uint32_t f = e & 0x1fff;
  const bool full = there && x >= f << 16;
  words.Push(full, x & 0xffff, lane);
  if (full) x >>= 16;
  if (there) {
    const uint32_t d =
        static_cast<uint32_t>(static_cast<uint64_t>(x) * multiplier >> (28 + (e >> 25)));
    x = (d << 12) + (x - d * f) + (e >> 13 & 0xfff);
  }
  return make_uint2(x, words.cursor);
}

__global__ void __launch_bounds__(kMostWarps * 32, kBlocksEach)
    EncodeSegmentsKernel(const __grid_constant__ EncodeBatch batch, int warps) {
  KVCASK_DYNAMIC_SHARED(dynamic);
  SharedSpace shared(dynamic);
  {
    const uint4* const from = reinterpret_cast<const uint4*>(batch.tables.encode_entry);
    uint4* const to = reinterpret_cast<uint4*>(dynamic);
#pragma unroll 4
    for (int i = threadIdx.x; i < static_cast<int>(kTableBytes / 16); i += blockDim.x) {
      to[i] = from[i];
    }
  }
  __syncthreads();
  LetNextBegin();
  AwaitLast();
  const int warp = threadIdx.x / 32;
  if (warp >= warps) return;
  // From a shuffle, or the compiler works them out again wherever they are used.
  const int lane = __shfl_sync(kAll, static_cast<int>(threadIdx.x % 32), threadIdx.x % 32);
  const uint32_t from_here =
      __shfl_sync(kAll, ~((1u << threadIdx.x % 32) - 1), static_cast<int>(threadIdx.x % 32));
  uint32_t* const bits = reinterpret_cast<uint32_t*>(dynamic + kTableBytes) + warp * 32;
  const DeviceTables& tables = batch.tables;
  for (int index = blockIdx.x * warps + warp; index < batch.tile_count * batch.segments_most;
       index += gridDim.x * warps) {
    const int tile = index / batch.segments_most, number = index % batch.segments_most;
    const EncodeTileDesc& t = batch.tiles[tile];
    EncodeState* const state = batch.states + tile;
    // Other segments' warps may set it meanwhile: all lanes must see the same.
    if (__any_sync(kAll, *static_cast<volatile int*>(&state->failed) != kEncoded)) continue;
    if (number >= state->segments) continue;
    const int group = number * state->groups_each;
    const int groups = min(state->groups_each, state->groups - group);
    const int count = groups * kGroupSymbols;
    int lanes = 1;
    while (lanes < 32 && lanes * (kMaxLaneSteps >> batch.step_limit_shift) < count) lanes *= 2;
    const bool mine = lane < lanes;
    // Lanes without a part do what lane 0 does, and keep nothing of it.
    const int my = mine ? lane : 0;
    const uint16_t* const symbols = Opaque(batch.symbols + t.symbols + group * kGroupSymbols + my);
    const int16_t* const integers = batch.integers + t.symbols + group * kGroupSymbols + my;
    uint8_t* const scratch = t.scratch + static_cast<size_t>(number) * kSegmentScratch;
    uint8_t* const scratch_end = Opaque(scratch + kSegmentScratch);
    constexpr uint32_t kMost = (kSegmentScratch - 512) / 2;
    Pusher words{scratch_end, 0, kMost};
    uint32_t x = 1u << 12;
    // Steps go down from the segment's last.
    uint32_t far[kSteps];
    const auto read = [&](int j) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int at = j - i * lanes;
        far[i] = at >= 0 ? symbols[at] : kAbsentSymbol;
      }
    };
    const auto ask = [&](uint2* next) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) next[i] = shared.U64(shared.begin() + far[i] * 8);
    };
    int j = count - lanes;
    const auto round = [&](const uint2* now, uint2* next) {
      ask(next);
      read(j - 2 * kSteps * lanes);
      const bool room = words.cursor + kSteps * 32 <= kMost;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const uint32_t code = now[i].x;
        if (__any_sync(kAll, static_cast<int>(code) < 0) || !room) {
          const int at = j - i * lanes;
          if (at < 0) break;
          const int symbol = symbols[at];
          const int q = (symbol & 255) != 0 ? (symbol & 255) - 128 : integers[at];
          const uint2 after = FullStep(tables, scratch_end, kMost, symbol >> 8, q,
                                       mine && symbol >> 8 != kAbsent, lane, x, words.cursor);
          x = after.x;
          words.cursor = after.y;
          continue;
        }
        const uint32_t f = code >> 16, high = x >> 16;
        const bool full = mine && high >= f;
        const unsigned mask = __ballot_sync(kAll, full);
        const int before = -static_cast<int>(words.cursor + __popc(mask & from_here));
        StoreIf(full, reinterpret_cast<uint16_t*>(scratch_end) + before, static_cast<uint16_t>(x));
        x = full ? high : x;
        words.cursor += __popc(mask);
        const uint32_t d = __umulhi(2 * x, now[i].y) >> (code >> 12 & 15);
        x += d * (4096 - f) + (code & 4095);
      }
    };
    uint2 even[kSteps], odd[kSteps];
    read(j);
    ask(even);
    read(j - kSteps * lanes);
    while (true) {
      if (j < 0) break;
      round(even, odd);
      j -= kSteps * lanes;
      if (j < 0) break;
      round(odd, even);
      j -= kSteps * lanes;
    }
    // States: exponents, then mantissas as one bit string (FORMAT.md 3.4). At the scratch's front,
    // which the words never reach.
    if (words.cursor > words.most) {
      if (lane == 0) state->failed = kTooLong;
      continue;
    }
    const int exponent = 31 - __clz(x) - 12;
    const int other = __shfl_down_sync(kAll, exponent, 1);
    const uint32_t head = (lanes + 1) / 2;
    if (mine && lane % 2 == 0) {
      scratch[lane / 2] = static_cast<uint8_t>(exponent | (lane + 1 < lanes ? other << 4 : 0));
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
    __syncwarp();  // who still reads the last segment's
    bits[lane] = 0;
    __syncwarp();
    if (mine) {
      const int bit = end - length;
      const uint64_t value = static_cast<uint64_t>(x & ((1u << length) - 1)) << (bit % 32);
      atomicOr(&bits[bit / 32], static_cast<uint32_t>(value));
      if (value >> 32 != 0) atomicOr(&bits[bit / 32 + 1], static_cast<uint32_t>(value >> 32));
    }
    __syncwarp();
    for (uint32_t i = head + lane; i < begin; i += 32) {
      const uint32_t b = i - head;
      scratch[i] = static_cast<uint8_t>(bits[b / 4] >> (b % 4 * 8));
    }
    if (lane == 0) batch.segment_bytes[index] = begin | words.cursor << 10;
  }
}

// A warp finds where segments begin, then all copy, up to eight segments at once.
__global__ void __launch_bounds__(kAssembleThreads)
    AssembleKernel(const __grid_constant__ EncodeBatch batch) {
  const EncodeTileDesc& t = batch.tiles[blockIdx.x];
  EncodeState* const state = batch.states + blockIdx.x;
  AwaitLast();
  if (state->failed != kEncoded) return;
  __shared__ uint32_t begins[kAssembledAtOnce];  // of the tile
  __shared__ bool fits;
  const uint32_t* const sizes =
      batch.segment_bytes + static_cast<size_t>(blockIdx.x) * batch.segments_most;
  const int segments = state->segments, warp = threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  uint32_t at = kHeaderBytes + 2 * static_cast<uint32_t>(segments - 1);
  if (threadIdx.x == 0) fits = true;
  for (int done = 0; done < segments; done += kAssembledAtOnce) {
    const int count = min(kAssembledAtOnce, segments - done);
    __syncthreads();  // who still reads the last ones
    if (warp == 0) {
      for (int s = lane; s - lane < count; s += 32) {
        const uint32_t size = s < count ? sizes[done + s] : 0;
        const uint32_t bytes = (size & 1023) + 2 * (size >> 10);
        uint32_t end = bytes;
        for (int d = 1; d < 32; d *= 2) {
          const uint32_t v = __shfl_up_sync(kAll, end, d);
          if (lane >= d) end += v;
        }
        if (s < count) {
          begins[s] = at + end - bytes;
          if (at + end > t.limit || bytes / 2 > 0xffff) fits = false;
          if (fits && done + s + 1 < segments) {
            t.out[kHeaderBytes + 2 * (done + s)] = static_cast<uint8_t>(bytes / 2);
            t.out[kHeaderBytes + 2 * (done + s) + 1] = static_cast<uint8_t>(bytes / 2 >> 8);
          }
        }
        at += __shfl_sync(kAll, end, 31);
      }
    }
    __syncthreads();
    if (!fits) break;
    const int wide = count >= 8 ? 32 : count >= 4 ? 64 : count >= 2 ? 128 : kAssembleThreads;
    const int member = threadIdx.x % wide;
    for (int s = threadIdx.x / wide; s < count; s += kAssembleThreads / wide) {
      const uint32_t begin = sizes[done + s] & 1023, words = sizes[done + s] >> 10;
      const uint8_t* const scratch = t.scratch + static_cast<size_t>(done + s) * kSegmentScratch;
      for (uint32_t i = member; i < begin; i += wide) t.out[begins[s] + i] = scratch[i];
      // Header and sizes are even, and so is every segment: words stay aligned.
      const uint16_t* const from =
          reinterpret_cast<const uint16_t*>(scratch + kSegmentScratch) - words;
      uint16_t* const to = reinterpret_cast<uint16_t*>(t.out + begins[s] + begin);
      constexpr int kTogether = 8;  // loads under way
      for (uint32_t i = member; i < words; i += kTogether * wide) {
        uint16_t w[kTogether];
#pragma unroll
        for (int k = 0; k < kTogether; ++k) w[k] = i + k * wide < words ? from[i + k * wide] : 0;
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          if (i + k * wide < words) to[i + k * wide] = w[k];
        }
      }
    }
  }
  if (threadIdx.x == 0) {
    state->bytes = at;
    if (!fits) state->failed = kTooLong;
  }
}

}  // namespace

cudaError_t LaunchEncodeSegments(const EncodeBatch& batch, cudaStream_t stream) {
  static const cudaError_t once = cudaFuncSetAttribute(
      EncodeSegmentsKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (once != cudaSuccess) return once;
  int device = 0, sms = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  const int n = batch.tile_count * batch.segments_most, most_blocks = kBlocksEach * sms;
  // Few segments: a warp each on as many multiprocessors as there are.
  const int warps = min(kMostWarps, max(1, (n + most_blocks - 1) / most_blocks));
  const int blocks = min(most_blocks, (n + warps - 1) / warps);
  KVCASK_LAUNCH_EARLY(EncodeSegmentsKernel, blocks, max(256, warps * 32), kSharedBytes, stream, batch,
                warps);
  return cudaGetLastError();
}

cudaError_t LaunchAssemble(const EncodeBatch& batch, cudaStream_t stream) {
  KVCASK_LAUNCH_EARLY(AssembleKernel, batch.tile_count, kAssembleThreads, 0, stream, batch);
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
