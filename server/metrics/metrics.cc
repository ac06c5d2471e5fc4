#include "server/metrics/metrics.h"

#include <absl/status/status.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <cctype>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>
#include <vector>

namespace kvcask {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Histogram;
using prometheus::MetricFamily;

// Seconds. One batch of a codec takes 0.1 ms to seconds; a call up to minutes.
const Histogram::BucketBoundaries& BatchBuckets() {
  static const auto& b = *new Histogram::BucketBoundaries{
      .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5};
  return b;
}
const Histogram::BucketBoundaries& RequestBuckets() {
  static const auto& b = *new Histogram::BucketBoundaries{
      .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60};
  return b;
}

// Nats a token: near_lossless is below a hundredth, and from a tenth on texts change.
const Histogram::BucketBoundaries& LossBuckets() {
  static const auto& b = *new Histogram::BucketBoundaries{
      .0001, .0003, .001, .003, .01, .02, .05, .1, .2, .5, 1, 3, 10};
  return b;
}

// Measured by certified loss: 1 but for what a certificate estimates.
const Histogram::BucketBoundaries& ShadowRatioBuckets() {
  static const auto& b = *new Histogram::BucketBoundaries{.25, .5, .75, .9, 1.1, 1.25,
                                                          1.5, 2,  5,   10, 100};
  return b;
}
const Histogram::BucketBoundaries& RelativeErrorBuckets() {
  static const auto& b = *new Histogram::BucketBoundaries{
      .0001, .001, .003, .01, .02, .05, .1, .15, .2, .3, .4, .6, 1};
  return b;
}
constexpr const char* kShadowResults[] = {"within", "over", "uncertified", "failed"};

// The codes that alerts watch: declared for each method from the start.
constexpr const char* kWatchedCodes[] = {"OK", "RESOURCE_EXHAUSTED", "DATA_LOSS", "INTERNAL"};

// Gauges that are computed when they are asked for.
class SourceGauges : public prometheus::Collectable {
 public:
  void Set(Metrics::Sources sources) {
    std::lock_guard<std::mutex> lock(mutex_);
    sources_ = std::move(sources);
  }

  // The mutex is held across the calls, so that Set can promise that the old sources are
  // not in use any more when it returns.
  std::vector<MetricFamily> Collect() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<MetricFamily> families;
    const auto add = [&](const char* name, const char* help, const std::function<double()>& f) {
      MetricFamily family;
      family.name = name;
      family.help = help;
      family.type = prometheus::MetricType::Gauge;
      family.metric.emplace_back();
      family.metric.back().gauge.value = f ? f() : 0;
      families.push_back(std::move(family));
    };
    add("kvcask_queue_depth", "Batches that wait for a thread.", sources_.queue_depth);
    add("kvcask_queue_age_seconds", "Age of the oldest batch that waits for a thread.",
        sources_.queue_age_seconds);
    add("kvcask_memory_budget_bytes", "The memory budget.", sources_.budget_bytes);
    add("kvcask_memory_used_bytes",
        "Of the memory budget: stored chunks, profiles and runs under way.", sources_.used_bytes);
    add("kvcask_stored_unique_bytes", "Bytes of chunks in memory, each counted once.",
        sources_.stored_bytes);
    add("kvcask_sessions", "Sessions in memory.", sources_.sessions);
    add("kvcask_chunks", "Chunks in memory, each counted once.", sources_.chunks);
    add("kvcask_profiles", "Profiles that are registered.", sources_.profiles);
    for (const Metrics::Sources::Value& v :
         sources_.store ? sources_.store() : std::vector<Metrics::Sources::Value>()) {
      add(v.name, v.help, [&v] { return v.value; });
      const std::string& name = families.back().name;
      if (name.size() > 6 && name.compare(name.size() - 6, 6, "_total") == 0) {
        families.back().type = prometheus::MetricType::Counter;
        families.back().metric.back().counter.value = v.value;
      }
    }
    add("kvcask_ready", "1 while new work is taken; 0 while starting or draining.", sources_.ready);
    return families;
  }

 private:
  mutable std::mutex mutex_;
  Metrics::Sources sources_;
};

// "host:port" as the HTTP server takes it. Its own syntax has more (several ports, TLS), of
// which nothing is let through.
bool IsHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) return false;
  for (const char c : address.substr(0, colon)) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-' && c != ':' &&
        c != '[' && c != ']') {
      return false;
    }
  }
  for (const char c : address.substr(colon + 1)) {
    if (c < '0' || c > '9') return false;
  }
  int port = 0;
  return absl::SimpleAtoi(address.substr(colon + 1), &port) && port <= 65535;
}

}  // namespace

