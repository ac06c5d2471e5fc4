// Adds mu, turns keys, stores in the reader's layout; elements kept as received and 10-bit sinks
// too.
//
// Grid: MoveGrid; 256 threads. A thread has a token and a unit of 16 elements and goes through
// members, whose descriptions the block has read into shared memory. Reads x (2 bytes an element,
// of a token's row 16 at a time), writes as much; mu and angles come from the caches. Bound:
// memory, 4 bytes an element. Other strides, fp32 and tokens that were kept go element by element.
#include "codec/fklt/cuda/decode_kernels.h"
#include "codec/fklt/cuda/rows_device.h"

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
          t.x + static_cast<size_t>(t.column + s.place_of[index]) * g.dimensions + m.offset;
      v = __half2float(x[e]) + mu[e];
      if (turns) w = __half2float(x[pair.partner]) + mu[pair.partner];
    }
    if (turns) {
      const int at = token * batch.all_pairs + rope.first_angle + pair.pair;
      v = v * t.angles[at] + pair.sign * w * t.angles[t.tokens * batch.all_pairs + at];
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

__device__ __forceinline__ void TurnNeighbours(const float* cosines, const float* sines, float* v) {
  const float4 c = *reinterpret_cast<const float4*>(cosines);
  const float4 s = *reinterpret_cast<const float4*>(sines);
  const float cs[4] = {c.x, c.y, c.z, c.w}, sn[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float a = v[2 * i], b = v[2 * i + 1];
    v[2 * i] = a * cs[i] - b * sn[i];
    v[2 * i + 1] = b * cs[i] + a * sn[i];
  }
}

__global__ void __launch_bounds__(kMoveThreads, 3)
    StoreKernel(const __grid_constant__ DecodeBatch batch) {
  if (batch.failed[blockIdx.x] != kGood) return;
  const DecodeTileDesc& t = batch.tiles[blockIdx.x];
  const TileState& s = batch.states[blockIdx.x];
  const DeviceGroup& g = batch.groups[t.group];
  const bool raw = t.mode == kRawMode;
  const int dtype = t.dtype, wanted = t.token_end - t.token_begin;
  const int angles = t.tokens * batch.all_pairs;
  const int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
  __shared__ int16_t number[kMaxTokens];
  __shared__ MemberSlab slab;
  NumberTokens(t.positions, t.tokens, raw ? 0 : static_cast<uint32_t>(batch.sinks), number);
  HeldAngles held;
  for (int i = blockIdx.z; i < g.members;) {
    i = LoadSlab(g, t.planes, t.first_plane, batch.ropes, batch.all_pairs, dtype, t.layer_begin,
                 t.layer_end, i, gridDim.z, &slab);
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
    const int head_dim = slab.head_dim, units = head_dim / 16;
    for (int w = first; count > 0 && w < wanted * units; w += stride) {
      const int token = t.token_begin + w / units, u = w % units;
      const int n = number[token];
      if (n < 0) {
        for (int k = 0; k < count; ++k) {
          const MovedMember& m = slab.member[k];
          const Unit unit = UnitOf(head_dim, m.style, m.pairs, u);
          for (int e = 0; e < 8; ++e) {
            StoreElement(batch, t, s, g, m.number, n, token, unit.a + e);
            StoreElement(batch, t, s, g, m.number, n, token, unit.b + e);
          }
        }
        continue;
      }
      const __half* const row = t.x + static_cast<size_t>(t.column + s.place_of[n]) * g.dimensions;
      const float* const cosines = t.angles + token * batch.all_pairs;
      const int to = token - t.token_begin;
      const int page_token = t.pages == nullptr ? to : to % t.page_tokens;
      const int64_t page = t.pages == nullptr ? 0 : t.pages[to / t.page_tokens];
      const auto load = [&](const MovedMember& m, const Unit& unit, uint4* a, uint4* b) {
        *a = *reinterpret_cast<const uint4*>(row + m.offset + unit.a);
        *b = *reinterpret_cast<const uint4*>(row + m.offset + unit.b);
      };
      // The next member's coordinates are under way while this one's are worked on.
      Unit next = UnitOf(head_dim, slab.member[0].style, slab.member[0].pairs, u);
      uint4 next_a, next_b;
      load(slab.member[0], next, &next_a, &next_b);
      for (int k = 0; k < count; ++k) {
        const MovedMember& m = slab.member[k];
        const Unit unit = next;
        const uint4 x_a = next_a, x_b = next_b;
        if (k + 1 < count) {
          const MovedMember& later = slab.member[k + 1];
          next = UnitOf(head_dim, later.style, later.pairs, u);
          load(later, next, &next_a, &next_b);
        }
        float a[8], b[8];
        AddMean(x_a, m.mu + unit.a, a);
        AddMean(x_b, m.mu + unit.b, b);
        const float* const cosine = cosines + m.first_angle;
        if (unit.halves) {
          held.Hold(cosine + unit.a, angles);
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            const float low = a[e], high = b[e];
            a[e] = low * held.cosine[e] - high * held.sine[e];
            b[e] = high * held.cosine[e] + low * held.sine[e];
          }
        } else if (m.style != kRotateHalf) {
          if (unit.a < 2 * m.pairs) {
            TurnNeighbours(cosine + unit.a / 2, cosine + angles + unit.a / 2, a);
          }
          if (unit.b < 2 * m.pairs) {
            TurnNeighbours(cosine + unit.b / 2, cosine + angles + unit.b / 2, b);
          }
        }
        uint8_t* const out = m.base + page + page_token * m.token_stride;
        StoreEight(dtype, a, out + 2 * unit.a);
        StoreEight(dtype, b, out + 2 * unit.b);
      }
    }
  }
}

}  // namespace

cudaError_t LaunchStore(const DecodeBatch& batch, int tokens, int head_dim, int members,
                        cudaStream_t stream) {
  if (members == 0) return cudaSuccess;
  KVCASK_LAUNCH(StoreKernel, MoveGrid(batch.tile_count, tokens, head_dim, members), kMoveThreads, 0,
                stream, batch);
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
