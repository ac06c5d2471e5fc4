#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>

#include <memory>

#include "client/cc/convert.h"
#include "client/cli/cache_file.h"
#include "client/cli/command.h"

namespace kvcask {
namespace {

using nlohmann::json;

std::string TimeText(const google::protobuf::Timestamp& t) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ",
                          absl::FromUnixSeconds(t.seconds()) + absl::Nanoseconds(t.nanos()),
                          absl::UTCTimeZone());
}

std::string DtypeText(v1::Dtype dtype) {
  const auto d = DtypeFromProto(dtype);
  return d.ok() ? std::string(DtypeName(*d)) : "";
}

json ToJson(const v1::Session& s) {
  json shards = json::array();
  for (const auto& shard : s.shards()) {
    shards.push_back({{"index", shard.shard().index()},
                      {"count", shard.shard().count()},
                      {"layer_begin", shard.shard().layer_begin()},
                      {"layer_end", shard.shard().layer_end()},
                      {"head_begin", shard.shard().head_begin()},
                      {"head_end", shard.shard().head_end()},
                      {"tokens", shard.tokens()},
                      {"version", shard.version()}});
  }
  json lost = json::array();
  for (const v1::Range& r : s.lost()) lost.push_back({r.begin(), r.end()});
  return {{"session", s.ref().session_id()},
          {"namespace", s.ref().namespace_()},
          {"model_id", s.identity().model_id()},
          {"extra_key", s.identity().extra_key()},
          {"codec", s.codec()},
          {"quality", s.quality()},
          {"profile", Hex(s.profile_fingerprint())},
          {"dtype", DtypeText(s.dtype())},
          {"tokens", s.tokens()},
          {"first_position", s.first_position()},
          {"sealed", s.sealed()},
          {"raw_bytes", s.raw_bytes()},
          {"stored_bytes", s.stored_bytes()},
          {"unique_bytes", s.unique_bytes()},
          {"ratio", Ratio(s.raw_bytes(), s.stored_bytes())},
          {"predicted_kld", s.predicted_kld()},
          {"chunks", s.chunks()},
          {"created", TimeText(s.created())},
          {"modified", TimeText(s.modified())},
          {"ttl_seconds", s.ttl_seconds()},
          {"labels", std::map<std::string, std::string>(s.labels().begin(), s.labels().end())},
          {"shards", shards},
          {"tier", s.tier()},
          {"pinned", s.pinned()},
          {"durable", s.durable()},
          {"evicted_tokens", s.evicted_tokens()},
          {"host_bytes", s.host_bytes()},
          {"gpu_bytes", s.gpu_bytes()},
          {"lost", lost},
          {"backend", s.backend()}};
}

void Row(const char* name, const std::string& value) {
  if (!value.empty()) std::printf("%-15s %s\n", name, Printable(value).c_str());
}

void PrintSession(const v1::Session& s) {
  Row("session", s.ref().session_id());
  Row("namespace", s.ref().namespace_());
  Row("model", s.identity().model_id());
  Row("extra key", s.identity().extra_key());
  Row("codec", absl::StrCat(s.codec(), s.quality().empty() ? "" : " ", s.quality()));
  Row("profile", Hex(s.profile_fingerprint()));
  Row("dtype", DtypeText(s.dtype()));
  Row("tokens", absl::StrCat(s.tokens(), s.sealed() ? ", sealed" : ""));
  Row("first position", absl::StrCat(s.first_position()));
  Row("raw", HumanBytes(s.raw_bytes()));
  Row("stored", HumanBytes(s.stored_bytes()));
  Row("tier", s.gpu_bytes() == 0 || s.tier() == "gpu"
                  ? s.tier()
                  : absl::StrCat(s.tier(), ", ", HumanBytes(s.gpu_bytes()), " copied to the GPU"));
  Row("unique", HumanBytes(s.unique_bytes()));
  std::printf("%-15s %.2f\n", "ratio", Ratio(s.raw_bytes(), s.stored_bytes()));
  if (s.predicted_kld() > 0)
    std::printf("%-15s %.5f nats a token\n", "predicted KLD", s.predicted_kld());
  Row("chunks", absl::StrCat(s.chunks()));
  Row("created", TimeText(s.created()));
  Row("modified", TimeText(s.modified()));
  if (s.ttl_seconds() > 0) Row("ttl", absl::StrCat(s.ttl_seconds(), " s"));
  for (const auto& [key, value] : s.labels()) Row("label", absl::StrCat(key, "=", value));
  if (s.shards_size() > 1) {
    for (const auto& x : s.shards()) {
      Row("shard", absl::StrCat(x.shard().index(), "/", x.shard().count(), ": ", x.tokens(),
                                " tokens, version ", x.version()));
    }
  }
}

