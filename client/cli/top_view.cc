#include "client/cli/top_view.h"

#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <vector>

namespace kvcask {
namespace {

constexpr size_t kMaxAnswerBytes = 16 << 20;

// The value of one label in a series' text; "" when it has none.
std::string Label(absl::string_view series, absl::string_view name) {
  const std::string key = absl::StrCat(name, "=\"");
  size_t at = series.find(key);
  if (at == series.npos) return "";
  at += key.size();
  return std::string(series.substr(at, series.find('"', at) - at));
}

absl::string_view Name(absl::string_view series) { return series.substr(0, series.find('{')); }

// Sums and differences over the series of a name.
class Between {
 public:
  Between(const Scrape& before, const Scrape& now) : before_(before), now_(now) {
    seconds_ = std::max(1e-9, absl::ToDoubleSeconds(now.at - before.at));
  }
  double seconds() const { return seconds_; }

  // f(series, its increase) for the series of `name` whose `label` is `value` ("": all).
  template <typename F>
  void Each(absl::string_view name, absl::string_view label, absl::string_view value, F f) const {
    for (auto it = now_.samples.lower_bound(std::string(name)); it != now_.samples.end(); ++it) {
      if (!absl::StartsWith(it->first, name)) break;
      if (Name(it->first) != name) continue;
      if (!value.empty() && Label(it->first, label) != value) continue;
      const auto old = before_.samples.find(it->first);
      const double was = old == before_.samples.end() ? 0 : old->second;
      // A counter that fell has begun anew.
      f(it->first, it->second >= was ? it->second - was : it->second);
    }
  }
  double Increase(absl::string_view name, absl::string_view label = "",
                  absl::string_view value = "") const {
    double sum = 0;
    Each(name, label, value, [&](const std::string&, double d) { sum += d; });
    return sum;
  }
  double Rate(absl::string_view name, absl::string_view label = "",
              absl::string_view value = "") const {
    return Increase(name, label, value) / seconds_;
  }
  double Now(absl::string_view name, absl::string_view label = "",
             absl::string_view value = "") const {
    double sum = 0;
    for (const auto& [series, v] : now_.samples) {
      if (Name(series) == name && (value.empty() || Label(series, label) == value)) sum += v;
    }
    return sum;
  }
  std::set<std::string> Values(absl::string_view name, absl::string_view label) const {
    std::set<std::string> values;
    for (const auto& [series, v] : now_.samples) {
      if (Name(series) == name) values.insert(Label(series, label));
    }
    return values;
  }
  // Of a histogram, linear within its bucket; the last finite bound when it lies beyond. NaN
  // when nothing happened.
  double Quantile(double q, absl::string_view name, absl::string_view label,
                  absl::string_view value) const {
    std::map<double, double> buckets;  // by upper bound: so many at most
    Each(absl::StrCat(name, "_bucket"), label, value, [&](const std::string& series, double d) {
      const std::string le = Label(series, "le");
      double bound = std::numeric_limits<double>::infinity();
      if (le == "+Inf" || absl::SimpleAtod(le, &bound)) buckets[bound] += d;
    });
    if (buckets.empty() || buckets.rbegin()->second <= 0) return std::nan("");
    const double rank = q * buckets.rbegin()->second;
    double low = 0, below = 0;
    for (const auto& [bound, count] : buckets) {
      if (count >= rank) {
        if (std::isinf(bound)) return low;
        return count == below ? bound : low + (bound - low) * (rank - below) / (count - below);
      }
      low = bound;
      below = count;
    }
    return low;
  }

