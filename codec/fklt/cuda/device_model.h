// What kernels need of a profile and a shard, on the device: tables, groups, matrices, ropes.
//
// One thread at a time.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <limits>
#include <map>
#include <memory>
#include <vector>

#include "codec/fklt/cuda/decode_kernels.h"
#include "codec/fklt/cuda/plan.h"
#include "codec/fklt/fklt_profile.h"
#include "codec/fklt/group_coder.h"
#include "device/memory.h"

namespace kvcask::fklt {

class DeviceModel {
 public:
  // `coders` are those of the shard's groups; they must outlive this.
  DeviceModel(std::shared_ptr<const FkltProfile> profile,
              absl::Span<const GroupCoder* const> coders);
  // Copies all of it to the current device.
  absl::Status Load();

  const FkltProfile& profile() const { return *profile_; }
  const GroupCoder& coder(size_t group) const { return *coders_[group]; }
  size_t groups() const { return coders_.size(); }

  const DeviceTables& tables(int set) const { return tables_[set]; }
  int table_sets() const { return static_cast<int>(tables_.size()); }
  const DeviceGroup* device_groups() const {
    return reinterpret_cast<const DeviceGroup*>(group_memory_.data());
  }
  const DeviceRope* device_ropes() const {
    return reinterpret_cast<const DeviceRope*>(rope_memory_.data());
  }
  int rope_count() const { return rope_count_; }
  int all_pairs() const { return all_pairs_; }
  int max_members() const { return max_members_; }  // of a group
  int head_dim() const { return head_dim_; }        // the largest
  // Coordinates are in units of 2^-y_exponent, near the balanced step: fp16 holds 2^-3 to 2^15 of
  // it.
  int y_exponent() const { return y_exponent_; }
  AngleBatch Angles(const AngleDesc* tables, size_t count) const {
    return {tables, static_cast<int>(count), device_ropes(), rope_count_, all_pairs_};
  }

  // [D][D] in fp16, and the power of two that its elements were multiplied with.
  struct Matrix {
    const __half* data;
    float scale;
  };
  Matrix Inverse(int group) const {
    return {reinterpret_cast<const __half*>(groups_[group]->inverse.data()),
            groups_[group]->inverse_scale};
  }
  Matrix Forward(int group) const {
    return {reinterpret_cast<const __half*>(groups_[group]->forward.data()),
            groups_[group]->forward_scale};
  }
  float sketch_scale(int group) const { return groups_[group]->sketch_scale; }
  // `rows` rows of `Forward`, then the sketches of the rest, so that one GEMM makes both. Made on
  // the stream the first time.
  absl::StatusOr<const __half*> ForwardAndSketch(int group, int rows, cudaStream_t stream);
  // Coordinates of a group's tokens at a step: worked out again where the step is not the last
  // one's.
  const StepRows& Active(int group, int step_exponent);

 private:
  // One group on the device.
  struct LoadedGroup {
    DeviceMemory inverse, forward, sketch;  // [D][D], [D][D], [sketch blocks][D] fp16
    float inverse_scale = 1, forward_scale = 1, sketch_scale = 1;
    // See ForwardAndSketch, by rows: there are as many as the profile has presets.
    std::map<int, std::unique_ptr<DeviceMemory>> forward_and_sketch;
    int active_step = std::numeric_limits<int>::min();
    StepRows active{};
  };
  absl::Status LoadTables();
  absl::Status LoadGroups();

  const std::shared_ptr<const FkltProfile> profile_;
  const std::vector<const GroupCoder*> coders_;
  std::vector<std::unique_ptr<DeviceMemory>> tables_memory_;  // a table set each
  std::vector<DeviceTables> tables_;
  std::vector<std::unique_ptr<LoadedGroup>> groups_;
  DeviceMemory group_memory_, member_memory_, mu_memory_, sigma_memory_, inverse_sigma_memory_;
  DeviceMemory rope_memory_, frequency_memory_;
  DeviceMemory sensitivity_memory_;
  int rope_count_ = 0, all_pairs_ = 0, max_members_ = 0, head_dim_ = 0, y_exponent_ = 0;
};

}  // namespace kvcask::fklt
