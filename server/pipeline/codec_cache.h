// Codecs are bound to a geometry, a shard and a profile; runs of one model share one.
// Bounded: the least recently used go.
//
// Thread-safe.
#pragma once

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include <absl/base/thread_annotations.h>
#include <absl/status/statusor.h>

#include "codec/api/codec.h"

namespace kvcask {

class CodecCache {
 public:
  // Makes a codec of an entry's; entry.make, or one that runs on a device.
  using Maker = std::function<absl::StatusOr<std::unique_ptr<Codec>>(const CodecEntry&,
                                                                     const CodecSpec&)>;
  explicit CodecCache(Maker make) : make_(std::move(make)) {}

  absl::StatusOr<std::shared_ptr<const Codec>> Get(const CodecEntry& entry, const CodecSpec& spec,
                                                   const Fingerprint& geometry);
  // Forgets the codecs made from a profile, so that its memory goes when it is removed.
  void DropProfile(const Fingerprint& profile);

 private:
  struct Slot {
    std::shared_ptr<const Codec> codec;
    Fingerprint profile{};
    std::list<std::string>::iterator age;
  };
  const Maker make_;
  std::mutex mu_;
  std::map<std::string, Slot> slots_ ABSL_GUARDED_BY(mu_);
  std::list<std::string> ages_ ABSL_GUARDED_BY(mu_);  // most recent first
};

}  // namespace kvcask
