// Structured logs: one line an event, as text or JSON, to stderr.
//   Log(LogLevel::kInfo, "put committed", {{"request", id}, {"session", s}, {"tokens", n}});
//   2026-01-31T12:00:00.000000Z info put committed request=17 session=demo tokens=256
//   {"time":"2026-01-31T12:00:00.000000Z","level":"info","event":"put committed",...}
// Values are quoted when they need it; control characters and bytes that are not UTF-8 are
// escaped or replaced, so that nothing a client sends can forge a line. Values longer than
// 1,024 bytes are cut.
//
// Thread-safe, but SetupLog is called before other threads log.
#pragma once

#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>

#include <absl/strings/str_cat.h>
#include <absl/strings/string_view.h>

namespace kvcask {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogField {
  template <typename T>
  LogField(absl::string_view k, const T& v)
      : key(k), value(absl::StrCat(v)), is_number(std::is_integral<T>::value) {}
  absl::string_view key;  // [a-z_]+
  std::string value;
  bool is_number;         // JSON: without quotes
};

// `level` "debug", "info", "warning" or "error"; `format` "text" or "json". False: unknown
// word, and nothing changes. Before it is called: info, text.
bool SetupLog(absl::string_view level, absl::string_view format);
bool LogEnabled(LogLevel level);
void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields = {});

}  // namespace kvcask
