// How kvcaskd is set up: defaults, then a YAML file (--config), then flags.
#pragma once

#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace kvcask {

struct Config {
  // "unix:/path" or "host:port"; port 0 picks one. Never empty once parsed.
  std::vector<std::string> listen;
  std::string metrics = "127.0.0.1:7421";  // "host:port"; "" ("off") serves none
  std::string backend = "auto";            // auto | cpu | cuda
  uint64_t memory_budget_bytes = 0;        // 0: half of the machine's memory
  uint64_t gpu_budget_bytes = 0;           // of a device's memory, for copies of chunks; 0: none
  std::vector<std::string> profiles;       // files to register at start
  std::string default_codec = "int8";
  std::string fklt_segments = "long";  // long | short: CodecSpec::short_segments
  int encode_threads = 0;  // 0: one a core
  std::string disk_path;   // a folder; "": no disk tier
  uint64_t disk_budget_bytes = 0;  // of chunks on disk; 0: no limit
  std::string disk_sync = "commit";  // commit | interval | never
  absl::Duration disk_sync_interval = absl::Milliseconds(100);
  uint64_t scrub_bytes_per_second = 8 << 20;
  std::string eviction = "on";  // on | off
  // By namespace; "*": those that are not named.
  struct Quota {
    uint64_t max_bytes = 0, max_sessions = 0;  // 0: no limit
  };
  std::map<std::string, Quota> quotas;
  absl::Duration drain_timeout = absl::Seconds(20);
  absl::Duration idle_put_timeout = absl::Seconds(60);
  absl::Duration max_lease = absl::Hours(1);  // whole seconds, 1 s to 1 d
  uint64_t put_credit_bytes = 64 << 20;
  uint64_t get_window_bytes = 32 << 20;
  uint64_t max_message_bytes = 64 << 20;
  bool insecure = false;          // allow non-loopback listens without TLS
  std::string tls_cert, tls_key;  // PEM files
  double shadow_fraction = 0;              // of chunks, 0 to 1; 0: off
  uint64_t shadow_bytes = 256 << 20;       // of raw forms at a time
  std::string log_level = "info";
  std::string log_format = "text";  // text | json
  std::string ready_fd;             // tests: a descriptor to print addresses to
};

enum class ConfigAction { kRun, kHelp, kVersion };
struct ParsedConfig {
  ConfigAction action = ConfigAction::kRun;
  std::string text;  // of --help or --version
  Config config;
};

// INVALID_ARGUMENT names the flag, or the file, line and key; NOT_FOUND the file. What came
// back was checked: values, --tls-cert with --tls-key, and that no address which other
// machines reach lacks TLS unless --insecure says so. Throws nothing.
absl::StatusOr<ParsedConfig> ParseConfig(int argc, const char* const* argv);

}  // namespace kvcask
