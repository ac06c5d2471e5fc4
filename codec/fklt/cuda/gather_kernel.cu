// x - mu, keys un-rotated, in fp16, a row for each token that is no sink.
//
// Grid: MoveGrid; 256 threads. A thread has a token and a unit of 16 elements and goes through
// members, whose descriptions the block has read into shared memory. Reads the writer's layout,
// writes x: memory is the bound, 4 bytes an element. Other strides and fp32 go element by element.
#include "codec/fklt/cuda/encode_kernels.h"
#include "codec/fklt/cuda/rows_device.h"
#include "device/ptx.h"

namespace kvcask::fklt {
namespace {

constexpr float kLargestElement = 65504, kLargestFloat = 3.402823466e38f;

__device__ __forceinline__ int64_t TokenOffset(const EncodeTileDesc& t, const DevicePlane& plane,
                                               int token) {
  return t.pages == nullptr
             ? token * plane.token_stride
             : t.pages[token / t.page_tokens] + (token % t.page_tokens) * plane.token_stride;
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
    const Angle angle =
        UnpackAngle(t.angles[token * batch.all_pairs + rope.first_angle + pair.pair],
                    ScaleOf(static_cast<float>(1 / rope.scale)));
    v = v * angle.cosine - pair.sign * w * angle.sine;
  }
  v -= g.mu[m.offset + e];
  t.x[static_cast<size_t>(number) * g.dimensions + m.offset + e] = __float2half_rn(v);
  return fabsf(v) <= kLargestElement;
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
  const int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
  __shared__ int16_t number[kMaxTokens];
  __shared__ int64_t page_of[kMaxTokens];  // bytes before the token's page
  __shared__ int16_t in_page[kMaxTokens];  // tokens before it there
  __shared__ MemberSlab slab;
  NumberTokens(t.positions, tokens, static_cast<uint32_t>(batch.sinks), number);
  if (static_cast<int>(threadIdx.x) < tokens) {  // seen by all after LoadSlab's barrier
    const int token = threadIdx.x;
    page_of[token] = t.pages == nullptr ? 0 : t.pages[token / t.page_tokens];
    in_page[token] = static_cast<int16_t>(t.pages == nullptr ? token : token % t.page_tokens);
  }
  AwaitLast();
  bool good = true;
  for (int i = blockIdx.z; i < g.members;) {
    i = LoadSlab(g, t.planes, 0, batch.ropes, batch.all_pairs, dtype, 0, 1 << 30, true, i,
                 gridDim.z, &slab);
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
    const int head_dim = slab.head_dim, units = head_dim / 16, all = tokens * units;
    if (count == 0 || first >= all) continue;
    __half* const x = t.x;
    const uint32_t* const angles = t.angles;
    // A member's elements and angles are under way while the one before it is worked on.
    uint4 next_a, next_b;
    EightAngles next_angles{};
    int angles_of = -1;
    const auto ask = [&](int token, int u, const MovedMember& m) {
      const Unit unit = UnitOf(head_dim, m.style, m.pairs, u);
      const uint8_t* const from = m.base + page_of[token] + in_page[token] * m.token_stride;
      next_a = BitsOfEight(from + 2 * unit.a);
      next_b = BitsOfEight(from + 2 * unit.b);
      const int at = token * batch.all_pairs + m.first_angle + unit.a;
      if (unit.halves && at != angles_of) {
        next_angles = LoadAngles(angles + at);
        angles_of = at;
      }
    };
    const auto prefetch = [&](int token, int u, const MovedMember& m) {
      const Unit unit = UnitOf(head_dim, m.style, m.pairs, u);
      const uint8_t* const from = m.base + page_of[token] + in_page[token] * m.token_stride;
      PrefetchL2(from + 2 * unit.a);
      PrefetchL2(from + 2 * unit.b);
    };
    int token = first / units, u = first % units;
    ask(token, u, slab.member[0]);
    for (int k = 1; k < min(kAhead, count); ++k) prefetch(token, u, slab.member[k]);
    for (int w = first; w < all; w += stride) {
      const int n = number[token];
      for (int k = 0; k < count; ++k) {
        const MovedMember& m = slab.member[k];
        const Unit unit = UnitOf(head_dim, m.style, m.pairs, u);
        const int from = token;
        const EightAngles turns = next_angles;
        float a[8], b[8];
        UnpackEight(dtype, next_a, a);
        UnpackEight(dtype, next_b, b);
        if (k + kAhead < count) {
          prefetch(token, u, slab.member[k + kAhead]);
        } else if (w + stride < all && k + kAhead - count < count) {
          prefetch((w + stride) / units, (w + stride) % units, slab.member[k + kAhead - count]);
        }
        if (k + 1 < count) {
          ask(token, u, slab.member[k + 1]);
        } else if (w + stride < all) {
          token = (w + stride) / units;
          u = (w + stride) % units;
          ask(token, u, slab.member[0]);
        }
        good &= Within(a, kLargestFloat) && Within(b, kLargestFloat);
        if (n < 0) continue;
        if (unit.halves) {
          TurnHalves<true>(turns, m.scale, a, b);
        } else if (m.style != kRotateHalf) {
          const uint32_t* const own = angles + from * batch.all_pairs + m.first_angle;
          if (unit.a < 2 * m.pairs) TurnNeighbours<true>(own + unit.a / 2, m.scale, a);
          if (unit.b < 2 * m.pairs) TurnNeighbours<true>(own + unit.b / 2, m.scale, b);
        }
        __half* const row = x + n * g.dimensions + m.offset;
        good &= StoreCoordinates(a, m.mu + unit.a, row + unit.a);
        good &= StoreCoordinates(b, m.mu + unit.b, row + unit.b);
      }
    }
  }
  if (!good) batch.states[blockIdx.x].failed = kOutOfRange;
}

}  // namespace

cudaError_t LaunchGather(const EncodeBatch& batch, int tokens, int head_dim, int members,
                         cudaStream_t stream) {
  const dim3 grid = MoveGrid(batch.tile_count, tokens, head_dim, members);
  if (batch.all_pairs == 0) {  // no angles were before it, but the copy that it reads
    KVCASK_LAUNCH(GatherKernel, grid, kMoveThreads, 0, stream, batch);
  } else {
    KVCASK_LAUNCH_EARLY(GatherKernel, grid, kMoveThreads, 0, stream, batch);
  }
  return cudaGetLastError();
}

}  // namespace kvcask::fklt
