#include "server/pipeline/profile_registry.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include "codec/builtin_codecs.h"
#include "server/pipeline/errors.h"

namespace kvcask {

namespace {
constexpr char kRecord[] = "P";  // + fingerprint
std::string RecordKey(const Fingerprint& f) { return kRecord + ToHex(f); }
}  // namespace

absl::StatusOr<int> ProfileRegistry::Restore() {
  if (tier_ == nullptr) return 0;
  int added = 0;
  absl::Status s = tier_->ForEach(kRecord, [&](absl::string_view key, absl::string_view value) {
    auto entry = Add(std::vector<uint8_t>(value.begin(), value.end()), false);
    if (!entry.ok()) return entry.status();
    if (RecordKey(entry->profile->fingerprint()) != key) {
      return absl::DataLossError(absl::StrCat("the disk tier's profile ", key.substr(1, 16),
                                              " is damaged: its SHA-256 differs"));
    }
    ++added;
    return absl::OkStatus();
  });
  if (!s.ok()) return s;
  return added;
}

absl::StatusOr<ProfileRegistry::Entry> ProfileRegistry::Add(std::vector<uint8_t> file) {
  return Add(std::move(file), tier_ != nullptr);
}

absl::StatusOr<ProfileRegistry::Entry> ProfileRegistry::Add(std::vector<uint8_t> file, bool keep) {
  auto reservation = budget_->Reserve(file.size(), "a profile");
  if (!reservation.ok()) {
    return WithReason(WithRetry(reservation.status(), absl::Seconds(1)), "OVER_BUDGET");
  }
  std::string bytes;
  if (keep) bytes.assign(file.begin(), file.end());
  auto profile = Profile::Parse(std::move(file));
  if (!profile.ok()) return WithReason(profile.status(), "BAD_PROFILE");
  const CodecEntry* codec = FindCodec((*profile)->codec());
  if (codec == nullptr) {
    return WithReason(absl::UnimplementedError(absl::StrCat(
                          "the profile is for codec '", (*profile)->codec(),
                          "', which this daemon does not have")),
                      "UNKNOWN_CODEC");
  }
  CodecSpec spec;
  spec.model = (*profile)->geometry();
  spec.shard.layer_end = static_cast<int>(spec.model.layers.size());
  for (const auto& l : spec.model.layers) {
    for (const auto& s : l.streams) spec.shard.head_end = std::max(spec.shard.head_end, s.heads);
  }
  spec.profile = *profile;
  if (auto made = codec->make(spec); !made.ok()) return WithReason(made.status(), "BAD_PROFILE");

  // Before anything can need it.
  if (keep) {
    Tier::Records record;
    record.puts.emplace_back(RecordKey((*profile)->fingerprint()), std::move(bytes));
    if (absl::Status s = tier_->Apply(record, true); !s.ok()) return s;
  }
  std::lock_guard<std::mutex> lock(mu_);
  auto [it, inserted] = slots_.try_emplace((*profile)->fingerprint());
  if (inserted) {
    it->second.profile = *std::move(profile);
    it->second.use = std::make_shared<int>(0);
    it->second.added = absl::Now();
    it->second.reservation = *std::move(reservation);
  }
  return EntryOf(it->second);
}

absl::StatusOr<ProfileRegistry::Entry> ProfileRegistry::Find(const Fingerprint& f) const {
  std::lock_guard<std::mutex> lock(mu_);
  auto it = slots_.find(f);
  if (it == slots_.end()) {
    return WithReason(absl::NotFoundError(absl::StrCat(
                          "no profile with fingerprint ", ToHex(f), " is registered (",
                          slots_.size(), " are); add it with `kvcask profile add FILE`")),
                      "UNKNOWN_PROFILE");
  }
  return EntryOf(it->second);
}

absl::StatusOr<ProfileRegistry::Entry> ProfileRegistry::FindHex(const std::string& prefix) const {
  const std::string p = absl::AsciiStrToLower(prefix);
  if (p.size() < 8 || p.size() > 64 || p.find_first_not_of("0123456789abcdef") != p.npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("fingerprint: expected 8 to 64 hex digits, found ", p.size(), " characters"));
  }
  std::lock_guard<std::mutex> lock(mu_);
  const Slot* found = nullptr;
  for (const auto& [fingerprint, slot] : slots_) {
    if (!absl::StartsWith(ToHex(fingerprint), p)) continue;
    if (found != nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("more than one profile begins with ", p));
    }
    found = &slot;
  }
  if (found == nullptr) {
    return WithReason(absl::NotFoundError(absl::StrCat("no registered profile begins with ", p)),
                      "UNKNOWN_PROFILE");
  }
  return EntryOf(*found);
}

std::vector<ProfileRegistry::Entry> ProfileRegistry::List() const {
  std::lock_guard<std::mutex> lock(mu_);
  std::vector<Entry> out;
  for (const auto& [f, slot] : slots_) out.push_back(EntryOf(slot));
  return out;
}

absl::StatusOr<uint64_t> ProfileRegistry::Remove(const Fingerprint& f) {
  std::lock_guard<std::mutex> lock(mu_);
  auto it = slots_.find(f);
  if (it == slots_.end()) {
    return WithReason(absl::NotFoundError(absl::StrCat("no profile ", ToHex(f))),
                      "UNKNOWN_PROFILE");
  }
  const uint64_t users = EntryOf(it->second).users;
  if (users > 0) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat(
            "profile ", ToHex(f).substr(0, 16), " is in use by ", users,
            " kinds of sessions or runs; delete the sessions that need it first")),
        "PROFILE_IN_USE");
  }
  if (tier_ != nullptr) {
    Tier::Records record;
    record.deletes.push_back(RecordKey(f));
    if (absl::Status s = tier_->Apply(record, true); !s.ok()) return s;
  }
  const uint64_t bytes = it->second.profile->size_bytes();
  slots_.erase(it);
  return bytes;
}

}  // namespace kvcask
