// Elements of the reader's and writer's layouts, for the kernels that move them: store and gather.
//
// A row of head_dim elements is cut into units of 16: two runs of 8, so that a thread moves 16
// bytes twice and has both halves of the pairs that turn together. Angles stay in registers while a
// thread goes from head to head; what it needs next is under way while it works.
#pragma once

#include "codec/cuda/elements_device.h"
#include "codec/fklt/cuda/angles_device.h"
#include "codec/fklt/cuda/plan.h"
#include "device/launch.h"

namespace kvcask::fklt {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kRotateHalf = 1;      // RopeStyle
constexpr int kMoveThreads = 256;
// Members ahead of the one at hand whose elements are asked into the L2 cache.
constexpr int kAhead = 2;

// Of element e of a row that turns: its partner, and the sign of the sine.
struct Pair {
  int pair, partner;
  float sign;
};
__device__ __forceinline__ Pair PairOf(const DeviceRope& rope, int e) {
  if (rope.style == kRotateHalf) {
    const bool low = e < rope.pairs;
    return {low ? e : e - rope.pairs, low ? e + rope.pairs : e - rope.pairs, low ? -1.0f : 1.0f};
  }
  return {e / 2, e ^ 1, e % 2 == 0 ? -1.0f : 1.0f};
}

// Unit u of a row: elements [a, a + 8) and [b, b + 8). With halves, a's turn with b's by pairs
// from a on; without, the pairs are neighbours, in those of the runs that begin below 2 pairs.
struct Unit {
  int a, b;
  bool halves;
};
__device__ __forceinline__ Unit UnitOf(int head_dim, int style, int pairs, int u) {
  if (style == kRotateHalf) {
    if (8 * u < pairs) return {8 * u, 8 * u + pairs, true};
    const int rest = head_dim - 2 * pairs;
    const int a = pairs + 8 * u;  // 2 pairs + what is left of u
    return {a, a + rest / 2, false};
  }
  return {8 * u, 8 * u + head_dim / 2, false};
}
// Whether a member's rows can be moved by units: 16-bit elements one after another, and everything
// that is read beside them aligned.
__device__ __forceinline__ bool MovesByUnits(const DeviceGroup& g, const DeviceMember& m,
                                             const DeviceRope& rope, int all_pairs, int dtype,
                                             int64_t dim_stride) {
  return dtype != kF32 && dim_stride == 2 && m.head_dim % 16 == 0 && m.offset % 8 == 0 &&
         g.dimensions % 8 == 0 && Aligned(g.mu + m.offset, 16) && rope.pairs % 8 == 0 &&
         (rope.pairs == 0 || (all_pairs % 4 == 0 && rope.first_angle % 4 == 0));
}

// What the threads of a block need of a member, read once for all of them.
struct MovedMember {
  uint8_t* base;  // of its head
  int64_t token_stride;
  const float* mu;
  int offset;
  int first_angle;
  int pairs, style;  // of what turns; 0: nothing
  int number;        // in the group
  AngleScale scale;  // of its angles
};
constexpr int kMemberSlab = 32;  // members at a time

struct MemberSlab {
  MovedMember member[kMemberSlab];
  int count;
  int head_dim;   // of all of them
  int by_units;   // all of them can be moved by units, with one head_dim
};

// Members first, first + step, ... below g.members, of layers [layer_begin, layer_end): at most
// kMemberSlab of them. `back`: keys are turned back. Returns where the next slab begins. By the
// whole block.
__device__ __forceinline__ int LoadSlab(const DeviceGroup& g, const DevicePlane* planes,
                                        int first_plane, const DeviceRope* ropes, int all_pairs,
                                        int dtype, int layer_begin, int layer_end, bool back,
                                        int first, int step, MemberSlab* slab) {
  __syncthreads();  // who still reads the last one
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x);
    const int i = first + lane * step;
    DeviceMember m{};
    DeviceRope rope{};
    DevicePlane plane{};
    bool there = false, units = true;
    if (i < g.members) {
      m = g.member[i];
      there = m.layer >= layer_begin && m.layer < layer_end;
    }
    if (there) {
      plane = planes[m.plane - first_plane];
      if (m.rope >= 0) rope = ropes[m.rope];
      units = MovesByUnits(g, m, rope, all_pairs, dtype, plane.dim_stride);
    }
    const unsigned mask = __ballot_sync(kAllLanes, there);
    const int leader = mask == 0 ? 0 : __clz(__brev(mask));
    const int head_dim = __shfl_sync(kAllLanes, m.head_dim, leader);
    const bool all = __all_sync(kAllLanes, !there || (units && m.head_dim == head_dim));
    if (there) {
      const float scale = rope.pairs > 0 ? static_cast<float>(rope.scale) : 1.0f;
      slab->member[__popc(mask & ((1u << lane) - 1))] = {plane.data + m.head * plane.head_stride,
                                                         plane.token_stride,
                                                         g.mu + m.offset,
                                                         m.offset,
                                                         rope.first_angle,
                                                         rope.pairs,
                                                         rope.style,
                                                         i,
                                                         ScaleOf(back ? 1 / scale : scale)};
    }
    if (lane == 0) {
      slab->count = __popc(mask);
      slab->head_dim = head_dim;
      slab->by_units = all;
    }
  }
  __syncthreads();
  return first + kMemberSlab * step;
}

