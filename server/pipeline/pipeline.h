// The order of steps: the only part of the server that knows how a run becomes chunks and
// chunks become what a reader asked for.
//
//   ingest: OpenPut (admission) -> PutRun::Add -> batcher -> Codec::Encode -> chunk -> Commit
//   fetch:  OpenGet (pinned plan) -> GetRun::Decode -> the reader's layout
//
// Speaks in plain values: no gRPC, no protobuf. Thread-safe; must outlive its runs.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "codec/api/codec.h"
#include "server/admission/byte_budget.h"
#include "server/batch/batcher.h"
#include "server/exec/executor.h"
#include "server/metrics/metrics.h"
#include "server/pipeline/codec_cache.h"
#include "server/pipeline/decode_rates.h"
#include "server/pipeline/encode_task.h"
#include "server/pipeline/prefix_hash.h"
#include "server/pipeline/profile_registry.h"
#include "server/pipeline/shadow.h"
#include "server/store/gpu_chunks.h"
#include "server/store/session_store.h"

namespace kvcask {

class PutRun;
class GetRun;

// What a client says of a run before its first byte.
struct PutParams {
  SessionKey session;
  std::string model_id, extra_key;
  Geometry geometry;
  ShardRange shard;          // filled in: count >= 1, ranges explicit
  std::string codec;         // "" takes the default
  std::string quality;
  std::optional<Fingerprint> profile;
  Dtype dtype = Dtype::kBf16;
  uint64_t token_begin = 0;
  uint32_t token_count = 0;
  uint64_t first_position = 0;
  std::vector<uint32_t> explicit_positions;  // token_count, or none
  std::vector<uint32_t> token_ids;           // token_count, or none
  std::string put_id;
  uint64_t expected_version = 0;             // 0 does not check
  std::optional<absl::Duration> ttl;
  std::map<std::string, std::string> labels;
};

struct GetParams {
  std::optional<SessionKey> session;  // or a prefix:
  std::string ns, model_id, extra_key;
  std::vector<uint32_t> prefix_token_ids;
  uint64_t token_begin = 0, token_end = 0;  // end 0: to the end
  int layer_begin = 0, layer_end = 0;       // end 0: to the end
  int head_begin = 0, head_end = 0;         // end 0: all
  bool layer_major = false;
  std::optional<Dtype> dtype;               // as it was put when absent
  int64_t position_offset = 0;
};

struct LookupResult {
  uint64_t tokens = 0;
  std::vector<HeldPrefix> held;
  // By held: what decoding takes here on one thread, as lately measured; zero: not known yet.
  std::vector<absl::Duration> decode_time;
  std::optional<Lease> lease;
};

// What is kept with a session so that it can be decoded later.
struct SessionAttachment {
  Geometry geometry;
  std::shared_ptr<const Profile> profile;
  std::shared_ptr<const void> profile_use;  // keeps it registered
};
// The descriptor of a session's traits, and back.
absl::StatusOr<std::shared_ptr<const void>> RestoreAttachment(const SessionTraits& traits,
                                                              const ProfileRegistry& profiles);

class Pipeline {
 public:
  struct Options {
    std::string default_codec = "int8";
    uint32_t max_run_tokens = 1 << 20;
    // Of prefix hashes; drawn when absent. Who keeps sessions over a restart keeps it too.
    std::optional<std::array<uint8_t, 32>> hash_secret;
    // Of codecs; without it each is its entry's, on the CPU.
    CodecCache::Maker make_codec;
    GpuChunks* gpu = nullptr;  // borrowed; null: no copies of chunks on a device
    ShadowOptions shadow;
  };
  Pipeline(SessionStore* store, ByteBudget* budget, ProfileRegistry* profiles, Executor* executor,
           Metrics* metrics, Options options);
  ~Pipeline();

  // Admits a run: checks it against the session, reserves its memory. A put_id that was
  // committed before gives a run whose replayed() is set and that takes nothing.
  absl::StatusOr<std::shared_ptr<PutRun>> OpenPut(PutParams params);
  absl::StatusOr<std::shared_ptr<GetRun>> OpenGet(const GetParams& params);
  // `lease` above zero: what the longest holds is leased for so long, in one step with the
  // lookup. RESOURCE_EXHAUSTED: too many leases.
  absl::StatusOr<LookupResult> Lookup(const std::string& ns, const std::string& model_id,
                                      const std::string& extra_key,
                                      absl::Span<const uint32_t> token_ids, absl::Duration lease);
  absl::StatusOr<uint64_t> RemoveProfile(const Fingerprint& fingerprint);
  Shadow& shadow() { return shadow_; }

 private:
  friend class PutRun;
  friend class GetRun;

  std::vector<PrefixId> PrefixIds(const std::string& ns, const std::string& model_id,
                                  const std::string& extra_key, uint64_t first_position,
                                  absl::Span<const uint32_t> token_ids) const;
  void RunEncodeBatch(std::vector<EncodeTask> batch);
  void EncodeRange(const Codec& codec, absl::Span<const EncodeTask> tasks);

  SessionStore* const store_;
  ByteBudget* const budget_;
  ProfileRegistry* const profiles_;
  Executor* const executor_;
  Metrics* const metrics_;
  const Options options_;
  const PrefixHasher hasher_;
  CodecCache codecs_;
  DecodeRates decode_rates_;
  Shadow shadow_;
  std::unique_ptr<Batcher<EncodeTask>> encode_batcher_;
};

}  // namespace kvcask
