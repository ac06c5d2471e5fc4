// The disk tier and the store of a daemon, made from its configuration.
#pragma once

#include <absl/status/statusor.h>

#include <array>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "server/admission/byte_budget.h"
#include "server/config/config.h"
#include "server/exec/device_backend.h"
#include "server/metrics/metrics.h"
#include "server/pipeline/profile_registry.h"
#include "server/store/gpu_chunks.h"
#include "server/store/session_store.h"
#include "server/store/tier.h"

namespace kvcask {

// Null when the configuration names no folder.
absl::StatusOr<std::unique_ptr<Tier>> OpenTier(const Config& config);

// The secret of prefix hashes: the tier's, drawn and kept there the first time. A secret of
// its own when there is no tier.
absl::StatusOr<std::array<uint8_t, 32>> HashSecret(Tier* tier);

// Null without --gpu-budget, or without a device. RESOURCE_EXHAUSTED: the device has not that much.
absl::StatusOr<std::unique_ptr<GpuChunks>> MakeGpuChunks(const Config& config,
                                                         DeviceBackend* device,
                                                         DeviceState* state);

// `tier`, `profiles` and `gpu` are borrowed; `gpu` may be null.
SessionStoreOptions StoreOptions(const Config& config, Tier* tier, ByteBudget* budget,
                                 const ProfileRegistry* profiles, GpuChunks* gpu);

// What Prometheus sees of the store.
std::vector<Metrics::Sources::Value> StoreMetrics(const SessionStore& store, uint64_t scrubbed,
                                                  uint64_t corrupt);

// The same of a device's codecs, and of the chunks there; `gpu` may be null.
std::vector<Metrics::Sources::Value> DeviceMetrics(const DeviceState& state, GpuChunks* gpu);

// Reads chunks from disk at a steady rate, checking them, until destroyed.
class Scrubber {
 public:
  Scrubber(SessionStore* store, uint64_t bytes_per_second);
  ~Scrubber();
  uint64_t checked() const { return checked_; }
  uint64_t corrupt() const { return corrupt_; }

 private:
  std::atomic<uint64_t> checked_{0}, corrupt_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace kvcask
