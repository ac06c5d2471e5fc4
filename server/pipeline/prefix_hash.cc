#include "server/pipeline/prefix_hash.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace kvcask {
namespace {

using Bytes = std::vector<uint8_t>;

void PutU32(Bytes& b, uint32_t v) {
  for (int i = 0; i < 4; ++i) b.push_back(static_cast<uint8_t>(v >> (8 * i)));
}
void PutU64(Bytes& b, uint64_t v) {
  PutU32(b, static_cast<uint32_t>(v));
  PutU32(b, static_cast<uint32_t>(v >> 32));
}
// Length first, so that no two different field lists give the same bytes.
void PutString(Bytes& b, const std::string& s) {
  PutU64(b, s.size());
  b.insert(b.end(), s.begin(), s.end());
}

std::array<uint8_t, 32> Hmac(const std::array<uint8_t, 32>& key, const Bytes& data) {
  std::array<uint8_t, 32> out;
  unsigned n = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), data.data(), data.size(),
       out.data(), &n);
  return out;
}

std::array<uint8_t, 32> NamespaceKey(const std::array<uint8_t, 32>& secret, const std::string& ns) {
  Bytes b;
  PutString(b, "kvcask namespace key 1");
  PutString(b, ns);
  return Hmac(secret, b);
}

}  // namespace

PrefixHasher::PrefixHasher() {
  if (RAND_bytes(secret_.data(), static_cast<int>(secret_.size())) != 1) {
    std::fprintf(stderr, "kvcaskd: no random bytes from the system\n");
    std::abort();
  }
}

PrefixId PrefixHasher::Root(const std::string& ns, const std::string& model_id,
                            const std::string& extra_key, uint64_t first_position) const {
  Bytes b;
  PutString(b, "root");
  PutString(b, model_id);
  PutString(b, extra_key);
  PutU64(b, first_position);
  return Hmac(NamespaceKey(secret_, ns), b);
}

PrefixId PrefixHasher::Page(const std::string& ns, const PrefixId& parent,
                            absl::Span<const uint32_t> token_ids) const {
  // model_id and extra_key are in the root, which every parent descends from.
  Bytes b;
  PutString(b, "page");
  b.insert(b.end(), parent.begin(), parent.end());
  for (uint32_t t : token_ids) PutU32(b, t);
  return Hmac(NamespaceKey(secret_, ns), b);
}

}  // namespace kvcask
