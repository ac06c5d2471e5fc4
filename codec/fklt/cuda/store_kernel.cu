// Adds mu, turns keys, stores in the reader's layout; elements kept as received and 10-bit sinks
// too.
//
// Grid: MoveGrid; 256 threads. A thread has a token and a unit of 16 elements and goes through
// members, whose descriptions the block has read into shared memory. Reads x (2 bytes an element,
// of a token's row 16 at a time), writes as much; mu and angles come from the caches. Bound:
// memory, 4 bytes an element. Other strides, fp32 and tokens that were kept go element by element.
#include "codec/fklt/cuda/decode_kernels.h"
#include "codec/fklt/cuda/rows_device.h"
#include "device/ptx.h"

namespace kvcask::fklt {
namespace {

// Where a token of the destination lies, from the head's first byte.
__device__ __forceinline__ int64_t TokenOffset(const DecodeTileDesc& t, const DevicePlane& plane,
                                               int token) {
  const int to = token - t.token_begin;
  return t.pages == nullptr
             ? to * plane.token_stride
             : t.pages[to / t.page_tokens] + (to % t.page_tokens) * plane.token_stride;
}

__device__ __attribute__((noinline)) void StoreElement(const DecodeBatch& batch,
                                                       const DecodeTileDesc& t, const TileState& s,
                                                       const DeviceGroup& g, int member, int number,
                                                       int token, int e) {
  const DeviceMember m = g.member[member];
  const DevicePlane plane = t.planes[m.plane - t.first_plane];
  DeviceRope rope{};
  if (m.rope >= 0) rope = batch.ropes[m.rope];
  const bool raw = t.mode == kRawMode;
  const bool sink = !raw && number < 0;
  const int index = sink ? -1 - number : number;
  const int sinks = t.tokens - t.coded;
  const int kept = raw ? t.tokens : sinks;  // tokens whose elements were kept
  const uint8_t* const received = t.bytes + t.segment_bytes;
  const bool turns = e < 2 * rope.pairs;
  const Pair pair = turns ? PairOf(rope, e) : Pair{0, e, 0.0f};
  float v, w = 0;
  uint32_t bits = 0;
  bool done = false;
  if (raw || (sink && t.mode == kCodedMode)) {
    const int element = t.source_dtype == kF32 ? 4 : 2;
    const uint8_t* const from =
        received +
        (static_cast<size_t>(m.offset) * kept + static_cast<size_t>(index) * m.head_dim) * element;
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
    if (sink) {
      const int row = m.offset * sinks + index * m.head_dim;
      const uint8_t* const high = received + g.members * sinks;
      const uint8_t* const low = high + g.dimensions * sinks;
      // Exponent bytes: of the members before this, then of its tokens.
      const float step = SinkStep(received[member * sinks + index]);
      auto load = [&](int d) {
        const int at = row + d;
        const int u = high[at] << 2 | (low[at / 4] >> at % 4 * 2 & 3);
        return mu[d] + static_cast<float>(u - kSinkBias) * step;
      };
      v = load(e);
      if (turns) w = load(pair.partner);
    } else {
      const __half* const x =
          t.x + static_cast<size_t>(s.place_of[index]) * g.dimensions + m.offset;
      v = __half2float(x[e]) + mu[e];
      if (turns) w = __half2float(x[pair.partner]) + mu[pair.partner];
    }
    if (turns) {
      const Angle angle =
          UnpackAngle(t.angles[token * batch.all_pairs + rope.first_angle + pair.pair],
                      ScaleOf(static_cast<float>(rope.scale)));
      v = v * angle.cosine + pair.sign * w * angle.sine;
    }
  }
  if (!done) bits = BitsAs(t.dtype, v);
  StoreBits(t.dtype, bits,
            plane.data + m.head * plane.head_stride + TokenOffset(t, plane, token) +
                e * plane.dim_stride);
}

// x + mu of eight coordinates.
__device__ __forceinline__ void AddMean(const uint4& x, const float* mu, float* v) {
  float m[8];
  UnpackEight(/*fp16*/ 2, x, v);
  LoadFloats(mu, m);
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] += m[i];
}

__global__ void __launch_bounds__(kMoveThreads, 3)
    StoreKernel(const __grid_constant__ DecodeBatch batch) {
  const DecodeTileDesc& t = batch.tiles[blockIdx.x];
  const TileState& s = batch.states[blockIdx.x];
  const DeviceGroup& g = batch.groups[t.group];
  const bool raw = t.mode == kRawMode;
  const int dtype = t.dtype, wanted = t.token_end - t.token_begin;
  const int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
  __shared__ int16_t number[kMaxTokens];
  __shared__ int32_t row_of[kMaxTokens];    // of x, in elements; -1: what was received is kept
  __shared__ int64_t page_of[kMaxTokens];   // bytes before the token's page
  __shared__ int16_t in_page[kMaxTokens];   // tokens before it there
  __shared__ MemberSlab slab;
  NumberTokens(t.positions, t.tokens, raw ? 0 : static_cast<uint32_t>(batch.sinks), number);
  AwaitLast();
  if (batch.failed[blockIdx.x] != kGood) return;
  if (static_cast<int>(threadIdx.x) < wanted) {  // seen by all after LoadSlab's barrier
    const int token = t.token_begin + threadIdx.x, n = number[token], to = threadIdx.x;
    row_of[token] = n < 0 ? -1 : s.place_of[n] * g.dimensions;
    page_of[token] = t.pages == nullptr ? 0 : t.pages[to / t.page_tokens];
    in_page[token] = static_cast<int16_t>(t.pages == nullptr ? to : to % t.page_tokens);
  }
  for (int i = blockIdx.z; i < g.members;) {
    i = LoadSlab(g, t.planes, t.first_plane, batch.ropes, batch.all_pairs, dtype, t.layer_begin,
                 t.layer_end, false, i, gridDim.z, &slab);
    const int count = slab.count;
    if (raw || !slab.by_units) {
      for (int k = 0; k < count; ++k) {
        const int member = slab.member[k].number, head_dim = g.member[member].head_dim;
        for (int w = first; w < wanted * head_dim; w += stride) {
          const int token = t.token_begin + w / head_dim;
          StoreElement(batch, t, s, g, member, number[token], token, w % head_dim);
        }
      }
      continue;
    }
    const int head_dim = slab.head_dim, units = head_dim / 16, all = wanted * units;
    if (count == 0 || first >= all) continue;
    const __half* const x = t.x;
    const uint32_t* const angles = t.angles;
    // A member's coordinates and angles are under way while the one before it is worked on.
    uint4 next_a, next_b;
    EightAngles next_angles{};
    int angles_of = -1;
    const auto ask = [&](int token, int u, const MovedMember& m) {
      const int row = row_of[token];
      if (row < 0) return;
      const Unit unit = UnitOf(head_dim, m.style, m.pairs, u);
      next_a = *reinterpret_cast<const uint4*>(x + row + m.offset + unit.a);
      next_b = *reinterpret_cast<const uint4*>(x + row + m.offset + unit.b);
      const int at = token * batch.all_pairs + m.first_angle + unit.a;
      if (unit.halves && at != angles_of) {
        next_angles = LoadAngles(angles + at);
        angles_of = at;
      }
    };
    const auto prefetch = [&](int token, int u, const MovedMember& m) {
      const int row = row_of[token];
      if (row < 0) return;
      const Unit unit = UnitOf(head_dim, m.style, m.pairs, u);
      PrefetchL2(x + row + m.offset + unit.a);
      PrefetchL2(x + row + m.offset + unit.b);
    };
    int token = t.token_begin + first / units, u = first % units;
    ask(token, u, slab.member[0]);
    for (int k = 1; k < min(kAhead, count); ++k) prefetch(token, u, slab.member[k]);
    for (int w = first; w < all; w += stride) {
      const bool kept = row_of[token] < 0;
      for (int k = 0; k < count; ++k) {
        const MovedMember& m = slab.member[k];
        const Unit unit = UnitOf(head_dim, m.style, m.pairs, u);
        const int from = token;
        const uint4 x_a = next_a, x_b = next_b;
        const EightAngles turns = next_angles;
        if (k + kAhead < count) {
          prefetch(token, u, slab.member[k + kAhead]);
        } else if (w + stride < all && k + kAhead - count < count) {
          prefetch(t.token_begin + (w + stride) / units, (w + stride) % units,
                   slab.member[k + kAhead - count]);
        }
        if (k + 1 < count) {
          ask(token, u, slab.member[k + 1]);
        } else if (w + stride < all) {
          token = t.token_begin + (w + stride) / units;
          u = (w + stride) % units;
          ask(token, u, slab.member[0]);
        }
        if (kept) continue;
        float a[8], b[8];
        AddMean(x_a, m.mu + unit.a, a);
        AddMean(x_b, m.mu + unit.b, b);
        if (unit.halves) {
          TurnHalves<false>(turns, m.scale, a, b);
        } else if (m.style != kRotateHalf) {
          const uint32_t* const own = angles + from * batch.all_pairs + m.first_angle;
          if (unit.a < 2 * m.pairs) TurnNeighbours<false>(own + unit.a / 2, m.scale, a);
          if (unit.b < 2 * m.pairs) TurnNeighbours<false>(own + unit.b / 2, m.scale, b);
        }
        uint8_t* const out = m.base + page_of[from] + in_page[from] * m.token_stride;
        StoreEight(dtype, a, out + 2 * unit.a);
        StoreEight(dtype, b, out + 2 * unit.b);
      }
    }
    // What was kept: apart, since calls among the moves would cost them registers.
    for (int w = first; t.coded < t.tokens && w < all; w += stride) {
      const int from = t.token_begin + w / units;
      for (int k = 0; row_of[from] < 0 && k < count; ++k) {
        const MovedMember& m = slab.member[k];
        const Unit unit = UnitOf(head_dim, m.style, m.pairs, w % units);
        for (int e = 0; e < 8; ++e) {
          StoreElement(batch, t, s, g, m.number, number[from], from, unit.a + e);
          StoreElement(batch, t, s, g, m.number, number[from], from, unit.b + e);
        }
      }
    }
  }
}

}  // namespace

cudaError_t LaunchStore(const DecodeBatch& batch, int tokens, int head_dim, int members,
                        cudaStream_t stream) {
  if (members == 0) return cudaSuccess;
  KVCASK_LAUNCH_EARLY(StoreKernel, MoveGrid(batch.tile_count, tokens, head_dim, members), kMoveThreads, 0,
                stream, batch);
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
