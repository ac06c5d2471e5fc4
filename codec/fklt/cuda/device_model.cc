#include "codec/fklt/cuda/device_model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "codec/fklt/tile.h"
#include "device/cuda_status.h"

namespace kvcask::fklt {
namespace {

// fp16 operands: matrices are scaled so that their largest element is about this.
constexpr float kLargestOperand = 256;

template <typename T>
absl::Status Upload(const std::vector<T>& from, DeviceMemory* to) {
  if (absl::Status s = to->Reserve(std::max<size_t>(1, from.size() * sizeof(T))); !s.ok()) return s;
  KVCASK_CUDA(cudaMemcpy(to->data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  return absl::OkStatus();
}

// In fp16, scaled by a power of two so that the largest element is about kLargestOperand.
absl::Status UploadMatrix(absl::Span<const float> m, DeviceMemory* to, float* scale) {
  float largest = 1e-30f;
  for (float v : m) largest = std::max(largest, std::fabs(v));
  *scale = std::ldexp(1.0f, std::ilogb(kLargestOperand / largest));
  std::vector<__half> half(m.size());
  for (size_t i = 0; i < half.size(); ++i) half[i] = __float2half(m[i] * *scale);
  return Upload(half, to);
}

}  // namespace

DeviceModel::DeviceModel(std::shared_ptr<const FkltProfile> profile,
                         absl::Span<const GroupCoder* const> coders)
    : profile_(std::move(profile)), coders_(coders.begin(), coders.end()) {
  for (const GroupCoder* c : coders_) {
    max_members_ = std::max(max_members_, static_cast<int>(c->members().size()));
    for (const MemberPlace& m : c->members()) head_dim_ = std::max(head_dim_, m.head_dim);
  }
}

absl::Status DeviceModel::Load() {
  absl::Status status = LoadTables();
  return status.ok() ? LoadGroups() : status;
}

absl::Status DeviceModel::LoadTables() {
  for (const TableSet& set : profile_->table_sets) {
    std::vector<uint8_t> index(kClasses * kTableSlots), shift(kAllTables);
    std::vector<SymbolEntry> entry;
    std::vector<uint32_t> class_entries(kClasses, kNoEntries);
    for (int c = 0; c < kAllTables; ++c) shift[c] = static_cast<uint8_t>(set.shift(c));
    for (int c = 0; c < kClasses; ++c) {
      std::vector<SymbolEntry> symbols;
      for (int s = 0; s < kTableSlots; ++s) {
        const uint32_t e = set.decode()[c * kTableSlots + s];
        if (e >> 20 == 0) {  // the first slot of a symbol
          const int v = static_cast<int8_t>(e & 255), n = std::abs(v);
          const float centre = n > 3 ? static_cast<float>(n) : set.centroids()[c * 4 + n];
          const bool plain = v != -128 && shift[c] == 0;
          float value = v < 0 ? -centre : centre;
          const uint32_t nan = 0x7fc00000u | (e & 255);
          if (!plain) std::memcpy(&value, &nan, sizeof(value));
          symbols.push_back({s | (static_cast<int>(e >> 8 & 4095) - 4095) * 4096, value});
        }
        index[c * kTableSlots + s] = static_cast<uint8_t>(symbols.size() - 1);
      }
      if (entry.size() + symbols.size() <= kMostEntries) {
        class_entries[c] = static_cast<uint32_t>(entry.size() * sizeof(SymbolEntry));
        entry.insert(entry.end(), symbols.begin(), symbols.end());
      }
    }
    entry.resize((entry.size() + 1) / 2 * 2);  // 16 bytes at a time
    std::vector<uint2> encode_entry(kEncodeEntries);
    for (int i = 0; i < kEncodeEntries; ++i) {
      const uint32_t e = set.encode()[i], f = e & 0x1fff;
      const bool plain = f != 0 && i % 256 != 0 && shift[i / 256] == 0;
      encode_entry[i] = plain ? make_uint2(f << 16 | (e >> 25 & 15) << 12 | (e >> 13 & 4095),
                                           set.multiplier()[i] << 3)
                              : make_uint2(1u << 31, 0);
    }
    auto memory = std::make_unique<DeviceMemory>();
    DeviceTables t{};
    uint8_t *p_index, *p_shift;
    SymbolEntry* p_entry;
    uint2* p_encode_entry;
    uint32_t *p_class_entries, *p_decode, *p_encode, *p_multiplier;
    float* p_centroids;
    auto cut = [&](Cutter c) {
      p_index = c.Take<uint8_t>(index.size());
      p_entry = c.Take<SymbolEntry>(entry.size());
      p_encode_entry = c.Take<uint2>(kEncodeEntries);
      p_class_entries = c.Take<uint32_t>(class_entries.size());
      p_shift = c.Take<uint8_t>(shift.size());
      p_decode = c.Take<uint32_t>(kAllTables * kTableSlots);
      p_encode = c.Take<uint32_t>(kAllTables * 256);
      p_multiplier = c.Take<uint32_t>(kAllTables * 256);
      p_centroids = c.Take<float>(kAllTables * 4);
      return c.used();
    };
    if (absl::Status s = memory->Reserve(cut(Cutter())); !s.ok()) return s;
    cut(Cutter(memory->data()));
    auto copy = [&](void* to, const void* from, size_t bytes) {
      return CudaStatus(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "tables");
    };
    absl::Status status = copy(p_index, index.data(), index.size());
    status.Update(copy(p_entry, entry.data(), entry.size() * sizeof(SymbolEntry)));
    status.Update(copy(p_encode_entry, encode_entry.data(), encode_entry.size() * sizeof(uint2)));
    status.Update(copy(p_class_entries, class_entries.data(), class_entries.size() * 4));
    status.Update(copy(p_shift, shift.data(), shift.size()));
    status.Update(copy(p_decode, set.decode(), kAllTables * kTableSlots * 4));
    status.Update(copy(p_encode, set.encode(), kAllTables * 256 * 4));
    status.Update(copy(p_multiplier, set.multiplier(), kAllTables * 256 * 4));
    status.Update(copy(p_centroids, set.centroids(), kAllTables * 16));
    if (!status.ok()) return status;
    t.index = p_index;
    t.entry = p_entry;
    t.encode_entry = p_encode_entry;
    t.class_entries = p_class_entries;
    t.entries = static_cast<int>(entry.size());
    t.complete =
        std::find(class_entries.begin(), class_entries.end(), kNoEntries) == class_entries.end();
    t.shift = p_shift;
    t.decode = p_decode;
    t.encode = p_encode;
    t.multiplier = p_multiplier;
    t.centroids = p_centroids;
    tables_.push_back(t);
    tables_memory_.push_back(std::move(memory));
  }
  return absl::OkStatus();
}

absl::Status DeviceModel::LoadGroups() {
  // Ropes that differ, by the first layer that has them.
  std::vector<DeviceRope> ropes;
  std::vector<size_t> frequency_at;
  std::vector<float> frequencies;
  std::map<int, int> rope_of_id;
  std::vector<DeviceMember> members;
  std::vector<float> mu, inverse_sigma;
  std::vector<int16_t> sigma;
  std::vector<DeviceGroup> groups;
  struct At {
    size_t member, row;
  };
  std::vector<At> at;
  std::vector<float> sensitivity;
  std::vector<size_t> sensitivity_at;
  y_exponent_ = -static_cast<int>(std::lround(profile_->steps[1] / 8.0));
  for (const GroupCoder* c : coders_) {
    at.push_back({members.size(), mu.size()});
    for (const MemberPlace& m : c->members()) {
      int rope = -1;
      if (m.rope != nullptr) {
        const auto [it, fresh] = rope_of_id.emplace(m.rope_id, static_cast<int>(ropes.size()));
        rope = it->second;
        if (fresh) {
          frequency_at.push_back(frequencies.size());
          const int pairs = static_cast<int>(m.rope->inv_freq.size());
          ropes.push_back({static_cast<int>(m.rope->style), pairs,
                           static_cast<double>(m.rope->attention_scale), nullptr, all_pairs_});
          frequencies.insert(frequencies.end(), m.rope->inv_freq.begin(), m.rope->inv_freq.end());
          all_pairs_ += pairs;
        }
      }
      members.push_back({m.offset, m.head_dim, m.plane, m.layer, m.head, rope});
    }
    const GroupModel& model = c->model();
    mu.insert(mu.end(), model.mu.begin(), model.mu.end());
    sigma.insert(sigma.end(), model.sigma.begin(), model.sigma.end());
    for (int r = 0; r < model.dimensions; ++r) inverse_sigma.push_back(c->inverse_sigma(r));
    sensitivity_at.push_back(sensitivity.size());
    sensitivity.insert(sensitivity.end(), model.sensitivity.begin(), model.sensitivity.end());
    DeviceGroup group{};
    group.dimensions = model.dimensions;
    group.members = static_cast<int>(c->members().size());
    group.leading = model.leading();
    groups.push_back(group);
    auto loaded = std::make_unique<LoadedGroup>();
    absl::Status status = UploadMatrix(c->inverse(), &loaded->inverse, &loaded->inverse_scale);
    status.Update(UploadMatrix(c->forward(), &loaded->forward, &loaded->forward_scale));
    status.Update(UploadMatrix(c->sketch(), &loaded->sketch, &loaded->sketch_scale));
    if (!status.ok()) return status;
    groups_.push_back(std::move(loaded));
  }
  absl::Status status = Upload(members, &member_memory_);
  status.Update(Upload(mu, &mu_memory_));
  status.Update(Upload(sigma, &sigma_memory_));
  status.Update(Upload(inverse_sigma, &inverse_sigma_memory_));
  status.Update(Upload(frequencies, &frequency_memory_));
  status.Update(Upload(sensitivity, &sensitivity_memory_));
  if (!status.ok()) return status;
  for (size_t i = 0; i < ropes.size(); ++i) {
    ropes[i].inv_freq = reinterpret_cast<const float*>(frequency_memory_.data()) + frequency_at[i];
  }
  for (size_t g = 0; g < groups.size(); ++g) {
    groups[g].member = reinterpret_cast<const DeviceMember*>(member_memory_.data()) + at[g].member;
    groups[g].mu = reinterpret_cast<const float*>(mu_memory_.data()) + at[g].row;
    groups[g].sigma = reinterpret_cast<const int16_t*>(sigma_memory_.data()) + at[g].row;
    groups[g].inverse_sigma =
        reinterpret_cast<const float*>(inverse_sigma_memory_.data()) + at[g].row;
    groups[g].sensitivity =
        reinterpret_cast<const float*>(sensitivity_memory_.data()) + sensitivity_at[g];
  }
  rope_count_ = static_cast<int>(ropes.size());
  status.Update(Upload(ropes, &rope_memory_));
  status.Update(Upload(groups, &group_memory_));
  return status;
}

const StepRows& DeviceModel::Active(int group, int step_exponent) {
  LoadedGroup& g = *groups_[group];
  if (g.active_step != step_exponent) {
    const GroupModel& model = coders_[group]->model();
    for (int k = -kMaxStepClass; k <= kMaxStepClass; ++k) {
      g.active.rows[k + kMaxStepClass] = static_cast<uint16_t>(ActiveRows(
          model.sigma.data(), model.dimensions, step_exponent, k, profile_->active_threshold));
    }
    g.active_step = step_exponent;
  }
  return g.active;
}

absl::StatusOr<const __half*> DeviceModel::ForwardAndSketch(int group, int rows,
                                                            cudaStream_t stream) {
  LoadedGroup& g = *groups_[group];
  std::unique_ptr<DeviceMemory>& memory = g.forward_and_sketch[rows];
  if (memory == nullptr) {
    const size_t row_bytes = coders_[group]->dimensions() * sizeof(__half);
    const int first = rows / 16, blocks = coders_[group]->sketch_blocks() - first;
    auto fresh = std::make_unique<DeviceMemory>();
    if (absl::Status s = fresh->Reserve((rows + blocks) * row_bytes); !s.ok()) return s;
    KVCASK_CUDA(cudaMemcpyAsync(fresh->data(), g.forward.data(), rows * row_bytes,
                                cudaMemcpyDeviceToDevice, stream));
    KVCASK_CUDA(cudaMemcpyAsync(fresh->data() + rows * row_bytes,
                                g.sketch.data() + first * row_bytes, blocks * row_bytes,
                                cudaMemcpyDeviceToDevice, stream));
    memory = std::move(fresh);
  }
  return reinterpret_cast<const __half*>(memory->data());
}

}  // namespace kvcask::fklt