class Metrics::Impl {
 public:
  struct CodecSeries {
    Counter& raw_bytes;
    Counter& stored_bytes;
    Counter& encode_input_bytes;
    Counter& encode_output_bytes;
    Counter& decode_output_bytes;
    Histogram& encode_seconds;
    Histogram& decode_seconds;
    Histogram& predicted_kld;
    Histogram& shadow_kld_ratio;
    Histogram& shadow_relative_error;
  };

  Impl(const std::string& version, const std::string& commit, const std::string& backend) {
    prometheus::BuildGauge()
        .Name("kvcask_build_info")
        .Help("Always 1; what is running is in the labels.")
        .Register(*registry)
        .Add({{"version", version}, {"commit", commit}, {"backend", backend}})
        .Set(1);
    for (const char* where : {"received", "stored"}) checksum_failures.Add({{"where", where}});
    for (const char* reason : {"cancelled", "idle", "error"}) put_aborts.Add({{"reason", reason}});
  }

  // Valid for ever: series are never removed.
  CodecSeries& ForCodec(absl::string_view codec) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto it = codecs.find(codec);
    if (it != codecs.end()) return it->second;
    const prometheus::Labels labels = {{"codec", std::string(codec)}};
    for (const char* result : kShadowResults) {
      shadow_chunks.Add({{"codec", std::string(codec)}, {"result", result}});
    }
    return codecs
        .emplace(
            std::string(codec),
            CodecSeries{raw_bytes.Add(labels), stored_bytes.Add(labels),
                        encode_input_bytes.Add(labels), encode_output_bytes.Add(labels),
                        decode_output_bytes.Add(labels), encode_seconds.Add(labels, BatchBuckets()),
                        decode_seconds.Add(labels, BatchBuckets()),
                        predicted_kld.Add(labels, LossBuckets()),
                        shadow_kld_ratio.Add(labels, ShadowRatioBuckets()),
                        shadow_relative_error.Add(labels, RelativeErrorBuckets())})
        .first->second;
  }

  Family<Counter>& AddCounter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(*registry);
  }
  Family<Histogram>& AddHistogram(const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(*registry);
  }

  const std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  const std::shared_ptr<SourceGauges> gauges = std::make_shared<SourceGauges>();

  Family<Counter>& raw_bytes = AddCounter(
      "kvcask_raw_bytes_total",
      "Committed, before coding: 2 bytes for each element of K and V, whatever the dtype.");
  Family<Counter>& stored_bytes = AddCounter(
      "kvcask_stored_bytes_total",
      "Committed, as kept: codes, scales, headers, checksums, raw tails; shared chunks too.");
  Family<Counter>& encode_input_bytes = AddCounter("kvcask_encode_input_bytes_total",
                                                   "Encoded: 2 bytes for each element of K and V.");
  Family<Counter>& encode_output_bytes =
      AddCounter("kvcask_encode_output_bytes_total", "Encoded: bytes that came out.");
  Family<Counter>& decode_output_bytes = AddCounter(
      "kvcask_decode_output_bytes_total", "Decoded: 2 bytes for each element of K and V.");
  Family<Histogram>& encode_seconds =
      AddHistogram("kvcask_encode_seconds", "Time to encode one batch.");
  Family<Histogram>& decode_seconds =
      AddHistogram("kvcask_decode_seconds", "Time to decode one batch.");
  Family<Histogram>& predicted_kld = AddHistogram(
      "kvcask_predicted_kld",
      "Loss that a put's codec predicted by its certificate, in nats a token; lossy puts only.");
  Family<Counter>& shadow_chunks =
      AddCounter("kvcask_shadow_chunks_total", "Chunks that shadow mode measured, by the result.");
  Counter& shadow_skipped =
      AddCounter("kvcask_shadow_skipped_total",
                 "Chunks of shadow mode's sample that were not measured for lack of room.")
          .Add({});
  Family<Histogram>& shadow_kld_ratio = AddHistogram(
      "kvcask_shadow_kld_ratio", "Measured by certified loss of the chunks of shadow mode.");
  Family<Histogram>& shadow_relative_error =
      AddHistogram("kvcask_shadow_relative_error",
                   "Root of squared error by energy of the chunks of shadow mode.");
  Family<Counter>& requests = AddCounter("kvcask_requests_total", "Calls that ended, by status.");
  Family<Histogram>& request_seconds =
      AddHistogram("kvcask_request_seconds", "Time from a call's begin to its end.");
  Counter& received =
      AddCounter("kvcask_received_bytes_total", "Payload bytes taken from clients.").Add({});
  Counter& sent = AddCounter("kvcask_sent_bytes_total", "Payload bytes sent to clients.").Add({});
  Family<Counter>& checksum_failures =
      AddCounter("kvcask_checksum_failures_total", "Checksums that did not match.");
  Family<Counter>& put_aborts =
      AddCounter("kvcask_put_aborts_total", "Puts that began and were not committed.");

  std::mutex mutex;
  std::map<std::string, CodecSeries, std::less<>> codecs;

  // Last, so that it stops before what it serves is gone.
  std::unique_ptr<prometheus::Exposer> exposer;
};

