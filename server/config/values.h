// How settings are written: sizes, durations, addresses. Pure functions; the errors are
// INVALID_ARGUMENT and say what was found and what is expected.
#pragma once

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <absl/types/span.h>

#include <cstdint>
#include <string>

namespace kvcask {

// "512MiB", "8GiB", "1TB", "4096": a whole number, and B, KiB, MiB, GiB, TiB (powers of
// 1024) or kB, MB, GB, TB (powers of 1000).
absl::StatusOr<uint64_t> ParseSize(absl::string_view text);
// The other way, for help: the largest power of 1024 that divides it.
std::string FormatSize(uint64_t bytes);
// "20s", "500ms", "1m30s": more than zero.
absl::StatusOr<absl::Duration> ParsePositiveDuration(absl::string_view text);

// "unix:/path" (at most 107 bytes of path) or "host:port", an IPv6 host in brackets.
absl::Status CheckListenAddress(absl::string_view address);
// Whether only this machine can reach it: a unix socket, localhost, 127.x.y.z or [::1].
bool IsLocalAddress(absl::string_view address);

// The word nearest to `word`; "" when none is near.
std::string NearestWord(absl::string_view word, absl::Span<const std::string> words);

}  // namespace kvcask
