// What decoder and encoder share in bringing a batch to the device.
#pragma once

#include <absl/container/flat_hash_map.h>
#include <absl/status/status.h>
#include <absl/strings/str_cat.h>
#include <absl/types/span.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "codec/api/codec.h"
#include "codec/fklt/cuda/device_model.h"
#include "codec/fklt/cuda/plan.h"
#include "device/cublas.h"
#include "device/memory.h"

namespace kvcask::fklt {

// Events at the ends of a call and, if asked for, between its parts: those keep kernels from
// beginning early.
class PartTimes {
 public:
  static constexpr int kParts = 7;
  using Names = const char* const[kParts];

  PartTimes() = default;
  PartTimes(const PartTimes&) = delete;
  PartTimes& operator=(const PartTimes&) = delete;
  ~PartTimes() {
    for (cudaEvent_t e : events_) {
      if (e != nullptr) cudaEventDestroy(e);
    }
  }
  cudaError_t Create() {
    for (cudaEvent_t& e : events_) {
      if (const cudaError_t error = cudaEventCreate(&e); error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
  void Parts(bool wanted) { wanted_ = wanted; }
  // Before part i; kParts: after the last. `names`: of the parts of this call.
  void Mark(int i, cudaStream_t stream, const Names& names) {
    names_ = wanted_ ? names : nullptr;
    if (wanted_ || i == 0 || i == kParts) cudaEventRecord(events_[i], stream);
  }
  // Milliseconds; negative: unknown. Empty: they were not asked for.
  std::vector<std::pair<const char*, float>> Last() const {
    std::vector<std::pair<const char*, float>> parts;
    for (int i = 0; i < kParts && names_ != nullptr; ++i) {
      parts.emplace_back(names_[i], Between(i, i + 1));
    }
    return parts;
  }
  float All() const { return Between(0, kParts); }

 private:
  float Between(int a, int b) const {
    float ms = 0;
    return cudaEventElapsedTime(&ms, events_[a], events_[b]) == cudaSuccess ? ms : -1;
  }

  std::array<cudaEvent_t, kParts + 1> events_{};
  const char* const* names_ = nullptr;
  bool wanted_ = false;
};

// Of the batch under way: what goes there and comes back, and what kernels work in.
struct BatchMemory {
  PinnedMemory staging, states_back;
  DeviceMemory work, inputs;
};

// What an engine's decoder and encoder work with, by turns. All is the engine's.
struct EngineParts {
  DeviceModel* model;
  Cublas* cublas;
  cudaStream_t stream;
  const Geometry* shard;
  absl::Span<const Group> groups;
  PartTimes* times;
  BatchMemory* memory;
};

inline int CountBelow(absl::Span<const uint32_t> positions, uint32_t limit) {
  return static_cast<int>(
      std::count_if(positions.begin(), positions.end(), [&](uint32_t p) { return p < limit; }));
}

inline int64_t OffsetOf(const DecodeJob& job) { return job.position_offset; }
inline int64_t OffsetOf(const EncodeJob&) { return 0; }

// Tables of angles: the tiles of a page name the same positions, and share one.
struct AngleTables {
  struct Table {
    absl::Span<const uint32_t> positions;
    int64_t position_offset;
    size_t first;  // of all positions
  };
  std::vector<Table> tables;
  std::vector<size_t> of_tile;
  size_t positions = 0;

  template <typename Job>
  AngleTables(absl::Span<Job> jobs, const std::vector<size_t>& job_of) {
    absl::flat_hash_map<std::tuple<const uint32_t*, size_t, int64_t>, size_t> known;
    for (size_t job : job_of) {
      const absl::Span<const uint32_t> p = jobs[job].positions;
      const auto [it, fresh] =
          known.emplace(std::make_tuple(p.data(), p.size(), OffsetOf(jobs[job])), tables.size());
      if (fresh) {
        tables.push_back({p, OffsetOf(jobs[job]), positions});
        positions += p.size();
      }
      of_tile.push_back(it->second);
    }
  }
  // Fills in what the device gets: `host` is filled, the addresses in it are the device's.
  void Describe(const uint32_t* device_positions, uint32_t* device_angles, int all_pairs,
                uint32_t* host_positions, AngleDesc* host) const {
    for (const Table& t : tables) {
      *host++ = {device_positions + t.first, device_angles + t.first * all_pairs, t.position_offset,
                 static_cast<int>(t.positions.size())};
      std::copy(t.positions.begin(), t.positions.end(), host_positions + t.first);
    }
  }
};

// Kernels count the elements of a group's y in 32 bits.
inline absl::Status CheckBatch(int columns, uint64_t rows) {
  if (rows * columns <= std::numeric_limits<uint32_t>::max()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("fklt: ", columns / kMaxTokens, " tiles of one group in a batch"));
}

// Tiles of one group in one batch, side by side in one GEMM.
struct GemmBatch {
  int columns = 0;  // kMaxTokens for each tile
  int rows = 0;
  __half* y = nullptr;
  __half* x = nullptr;
};

}  // namespace kvcask::fklt
