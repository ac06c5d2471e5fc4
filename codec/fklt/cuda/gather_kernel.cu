// x - mu, keys un-rotated, in fp16, a row for each token that is no sink.
//
// Grid: MoveGrid; 256 threads. A thread has a token and a unit of 16 elements and goes through
// members. Reads the writer's layout, writes x: memory is the bound, 4 bytes an element. Other
// strides and fp32 go element by element.
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
  NumberTokens(t.positions, tokens, static_cast<uint32_t>(batch.sinks), number);
  HeldAngles held;
  bool good = true;
  for (int i = blockIdx.z; i < g.members; i += gridDim.z) {
    const DeviceMember m = g.member[i];
    const DevicePlane plane = t.planes[m.plane];
    DeviceRope rope{};
    if (m.rope >= 0) rope = batch.ropes[m.rope];
    if (!MovesByUnits(g, m, rope, batch.all_pairs, dtype, plane.dim_stride)) {
      for (int w = first; w < tokens * m.head_dim; w += stride) {
        const int token = w / m.head_dim;
        good &= GatherElement(batch, t, g, i, number[token], token, w % m.head_dim);
      }
      continue;
    }
    const uint8_t* const base = plane.data + m.head * plane.head_stride;
    const float unscale = Unscale(rope);
    const int units = m.head_dim / 16;
    for (int w = first; w < tokens * units; w += stride) {
      const int token = w / units;
      const Unit unit = UnitOf(m.head_dim, rope, w % units);
      const uint8_t* const row = base + TokenOffset(t, plane, token);
      float a[8], b[8];
      LoadEight(dtype, row + 2 * unit.a, a);
      LoadEight(dtype, row + 2 * unit.b, b);
      good &= Within(a, kLargestFloat) && Within(b, kLargestFloat);
      const int n = number[token];
      if (n < 0) continue;
      const float* const cosines = t.angles + token * batch.all_pairs + rope.first_angle;
      if (unit.halves) {
        held.Hold(cosines + unit.a, angles);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float low = a[e], high = b[e];
          a[e] = (low * held.cosine[e] + high * held.sine[e]) * unscale;
          b[e] = (high * held.cosine[e] - low * held.sine[e]) * unscale;
        }
      } else if (rope.style != kRotateHalf) {
        if (unit.a < 2 * rope.pairs) {
          UnturnNeighbours(cosines + unit.a / 2, cosines + angles + unit.a / 2, unscale, a);
        }
        if (unit.b < 2 * rope.pairs) {
          UnturnNeighbours(cosines + unit.b / 2, cosines + angles + unit.b / 2, unscale, b);
        }
      }
      const float* const mu = g.mu + m.offset;
      __half* const x = t.x + static_cast<size_t>(t.column + n) * g.dimensions + m.offset;
      good &= StoreCoordinates(a, mu + unit.a, x + unit.a);
      good &= StoreCoordinates(b, mu + unit.b, x + unit.b);
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
