#include "server/log/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

namespace kvcask {
namespace {

constexpr size_t kMaxValueBytes = 1024;

struct Setup {
  explicit Setup(bool json_lines) : json(json_lines) {
    auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    logger = std::make_shared<spdlog::logger>("kvcaskd", sink);
    logger->set_level(spdlog::level::debug);  // LogEnabled decides
    logger->set_formatter(std::make_unique<spdlog::pattern_formatter>(
        json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l",%v})"
             : "%Y-%m-%dT%H:%M:%S.%fZ %l %v",
        spdlog::pattern_time_type::utc));
    logger->flush_on(spdlog::level::debug);
  }
  const bool json;
  std::shared_ptr<spdlog::logger> logger;
};

std::shared_ptr<const Setup>& Current() {
  static auto& setup = *new std::shared_ptr<const Setup>(std::make_shared<Setup>(false));
  return setup;
}

std::atomic<LogLevel> g_level{LogLevel::kInfo};

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

// As a JSON string, quotes and all.
std::string Quoted(absl::string_view s) {
  const std::string text(s.substr(0, kMaxValueBytes));
  return nlohmann::json(text).dump(-1, ' ', /*ensure_ascii=*/true,
                                   nlohmann::json::error_handler_t::replace);
}

bool IsPlain(absl::string_view s) {
  if (s.empty() || s.size() > kMaxValueBytes) return false;
  for (const char c : s) {
    if (c <= ' ' || c >= 0x7f || c == '"' || c == '=' || c == '\\') return false;
  }
  return true;
}

std::string TextLine(absl::string_view event, std::initializer_list<LogField> fields) {
  // The event is ours, but may carry a library's words: quoted only when it could forge.
  std::string line;
  bool clean = true;
  for (const char c : event) clean &= c >= ' ' && c < 0x7f;
  line = clean ? std::string(event) : Quoted(event);
  for (const LogField& f : fields) {
    absl::StrAppend(&line, " ", f.key, "=", IsPlain(f.value) ? f.value : Quoted(f.value));
  }
  return line;
}

std::string JsonMembers(absl::string_view event, std::initializer_list<LogField> fields) {
  std::string line = absl::StrCat("\"event\":", Quoted(event));
  for (const LogField& f : fields) {
    absl::StrAppend(&line, ",\"", f.key, "\":", f.is_number ? f.value : Quoted(f.value));
  }
  return line;
}

std::optional<LogLevel> ParseLevel(absl::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  return std::nullopt;
}

}  // namespace

bool SetupLog(absl::string_view level, absl::string_view format) {
  const auto parsed = ParseLevel(level);
  if (!parsed || (format != "text" && format != "json")) return false;
  Current() = std::make_shared<Setup>(format == "json");
  g_level.store(*parsed, std::memory_order_relaxed);
  return true;
}

bool LogEnabled(LogLevel level) { return level >= g_level.load(std::memory_order_relaxed); }

void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields) {
  if (!LogEnabled(level)) return;
  const Setup& setup = *Current();
  const std::string line = setup.json ? JsonMembers(event, fields) : TextLine(event, fields);
  setup.logger->log(ToSpdlog(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace kvcask
