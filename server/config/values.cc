#include "server/config/values.h"

#include <absl/status/status.h>
#include <absl/strings/ascii.h>
#include <absl/strings/escaping.h>
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <arpa/inet.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

namespace kvcask {
namespace {

struct Unit {
  const char* name;
  uint64_t bytes;
};
constexpr Unit kUnits[] = {{"", 1},
                           {"B", 1},
                           {"KiB", uint64_t{1} << 10},
                           {"MiB", uint64_t{1} << 20},
                           {"GiB", uint64_t{1} << 30},
                           {"TiB", uint64_t{1} << 40},
                           {"kB", 1'000},
                           {"MB", 1'000'000},
                           {"GB", 1'000'000'000},
                           {"TB", 1'000'000'000'000}};

constexpr size_t kMaxUnixPath = 107;  // of sockaddr_un

struct HostPort {
  absl::string_view host;  // without brackets
  bool bracketed = false;
  int port = 0;
};

absl::StatusOr<HostPort> SplitHostPort(absl::string_view address) {
  const auto bad = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("'", absl::CHexEscape(address), "': ", why,
                                                   "; expected unix:/path or host:port"));
  };
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos) return bad("no port");
  HostPort result;
  result.host = address.substr(0, colon);
  const absl::string_view port = address.substr(colon + 1);
  const bool digits = !port.empty() && std::all_of(port.begin(), port.end(), absl::ascii_isdigit);
  if (!digits || !absl::SimpleAtoi(port, &result.port) || result.port > 65535) {
    return bad("the port is not a number from 0 to 65535");
  }
  if (absl::ConsumePrefix(&result.host, "[")) {
    if (!absl::ConsumeSuffix(&result.host, "]")) return bad("no closing bracket");
    result.bracketed = true;
    in6_addr ignored;
    if (inet_pton(AF_INET6, std::string(result.host).c_str(), &ignored) != 1) {
      return bad("not an IPv6 address in the brackets");
    }
    return result;
  }
  if (result.host.empty()) return bad("no host (0.0.0.0 means all of IPv4, [::] all)");
  for (const char c : result.host) {
    if (c == ':') return bad("an IPv6 host stands in brackets");
    if (!absl::ascii_isalnum(c) && c != '.' && c != '-' && c != '_') {
      return bad("the host has an odd character");
    }
  }
  return result;
}

// Edits (insert, delete, replace) between two words.
size_t Distance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

}  // namespace

absl::StatusOr<uint64_t> ParseSize(absl::string_view text) {
  const auto bad = [&](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", absl::CHexEscape(text), "' ", why,
                     "; expected a whole number of bytes, or one with KiB, MiB, GiB, TiB, kB, "
                     "MB, GB or TB, as 8GiB"));
  };
  const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  uint64_t number = 0;
  if (digits == 0) return bad("is not a size");
  if (!absl::SimpleAtoi(text.substr(0, digits), &number)) return bad("is too large");
  for (const Unit& unit : kUnits) {
    if (text.substr(digits) != unit.name) continue;
    if (number > std::numeric_limits<uint64_t>::max() / unit.bytes) return bad("is too large");
    return number * unit.bytes;
  }
  return bad("is not a size");
}

std::string FormatSize(uint64_t bytes) {
  const char* const names[] = {"", "KiB", "MiB", "GiB", "TiB"};
  int power = 0;
  while (bytes != 0 && bytes % 1024 == 0 && power < 4) {
    bytes /= 1024;
    ++power;
  }
  return absl::StrCat(bytes, names[power]);
}

absl::StatusOr<absl::Duration> ParsePositiveDuration(absl::string_view text) {
  absl::Duration d;
  if (!absl::ParseDuration(text, &d) || d <= absl::ZeroDuration() ||
      d == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", absl::CHexEscape(text),
                     "' is not a duration above zero; expected 20s, 500ms or 1m30s"));
  }
  return d;
}

absl::Status CheckListenAddress(absl::string_view address) {
  absl::string_view path = address;
  if (!absl::ConsumePrefix(&path, "unix:")) return SplitHostPort(address).status();
  if (path.empty() || path.size() > kMaxUnixPath) {
    return absl::InvalidArgumentError(absl::StrCat("'", absl::CHexEscape(address), "': a path of ",
                                                   path.size(), " bytes, expected 1 to ",
                                                   kMaxUnixPath));
  }
  return absl::OkStatus();
}

bool IsLocalAddress(absl::string_view address) {
  if (absl::StartsWith(address, "unix:")) return true;
  const auto parts = SplitHostPort(address);
  if (!parts.ok()) return false;
  if (parts->bracketed) {
    in6_addr ip;
    return inet_pton(AF_INET6, std::string(parts->host).c_str(), &ip) == 1 &&
           IN6_IS_ADDR_LOOPBACK(&ip);
  }
  in_addr ip;
  if (inet_pton(AF_INET, std::string(parts->host).c_str(), &ip) == 1) {
    return (ntohl(ip.s_addr) >> 24) == 127;
  }
  return parts->host == "localhost";
}

std::string NearestWord(absl::string_view word, absl::Span<const std::string> words) {
  size_t best = std::max<size_t>(1, word.size() / 3) + 1;  // farther is no near miss
  std::string nearest;
  for (const std::string& w : words) {
    const size_t d = Distance(word, w);
    if (d < best) {
      best = d;
      nearest = w;
    }
  }
  return nearest;
}

}  // namespace kvcask
