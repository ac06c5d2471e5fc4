// The records that the store keeps with its tier: forms, pages and sessions, as bytes.
//
// Each is a version byte, fields (little-endian, strings and lists with their length before
// them), and the CRC32C of all that and of the key, so that a record is never read under
// another name. Reading bounds every length; DATA_LOSS says what is wrong.
//
// Keys: "f" + form number; "n" + page id; "s" + namespace + "/" + session id (neither holds a
// '/'); "p": ids of chunks that are being written, which nothing may refer to yet. Numbers
// are 8 bytes, big-endian, so that pages come in the order of their ids: parents first.
#pragma once

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "server/store/session.h"
#include "server/store/session_store.h"

namespace kvcask {

struct FormRecord {
  uint64_t number = 0;
  std::string ns;
  SessionTraits traits;  // attachment is null
};

struct PageRecord {
  uint64_t id = 0, parent = 0;  // parent 0: the first page
  uint64_t form = 0;
  uint32_t shard = 0;
  std::string label;
  uint16_t tokens = 0;
  uint64_t own_raw_bytes = 0, own_stored_bytes = 0;
  double own_kld_tokens = 0;
  bool named = false, lost = false;
  Digest prefix_id{};
};

struct SessionRecord {
  SessionKey key;
  uint64_t form = 0;  // 0: none yet
  absl::Time created, modified;
  absl::Duration ttl;
  std::map<std::string, std::string> labels;
  bool pinned = false;
  uint64_t evicted_tokens = 0;
  struct Shard {
    uint32_t shard = 0;
    std::string label;
    uint64_t head = 0;  // a page's id; 0: none
    uint64_t tokens = 0, version = 0;
    bool sealed = false;
    std::vector<std::pair<std::string, CommitResult>> puts;
  };
  std::vector<Shard> shards;
  ForkedFrom forked_from;
  std::vector<std::pair<std::string, uint64_t>> rewinds;
};

inline constexpr char kPendingKey[] = "p";
std::string FormKey(uint64_t number);
std::string PageKey(uint64_t id);
std::string SessionRecordKey(const std::string& ns, const std::string& id);

std::string Encode(const FormRecord& record);
std::string Encode(const PageRecord& record);
std::string Encode(const SessionRecord& record);
std::string EncodeIds(const std::vector<uint64_t>& ids);

absl::StatusOr<FormRecord> DecodeForm(absl::string_view key, absl::string_view value);
absl::StatusOr<PageRecord> DecodePage(absl::string_view key, absl::string_view value);
absl::StatusOr<SessionRecord> DecodeSession(absl::string_view key, absl::string_view value);
absl::StatusOr<std::vector<uint64_t>> DecodeIds(absl::string_view value);

}  // namespace kvcask
