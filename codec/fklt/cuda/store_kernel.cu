// Adds mu, turns keys, stores in the reader's layout; elements kept as received and 10-bit sinks
// too.
//
// Grid: MoveGrid; 256 threads. A thread has a token and a unit of 16 elements and goes through
// members. Reads x (2 bytes an element, of a token's row 16 at a time), writes as much; mu and
// angles come from the caches. Bound: memory, 4 bytes an element. Other strides, fp32 and tokens
// that were kept go element by element.
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
__device__ __forceinline__ void LoadCoordinates(const __half* x, const float* mu, float* v) {
  float m[8];
  LoadEight(/*fp16*/ 2, reinterpret_cast<const uint8_t*>(x), v);
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
  NumberTokens(t.positions, t.tokens, raw ? 0 : static_cast<uint32_t>(batch.sinks), number);
  HeldAngles held;
  for (int i = blockIdx.z; i < g.members; i += gridDim.z) {
    const DeviceMember m = g.member[i];
    if (m.layer < t.layer_begin || m.layer >= t.layer_end) continue;
    const DevicePlane plane = t.planes[m.plane - t.first_plane];
    DeviceRope rope{};
    if (m.rope >= 0) rope = batch.ropes[m.rope];
    if (raw || !MovesByUnits(g, m, rope, batch.all_pairs, dtype, plane.dim_stride)) {
      for (int w = first; w < wanted * m.head_dim; w += stride) {
        const int token = t.token_begin + w / m.head_dim;
        StoreElement(batch, t, s, g, i, number[token], token, w % m.head_dim);
      }
      continue;
    }
    uint8_t* const base = plane.data + m.head * plane.head_stride;
    const int units = m.head_dim / 16;
    for (int w = first; w < wanted * units; w += stride) {
      const int token = t.token_begin + w / units;
      const Unit unit = UnitOf(m.head_dim, rope, w % units);
      const int n = number[token];
      if (n < 0) {
        for (int e = 0; e < 8; ++e) {
          StoreElement(batch, t, s, g, i, n, token, unit.a + e);
          StoreElement(batch, t, s, g, i, n, token, unit.b + e);
        }
        continue;
      }
      const __half* const x =
          t.x + static_cast<size_t>(t.column + s.place_of[n]) * g.dimensions + m.offset;
      const float* const mu = g.mu + m.offset;
      float a[8], b[8];
      LoadCoordinates(x + unit.a, mu + unit.a, a);
      LoadCoordinates(x + unit.b, mu + unit.b, b);
      const float* const cosines = t.angles + token * batch.all_pairs + rope.first_angle;
      if (unit.halves) {
        held.Hold(cosines + unit.a, angles);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float low = a[e], high = b[e];
          a[e] = low * held.cosine[e] - high * held.sine[e];
          b[e] = high * held.cosine[e] + low * held.sine[e];
        }
      } else if (rope.style != kRotateHalf) {
        if (unit.a < 2 * rope.pairs) {
          TurnNeighbours(cosines + unit.a / 2, cosines + angles + unit.a / 2, a);
        }
        if (unit.b < 2 * rope.pairs) {
          TurnNeighbours(cosines + unit.b / 2, cosines + angles + unit.b / 2, b);
        }
      }
      uint8_t* const to = base + TokenOffset(t, plane, token);
      StoreEight(dtype, a, to + 2 * unit.a);
      StoreEight(dtype, b, to + 2 * unit.b);
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
