#include "server/config/options.h"

#include <absl/strings/escaping.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <utility>

#include "server/config/values.h"

namespace kvcask {
namespace {

using Set = std::function<absl::Status(const std::string&, Config*)>;

constexpr char kDefaultListen[] = "127.0.0.1:7420";

Set Text(std::string Config::*field) {
  return [field](const std::string& text, Config* config) {
    if (text.empty()) return absl::InvalidArgumentError("an empty value");
    config->*field = text;
    return absl::OkStatus();
  };
}

Set OneOf(std::string Config::*field, std::vector<std::string> words) {
  return [field, words = std::move(words)](const std::string& text, Config* config) {
    if (std::find(words.begin(), words.end(), text) == words.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", absl::CHexEscape(text), "', expected ", absl::StrJoin(words, ", ")));
    }
    config->*field = text;
    return absl::OkStatus();
  };
}

Set Bytes(uint64_t Config::*field, uint64_t least) {
  return [field, least](const std::string& text, Config* config) {
    const auto bytes = ParseSize(text);
    if (!bytes.ok()) return bytes.status();
    if (*bytes < least) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", text, "', expected at least ", FormatSize(least)));
    }
    config->*field = *bytes;
    return absl::OkStatus();
  };
}

Set Duration(absl::Duration Config::*field) {
  return [field](const std::string& text, Config* config) {
    const auto duration = ParsePositiveDuration(text);
    if (!duration.ok()) return duration.status();
    config->*field = *duration;
    return absl::OkStatus();
  };
}

absl::Status SetMaxLease(const std::string& text, Config* config) {
  const auto duration = ParsePositiveDuration(text);
  if (!duration.ok()) return duration.status();
  // Leases are asked for in seconds, and hold memory that nobody else may have.
  if (*duration > absl::Hours(24) || *duration % absl::Seconds(1) != absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "', expected whole seconds, from 1s to 24h"));
  }
  config->max_lease = *duration;
  return absl::OkStatus();
}

absl::Status SetListen(const std::string& text, Config* config) {
  if (auto s = CheckListenAddress(text); !s.ok()) return s;
  config->listen.push_back(text);
  return absl::OkStatus();
}

absl::Status SetMetrics(const std::string& text, Config* config) {
  if (text == "off") {
    config->metrics.clear();
    return absl::OkStatus();
  }
  if (text.rfind("unix:", 0) == 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "', expected host:port or off"));
  }
  if (auto s = CheckListenAddress(text); !s.ok()) return s;
  config->metrics = text;
  return absl::OkStatus();
}

absl::Status SetProfile(const std::string& text, Config* config) {
  if (text.empty()) return absl::InvalidArgumentError("an empty value");
  config->profiles.push_back(text);
  return absl::OkStatus();
}

// NAMESPACE=BYTES, NAMESPACE=BYTES,SESSIONS or NAMESPACE=,SESSIONS.
absl::Status SetQuota(const std::string& text, Config* config) {
  const auto bad = [&] {
    return absl::InvalidArgumentError(absl::StrCat("'", absl::CHexEscape(text),
                                                   "', expected NAMESPACE=SIZE, "
                                                   "NAMESPACE=SIZE,SESSIONS or NAMESPACE=,SESSIONS "
                                                   "(NAMESPACE *: all others)"));
  };
  const size_t equals = text.find('=');
  if (equals == std::string::npos) return bad();
  const std::string limits = text.substr(equals + 1);
  const size_t comma = limits.find(',');
  Config::Quota quota;
  if (const std::string size = limits.substr(0, comma); !size.empty()) {
    const auto bytes = ParseSize(size);
    if (!bytes.ok()) return bytes.status();
    quota.max_bytes = *bytes;
  }
  if (comma != std::string::npos &&
      !absl::SimpleAtoi(limits.substr(comma + 1), &quota.max_sessions)) {
    return bad();
  }
  if (quota.max_bytes == 0 && quota.max_sessions == 0) return bad();
  config->quotas[text.substr(0, equals)] = quota;
  return absl::OkStatus();
}

