#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <cstring>
#include <memory>
#include <vector>

#include "client/cli/cache_file.h"
#include "client/cli/command.h"
#include "client/cli/mapped_file.h"
#include "codec/base/sha256.h"
#include "codec/profile/mean_profile.h"

namespace kvcask {
namespace {

using nlohmann::json;

json ToJson(const v1::Profile& p) {
  return {
      {"fingerprint", Hex(p.fingerprint())},
      {"name", p.name()},
      {"model", p.model()},
      {"codec", p.codec()},
      {"size_bytes", p.size_bytes()},
      {"chunks", p.chunks()},
      {"layers", p.geometry().layers_size()},
      {"qualities", std::vector<std::string>(p.qualities().begin(), p.qualities().end())},
      {"metadata", std::map<std::string, std::string>(p.metadata().begin(), p.metadata().end())}};
}

void PrintLine(const v1::Profile& p) {
  std::printf("%s  %-8s %10s %6llu chunks  %s (%s)\n", Hex(p.fingerprint()).substr(0, 16).c_str(),
              Printable(p.codec()).c_str(), HumanBytes(p.size_bytes()).c_str(),
              static_cast<unsigned long long>(p.chunks()), Printable(p.name()).c_str(),
              Printable(p.model()).c_str());
}

void PrintWhole(const v1::Profile& p) {
  std::printf("%-12s %s\n%-12s %s\n%-12s %s\n%-12s %s\n%-12s %s\n%-12s %d\n%-12s %llu\n",
              "fingerprint", Hex(p.fingerprint()).c_str(), "name", Printable(p.name()).c_str(),
              "model", Printable(p.model()).c_str(), "codec", Printable(p.codec()).c_str(), "size",
              HumanBytes(p.size_bytes()).c_str(), "layers", p.geometry().layers_size(), "chunks",
              static_cast<unsigned long long>(p.chunks()));
  for (const auto& [key, value] : p.metadata()) {
    if (value.size() <= 200)
      std::printf("%-12s %s\n", Printable(key).c_str(), Printable(value).c_str());
  }
}

void PrintOne(const v1::Profile& p, bool as_json, void (*print)(const v1::Profile&)) {
  if (as_json) {
    PrintJson(ToJson(p));
  } else {
    print(p);
  }
}

absl::StatusOr<v1::Profile> Register(Client& client, const std::string& path) {
  const auto file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  const std::string hex = ToHex(Sha256((*file)->bytes()));
  auto there = client.GetProfile(hex);
  if (there.ok() || there.status().code() != absl::StatusCode::kNotFound) return there;
  auto added = client.AddProfile((*file)->bytes());
  if (!added.ok()) return Annotate(added.status(), path);
  return added;
}

// A profile of the means of caches of one model, written to `out`.
absl::Status MakeMeans(const std::vector<std::string>& caches, const std::string& out,
                       const std::string& name, bool as_json) {
  std::unique_ptr<MeanProfileMaker> maker;
  Geometry geometry;
  std::string model;
  for (const std::string& path : caches) {
    const auto file = CacheFile::Open(path);
    if (!file.ok()) return Annotate(file.status(), Printable(path));
    const CacheMetadata& about = file->info().metadata;
    if (maker == nullptr) {
      geometry = file->geometry();
      model = about.model;
      maker = std::make_unique<MeanProfileMaker>(geometry);
    }
    const std::string difference = DescribeGeometryDifference(
        geometry, file->geometry(), Printable(caches[0]), Printable(path));
    if (!difference.empty()) return absl::InvalidArgumentError(difference);
    const absl::Status s = maker->Add(file->view(), about.tokens, about.first_position);
    if (!s.ok()) return Annotate(s, Printable(path));
  }
  const auto bytes = maker->Build(name.empty() ? absl::StrCat(model, " means") : name, model);
  if (!bytes.ok()) return bytes.status();
  auto file = OutputFile::Create(out, bytes->size());
  if (!file.ok()) return file.status();
  std::memcpy((*file)->data(), bytes->data(), bytes->size());
  if (absl::Status s = (*file)->Publish(); !s.ok()) return s;
  if (as_json) {
    PrintJson({{"file", out},
               {"tokens", maker->tokens()},
               {"size_bytes", bytes->size()},
               {"fingerprint", ToHex(Sha256(*bytes))}});
  } else {
    std::printf("%s: means of %lld tokens\n", Printable(out).c_str(),
                static_cast<long long>(maker->tokens()));
  }
  return absl::OkStatus();
}

bool IsHex(const std::string& s) {
  return s.size() >= 8 && s.size() <= 64 && s.find_first_not_of("0123456789abcdefABCDEF") == s.npos;
}

}  // namespace

absl::StatusOr<std::string> ResolveProfile(Client& client, const std::string& name,
                                           std::string* codec) {
  auto profile = Register(client, name);
  if (profile.status().code() == absl::StatusCode::kNotFound && IsHex(name)) {
    profile = client.GetProfile(name);
  }
  if (!profile.ok()) return Annotate(profile.status(), "--profile");
  *codec = profile->codec();
  return profile->fingerprint();
}

void AddProfileCommands(CLI::App* app, Globals* globals) {
  struct Args {
    std::string name, out;
    std::vector<std::string> caches;
    bool json = false;
  };
  auto args = std::make_shared<Args>();
  CLI::App* c = app->add_subcommand("profile", "Register, list and remove profiles");
  c->require_subcommand(1);

  CLI::App* add = c->add_subcommand("add", "Register a profile; the same file again is no error");
  add->add_option("file", args->name, "Profile file")->required();
  OnRun(add, globals, [=]() -> absl::Status {
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    const auto profile = Register(*client, args->name);
    if (!profile.ok()) return profile.status();
    PrintOne(*profile, args->json, PrintLine);
    return absl::OkStatus();
  });

  CLI::App* ls = c->add_subcommand("ls", "List the registered profiles");
  OnRun(ls, globals, [=]() -> absl::Status {
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    const auto profiles = client->ListProfiles();
    if (!profiles.ok()) return profiles.status();
    json list = json::array();
    for (const v1::Profile& p : *profiles) {
      if (!args->json) PrintLine(p);
      list.push_back(ToJson(p));
    }
    if (args->json) PrintJson(list);
    return absl::OkStatus();
  });

  CLI::App* show = c->add_subcommand("show", "One profile whole");
  show->add_option("fingerprint", args->name, "Its first hex digits, 8 or more")->required();
  OnRun(show, globals, [=]() -> absl::Status {
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    const auto profile = client->GetProfile(args->name);
    if (!profile.ok()) return profile.status();
    PrintOne(*profile, args->json, PrintWhole);
    return absl::OkStatus();
  });

  CLI::App* rm = c->add_subcommand("rm", "Remove a profile that no chunk needs");
  rm->add_option("fingerprint", args->name, "Its first hex digits, 8 or more")->required();
  OnRun(rm, globals, [=]() -> absl::Status {
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    const auto removed = client->RemoveProfile(args->name);
    if (!removed.ok()) return removed.status();
    if (args->json) {
      PrintJson({{"freed_bytes", removed->freed_bytes()}});
    } else {
      std::printf("removed, %s freed\n", HumanBytes(removed->freed_bytes()).c_str());
    }
    return absl::OkStatus();
  });

  CLI::App* means = c->add_subcommand(
      "means", "Make a profile of means from cache files of a model; asks no daemon");
  means->add_option("caches", args->caches, "Cache files, a few thousand tokens of any text")
      ->required();
  means->add_option("--out", args->out, "Profile file")->required();
  means->add_option("--name", args->name, "Of the profile (default: the model's, means)");
  OnRun(means, globals,
        [=] { return MakeMeans(args->caches, args->out, args->name, args->json); });
  for (CLI::App* s : {add, ls, show, rm, means}) s->add_flag("--json", args->json, "Print as JSON");
}

}  // namespace kvcask
