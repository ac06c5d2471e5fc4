#include "client/cli/command.h"

#include <absl/strings/escaping.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <unistd.h>

#include <cstdio>

namespace kvcask {

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kDataLoss:
      return kExitDiffers;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:
      return kExitRetry;
    default:
      return kExitError;
  }
}

absl::StatusOr<Client> Globals::Connect() const {
  ClientOptions options;
  options.call_timeout = absl::Seconds(timeout_s);
  options.connect_timeout = std::min(absl::Seconds(timeout_s), absl::Seconds(10));
  if (tls || !tls_options.ca_file.empty() || !tls_options.cert_file.empty()) {
    options.tls = tls_options;
  }
  return Client::Connect(server, options);
}

absl::StatusOr<v1::Range> ParseRange(absl::string_view what, absl::string_view text) {
  v1::Range range;
  if (text.empty()) return range;
  const size_t colon = text.find(':');
  uint64_t begin = 0, end = 0;
  const auto number = [](absl::string_view s, uint64_t* out) {
    // SimpleAtoi takes a sign and spaces.
    return s.empty() || (s.find_first_not_of("0123456789") == s.npos && absl::SimpleAtoi(s, out));
  };
  if (colon == text.npos || !number(text.substr(0, colon), &begin) ||
      !number(text.substr(colon + 1), &end)) {
    return absl::InvalidArgumentError(absl::StrCat(what, " \"", Printable(text),
                                                   "\": expected A:B, A: or :B with A and B "
                                                   "counted from 0"));
  }
  if (end != 0 && end <= begin) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " ", text, ": an empty range; expected A less than B"));
  }
  range.set_begin(begin);
  range.set_end(end);
  return range;
}

std::string HumanBytes(uint64_t bytes) {
  if (bytes < 1000) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes);
  const char* units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  int unit = 0;
  while (value >= 999.5 && unit < 5) {
    value /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.*f %s", value < 9.995 ? 2 : value < 99.95 ? 1 : 0, value, units[unit]);
}

double Ratio(uint64_t raw, uint64_t stored) {
  return stored == 0 ? 0 : static_cast<double>(raw) / static_cast<double>(stored);
}

std::string Hex(absl::string_view bytes) { return absl::BytesToHexString(bytes); }

std::string Printable(absl::string_view text) { return absl::Utf8SafeCEscape(text); }

void PrintJson(const nlohmann::json& value) {
  // Bytes that are not UTF-8 are replaced rather than thrown on.
  std::printf("%s\n", value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)), on_(isatty(STDERR_FILENO) == 1) {}

void ProgressBar::Clear() {
  if (on_ && last_percent_ >= 0) std::fprintf(stderr, "\r\033[K");
  last_percent_ = -1;
}

void ProgressBar::Show(uint64_t done, uint64_t total) {
  if (!on_ || total == 0) return;
  const int percent = static_cast<int>(100 * (static_cast<double>(done) / total));
  if (percent == last_percent_) return;
  last_percent_ = percent;
  const int width = 30, full = std::min(width, percent * width / 100);
  std::fprintf(stderr, "\r%s [%s%s] %3d%% of %s", label_.c_str(), std::string(full, '#').c_str(),
               std::string(width - full, ' ').c_str(), percent, HumanBytes(total).c_str());
  std::fflush(stderr);
}

}  // namespace kvcask
