// The names of pages: prefix_id = HMAC-SHA-256(namespace key, parent || model_id ||
// extra_key || the page's token ids). The key of a namespace is derived from a secret that
// the daemon draws and keeps (with the disk tier, when there is one), so that no tenant can tell what another has stored
// from a hash, and hashes of different namespaces never meet.
//
// Thread-safe: immutable.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include <absl/types/span.h>

#include "codec/api/codec.h"

namespace kvcask {

using PrefixId = std::array<uint8_t, 32>;

class PrefixHasher {
 public:
  // Draws the secret from the system's generator.
  PrefixHasher();
  explicit PrefixHasher(const std::array<uint8_t, 32>& secret) : secret_(secret) {}

  // The parent of a session's first page. Pages at other positions are other pages: stored
  // keys depend on them.
  PrefixId Root(const std::string& ns, const std::string& model_id, const std::string& extra_key,
                uint64_t first_position) const;
  // token_ids: of one whole page.
  PrefixId Page(const std::string& ns, const PrefixId& parent,
                absl::Span<const uint32_t> token_ids) const;

 private:
  std::array<uint8_t, 32> secret_;
};

}  // namespace kvcask