absl::Status SetShadowFraction(const std::string& text, Config* config) {
  double fraction = 0;
  if (!absl::SimpleAtod(text, &fraction) || !(fraction >= 0 && fraction <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", absl::CHexEscape(text), "', expected a number from 0 to 1"));
  }
  config->shadow_fraction = fraction;
  return absl::OkStatus();
}

absl::Status SetThreads(const std::string& text, Config* config) {
  int threads = 0;
  if (!absl::SimpleAtoi(text, &threads) || threads < 0 || threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", absl::CHexEscape(text), "', expected a number from 0 to 1024"));
  }
  config->encode_threads = threads;
  return absl::OkStatus();
}

absl::Status SetInsecure(const std::string& text, Config* config) {
  if (text != "true" && text != "false") {
    return absl::InvalidArgumentError(
        absl::StrCat("'", absl::CHexEscape(text), "', expected true or false"));
  }
  config->insecure = text == "true";
  return absl::OkStatus();
}

std::vector<Option> MakeOptions() {
  const Config d;
  const auto size = [](uint64_t bytes) { return FormatSize(bytes); };
  const auto time = [](absl::Duration t) { return absl::FormatDuration(t); };
  const char* const kAddresses = "Addresses";
  const char* const kSecurity = "Security";
  const char* const kDisk = "Disk";
  const char* const kMemory = "Memory and work";
  const char* const kCodecs = "Codecs";
  const char* const kLogs = "Logs";
  return {
      {"listen", "ADDR", kAddresses,
       absl::StrCat("Where clients connect: unix:/path or host:port (port 0 picks\na free one). "
                    "Repeatable. Default ",
                    kDefaultListen),
       true, SetListen},
      {"metrics", "ADDR", kAddresses,
       absl::StrCat("Serve http://ADDR/metrics for Prometheus; off serves none.\nDefault ",
                    d.metrics),
       false, SetMetrics},
      {"tls-cert", "FILE", kSecurity,
       "PEM certificate chain of this server. Needs --tls-key; all host:port\naddresses then "
       "speak TLS",
       false, Text(&Config::tls_cert)},
      {"tls-key", "FILE", kSecurity, "PEM private key of --tls-cert", false,
       Text(&Config::tls_key)},
      {"insecure", "", kSecurity,
       "Allow addresses that other machines can reach without TLS: whoever\nreaches them can "
       "read and delete everything",
       false, SetInsecure},
      {"memory-budget", "SIZE", kMemory,
       "All that is kept or under way: chunks, profiles, runs being put.\nBeyond it puts are "
       "refused with RESOURCE_EXHAUSTED.\nDefault: half of this machine's (or container's) memory",
       false, Bytes(&Config::memory_budget_bytes, 1 << 20)},
      {"gpu-budget", "SIZE", kMemory,
       "The GPU's memory that keeps copies of chunks, so that they are\ndecoded there without "
       "being sent again. Needs a cuda backend.\nDefault: none",
       false, Bytes(&Config::gpu_budget_bytes, 1 << 20)},
      {"encode-threads", "N", kMemory, "Threads that encode and decode; 0: one a core. Default 0",
       false, SetThreads},
      {"put-credit", "SIZE", kMemory,
       absl::StrCat("Payload that one put may have in flight. Default ", size(d.put_credit_bytes)),
       false, Bytes(&Config::put_credit_bytes, 1 << 20)},
      {"get-window", "SIZE", kMemory,
       absl::StrCat("Payload decoded ahead of one reader. Default ", size(d.get_window_bytes)),
       false, Bytes(&Config::get_window_bytes, 1 << 20)},
      {"max-message", "SIZE", kMemory,
       absl::StrCat("Largest message taken; 1 to 4 MiB carry best. Default ",
                    size(d.max_message_bytes)),
       false, Bytes(&Config::max_message_bytes, 1 << 20)},
      {"idle-put-timeout", "TIME", kMemory,
       absl::StrCat("A put that sends nothing for this long is aborted. Default ",
                    time(d.idle_put_timeout)),
       false, Duration(&Config::idle_put_timeout)},
      {"max-lease", "TIME", kMemory,
       absl::StrCat("The longest a lease may last before it is renewed: it keeps memory\nfrom "
                    "eviction. Default ",
                    time(d.max_lease)),
       false, SetMaxLease},
      {"drain-timeout", "TIME", kMemory,
       absl::StrCat("After SIGTERM, how long calls under way may take to end. Default ",
                    time(d.drain_timeout)),
       false, Duration(&Config::drain_timeout)},
      {"eviction", "on|off", kMemory,
       absl::StrCat(
           "When memory is full: on makes room from the ends of sessions, off\nrefuses puts. "
           "With a disk tier, of what is on disk only when\nthe disk is full. Default ",
           d.eviction),
       false, OneOf(&Config::eviction, {"on", "off"})},
      {"quota", "NAMESPACE=SIZE[,SESSIONS]", kMemory,
       "Limits of one namespace, or of each that is not named (*). Repeatable", true, SetQuota},
      {"disk-path", "FOLDER", kDisk,
       "Keep sessions on disk too: they survive restarts.\nDefault: in memory only", false,
       Text(&Config::disk_path)},
      {"disk-budget", "SIZE", kDisk, "Chunks kept on disk. Default: no limit", false,
       Bytes(&Config::disk_budget_bytes, 1 << 20)},
      {"disk-sync", "POLICY", kDisk,
       absl::StrCat(
           "What a durable commit waits for: commit (its own fsync, shared by\nthose that wait "
           "together), interval (the next of them), never\n(survives a crash of the "
           "daemon, not of the machine). Default ",
           d.disk_sync),
       false, OneOf(&Config::disk_sync, {"commit", "interval", "never"})},
      {"disk-sync-interval", "TIME", kDisk,
       absl::StrCat("Of disk-sync interval. Default ", time(d.disk_sync_interval)), false,
       Duration(&Config::disk_sync_interval)},
      {"scrub-rate", "SIZE", kDisk,
       absl::StrCat("Read from disk and checked in the background, a second. Default ",
                    size(d.scrub_bytes_per_second)),
       false, Bytes(&Config::scrub_bytes_per_second, 1)},
      {"backend", "NAME", kCodecs,
       absl::StrCat("Where codecs run: auto, cpu or cuda. Default ", d.backend), false,
       OneOf(&Config::backend, {"auto", "cpu", "cuda"})},
      {"default-codec", "NAME", kCodecs,
       absl::StrCat("For puts that name none; kvcask codecs lists them. Default ", d.default_codec),
       false, Text(&Config::default_codec)},
      {"fklt-segments", "long|short", kCodecs,
       absl::StrCat("short: tiles of fklt that a GPU codes one at a time in about half\nthe time, "
                    "in 3 to 5 % more bytes; any daemon reads both. Default ",
                    d.fklt_segments),
       false, OneOf(&Config::fklt_segments, {"long", "short"})},
      {"profile", "FILE", kCodecs, "A model profile to register at start. Repeatable", true,
       SetProfile},
      {"shadow-fraction", "FRACTION", kCodecs,
       "Of the chunks that are put, how many are decoded again and measured\nagainst what was put "
       "and what the codec certified; 0: none. Default 0",
       false, SetShadowFraction},
      {"shadow-bytes", "SIZE", kCodecs,
       absl::StrCat("What is kept of them until then, at most; beyond it they are skipped.\n"
                    "Default ",
                    size(d.shadow_bytes)),
       false, Bytes(&Config::shadow_bytes, 1 << 20)},
      {"log-level", "LEVEL", kLogs,
       absl::StrCat("debug, info, warning or error. Default ", d.log_level), false,
       OneOf(&Config::log_level, {"debug", "info", "warning", "error"})},
      {"log-format", "FORMAT", kLogs,
       absl::StrCat("text or json, one line an event, to stderr. Default ", d.log_format), false,
       OneOf(&Config::log_format, {"text", "json"})},
      {"ready-fd", "FD", "", "Tests: a descriptor to print the addresses to", false,
       Text(&Config::ready_fd)},
  };
}

}  // namespace

const std::vector<Option>& Options() {
  static const auto& options = *new std::vector<Option>(MakeOptions());
  return options;
}

absl::Status FinishConfig(Config* config) {
  if (config->listen.empty()) config->listen.push_back(kDefaultListen);
  if (config->tls_cert.empty() != config->tls_key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        config->tls_cert.empty() ? "--tls-key without --tls-cert" : "--tls-cert without --tls-key",
        ": both are needed"));
  }
  if (config->gpu_budget_bytes > 0 && config->backend == "cpu") {
    return absl::InvalidArgumentError(
        "--gpu-budget with --backend cpu: it needs a device; expected --backend cuda, or auto where "
        "there may be none");
  }
  for (const std::string& address : config->listen) {
    if (config->insecure || !config->tls_cert.empty() || IsLocalAddress(address)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "--listen ", address,
        ": other machines can reach it and there is no TLS. Give --tls-cert and --tls-key, or "
        "--insecure if you mean it"));
  }
  return absl::OkStatus();
}

}  // namespace kvcask
