// Structured logs: one line an event, as text or JSON, to stderr.
//   Log(LogLevel::kInfo, "put committed", {{"request", id}, {"session", s}, {"tokens", n}});
// Values are quoted when they need it; control characters are escaped.
//
// Thread-safe.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>

#include <absl/strings/str_cat.h>
#include <absl/strings/string_view.h>

namespace kvcask {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogField {
  template <typename T>
  LogField(absl::string_view k, const T& v) : key(k), value(absl::StrCat(v)) {}
  absl::string_view key;
  std::string value;
};

// "debug".."error"; "text" or "json". False: unknown word.
bool SetupLog(absl::string_view level, absl::string_view format);
bool LogEnabled(LogLevel level);
void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields = {});

}  // namespace kvcask
