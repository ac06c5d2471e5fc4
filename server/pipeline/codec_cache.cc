#include "server/pipeline/codec_cache.h"

#include <absl/strings/str_cat.h>

#include "codec/profile/profile.h"

namespace kvcask {
namespace {
constexpr size_t kMaxCodecs = 64;

std::string KeyOf(const CodecEntry& entry, const CodecSpec& spec, const Fingerprint& geometry) {
  const ShardRange& s = spec.shard;
  return absl::StrCat(static_cast<int>(entry.id), ":", ToHex(geometry), ":",
                      spec.profile ? ToHex(spec.profile->fingerprint()) : "", ":", s.layer_begin,
                      "-", s.layer_end, ":", s.head_begin, "-", s.head_end, ":", spec.setting);
}
}  // namespace

absl::StatusOr<std::shared_ptr<const Codec>> CodecCache::Get(const CodecEntry& entry,
                                                             const CodecSpec& spec,
                                                             const Fingerprint& geometry) {
  const std::string key = KeyOf(entry, spec, geometry);
  {
    std::lock_guard<std::mutex> lock(mu_);
    auto it = slots_.find(key);
    if (it != slots_.end()) {
      ages_.splice(ages_.begin(), ages_, it->second.age);
      return it->second.codec;
    }
  }
  // May take milliseconds: not under the lock.
  auto made = make_ ? make_(entry, spec) : entry.make(spec);
  if (!made.ok()) return made.status();

  std::lock_guard<std::mutex> lock(mu_);
  auto [it, inserted] = slots_.try_emplace(key);
  if (!inserted) return it->second.codec;  // somebody else was faster
  ages_.push_front(key);
  it->second.age = ages_.begin();
  it->second.codec = *std::move(made);
  if (spec.profile) it->second.profile = spec.profile->fingerprint();
  std::shared_ptr<const Codec> codec = it->second.codec;
  while (slots_.size() > kMaxCodecs) {
    slots_.erase(ages_.back());
    ages_.pop_back();
  }
  return codec;
}

void CodecCache::DropProfile(const Fingerprint& profile) {
  std::lock_guard<std::mutex> lock(mu_);
  for (auto it = slots_.begin(); it != slots_.end();) {
    if (it->second.profile == profile) {
      ages_.erase(it->second.age);
      it = slots_.erase(it);
    } else {
      ++it;
    }
  }
}

}  // namespace kvcask
