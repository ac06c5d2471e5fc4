// A tier in memory, for tests: it remembers every state that a crash could leave behind, and
// fails, loses and damages on demand.
//
// Thread-safe.
#pragma once

#include <absl/status/status.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "server/store/tier.h"

namespace kvcask {

class FakeTier : public Tier {
 public:
  struct Contents {
    std::map<uint64_t, std::vector<uint8_t>> chunks;
    std::map<std::string, std::string> records;
  };

  FakeTier() = default;
  // What another one held, after a crash.
  explicit FakeTier(Contents contents) : now_(std::move(contents)) {}

  // --- for tests
  Contents contents() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return now_;
  }
  // As `contents` was after the last sync: what a power failure leaves at least.
  Contents synced() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return synced_;
  }
  // Called before every write with its number from 0; not OK: the write fails, nothing of it
  // is done. Contents then are those of a crash at that moment.
  void OnWrite(std::function<absl::Status(int write)> f) { on_write_ = std::move(f); }
  int writes() const { return writes_; }
  void Damage(uint64_t id) {
    std::lock_guard<std::mutex> lock(mutex_);
    damaged_[id] = true;
  }
  void DamageAll() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [id, bytes] : now_.chunks) damaged_[id] = true;
  }

  // --- Tier
  absl::Status WriteChunk(uint64_t id, absl::Span<const uint8_t> bytes) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (auto s = Next(); !s.ok()) return s;
    now_.chunks[id].assign(bytes.begin(), bytes.end());
    damaged_.erase(id);
    return absl::OkStatus();
  }
  absl::StatusOr<UnsetBytes> ReadChunk(uint64_t id) const override {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = now_.chunks.find(id);
    if (it == now_.chunks.end()) return absl::DataLossError("no such chunk");
    if (damaged_.count(id)) return absl::DataLossError("a damaged chunk");
    return UnsetBytes(it->second.begin(), it->second.end());
  }
  absl::Status Apply(const Records& records, bool sync) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (auto s = Next(); !s.ok()) return s;
    for (const auto& [key, value] : records.puts) now_.records[key] = value;
    for (const auto& key : records.deletes) now_.records.erase(key);
    for (uint64_t id : records.chunk_deletes) now_.chunks.erase(id);
    if (sync) synced_ = now_;
    return absl::OkStatus();
  }
  absl::Status Sync() override {
    std::lock_guard<std::mutex> lock(mutex_);
    synced_ = now_;
    return absl::OkStatus();
  }
  absl::Status ForEach(absl::string_view prefix,
                       const std::function<absl::Status(absl::string_view, absl::string_view)>&
                           visit) const override {
    const Contents copy = contents();
    for (auto it = copy.records.lower_bound(std::string(prefix));
         it != copy.records.end() && it->first.compare(0, prefix.size(), prefix.data(), prefix.size()) == 0; ++it) {
      if (auto s = visit(it->first, it->second); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Next() { return on_write_ ? on_write_(writes_++) : (++writes_, absl::OkStatus()); }

  mutable std::mutex mutex_;
  Contents now_, synced_;
  std::map<uint64_t, bool> damaged_;
  std::function<absl::Status(int)> on_write_;
  int writes_ = 0;
};

}  // namespace kvcask