struct Totals {
  uint64_t tokens = 0, raw_bytes = 0, stored_bytes = 0, unique_bytes = 0;
};

absl::Status StatServer(Client& client, const std::string& ns, bool as_json) {
  const auto info = client.GetServerInfo();
  if (!info.ok()) return info.status();
  const auto sessions = client.ListSessions(ns);
  if (!sessions.ok()) return sessions.status();
  Totals t;
  for (const v1::Session& s : *sessions) {
    t.tokens += s.tokens();
    t.raw_bytes += s.raw_bytes();
    t.stored_bytes += s.stored_bytes();
    t.unique_bytes += s.unique_bytes();
  }
  const v1::ServerInfo::Usage& u = info->usage();
  if (as_json) {
    PrintJson({{"namespace", ns},
               {"sessions", sessions->size()},
               {"tokens", t.tokens},
               {"raw_bytes", t.raw_bytes},
               {"stored_bytes", t.stored_bytes},
               {"unique_bytes", t.unique_bytes},
               {"ratio", Ratio(t.raw_bytes, t.stored_bytes)},
               {"server",
                {{"sessions", u.sessions()},
                 {"chunks", u.chunks()},
                 {"profiles", u.profiles()},
                 {"stored_bytes", u.stored_bytes()},
                 {"used_bytes", u.used_bytes()},
                 {"memory_budget_bytes", info->limits().memory_budget_bytes()}}}});
    return absl::OkStatus();
  }
  Row("sessions", absl::StrCat(sessions->size(), ns.empty() ? "" : " in namespace ", ns));
  Row("tokens", absl::StrCat(t.tokens));
  Row("raw", HumanBytes(t.raw_bytes));
  Row("stored", HumanBytes(t.stored_bytes));
  Row("unique", HumanBytes(t.unique_bytes));
  std::printf("%-15s %.2f\n", "ratio", Ratio(t.raw_bytes, t.stored_bytes));
  Row("server holds", absl::StrCat(HumanBytes(u.stored_bytes()), " in ", u.chunks(), " chunks of ",
                                   u.sessions(), " sessions"));
  Row("budget", absl::StrCat(HumanBytes(u.used_bytes()), " of ",
                             HumanBytes(info->limits().memory_budget_bytes()), " used"));
  return absl::OkStatus();
}

void AddStat(CLI::App* app, Globals* globals) {
  struct Args {
    std::string session, ns;
    bool json = false;
  };
  auto args = std::make_shared<Args>();
  CLI::App* c = app->add_subcommand("stat", "Sizes and ratio of a session, or of all of them");
  c->add_option("-s,--session", args->session, "Session (default: totals)");
  c->add_option("--namespace", args->ns, "Namespace");
  c->add_flag("--json", args->json, "Print as JSON");
  OnRun(c, globals, [=]() -> absl::Status {
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    if (args->session.empty()) return StatServer(*client, args->ns, args->json);
    v1::SessionRef ref;
    ref.set_namespace_(args->ns);
    ref.set_session_id(args->session);
    const auto session = client->StatSession(ref);
    if (!session.ok()) return session.status();
    if (args->json) {
      PrintJson(ToJson(*session));
    } else {
      PrintSession(*session);
    }
    return absl::OkStatus();
  });
}

