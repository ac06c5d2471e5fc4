// The registered profiles, by fingerprint. A profile counts against the budget and cannot
// be removed while chunks or runs use it.
//
// Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "codec/profile/profile.h"
#include "server/admission/byte_budget.h"
#include "server/store/tier.h"

namespace kvcask {

class ProfileRegistry {
 public:
  struct Entry {
    std::shared_ptr<const Profile> profile;
    // Held by whatever needs the profile to stay registered: sessions and runs.
    std::shared_ptr<const void> use;
    absl::Time added;
    uint64_t users = 0;  // holders of `use`, this entry not counted
  };

  // With a tier, profiles are kept there too.
  explicit ProfileRegistry(ByteBudget* budget, Tier* tier = nullptr)
      : budget_(budget), tier_(tier) {}

  // Registers what the tier keeps; how many. Once, at start.
  absl::StatusOr<int> Restore();

  // Parses, and makes the codec that it is for once over the whole model, so that a bad
  // profile is refused here and not at the first Put. The same file again is no change.
  absl::StatusOr<Entry> Add(std::vector<uint8_t> file);
  absl::StatusOr<Entry> Find(const Fingerprint& fingerprint) const;  // NOT_FOUND
  // By hex digits, 8 or more, that only one begins with.
  absl::StatusOr<Entry> FindHex(const std::string& prefix) const;
  std::vector<Entry> List() const;
  // Bytes freed. FAILED_PRECONDITION while in use.
  absl::StatusOr<uint64_t> Remove(const Fingerprint& fingerprint);

 private:
  struct Slot {
    std::shared_ptr<const Profile> profile;
    std::shared_ptr<const void> use;
    absl::Time added;
    Reservation reservation;
  };
  absl::StatusOr<Entry> Add(std::vector<uint8_t> file, bool keep);
  static Entry EntryOf(const Slot& s) {
    const auto users = static_cast<uint64_t>(s.use.use_count() - 1);
    return {s.profile, s.use, s.added, users};
  }
  ByteBudget* const budget_;
  Tier* const tier_;
  mutable std::mutex mu_;
  std::map<Fingerprint, Slot> slots_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvcask
