#include "server/store_setup.h"

#include <absl/strings/str_cat.h>
#include <openssl/rand.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "codec/base/crc32c.h"
#include "codec/format/chunk.h"
#include "server/clock/steady_now.h"
#include "server/log/log.h"
#include "server/pipeline/pipeline.h"
#include "server/store/disk_tier.h"

namespace kvcask {
namespace {

constexpr char kSecretKey[] = "H";

uint32_t Checksum(const std::array<uint8_t, 32>& secret) { return Crc32c(secret); }

}  // namespace

absl::StatusOr<std::unique_ptr<Tier>> OpenTier(const Config& config) {
  if (config.disk_path.empty()) return std::unique_ptr<Tier>();
  DiskTierOptions options;
  options.path = config.disk_path;
  std::string warning;
  options.warning = &warning;
  auto tier = OpenDiskTier(options);
  if (!warning.empty()) Log(LogLevel::kError, "disk tier damaged", {{"problem", warning}});
  return tier;
}

absl::StatusOr<std::array<uint8_t, 32>> HashSecret(Tier* tier) {
  std::array<uint8_t, 32> secret{};
  bool found = false;
  if (tier != nullptr) {
    absl::Status s = tier->ForEach(kSecretKey, [&](absl::string_view, absl::string_view value) {
      uint32_t crc = 0;
      if (value.size() == secret.size() + sizeof crc) {
        std::memcpy(secret.data(), value.data(), secret.size());
        std::memcpy(&crc, value.data() + secret.size(), sizeof crc);
        found = crc == Checksum(secret);
      }
      // Another secret would make every stored prefix unfindable: better to be told.
      return found ? absl::OkStatus()
                   : absl::DataLossError("the disk tier's hashing secret is damaged");
    });
    if (!s.ok()) return s;
  }
  if (found) return secret;
  if (RAND_bytes(secret.data(), static_cast<int>(secret.size())) != 1) {
    return absl::InternalError("no random bytes from the system");
  }
  if (tier != nullptr) {
    const uint32_t crc = Checksum(secret);
    std::string value(secret.begin(), secret.end());
    value.append(reinterpret_cast<const char*>(&crc), sizeof crc);
    Tier::Records records;
    records.puts.emplace_back(kSecretKey, std::move(value));
    if (absl::Status s = tier->Apply(records, true); !s.ok()) return s;
  }
  return secret;
}

absl::StatusOr<std::unique_ptr<GpuChunks>> MakeGpuChunks(const Config& config,
                                                         DeviceBackend* device,
                                                         DeviceState* state) {
  if (config.gpu_budget_bytes == 0) return std::unique_ptr<GpuChunks>();
  if (device == nullptr) {
    Log(LogLevel::kWarning, "no device: --gpu-budget is without effect", {});
    return std::unique_ptr<GpuChunks>();
  }
  auto memory = device->MakeTierMemory(config.gpu_budget_bytes);
  if (!memory.ok()) {
    return absl::Status(memory.status().code(),
                        absl::StrCat("--gpu-budget ", config.gpu_budget_bytes, " bytes: ",
                                     memory.status().message()));
  }
  // Others are decoded by the CPU, from host memory.
  const auto wants = [device](const StoredChunk& chunk) {
    const auto view = ParseChunk(chunk.bytes, Verify::kHeaderOnly);
    return view.ok() && device->Codes(view->header.codec);
  };
  const auto lost = [state](const absl::Status& why) {
    if (state->Lose(why)) {
      Log(LogLevel::kError, "the device is lost; codecs run on the CPU",
          {{"error", std::string(why.message())}});
    }
  };
  return std::make_unique<GpuChunks>(std::make_unique<GpuTier>(*std::move(memory)), wants, lost);
}

SessionStoreOptions StoreOptions(const Config& config, Tier* tier, ByteBudget* budget,
                                 const ProfileRegistry* profiles, GpuChunks* gpu) {
  SessionStoreOptions o;
  o.gpu = gpu;
  o.now = SteadyNow;
  o.evict = config.eviction == "on";
  o.max_lease = config.max_lease;
  o.tier = tier;
  o.tier_bytes = config.disk_budget_bytes;
  o.budget = budget;
  o.sync = config.disk_sync == "commit"     ? SyncPolicy::kCommit
           : config.disk_sync == "interval" ? SyncPolicy::kInterval
                                            : SyncPolicy::kNever;
  o.sync_interval = config.disk_sync_interval;
  if (!config.quotas.empty()) {
    o.quota = [quotas = config.quotas](const std::string& ns) {
      auto it = quotas.find(ns);
      if (it == quotas.end()) it = quotas.find("*");
      if (it == quotas.end()) return NamespaceQuota{};
      return NamespaceQuota{it->second.max_bytes, it->second.max_sessions};
    };
  }
  o.attach = [profiles](const SessionTraits& traits) {
    return RestoreAttachment(traits, *profiles);
  };
  return o;
}

std::vector<Metrics::Sources::Value> StoreMetrics(const SessionStore& store, uint64_t scrubbed,
                                                  uint64_t corrupt) {
  const StoreUsage u = store.Usage();
  const auto number = [](uint64_t n) { return static_cast<double>(n); };
  return {
      {"kvcask_host_bytes", "Bytes of chunks in host memory.", number(u.host_bytes)},
      {"kvcask_disk_bytes", "Bytes of chunks on disk.", number(u.disk_bytes)},
      {"kvcask_disk_chunks", "Chunks on disk.", number(u.disk_chunks)},
      {"kvcask_leases", "Leases that last.", number(u.leases)},
      {"kvcask_lost_chunks", "Chunks found corrupt, of sessions that are still there.",
       number(u.lost_chunks)},
      {"kvcask_unsaved_sessions", "Sessions that changed since they were saved to disk.",
       number(u.unsaved_sessions)},
      {"kvcask_evicted_chunks_total", "Chunks that went for good, for room.",
       number(u.evicted_chunks)},
      {"kvcask_evicted_bytes_total", "Their bytes.", number(u.evicted_bytes)},
      {"kvcask_demoted_chunks_total", "Chunks that left host memory for disk.",
       number(u.demoted_chunks)},
      {"kvcask_promoted_chunks_total", "Chunks that came back from disk.",
       number(u.promoted_chunks)},
      {"kvcask_disk_errors_total", "Rounds of saving to disk that failed.", number(u.tier_errors)},
      {"kvcask_scrubbed_chunks_total", "Chunks on disk that the scrubber checked.",
       number(scrubbed)},
      {"kvcask_scrub_corrupt_chunks_total", "Chunks that it found corrupt.", number(corrupt)},
  };
}

std::vector<Metrics::Sources::Value> DeviceMetrics(const DeviceState& state, GpuChunks* gpu) {
  const auto number = [](uint64_t n) { return static_cast<double>(n); };
  const GpuChunksUsage g = gpu != nullptr ? gpu->Usage() : GpuChunksUsage();
  return {
      {"kvcask_device_lost", "1 once the device failed: its codecs run on the CPU.",
       state.lost() ? 1.0 : 0.0},
      {"kvcask_device_batches_total", "Batches that the device coded.", number(state.batches)},
      {"kvcask_device_tiles_total", "Tiles that the device coded.", number(state.tiles)},
      {"kvcask_device_left_tiles_total", "Tiles of its codecs that the CPU coded.",
       number(state.cpu_tiles)},
      {"kvcask_device_short_of_memory_total", "Batches that the CPU took for lack of its memory.",
       number(state.short_of_memory)},
      {"kvcask_gpu_budget_bytes", "The device's memory for copies of chunks.",
       number(g.capacity_bytes)},
      {"kvcask_gpu_bytes", "Bytes of chunks copied there.", number(g.bytes)},
      {"kvcask_gpu_chunks", "Chunks copied there.", number(g.chunks)},
      {"kvcask_gpu_hits_total", "Reads of a chunk that found its copy.", number(g.hits)},
      {"kvcask_gpu_misses_total", "Reads of a chunk that found none.", number(g.misses)},
      {"kvcask_gpu_evicted_chunks_total", "Copies that went for room.", number(g.evicted_chunks)},
  };
}

Scrubber::Scrubber(SessionStore* store, uint64_t bytes_per_second)
    : thread_([this, store, bytes_per_second] {
        auto next = std::chrono::steady_clock::now();
        while (!stop_) {
          std::this_thread::sleep_for(std::chrono::milliseconds(100));
          if (std::chrono::steady_clock::now() < next) continue;
          const auto [checked, corrupt] = store->Scrub(std::max<uint64_t>(bytes_per_second, 1));
          checked_ += checked;
          corrupt_ += corrupt;
          if (corrupt > 0) {
            Log(LogLevel::kError, "corrupt chunks on disk", {{"count", corrupt}});
          }
          next = std::chrono::steady_clock::now() + std::chrono::seconds(1);
        }
      }) {}

Scrubber::~Scrubber() {
  stop_ = true;
  thread_.join();
}

}  // namespace kvcask
