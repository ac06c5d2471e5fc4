#include "codec/base/sha256.h"

#include <openssl/evp.h>

#include <cstdlib>

namespace kvcask {

std::array<uint8_t, 32> Sha256(absl::Span<const uint8_t> bytes) {
  std::array<uint8_t, 32> out;
  // Fails only without memory or without the algorithm: nothing a caller could handle.
  if (EVP_Digest(bytes.data(), bytes.size(), out.data(), nullptr, EVP_sha256(), nullptr) != 1) {
    std::abort();
  }
  return out;
}

}  // namespace kvcask