 private:
  const Scrape& before_;
  const Scrape& now_;
  double seconds_;
};

std::string Megabytes(double bytes) { return absl::StrFormat("%.1f MB", bytes * 1e-6); }

std::string Milliseconds(double seconds) {
  return std::isnan(seconds) ? "-" : absl::StrFormat("%.2f", seconds * 1e3);
}

// Calls that did not end well: all, and by the daemon's fault.
void Errors(const Between& b, const std::string& method, double* all, double* ours) {
  *all = *ours = 0;
  b.Each("kvcask_requests_total", "method", method, [&](const std::string& series, double d) {
    const std::string code = Label(series, "code");
    if (code != "OK") *all += d;
    if (code == "INTERNAL" || code == "DATA_LOSS" || code == "UNKNOWN") *ours += d;
  });
}

double Ratio(double raw, double stored) { return stored > 0 ? raw / stored : 0; }

}  // namespace

absl::StatusOr<Scrape> ParseScrape(absl::string_view text, absl::Time at) {
  Scrape scrape;
  scrape.at = at;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    // Values of labels may hold spaces: the value follows the braces.
    const size_t brace = line.rfind('}');
    const size_t space = line.find(' ', brace == line.npos ? 0 : brace);
    double value = 0;
    // A timestamp may follow.
    const absl::string_view rest = space == line.npos ? "" : line.substr(space + 1);
    if (space == 0 || !absl::SimpleAtod(rest.substr(0, rest.find(' ')), &value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("not a sample of the Prometheus text format: \"", line.substr(0, 80), "\""));
    }
    scrape.samples[std::string(line.substr(0, space))] = value;
  }
  return scrape;
}

absl::StatusOr<std::string> FetchMetrics(const std::string& address, absl::Duration timeout) {
  const auto failed = [&](absl::string_view why) {
    return absl::UnavailableError(
        absl::StrCat("no metrics from http://", address, "/metrics: ", why));
  };
  const size_t colon = address.rfind(':');
  if (colon == address.npos) return failed("expected host:port");
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (const int e = getaddrinfo(host.c_str(), address.substr(colon + 1).c_str(), &hints, &found)) {
    return failed(gai_strerror(e));
  }
  int fd = -1, error = 0;
  const timeval limit = absl::ToTimeval(timeout);
  for (const addrinfo* a = found; a != nullptr && fd < 0; a = a->ai_next) {
    fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
      error = errno;
      close(fd);
      fd = -1;
    }
  }
  freeaddrinfo(found);
  if (fd < 0) return failed(std::strerror(error));
  const std::string ask =
      absl::StrCat("GET /metrics HTTP/1.0\r\nHost: ", address, "\r\nConnection: close\r\n\r\n");
  std::string answer;
  char buffer[16384];
  ssize_t n = send(fd, ask.data(), ask.size(), MSG_NOSIGNAL);
  while (n > 0 && answer.size() < kMaxAnswerBytes) {
    n = recv(fd, buffer, sizeof(buffer), 0);
    if (n > 0) answer.append(buffer, static_cast<size_t>(n));
  }
  error = n < 0 ? errno : 0;
  close(fd);
  if (error != 0) return failed(std::strerror(error));
  const size_t body = answer.find("\r\n\r\n");
  const std::string status = answer.substr(0, answer.find("\r\n"));
  if (body == answer.npos || !absl::StrContains(status, " 200 ")) {
    return failed(absl::StrCat("it answers \"", status.substr(0, 60), "\""));
  }
  return answer.substr(body + 4);
}

