#include "server/config/config.h"

#include <absl/status/status.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "server/config/options.h"
#include "server/config/values.h"
#include "server/config/yaml_file.h"
#include "server/version.h"

namespace kvcask {
namespace {

constexpr char kIntroduction[] =
    "kvcaskd keeps the KV caches of language models compressed in memory and gives\n"
    "them back. Clients speak gRPC to it (proto/kvcask/v1); `kvcask` is one.\n";
constexpr char kExamples[] =
    "SIZE is 8GiB, 512MiB, 1GB or plain bytes; TIME is 20s, 500ms or 1m30s.\n"
    "\n"
    "Examples:\n"
    "  kvcaskd\n"
    "      this machine only, half of its memory\n"
    "  kvcaskd --listen unix:/run/kvcask/kvcask.sock --memory-budget 64GiB\n"
    "      for engines on the same host\n"
    "  kvcaskd --config /etc/kvcask/kvcaskd.yaml --log-level debug\n"
    "      the file's settings, one of them overridden\n"
    "\n"
    "A configuration file holds the same names:\n"
    "  listen: [unix:/run/kvcask/kvcask.sock, 127.0.0.1:7420]\n"
    "  memory-budget: 64GiB\n"
    "  insecure: false\n"
    "\n"
    "SIGTERM or SIGINT drains: no new work, calls under way may end, then exit 0.\n"
    "Exit codes: 0 ended well, 1 could not start, 2 wrong flags or configuration.";

// What stands on the command line, as text.
struct Flags {
  std::map<std::string, std::vector<std::string>> values;  // by option name
  std::string config;
  bool help = false;
  bool version = false;
  std::string help_text;
};

absl::Status UnknownFlag(const std::string& flag) {
  if (!absl::StartsWith(flag, "-")) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", flag, "': expected flags only; see --help"));
  }
  std::vector<std::string> names = {"--config", "--help", "--version"};
  for (const Option& o : Options()) names.push_back("--" + o.name);
  const std::string nearest = NearestWord(flag.substr(0, flag.find('=')), names);
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown flag ", flag,
      nearest.empty() ? "; see --help" : absl::StrCat("; did you mean ", nearest, "?")));
}

// May throw CLI::Error.
absl::StatusOr<Flags> ParseFlags(int argc, const char* const* argv) {
  Flags flags;
  CLI::App app(kIntroduction, "kvcaskd");
  app.set_help_flag();  // ours, so that it is a value and not an exception
  app.allow_extras();
  app.footer(kExamples);
  app.get_formatter()->column_width(30);
  app.add_option("--config", flags.config,
                 "A YAML file of settings by these names; flags override it")
      ->type_name("FILE")
      ->group("Setting up");
  app.add_flag("--help,-h", flags.help, "This text")->group("Setting up");
  app.add_flag("--version", flags.version, "Print the version")->group("Setting up");
  std::map<std::string, bool> switches;
  for (const Option& option : Options()) {
    const std::string name = "--" + option.name;
    if (option.value.empty()) {
      // --insecure, and --insecure=false against a file's true.
      app.add_flag(name, switches[option.name], option.help)->group(option.group);
    } else {
      app.add_option(name, flags.values[option.name], option.help)
          ->type_name(option.value)
          ->group(option.group)
          ->expected(1)
          ->allow_extra_args(false)
          ->multi_option_policy(option.repeatable ? CLI::MultiOptionPolicy::TakeAll
                                                  : CLI::MultiOptionPolicy::TakeLast);
    }
  }
  app.parse(argc, argv);
  if (!app.remaining().empty()) return UnknownFlag(app.remaining()[0]);
  for (const auto& [name, on] : switches) {
    if (app.count("--" + name) > 0) flags.values[name] = {on ? "true" : "false"};
  }
  flags.help_text = app.help();
  return flags;
}

absl::Status ApplyFile(const std::string& path, Config* config) {
  const auto settings = ReadYamlSettings(path);
  if (!settings.ok()) return settings.status();
  std::vector<std::string> names;
  for (const Option& o : Options()) names.push_back(o.name);
  std::set<std::string> seen;
  for (const YamlSetting& setting : *settings) {
    const auto bad = [&](absl::string_view text) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", setting.line, ": ", text));
    };
    const auto option = std::find_if(Options().begin(), Options().end(),
                                     [&](const Option& o) { return o.name == setting.key; });
    if (option == Options().end()) {
      const std::string nearest = NearestWord(setting.key, names);
      return bad(absl::StrCat("unknown key '", setting.key, "'",
                              nearest.empty() ? "; kvcaskd --help lists them"
                                              : absl::StrCat("; did you mean '", nearest, "'?")));
    }
    if (!seen.insert(setting.key).second) return bad(absl::StrCat(setting.key, " a second time"));
    if (setting.is_list && !option->repeatable) {
      return bad(absl::StrCat(setting.key, ": a list, expected one value"));
    }
    for (const std::string& value : setting.values) {
      if (auto s = option->set(value, config); !s.ok()) {
        return bad(absl::StrCat(setting.key, ": ", s.message()));
      }
    }
  }
  return absl::OkStatus();
}

// A list on the command line replaces the file's.
void ForgetList(const std::string& name, Config* config) {
  if (name == "listen") config->listen.clear();
  if (name == "profile") config->profiles.clear();
  if (name == "quota") config->quotas.clear();
}

absl::Status ApplyFlags(const Flags& flags, Config* config) {
  for (const Option& option : Options()) {
    const auto it = flags.values.find(option.name);
    if (it == flags.values.end() || it->second.empty()) continue;
    if (option.repeatable) ForgetList(option.name, config);
    for (const std::string& value : it->second) {
      if (auto s = option.set(value, config); !s.ok()) {
        return absl::InvalidArgumentError(absl::StrCat("--", option.name, ": ", s.message()));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ParsedConfig> Parse(int argc, const char* const* argv) {
  const auto flags = ParseFlags(argc, argv);
  if (!flags.ok()) return flags.status();
  ParsedConfig parsed;
  if (flags->help) {
    parsed.action = ConfigAction::kHelp;
    parsed.text = flags->help_text;
    return parsed;
  }
  if (flags->version) {
    parsed.action = ConfigAction::kVersion;
    parsed.text = absl::StrCat("kvcaskd ", kVersion, "\n");
    return parsed;
  }
  if (!flags->config.empty()) {
    if (auto s = ApplyFile(flags->config, &parsed.config); !s.ok()) return s;
  }
  if (auto s = ApplyFlags(*flags, &parsed.config); !s.ok()) return s;
  if (auto s = FinishConfig(&parsed.config); !s.ok()) return s;
  return parsed;
}

}  // namespace

absl::StatusOr<ParsedConfig> ParseConfig(int argc, const char* const* argv) {
  try {
    return Parse(argc, argv);
  } catch (const std::exception& e) {  // of the flag parser
    return absl::InvalidArgumentError(absl::StrCat(e.what(), "; see --help"));
  }
}

}  // namespace kvcask