Metrics::Metrics(const std::string& version, const std::string& commit, const std::string& backend)
    : impl_(std::make_unique<Impl>(version, commit, backend)) {}
Metrics::~Metrics() = default;

void Metrics::SetSources(Sources sources) { impl_->gauges->Set(std::move(sources)); }

void Metrics::DeclareCodec(absl::string_view codec) { impl_->ForCodec(codec); }

void Metrics::DeclareMethod(absl::string_view method) {
  const std::string name(method);
  for (const char* code : kWatchedCodes) impl_->requests.Add({{"method", name}, {"code", code}});
  impl_->request_seconds.Add({{"method", name}}, RequestBuckets());
}

absl::StatusOr<int> Metrics::Serve(const std::string& address) {
  if (!IsHostPort(address)) {
    return absl::InvalidArgumentError(
        absl::StrCat("metrics address '", address, "': expected host:port"));
  }
  if (impl_->exposer != nullptr) {
    return absl::FailedPreconditionError("metrics are served already");
  }
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/2);
    exposer->RegisterCollectable(impl_->registry);
    exposer->RegisterCollectable(impl_->gauges);
    const std::vector<int> ports = exposer->GetListeningPorts();
    if (ports.empty()) return absl::UnavailableError("no port to serve metrics on");
    impl_->exposer = std::move(exposer);
    return ports[0];
  } catch (const std::exception& e) {
    // The HTTP server says no more than that it failed.
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", address,
                     ": the port is taken, or the address is not this machine's (", e.what(), ")"));
  }
}

std::string Metrics::Text() const {
  std::vector<MetricFamily> families = impl_->registry->Collect();
  for (MetricFamily& family : impl_->gauges->Collect()) families.push_back(std::move(family));
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, families);
  return out.str();
}

void Metrics::Encoded(absl::string_view codec, uint64_t raw_bytes, uint64_t stored_bytes,
                      absl::Duration elapsed) {
  Impl::CodecSeries& series = impl_->ForCodec(codec);
  series.encode_input_bytes.Increment(raw_bytes);
  series.encode_output_bytes.Increment(stored_bytes);
  series.encode_seconds.Observe(absl::ToDoubleSeconds(elapsed));
}

void Metrics::Decoded(absl::string_view codec, uint64_t raw_bytes, absl::Duration elapsed) {
  Impl::CodecSeries& series = impl_->ForCodec(codec);
  series.decode_output_bytes.Increment(raw_bytes);
  series.decode_seconds.Observe(absl::ToDoubleSeconds(elapsed));
}

void Metrics::Committed(absl::string_view codec, uint64_t raw_bytes, uint64_t stored_bytes,
                        double predicted_kld) {
  Impl::CodecSeries& series = impl_->ForCodec(codec);
  series.raw_bytes.Increment(raw_bytes);
  series.stored_bytes.Increment(stored_bytes);
  if (predicted_kld > 0) series.predicted_kld.Observe(predicted_kld);
}

void Metrics::Shadowed(absl::string_view codec, ShadowResult result, double kld_ratio,
                       double relative_error) {
  Impl::CodecSeries& series = impl_->ForCodec(codec);
  impl_->shadow_chunks
      .Add({{"codec", std::string(codec)}, {"result", kShadowResults[static_cast<int>(result)]}})
      .Increment();
  if (result == ShadowResult::kFailed) return;
  if (kld_ratio >= 0) series.shadow_kld_ratio.Observe(kld_ratio);
  series.shadow_relative_error.Observe(relative_error);
}
void Metrics::ShadowSkipped() { impl_->shadow_skipped.Increment(); }

void Metrics::Received(uint64_t payload_bytes) { impl_->received.Increment(payload_bytes); }
void Metrics::Sent(uint64_t payload_bytes) { impl_->sent.Increment(payload_bytes); }

void Metrics::Finished(absl::string_view method, absl::string_view code, absl::Duration elapsed) {
  const std::string name(method);
  impl_->requests.Add({{"method", name}, {"code", std::string(code)}}).Increment();
  impl_->request_seconds.Add({{"method", name}}, RequestBuckets())
      .Observe(absl::ToDoubleSeconds(elapsed));
}

void Metrics::ChecksumFailure(absl::string_view where) {
  impl_->checksum_failures.Add({{"where", std::string(where)}}).Increment();
}

void Metrics::PutAborted(absl::string_view reason) {
  impl_->put_aborts.Add({{"reason", std::string(reason)}}).Increment();
}

}  // namespace kvcask