std::string RenderScreen(const std::string& title, const Scrape& before, const Scrape& now,
                         int width) {
  const Between b(before, now);
  std::vector<std::string> lines;
  const double budget = b.Now("kvcask_memory_budget_bytes"),
               used = b.Now("kvcask_memory_used_bytes");
  lines.push_back(absl::StrCat(title, b.Now("kvcask_ready") > 0 ? "" : "   NOT READY"));
  const double part = budget > 0 ? std::min(1.0, used / budget) : 0;
  const int bar = 30, full = static_cast<int>(std::lround(part * bar));
  lines.push_back(absl::StrFormat("memory  [%s%s] %5.1f %% of %s", std::string(full, '#'),
                                  std::string(bar - full, ' '), 100 * part, Megabytes(budget)));
  lines.push_back(absl::StrFormat("held    %.0f sessions, %.0f chunks (%s), %.0f profiles",
                                  b.Now("kvcask_sessions"), b.Now("kvcask_chunks"),
                                  Megabytes(b.Now("kvcask_stored_unique_bytes")),
                                  b.Now("kvcask_profiles")));
  if (const double room = b.Now("kvcask_gpu_budget_bytes"); room > 0) {
    lines.push_back(absl::StrFormat(
        "gpu     %.0f chunks copied (%s of %s), %.1f reads/s found theirs, %.1f did not%s",
        b.Now("kvcask_gpu_chunks"), Megabytes(b.Now("kvcask_gpu_bytes")), Megabytes(room),
        b.Rate("kvcask_gpu_hits_total"), b.Rate("kvcask_gpu_misses_total"),
        b.Now("kvcask_device_lost") > 0 ? "; THE DEVICE IS LOST" : ""));
  }
  lines.push_back(absl::StrFormat("queue   %.0f batches, the oldest %.1f ms",
                                  b.Now("kvcask_queue_depth"),
                                  1e3 * b.Now("kvcask_queue_age_seconds")));
  lines.push_back(absl::StrFormat("payload %s/s in, %s/s out",
                                  Megabytes(b.Rate("kvcask_received_bytes_total")),
                                  Megabytes(b.Rate("kvcask_sent_bytes_total"))));
  const double corrupt = b.Now("kvcask_checksum_failures_total", "where", "stored"),
               damaged = b.Now("kvcask_checksum_failures_total", "where", "received");
  lines.push_back(
      absl::StrFormat("faults  %.0f stored chunks corrupt, %.0f payloads damaged, "
                      "%.0f puts aborted (since the start)",
                      corrupt, damaged, b.Now("kvcask_put_aborts_total")));
  lines.push_back("");
  lines.push_back("call               per s    p50 ms    p99 ms  failed  our fault");
  for (const std::string& method : b.Values("kvcask_requests_total", "method")) {
    const double calls = b.Rate("kvcask_requests_total", "method", method);
    if (calls == 0) continue;
    double all = 0, ours = 0;
    Errors(b, method, &all, &ours);
    lines.push_back(absl::StrFormat(
        "%-15s %8.1f  %8s  %8s  %6.0f  %9.0f", method, calls,
        Milliseconds(b.Quantile(.5, "kvcask_request_seconds", "method", method)),
        Milliseconds(b.Quantile(.99, "kvcask_request_seconds", "method", method)), all, ours));
  }
  lines.push_back("");
  lines.push_back("codec       ratio   put MB/s   got MB/s   loss, nats a token (p50)");
  for (const std::string& codec : b.Values("kvcask_raw_bytes_total", "codec")) {
    const double raw = b.Now("kvcask_raw_bytes_total", "codec", codec);
    if (raw == 0) continue;
    const double kld = b.Quantile(.5, "kvcask_predicted_kld", "codec", codec);
    lines.push_back(
        absl::StrFormat("%-10s %6.2f %10.1f %10.1f   %s", codec,
                        Ratio(raw, b.Now("kvcask_stored_bytes_total", "codec", codec)),
                        1e-6 * b.Rate("kvcask_raw_bytes_total", "codec", codec),
                        1e-6 * b.Rate("kvcask_decode_output_bytes_total", "codec", codec),
                        std::isnan(kld) ? "-" : absl::StrFormat("%.4f", kld)));
  }
  std::string screen;
  for (const std::string& line : lines) {
    absl::StrAppend(&screen, line.substr(0, static_cast<size_t>(std::max(width, 1))), "\n");
  }
  return screen;
}

std::string RenderLine(const Scrape& before, const Scrape& now) {
  const Between b(before, now);
  double failed = 0, ours = 0;
  Errors(b, "", &failed, &ours);
  return absl::StrFormat(
      "time=%s ready=%.0f sessions=%.0f used_bytes=%.0f budget_bytes=%.0f queue_depth=%.0f "
      "calls_per_s=%.1f failed=%.0f our_fault=%.0f in_MB_per_s=%.1f out_MB_per_s=%.1f "
      "put_p99_ms=%s get_p99_ms=%s ratio=%.2f",
      absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", now.at, absl::UTCTimeZone()), b.Now("kvcask_ready"),
      b.Now("kvcask_sessions"), b.Now("kvcask_memory_used_bytes"),
      b.Now("kvcask_memory_budget_bytes"), b.Now("kvcask_queue_depth"),
      b.Rate("kvcask_requests_total"), failed, ours, 1e-6 * b.Rate("kvcask_received_bytes_total"),
      1e-6 * b.Rate("kvcask_sent_bytes_total"),
      Milliseconds(b.Quantile(.99, "kvcask_request_seconds", "method", "Put")),
      Milliseconds(b.Quantile(.99, "kvcask_request_seconds", "method", "Get")),
      Ratio(b.Now("kvcask_raw_bytes_total"), b.Now("kvcask_stored_bytes_total")));
}

}  // namespace kvcask