// Eight or four angles that lie one after another, at an address aligned to 16.
struct EightAngles {
  uint4 low, high;
};
__device__ __forceinline__ EightAngles LoadAngles(const uint32_t* p) {
  return {reinterpret_cast<const uint4*>(p)[0], reinterpret_cast<const uint4*>(p)[1]};
}

// Pairs (low[i], high[i]) turned by angle i: by its opposite, if `back`.
template <bool back>
__device__ __forceinline__ void TurnPair(uint32_t packed, AngleScale scale, float* low,
                                         float* high) {
  const Angle angle = UnpackAngle(packed, scale);
  const float sine = back ? -angle.sine : angle.sine;
  const float a = *low, b = *high;
  *low = a * angle.cosine - b * sine;
  *high = b * angle.cosine + a * sine;
}
template <bool back>
__device__ __forceinline__ void TurnHalves(const EightAngles& angles, AngleScale scale, float* low,
                                           float* high) {
  const uint32_t packed[8] = {angles.low.x,  angles.low.y,  angles.low.z,  angles.low.w,
                              angles.high.x, angles.high.y, angles.high.z, angles.high.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) TurnPair<back>(packed[i], scale, low + i, high + i);
}
template <bool back>
__device__ __forceinline__ void TurnNeighbours(const uint32_t* angles, AngleScale scale, float* v) {
  const uint4 four = *reinterpret_cast<const uint4*>(angles);
  const uint32_t packed[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) TurnPair<back>(packed[i], scale, v + 2 * i, v + 2 * i + 1);
}

// number[t]: of token t among those that are not sinks, or -1 - its number among the sinks. By the
// first 128 threads of a block; all call.
__device__ __forceinline__ void NumberTokens(const uint32_t* positions, int tokens, uint32_t sinks,
                                             int16_t* number) {
  __shared__ int counts[kMaxTokens / 32];
  const int t = threadIdx.x;
  bool coded = false;
  unsigned mask = 0;
  if (t < kMaxTokens) {
    coded = t < tokens && positions[t] >= sinks;
    mask = __ballot_sync(kAllLanes, coded);
    if (t % 32 == 0) counts[t / 32] = __popc(mask);
  }
  __syncthreads();
  if (t < kMaxTokens) {
    int n = __popc(mask & ((1u << t % 32) - 1));
    for (int w = 0; w < t / 32; ++w) n += counts[w];
    number[t] = static_cast<int16_t>(coded ? n : -1 - (t - n));
  }
  __syncthreads();
}

// Blocks of a launch over tiles of at most `tokens` tokens and `members` heads of at most
// `head_dim`: x tiles, y parts of the tokens, z parts of the members. Few tiles are cut so that all
// multiprocessors have work; of many, a thread takes all members, one after another, and as many
// tokens as make 16 moves: what a block asks for before its first costs as much as a few.
inline dim3 MoveGrid(int tiles, int tokens, int head_dim, int members) {
  const int most = max(1, (tokens * max(1, head_dim / 16) + kMoveThreads - 1) / kMoveThreads);
  constexpr int kEnough = 1056;  // blocks: eight on each of 132 multiprocessors
  int parts = max(1, min(most, most * members / 16));
  if (tiles * parts < kEnough) parts = most;
  const int splits = min(members, max(1, kEnough / max(1, tiles * parts)));
  return dim3(tiles, parts, splits);
}

}  // namespace kvcask::fklt
