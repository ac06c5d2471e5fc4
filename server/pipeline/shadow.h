// Shadow mode: of a sample of chunks, what came back is measured against what was put, and that
// against the loss that the codec certified.
//
// The raw form of a sampled chunk is kept beside the coded one until it is measured, on a thread
// of its own at low priority; then it goes. No put ever waits for it: what finds no room is
// skipped, and counted. The result is in the metrics and, for what should not be, in the log.
//
//   Shadow shadow(options, &metrics);
//   if (shadow.Samples(name)) if (auto room = shadow.TakeRoom(bytes)) ... keep the planes ...
//   shadow.Submit({..., std::move(*room)});
//
// Thread-safe.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include "codec/api/codec.h"
#include "server/admission/byte_budget.h"
#include "server/metrics/metrics.h"

namespace kvcask {

struct ShadowOptions {
  double fraction = 0;           // of chunks, 0 to 1
  uint64_t bytes = 256ull << 20;  // kept raw or being measured at a time, at most
};

// A certificate estimates part of what it sums (codec/fklt FORMAT.md 5.4), by up to .6 of it in
// tiles of few tokens and some percent over a chunk. Only beyond this a chunk is over it.
inline constexpr double kShadowTolerance = 2;

// A chunk and what it was made of.
struct ShadowBlock {
  std::string session;  // for the log
  uint32_t shard = 0;
  std::string codec_name;
  std::shared_ptr<const Codec> codec;
  Quality quality;
  std::vector<uint8_t> chunk;  // sealed
  // All planes of the shard as they were put, of all of the chunk's tokens, in `memory`. What no
  // tile holds is not looked at.
  std::vector<ConstPlaneView> source;
  std::vector<std::unique_ptr<uint8_t[]>> memory;
  Reservation room;
};

// What a chunk showed.
struct ShadowReport {
  double certified_kld = -1;   // of all its tiles; negative: not certified
  double measured_kld = -1;    // the same measure, from what came back
  double relative_error = 0;   // sqrt(sum (put - back)^2 / sum put^2), of all elements
  ShadowResult result = ShadowResult::kUncertified;
};

// Reads the chunk as a reader does, checksum and all, into fp32. DATA_LOSS and others: it could
// not be decoded, or decoded to NaN or infinity what was finite.
absl::StatusOr<ShadowReport> MeasureChunk(const ShadowBlock& block, Workspace& workspace);

class Shadow {
 public:
  // `metrics` must outlive this. No thread is started when the fraction is 0.
  Shadow(ShadowOptions options, Metrics* metrics);
  ~Shadow();  // what waits is dropped

  bool on() const { return options_.fraction > 0; }
  // Whether the chunk of this name is of the sample: always the same answer for a name.
  bool Samples(absl::string_view name) const;
  // Nothing when there is no room, which is counted as skipped.
  std::optional<Reservation> TakeRoom(uint64_t bytes);
  void Submit(ShadowBlock block);
  // Returns when all that was submitted before has been measured.
  void WaitIdle();
  uint64_t kept_bytes() const { return budget_.used(); }

 private:
  void Run();
  void Measure(const ShadowBlock& block, Workspace& workspace);

  const ShadowOptions options_;
  Metrics* const metrics_;
  ByteBudget budget_;
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::deque<ShadowBlock> queue_;
  bool measuring_ = false, stopping_ = false;
  std::thread thread_;
};

}  // namespace kvcask