void AddLs(CLI::App* app, Globals* globals) {
  struct Args {
    std::string ns;
    bool json = false;
  };
  auto args = std::make_shared<Args>();
  CLI::App* c = app->add_subcommand("ls", "List the sessions of a namespace");
  c->add_option("--namespace", args->ns, "Namespace");
  c->add_flag("--json", args->json, "Print as JSON");
  OnRun(c, globals, [=]() -> absl::Status {
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    const auto sessions = client->ListSessions(args->ns);
    if (!sessions.ok()) return sessions.status();
    if (args->json) {
      json list = json::array();
      for (const v1::Session& s : *sessions) list.push_back(ToJson(s));
      PrintJson(list);
      return absl::OkStatus();
    }
    if (sessions->empty()) return absl::OkStatus();
    std::printf("%-24s %-8s %8s %10s %10s %6s  %-20s %s\n", "SESSION", "CODEC", "TOKENS", "RAW",
                "STORED", "RATIO", "MODIFIED", "MODEL");
    for (const v1::Session& s : *sessions) {
      std::printf("%-24s %-8s %8llu %10s %10s %6.2f  %-20s %s\n",
                  Printable(s.ref().session_id()).c_str(), Printable(s.codec()).c_str(),
                  static_cast<unsigned long long>(s.tokens()), HumanBytes(s.raw_bytes()).c_str(),
                  HumanBytes(s.stored_bytes()).c_str(), Ratio(s.raw_bytes(), s.stored_bytes()),
                  TimeText(s.modified()).c_str(), Printable(s.identity().model_id()).c_str());
    }
    return absl::OkStatus();
  });
}

void AddRm(CLI::App* app, Globals* globals) {
  struct Args {
    std::vector<std::string> sessions;
    std::string ns;
    bool missing_ok = false, json = false;
  };
  auto args = std::make_shared<Args>();
  CLI::App* c = app->add_subcommand("rm", "Remove sessions");
  c->add_option("session", args->sessions, "Sessions to remove")->required();
  c->add_option("--namespace", args->ns, "Namespace");
  c->add_flag("--missing-ok", args->missing_ok, "A session that does not exist is no error");
  c->add_flag("--json", args->json, "Print as JSON");
  OnRun(c, globals, [=]() -> absl::Status {
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    json list = json::array();
    for (const std::string& id : args->sessions) {
      v1::SessionRef ref;
      ref.set_namespace_(args->ns);
      ref.set_session_id(id);
      const auto deleted = client->DeleteSession(ref, args->missing_ok);
      if (!deleted.ok()) return deleted.status();
      list.push_back({{"session", id},
                      {"deleted", deleted->deleted()},
                      {"freed_bytes", deleted->freed_bytes()}});
      if (!args->json) {
        std::printf(
            "%s: %s\n", Printable(id).c_str(),
            deleted->deleted()
                ? absl::StrCat("removed, ", HumanBytes(deleted->freed_bytes()), " freed").c_str()
                : "was not there");
      }
    }
    if (args->json) PrintJson(list);
    return absl::OkStatus();
  });
}

struct LookupArgs {
  std::string file, tokens, ns, model_id, extra_key;
  uint64_t lease_seconds = 0;
  bool json = false;
};

