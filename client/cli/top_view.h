// What `kvcask top` shows: two scrapes of a daemon's /metrics and what happened between them.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include <map>
#include <string>

namespace kvcask {

// The samples of one scrape by their series, "name{label=\"value\",...}" as it was written.
struct Scrape {
  absl::Time at;
  std::map<std::string, double> samples;
};

// INVALID_ARGUMENT names the line that is no sample of the Prometheus text format.
absl::StatusOr<Scrape> ParseScrape(absl::string_view text, absl::Time at);

// GET http://`address`/metrics. UNAVAILABLE tells the address and what failed.
absl::StatusOr<std::string> FetchMetrics(const std::string& address, absl::Duration timeout);

// A screen of lines, none longer than `width`: budget, queue, throughput, calls with their
// latencies and errors, codecs with ratio, speed and predicted loss.
std::string RenderScreen(const std::string& title, const Scrape& before, const Scrape& now,
                         int width);

// One line "key=value ..." for logs and scripts: the same in short.
std::string RenderLine(const Scrape& before, const Scrape& now);

}  // namespace kvcask
