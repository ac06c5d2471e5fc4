// One job of `fklt`: from a cache's strides to a tile's bytes and back. The floats of
// FORMAT.md 1, 3.7 and 5; the integers are tile.h's.
//
// Thread-safe: pure functions, given a workspace and rope tables of the caller's own.
#pragma once

#include <absl/status/status.h>

#include <vector>

#include "codec/api/codec.h"
#include "codec/entropy/rans.h"
#include "codec/fklt/fklt_profile.h"
#include "codec/fklt/group_coder.h"
#include "codec/transform/rope.h"

namespace kvcask::fklt {

// Sines and cosines for one run of positions, kept from job to job: pages are coded group by
// group.
class RopeCache {
 public:
  const RopeTable& Get(const MemberPlace& member, absl::Span<const uint32_t> positions,
                       int64_t offset, RopeDirection direction);

 private:
  std::vector<uint32_t> positions_;
  int64_t offset_ = 0;
  RopeDirection direction_ = RopeDirection::kRotate;
  std::vector<std::pair<int, RopeTable>> tables_;  // by rope id
};

constexpr double kSinkSensitivity = 2048;  // FORMAT.md 5.5

// The profile's number of a preset.
inline int PresetOf(Quality q) {
  return q == Quality::kNearLossless ? 0 : q == Quality::kCompact ? 2 : 1;
}

// The job has passed CheckEncodeJob. Sets bytes and certificate.
absl::Status EncodeTile(const FkltProfile& profile, const GroupCoder& group, RansPath path,
                        int step_limit_shift, RopeCache* ropes, Workspace& workspace,
                        EncodeJob* job);

// The job has passed CheckDecodeJob.
absl::Status DecodeTile(const FkltProfile& profile, const GroupCoder& group, RansPath path,
                        RopeCache* ropes, Workspace& workspace, const DecodeJob& job);

// The certificate's sum (FORMAT.md 5.4, 5.5) over `decoded` instead of what the encoder expects:
// every coordinate, nothing estimated. 0 where nothing differs.
double MeasureTile(const FkltProfile& profile, const GroupCoder& group, const EncodeJob& job,
                   const ConstKvView& decoded);

}  // namespace kvcask::fklt
