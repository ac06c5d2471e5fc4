// The `fklt` part of a model profile, read and checked: FORMAT.md 2.
//
// Immutable once made; shared by the codec, its reference and the benchmarks. Holds copies: of
// the file, only mu, L, sigmas and tables are converted here; U stays as the file has it
// (`u` points into the profile, which this keeps alive).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include "codec/base/geometry.h"
#include "codec/entropy/static_tables.h"
#include "codec/profile/profile.h"

namespace kvcask::fklt {

// One sub-vector of a group.
struct Member {
  int layer = 0;  // of the whole model
  StreamKind stream = StreamKind::kK;
  int head = 0;  // of the whole model
  int head_dim = 0;
  int offset = 0;         // of its first element in the group's vector
  size_t l_offset = 0;    // of its first element in `l`
};

struct GroupModel {
  std::vector<Member> members;
  int dimensions = 0;      // D
  std::vector<float> mu;   // [D]
  std::vector<float> l;    // packed lower triangles, l_scale applied
  std::vector<int16_t> sigma;  // [D], 1/16 octaves, never rising
  absl::Span<const uint8_t> u;  // f16 [D, D], row r = coordinate r, unaligned
  std::vector<float> sensitivity;  // b, c[m], d[m]
  float bf16_floor = 0;
  float largest_kld[3] = {};  // by preset

  int leading() const { return static_cast<int>(sensitivity.size() / 2); }  // m
};

struct FkltProfile {
  std::shared_ptr<const Profile> file;
  int steps[3] = {};
  float kappa[3] = {};
  int preset_table_set[3] = {};
  int active_threshold = -21;
  uint32_t sinks = 4;
  float rounding = .5f;
  std::vector<GroupModel> groups;
  std::vector<TableSet> table_sets;

  // INVALID_ARGUMENT says which tensor breaks which rule. Does the checks of FORMAT.md 4, the
  // orthogonality of every U included: D^2 time.
  static absl::StatusOr<std::shared_ptr<const FkltProfile>> Read(
      std::shared_ptr<const Profile> file);
};

// How far U (U^T v) may be from v, element by element, for vectors of +-1.
inline constexpr float kOrthogonality = .05f;

// Reads row r of a group's U as floats.
void LoadRowOfU(const GroupModel& group, int row, float* out);

}  // namespace kvcask::fklt
