#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <memory>

#include "client/cli/command.h"

namespace kvcask {
namespace {

using nlohmann::json;

json CodecsJson(const v1::ServerInfo& info) {
  json codecs = json::array();
  for (const auto& c : info.codecs()) {
    codecs.push_back(
        {{"name", c.name()},
         {"description", c.description()},
         {"needs_profile", c.needs_profile()},
         {"lossless", c.lossless()},
         {"qualities", std::vector<std::string>(c.qualities().begin(), c.qualities().end())}});
  }
  return codecs;
}

void PrintInfo(const v1::ServerInfo& info) {
  std::printf("kvcaskd %s (%s), backend %s%s\n", Printable(info.version()).c_str(),
              Printable(info.commit()).c_str(), Printable(info.backend()).c_str(),
              info.draining() ? ", draining" : "");
  for (const auto& b : info.backends()) {
    std::printf("  %-5s %-12s %s\n", Printable(b.name()).c_str(),
                b.available() ? "available" : "not here", Printable(b.detail()).c_str());
  }
  const auto started = absl::FromUnixSeconds(info.started().seconds());
  std::printf("started   %s UTC\n",
              absl::FormatTime("%Y-%m-%d %H:%M:%S", started, absl::UTCTimeZone()).c_str());
  std::printf("budget    %s of %s used; %llu sessions, %llu chunks, %llu profiles\n",
              HumanBytes(info.usage().used_bytes()).c_str(),
              HumanBytes(info.limits().memory_budget_bytes()).c_str(),
              static_cast<unsigned long long>(info.usage().sessions()),
              static_cast<unsigned long long>(info.usage().chunks()),
              static_cast<unsigned long long>(info.usage().profiles()));
  if (info.limits().gpu_budget_bytes() > 0) {
    std::printf("gpu       %s of %s hold copies of chunks\n",
                HumanBytes(info.usage().gpu_bytes()).c_str(),
                HumanBytes(info.limits().gpu_budget_bytes()).c_str());
  }
  std::printf("limits    message %s, run %llu tokens, profile %s, put credit %s, page %u tokens\n",
              HumanBytes(info.limits().max_message_bytes()).c_str(),
              static_cast<unsigned long long>(info.limits().max_run_tokens()),
              HumanBytes(info.limits().max_profile_bytes()).c_str(),
              HumanBytes(info.limits().put_credit_bytes()).c_str(), info.limits().page_tokens());
}

json InfoJson(const v1::ServerInfo& info) {
  json backends = json::array();
  for (const auto& b : info.backends()) {
    backends.push_back({{"name", b.name()}, {"available", b.available()}, {"detail", b.detail()}});
  }
  const v1::ServerInfo::Limits& l = info.limits();
  const v1::ServerInfo::Usage& u = info.usage();
  return {{"version", info.version()},
          {"commit", info.commit()},
          {"backend", info.backend()},
          {"backends", backends},
          {"codecs", CodecsJson(info)},
          {"draining", info.draining()},
          {"limits",
           {{"memory_budget_bytes", l.memory_budget_bytes()},
            {"max_message_bytes", l.max_message_bytes()},
            {"max_run_tokens", l.max_run_tokens()},
            {"max_profile_bytes", l.max_profile_bytes()},
            {"put_credit_bytes", l.put_credit_bytes()},
            {"get_window_bytes", l.get_window_bytes()},
            {"page_tokens", l.page_tokens()},
            {"idle_put_seconds", l.idle_put_seconds()},
            {"max_lease_seconds", l.max_lease_seconds()},
            {"gpu_budget_bytes", l.gpu_budget_bytes()}}},
          {"usage",
           {{"used_bytes", u.used_bytes()},
            {"stored_bytes", u.stored_bytes()},
            {"gpu_bytes", u.gpu_bytes()},
            {"sessions", u.sessions()},
            {"chunks", u.chunks()},
            {"profiles", u.profiles()}}}};
}

void PrintCodecs(const v1::ServerInfo& info) {
  for (const auto& c : info.codecs()) {
    std::vector<std::string> traits;
    if (c.lossless()) traits.push_back("lossless");
    if (c.needs_profile()) traits.push_back("needs a profile");
    std::vector<std::string> qualities;
    for (const std::string& q : c.qualities()) {
      if (!q.empty()) qualities.push_back(q);
    }
    if (!qualities.empty()) traits.push_back(absl::StrJoin(qualities, "|"));
    std::printf("%-10s %s%s\n", Printable(c.name()).c_str(), Printable(c.description()).c_str(),
                traits.empty()
                    ? ""
                    : absl::StrCat(" (", Printable(absl::StrJoin(traits, ", ")), ")").c_str());
  }
}

// Returns the command, and whether another than the usual answer is wanted.
CLI::App* Add(CLI::App* app, Globals* globals, const char* name, const char* text,
              void (*print)(const v1::ServerInfo&), json (*to_json)(const v1::ServerInfo&),
              std::shared_ptr<bool> explain = std::make_shared<bool>(false),
              std::shared_ptr<int> tokens = nullptr) {
  auto as_json = std::make_shared<bool>(false);
  CLI::App* c = app->add_subcommand(name, text);
  c->add_flag("--json", *as_json, "Print as JSON");
  OnRun(c, globals, [=]() -> absl::Status {
    if (*explain) return Explain(*globals, *tokens, *as_json);
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    const auto info = client->GetServerInfo();
    if (!info.ok()) return info.status();
    if (*as_json) {
      PrintJson(to_json(*info));
    } else {
      print(*info);
    }
    return absl::OkStatus();
  });
  return c;
}

}  // namespace

void AddServerCommands(CLI::App* app, Globals* globals) {
  Add(app, globals, "info", "Version, backends, limits and use of the daemon", PrintInfo, InfoJson);
  auto explain = std::make_shared<bool>(false);
  auto tokens = std::make_shared<int>(1024);
  CLI::App* codecs = Add(app, globals, "codecs", "The codecs that the daemon knows", PrintCodecs,
                         CodecsJson, explain, tokens);
  codecs->add_flag("--explain", *explain,
                   "Bytes: the formula, and what the daemon holds of a session put and removed");
  codecs->add_option("--tokens", *tokens, "Of that session")->check(CLI::Range(1, 16384));
}

}  // namespace kvcask
