// Between the store and its tier: writes what changed, and takes it up again after a restart.
//
// One round saves every session that changed, in an order that leaves no moment at which a
// crash hurts: the list of chunks about to be written; the chunks; then, in one step, the
// records of their pages and of the sessions, and the removal of what no session needs any
// more. Sessions that changed meanwhile are the next round's. A round that fails is tried
// again; who waits for it is told.
//
// Thread-safe. Save, and the thread of Start, are one at a time.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "server/store/session_store.h"
#include "server/store/store_state.h"

namespace kvcask {

class Saver {
 public:
  explicit Saver(StoreState* state) : state_(state) {}
  ~Saver() { Stop(); }

  absl::StatusOr<RestoreReport> Restore();
  void Start();
  void Stop();
  bool Save();
  void WhenDurable(const SessionKey& key, std::function<void(absl::Status)> done);
  std::pair<uint64_t, uint64_t> Scrub(uint64_t bytes);

 private:
  using Done = std::function<void(absl::Status)>;
  struct Round;

  void Collect(Round* round);                 // under the store's mutex
  absl::Status Write(const Round& round);     // outside it
  void Settle(const Round& round, const absl::Status& status);
  bool SaveRound(bool* failed);
  void FinishWaiting(const absl::Status& status);
  void Run();

  StoreState* const state_;
  std::mutex saving_;              // one round at a time
  std::vector<Done> unsynced_;     // wait for the next sync; under saving_
  std::vector<uint64_t> doubtful_;   // chunks that a failed round may have written
  std::vector<uint64_t> scrub_ids_;  // what is left of a pass, last first
  absl::Time last_sync_ = absl::InfinitePast();

  std::mutex mutex_;               // of what follows: the thread's life
  std::condition_variable changed_;
  bool work_ = false, stop_ = false;
  std::thread thread_;
};

}  // namespace kvcask
