// x - mu, keys un-rotated, in fp16, a row for each token that is no sink.
//
// Grid: MoveGrid; 256 threads. A thread has a token and a unit of 16 elements and goes through
// members, whose descriptions the block has read into shared memory. Reads the writer's layout,
// writes x: memory is the bound, 4 bytes an element. Other strides and fp32 go element by element.
#include "codec/fklt/cuda/encode_kernels.h"
#include "codec/fklt/cuda/rows_device.h"

namespace kvcask::fklt {
namespace {

constexpr float kLargestElement = 65504, kLargestFloat = 3.402823466e38f;

__device__ __forceinline__ int64_t TokenOffset(const EncodeTileDesc& t, const DevicePlane& plane,
                                               int token) {
  return t.pages == nullptr
             ? token * plane.token_stride
             : t.pages[token / t.page_tokens] + (token % t.page_tokens) * plane.token_stride;
}

// The table has the scale multiplied in: twice too often for the inverse.
__device__ __forceinline__ float Unscale(const DeviceRope& rope) {
  return rope.pairs > 0 ? static_cast<float>(1 / (rope.scale * rope.scale)) : 1.0f;
}

// False: not finite, or outside fp16's range.
__device__ __attribute__((noinline)) bool GatherElement(const EncodeBatch& batch,
                                                        const EncodeTileDesc& t,
                                                        const DeviceGroup& g, int member,
                                                        int number, int token, int e) {
  const DeviceMember m = g.member[member];
  const DevicePlane plane = t.planes[m.plane];
  DeviceRope rope{};
  if (m.rope >= 0) rope = batch.ropes[m.rope];
  const uint8_t* const row = plane.data + m.head * plane.head_stride + TokenOffset(t, plane, token);
  float v = LoadAs(t.dtype, row + e * plane.dim_stride);
  if (!(fabsf(v) <= kLargestFloat)) return false;
  if (number < 0) return true;
  if (e < 2 * rope.pairs) {
    const Pair pair = PairOf(rope, e);
    const float w = LoadAs(t.dtype, row + pair.partner * plane.dim_stride);
    const int at = token * batch.all_pairs + rope.first_angle + pair.pair;
    v = (v * t.angles[at] - pair.sign * w * t.angles[t.tokens * batch.all_pairs + at]) *
        Unscale(rope);
  }
  v -= g.mu[m.offset + e];
  t.x[static_cast<size_t>(t.column + number) * g.dimensions + m.offset + e] = __float2half_rn(v);
  return fabsf(v) <= kLargestElement;
}

__device__ __forceinline__ void UnturnNeighbours(const float* cosines, const float* sines,
                                                 float unscale, float* v) {
  const float4 c = *reinterpret_cast<const float4*>(cosines);
  const float4 s = *reinterpret_cast<const float4*>(sines);
  const float cs[4] = {c.x, c.y, c.z, c.w}, sn[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float a = v[2 * i], b = v[2 * i + 1];
    v[2 * i] = (a * cs[i] + b * sn[i]) * unscale;
    v[2 * i + 1] = (b * cs[i] - a * sn[i]) * unscale;
  }
}

// Whether all are at most `most`; NaN is not.
__device__ __forceinline__ bool Within(const float* v, float most) {
  bool good = true;
#pragma unroll
  for (int e = 0; e < 8; ++e) good &= fabsf(v[e]) <= most;
  return good;
}

__device__ __forceinline__ bool StoreCoordinates(float* v, const float* mu, __half* x) {
  float m[8];
  LoadFloats(mu, m);
#pragma unroll
  for (int e = 0; e < 8; ++e) v[e] -= m[e];
  StoreEight(/*fp16*/ 2, v, reinterpret_cast<uint8_t*>(x));
  return Within(v, kLargestElement);
}

__global__ void __launch_bounds__(kMoveThreads, 3)
    GatherKernel(const __grid_constant__ EncodeBatch batch) {
  const EncodeTileDesc& t = batch.tiles[blockIdx.x];
  const DeviceGroup& g = batch.groups[t.group];
  const int dtype = t.dtype, tokens = t.tokens;
  const int angles = tokens * batch.all_pairs;
  const int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
  __shared__ int16_t number[kMaxTokens];
  __shared__ MemberSlab slab;
  NumberTokens(t.positions, tokens, static_cast<uint32_t>(batch.sinks), number);
  HeldAngles held;
  bool good = true;
  for (int i = blockIdx.z; i < g.members;) {
    i = LoadSlab(g, t.planes, 0, batch.ropes, batch.all_pairs, dtype, 0, 1 << 30, i, gridDim.z,
                 &slab);
    const int count = slab.count;
    if (!slab.by_units) {
      for (int k = 0; k < count; ++k) {
        const int member = slab.member[k].number, head_dim = g.member[member].head_dim;
        for (int w = first; w < tokens * head_dim; w += stride) {
          const int token = w / head_dim;
          good &= GatherElement(batch, t, g, member, number[token], token, w % head_dim);
        }
      }
      continue;
    }
    const int head_dim = slab.head_dim, units = head_dim / 16;
    for (int w = first; count > 0 && w < tokens * units; w += stride) {
      const int token = w / units, u = w % units;
      const int n = number[token];
      __half* const row = t.x + static_cast<size_t>(t.column + n) * g.dimensions;  // if n >= 0
      const float* const cosines = t.angles + token * batch.all_pairs;
      const int page_token = t.pages == nullptr ? token : token % t.page_tokens;
      const int64_t page = t.pages == nullptr ? 0 : t.pages[token / t.page_tokens];
      const auto load = [&](const MovedMember& m, const Unit& unit, uint4* a, uint4* b) {
        const uint8_t* const from = m.base + page + page_token * m.token_stride;
        *a = BitsOfEight(from + 2 * unit.a);
        *b = BitsOfEight(from + 2 * unit.b);
      };
      // The next member's elements are under way while this one's are worked on.
      Unit next = UnitOf(head_dim, slab.member[0].style, slab.member[0].pairs, u);
      uint4 next_a, next_b;
      load(slab.member[0], next, &next_a, &next_b);
      for (int k = 0; k < count; ++k) {
        const MovedMember& m = slab.member[k];
        const Unit unit = next;
        float a[8], b[8];
        UnpackEight(dtype, next_a, a);
        UnpackEight(dtype, next_b, b);
        if (k + 1 < count) {
          const MovedMember& later = slab.member[k + 1];
          next = UnitOf(head_dim, later.style, later.pairs, u);
          load(later, next, &next_a, &next_b);
        }
        good &= Within(a, kLargestFloat) && Within(b, kLargestFloat);
        if (n < 0) continue;
        const float* const cosine = cosines + m.first_angle;
        if (unit.halves) {
          held.Hold(cosine + unit.a, angles);
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            const float low = a[e], high = b[e];
            a[e] = (low * held.cosine[e] + high * held.sine[e]) * m.unscale;
            b[e] = (high * held.cosine[e] - low * held.sine[e]) * m.unscale;
          }
        } else if (m.style != kRotateHalf) {
          if (unit.a < 2 * m.pairs) {
            UnturnNeighbours(cosine + unit.a / 2, cosine + angles + unit.a / 2, m.unscale, a);
          }
          if (unit.b < 2 * m.pairs) {
            UnturnNeighbours(cosine + unit.b / 2, cosine + angles + unit.b / 2, m.unscale, b);
          }
        }
        good &= StoreCoordinates(a, m.mu + unit.a, row + m.offset + unit.a);
        good &= StoreCoordinates(b, m.mu + unit.b, row + m.offset + unit.b);
      }
    }
  }
  if (!good) batch.states[blockIdx.x].failed = kOutOfRange;
}

}  // namespace

cudaError_t LaunchGather(const EncodeBatch& batch, int tokens, int head_dim, int members,
                         cudaStream_t stream) {
  KVCASK_LAUNCH(GatherKernel, MoveGrid(batch.tile_count, tokens, head_dim, members), kMoveThreads,
                0, stream, batch);
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
