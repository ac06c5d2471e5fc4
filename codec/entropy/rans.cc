#include "codec/entropy/rans.h"

#include <cassert>
#include <cstring>

#include "codec/entropy/rans_internal.h"

namespace kvcask {
namespace {

using rans_internal::DecodeStep;
using rans_internal::EncodeStep;

// What a segment of so many lanes runs on.
RansPath PathFor(RansPath path, int lanes) {
  path = ResolveRansPath(path);
  if (path == RansPath::kAvx512 && lanes < 16 && rans_internal::HaveAvx2()) path = RansPath::kAvx2;
  if (lanes < (path == RansPath::kAvx512 ? 16 : 8)) path = RansPath::kPortable;
  return path;
}

int ExponentOf(uint32_t x) { return 31 - __builtin_clz(x) - 12; }

// FORMAT.md 3.4: exponents, then mantissas as one bit string, padded to two bytes.
uint8_t* WriteStates(const uint32_t* x, int lanes, uint8_t* out) {
  uint8_t* const begin = out;
  for (int l = 0; l < lanes; l += 2) {
    const int high = l + 1 < lanes ? ExponentOf(x[l + 1]) : 0;
    *out++ = static_cast<uint8_t>(ExponentOf(x[l]) | high << 4);
  }
  uint64_t bits = 0;
  int n = 0;
  for (int l = 0; l < lanes; ++l) {
    const int length = ExponentOf(x[l]) + 12;
    bits |= static_cast<uint64_t>(x[l] & ((1u << length) - 1)) << n;
    for (n += length; n >= 8; n -= 8, bits >>= 8) *out++ = static_cast<uint8_t>(bits);
  }
  if (n > 0) *out++ = static_cast<uint8_t>(bits);
  if ((out - begin) % 2 != 0) *out++ = 0;
  return out;
}

// The inverse; nullptr when `in` is too short or unused bits are not zero.
const uint8_t* ReadStates(absl::Span<const uint8_t> in, int lanes, uint32_t* x) {
  const size_t nibbles = (lanes + 1) / 2;
  if (in.size() < nibbles) return nullptr;
  size_t bits_needed = 0;
  for (int l = 0; l < lanes; ++l) bits_needed += (in[l / 2] >> l % 2 * 4 & 15) + 12;
  const size_t bytes = (nibbles + (bits_needed + 7) / 8 + 1) / 2 * 2;
  if (in.size() < bytes || (lanes == 1 && in[0] >> 4 != 0)) return nullptr;
  uint64_t bits = 0;
  int n = 0;
  size_t at = nibbles;
  for (int l = 0; l < lanes; ++l) {
    const int length = (in[l / 2] >> l % 2 * 4 & 15) + 12;
    for (; n < length; n += 8) bits |= static_cast<uint64_t>(in[at++]) << n;
    x[l] = 1u << length | static_cast<uint32_t>(bits & ((1u << length) - 1));
    bits >>= length;
    n -= length;
  }
  for (; at < bytes; ++at) bits |= in[at];
  return bits == 0 ? in.data() + bytes : nullptr;
}

}  // namespace

int SegmentLanes(int symbols, int steps) {
  int lanes = 1;
  while (lanes < kMaxLanes && lanes * steps < symbols) lanes *= 2;
  return lanes;
}

bool RansPathAvailable(RansPath path) {
  if (path == RansPath::kAvx2) return rans_internal::HaveAvx2();
  if (path == RansPath::kAvx512) return rans_internal::HaveAvx512();
  return true;
}

RansPath ResolveRansPath(RansPath path) {
  if (path != RansPath::kBest && RansPathAvailable(path)) return path;
  for (RansPath best : {RansPath::kAvx512, RansPath::kAvx2}) {
    if (RansPathAvailable(best)) return best;
  }
  return RansPath::kPortable;
}

const char* RansPathName(RansPath path) {
  switch (ResolveRansPath(path)) {
    case RansPath::kAvx2:
      return "avx2";
    case RansPath::kAvx512:
      return "avx512";
    default:
      return "portable";
  }
}

size_t EncodeSegment(const TableSet& tables, int lanes, absl::Span<const uint8_t> classes,
                     const int16_t* symbols, uint8_t* out, RansPath path) {
  assert(lanes >= 1 && lanes <= kMaxLanes && classes.size() % lanes == 0);
  alignas(64) uint32_t x[kMaxLanes];
  for (uint32_t& state : x) state = kRansInitial;
  const size_t steps = classes.size() / lanes;
  uint8_t* const end = out + MaxSegmentBytes(static_cast<int>(classes.size()));
  uint8_t* cursor = end;
  path = PathFor(path, lanes);
  if (path == RansPath::kAvx512) {
    rans_internal::EncodeStepsAvx512(tables, lanes, classes.data(), symbols, steps, x, cursor);
  } else if (path == RansPath::kAvx2) {
    rans_internal::EncodeStepsAvx2(tables, lanes, classes.data(), symbols, steps, x, cursor);
  } else {
    for (size_t s = steps; s-- > 0;) {
      EncodeStep(tables, lanes, classes.data() + s * lanes, symbols + s * lanes, x, cursor);
    }
  }
  uint8_t* const words = WriteStates(x, lanes, out);
  std::memmove(words, cursor, end - cursor);
  return words + (end - cursor) - out;
}

bool SegmentDecoder::Open(absl::Span<const uint8_t> segment, int lanes, RansPath path) {
  assert(lanes >= 1 && lanes <= kMaxLanes);
  if (segment.size() % 2 != 0) return false;
  lanes_ = lanes;
  path_ = PathFor(path, lanes);
  cursor_ = ReadStates(segment, lanes, x_);
  end_ = segment.data() + segment.size();
  return cursor_ != nullptr;
}

bool SegmentDecoder::Decode(const TableSet& tables, absl::Span<const uint8_t> classes,
                            int16_t* symbols) {
  assert(classes.size() % lanes_ == 0);
  const size_t steps = classes.size() / lanes_;
  if (path_ == RansPath::kAvx512) {
    return rans_internal::DecodeStepsAvx512(tables, lanes_, classes.data(), symbols, steps, x_,
                                            cursor_, end_);
  }
  if (path_ == RansPath::kAvx2) {
    return rans_internal::DecodeStepsAvx2(tables, lanes_, classes.data(), symbols, steps, x_,
                                          cursor_, end_);
  }
  for (size_t s = 0; s < steps; ++s) {
    if (!DecodeStep(tables, lanes_, classes.data() + s * lanes_, symbols + s * lanes_, x_, cursor_,
                    end_)) {
      return false;
    }
  }
  return true;
}

bool SegmentDecoder::Finished() const {
  for (int l = 0; l < lanes_; ++l) {
    if (x_[l] != kRansInitial) return false;
  }
  return cursor_ == end_;
}

}  // namespace kvcask