absl::StatusOr<v1::PrefixRef> MakePrefix(const LookupArgs& args) {
  v1::PrefixRef prefix;
  prefix.set_namespace_(args.ns);
  std::string model = args.model_id, extra_key = args.extra_key;
  if (args.file.empty() == args.tokens.empty()) {
    return absl::InvalidArgumentError("lookup: expected either a FILE or --tokens");
  }
  if (!args.file.empty()) {
    const auto file = CacheFile::Open(args.file);
    if (!file.ok()) return file.status();
    const CacheInfo& info = file->info();
    if (info.token_ids.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(args.file, ": has no token_ids; a prefix is found by them"));
    }
    prefix.mutable_token_ids()->Add(info.token_ids.begin(), info.token_ids.end());
    if (model.empty()) model = info.metadata.model;
    if (extra_key.empty()) extra_key = info.extra_key;
  }
  for (absl::string_view id :
       absl::StrSplit(args.tokens, absl::ByAnyChar(", "), absl::SkipEmpty())) {
    uint32_t value;
    if (!absl::SimpleAtoi(id, &value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--tokens: \"", Printable(id), "\", expected token ids with commas"));
    }
    prefix.add_token_ids(value);
  }
  if (model.empty()) return absl::InvalidArgumentError("lookup: give --model-id");
  prefix.mutable_identity()->set_model_id(model);
  prefix.mutable_identity()->set_extra_key(extra_key);
  return prefix;
}

void AddLookup(CLI::App* app, Globals* globals) {
  auto args = std::make_shared<LookupArgs>();
  CLI::App* c = app->add_subcommand("lookup", "The longest stored prefix of a token sequence");
  c->add_option("file", args->file, "Cache file whose token_ids are looked up");
  c->add_option("--tokens", args->tokens, "Token ids instead of a file: 1,2,3");
  c->add_option("--namespace", args->ns, "Namespace");
  c->add_option("--model-id", args->model_id, "Weights and revision (default: the file's)");
  c->add_option("--extra-key", args->extra_key, "LoRA, multimodal hash or salt");
  c->add_option("--lease", args->lease_seconds,
                "Seconds that what is found is kept from eviction; see 'kvcask lease'");
  c->add_flag("--json", args->json, "Print as JSON");
  OnRun(c, globals, [=]() -> absl::Status {
    const auto prefix = MakePrefix(*args);
    if (!prefix.ok()) return prefix.status();
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    v1::LookupRequest request;
    *request.mutable_prefix() = *prefix;
    request.set_lease_seconds(args->lease_seconds);
    const auto found = client->Lookup(request);
    if (!found.ok()) return found.status();
    if (args->json) {
      json held = json::array();
      for (const auto& h : found->held()) {
        held.push_back({{"codec", h.codec()},
                        {"quality", h.quality()},
                        {"tokens", h.tokens()},
                        {"stored_bytes", h.stored_bytes()},
                        {"disk_bytes", h.disk_bytes()},
                        {"raw_bytes", h.raw_bytes()},
                        {"decode_ms", h.decode_ms()}});
      }
      PrintJson({{"tokens", found->tokens()},
                 {"asked", prefix->token_ids_size()},
                 {"held", held},
                 {"lease_id", found->lease_id()}});
      return absl::OkStatus();
    }
    std::printf("%llu of %d tokens are stored\n", static_cast<unsigned long long>(found->tokens()),
                prefix->token_ids_size());
    for (const auto& h : found->held()) {
      std::printf("  %-8s %-14s %8llu tokens %10s\n", Printable(h.codec()).c_str(),
                  Printable(h.quality()).c_str(), static_cast<unsigned long long>(h.tokens()),
                  HumanBytes(h.stored_bytes()).c_str());
      if (h.disk_bytes() > 0) {
        std::printf("    of which %s are on disk\n", HumanBytes(h.disk_bytes()).c_str());
      }
    }
    if (!found->lease_id().empty()) {
      std::printf("lease %s\n", Printable(found->lease_id()).c_str());
    }
    return absl::OkStatus();
  });
}

}  // namespace

json SessionJson(const v1::Session& session) { return ToJson(session); }

void AddSessionCommands(CLI::App* app, Globals* globals) {
  AddStat(app, globals);
  AddLs(app, globals);
  AddRm(app, globals);
  AddLookup(app, globals);
}

}  // namespace kvcask
