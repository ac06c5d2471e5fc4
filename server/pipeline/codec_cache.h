// Codecs are bound to a geometry, a shard and a profile; runs of one model share one.
// Bounded: the least recently used go.
//
// Thread-safe.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include <absl/base/thread_annotations.h>
#include <absl/status/statusor.h>

#include "codec/api/codec.h"

namespace kvcask {

class CodecCache {
 public:
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
  std::mutex mu_;
  std::map<std::string, Slot> slots_ ABSL_GUARDED_BY(mu_);
  std::list<std::string> ages_ ABSL_GUARDED_BY(mu_);  // most recent first
};

}  // namespace kvcask
