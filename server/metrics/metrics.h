// What Prometheus sees. Names follow its conventions: base units, _total for counters; a
// ratio is a query, not a gauge. No label is ever a session's or a user's.
//
// Thread-safe. The rest of the server names no prometheus-cpp type.
#pragma once

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace kvcask {

// What shadow mode found of a chunk: within its certificate or over it; nothing was certified; it
// did not decode.
enum class ShadowResult { kWithin, kOver, kUncertified, kFailed };

class Metrics {
 public:
  // Gauges that are read when Prometheus asks.
  struct Sources {
    std::function<double()> queue_depth;
    std::function<double()> queue_age_seconds;
    std::function<double()> budget_bytes;
    std::function<double()> used_bytes;
    std::function<double()> stored_bytes;  // unique
    std::function<double()> sessions;
    std::function<double()> chunks;
    std::function<double()> profiles;
    std::function<double()> ready;  // 1 or 0
    // More of them, all read at once. Names in full; counters end in _total.
    struct Value {
      const char* name;
      const char* help;
      double value;
    };
    std::function<std::vector<Value>()> store;
  };

  Metrics(const std::string& version, const std::string& commit, const std::string& backend);
  ~Metrics();

  // From now on. What they capture must outlive this, or be cleared by SetSources({}) first,
  // which waits for a scrape under way. They must not call back into Metrics.
  void SetSources(Sources sources);
  // The label values to come: their series exist, at 0, from here on, so that the first
  // event is an increase that rate() sees. Others are added when they first happen.
  void DeclareCodec(absl::string_view codec);
  void DeclareMethod(absl::string_view method);
  // Serves /metrics on `address` ("host:port", port 0 picks one) until destroyed; once. The
  // port. UNAVAILABLE when it cannot listen (the text names the address).
  absl::StatusOr<int> Serve(const std::string& address);
  // The text that /metrics would answer.
  std::string Text() const;

  // One batch. raw_bytes as everywhere: 2 bytes x elements.
  void Encoded(absl::string_view codec, uint64_t raw_bytes, uint64_t stored_bytes,
               absl::Duration elapsed);
  void Decoded(absl::string_view codec, uint64_t raw_bytes, absl::Duration elapsed);
  // One put that became visible: what ratios are made of. predicted_kld: nats a token by the
  // codec's certificate; 0: lossless, or without one.
  void Committed(absl::string_view codec, uint64_t raw_bytes, uint64_t stored_bytes,
                 double predicted_kld = 0);
  void Received(uint64_t payload_bytes);
  void Sent(uint64_t payload_bytes);
  // One call's end. `method` "Put", `code` a gRPC status name ("OK", "DATA_LOSS").
  void Finished(absl::string_view method, absl::string_view code, absl::Duration elapsed);
  void ChecksumFailure(absl::string_view where);  // "received", "stored"
  void PutAborted(absl::string_view reason);      // "cancelled", "idle", "error"
  // One chunk of shadow mode's sample. `kld_ratio`: measured by certified loss, negative where
  // there is none; `relative_error`: root of the squared error by the energy. A failed one has
  // neither.
  void Shadowed(absl::string_view codec, ShadowResult result, double kld_ratio,
                double relative_error);
  void ShadowSkipped();  // for lack of room

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvcask
