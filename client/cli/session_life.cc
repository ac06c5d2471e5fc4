// fork, rewind, update, lease: sessions over their life.
#include <absl/strings/str_cat.h>

#include <memory>
#include <optional>

#include "client/cli/command.h"

namespace kvcask {
namespace {

v1::SessionRef RefOf(const std::string& ns, const std::string& id) {
  v1::SessionRef ref;
  ref.set_namespace_(ns);
  ref.set_session_id(id);
  return ref;
}

absl::Status Show(const absl::StatusOr<v1::Session>& session, bool as_json) {
  if (!session.ok()) return session.status();
  if (as_json) {
    PrintJson(SessionJson(*session));
  } else {
    std::printf("%s: %llu tokens\n", Printable(session->ref().session_id()).c_str(),
                static_cast<unsigned long long>(session->tokens()));
  }
  return absl::OkStatus();
}

// "KEY=VALUE"s into a message's labels.
template <typename Labels>
absl::Status SetLabels(const std::vector<std::string>& from, Labels* to) {
  for (const std::string& label : from) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("--label ", Printable(label), ": expected KEY=VALUE"));
    }
    (*to)[label.substr(0, equals)] = label.substr(equals + 1);
  }
  return absl::OkStatus();
}

void AddFork(CLI::App* app, Globals* globals) {
  struct Args {
    std::string from, to, ns;
    std::optional<uint64_t> tokens;
    uint64_t ttl_seconds = 0;
    std::vector<std::string> labels;
    bool json = false;
  };
  auto args = std::make_shared<Args>();
  CLI::App* c = app->add_subcommand("fork", "A new session that begins as another one does");
  c->add_option("from", args->from, "Session to fork")->required();
  c->add_option("to", args->to, "The new session")->required();
  c->add_option("--tokens", args->tokens, "That it begins with (default: all)");
  c->add_option("--namespace", args->ns, "Namespace of both");
  c->add_option("--ttl", args->ttl_seconds, "Seconds the session lives after its last commit");
  c->add_option("--label", args->labels, "KEY=VALUE, repeatable")->allow_extra_args(false);
  c->add_flag("--json", args->json, "Print the session as JSON");
  OnRun(c, globals, [=]() -> absl::Status {
    v1::ForkSessionRequest request;
    *request.mutable_from() = RefOf(args->ns, args->from);
    request.set_session_id(args->to);
    request.set_all(!args->tokens.has_value());
    request.set_tokens(args->tokens.value_or(0));
    request.set_ttl_seconds(args->ttl_seconds);
    if (auto s = SetLabels(args->labels, request.mutable_labels()); !s.ok()) return s;
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    return Show(client->ForkSession(request), args->json);
  });
}

void AddRewind(CLI::App* app, Globals* globals) {
  struct Args {
    std::string session, ns;
    uint64_t tokens = 0, expected_version = 0;
    bool json = false;
  };
  auto args = std::make_shared<Args>();
  CLI::App* c = app->add_subcommand("rewind", "Forget a session's last tokens");
  c->add_option("session", args->session, "Session")->required();
  c->add_option("--tokens", args->tokens, "That stay")->required();
  c->add_option("--namespace", args->ns, "Namespace");
  c->add_option("--expected-version", args->expected_version,
                "Fail with ABORTED when the shards' versions sum to another");
  c->add_flag("--json", args->json, "Print the session as JSON");
  OnRun(c, globals, [=]() -> absl::Status {
    v1::RewindSessionRequest request;
    *request.mutable_session() = RefOf(args->ns, args->session);
    request.set_tokens(args->tokens);
    request.set_expected_version(args->expected_version);
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    return Show(client->RewindSession(request), args->json);
  });
}

void AddUpdate(CLI::App* app, Globals* globals) {
  struct Args {
    std::string session, ns;
    bool pin = false, unpin = false, json = false;
    std::optional<uint64_t> ttl_seconds;
    std::vector<std::string> labels;
  };
  auto args = std::make_shared<Args>();
  CLI::App* c = app->add_subcommand("update", "Pin a session, change its time to live or labels");
  c->add_option("session", args->session, "Session")->required();
  c->add_option("--namespace", args->ns, "Namespace");
  CLI::Option* pin = c->add_flag("--pin", args->pin, "Neither evicted nor expired from now on");
  c->add_flag("--unpin", args->unpin, "No longer pinned")->excludes(pin);
  c->add_option("--ttl", args->ttl_seconds, "Seconds it lives after its last change; 0: for ever");
  c->add_option("--label", args->labels, "KEY=VALUE, repeatable; they replace all")
      ->allow_extra_args(false);
  c->add_flag("--json", args->json, "Print the session as JSON");
  OnRun(c, globals, [=]() -> absl::Status {
    v1::UpdateSessionRequest request;
    *request.mutable_session() = RefOf(args->ns, args->session);
    if (args->pin || args->unpin) request.set_pinned(args->pin);
    if (args->ttl_seconds) request.set_ttl_seconds(*args->ttl_seconds);
    request.set_replace_labels(!args->labels.empty());
    if (auto s = SetLabels(args->labels, request.mutable_labels()); !s.ok()) return s;
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    return Show(client->UpdateSession(request), args->json);
  });
}

void AddLease(CLI::App* app, Globals* globals) {
  struct Args {
    std::string session, ns, renew, release;
    uint64_t seconds = 60;
    bool json = false;
  };
  auto args = std::make_shared<Args>();
  CLI::App* c =
      app->add_subcommand("lease", "Keep what a session holds from eviction for a while");
  c->add_option("session", args->session, "Session to take a lease on");
  c->add_option("--renew", args->renew, "A lease to renew instead");
  c->add_option("--release", args->release, "A lease to end instead");
  c->add_option("--seconds", args->seconds, "How long, from now; at most 3600")
      ->capture_default_str();
  c->add_option("--namespace", args->ns, "Namespace");
  c->add_flag("--json", args->json, "Print as JSON");
  OnRun(c, globals, [=]() -> absl::Status {
    if (args->session.empty() + args->renew.empty() + args->release.empty() != 2) {
      return absl::InvalidArgumentError("lease: expected one of SESSION, --renew and --release");
    }
    auto client = globals->Connect();
    if (!client.ok()) return client.status();
    if (!args->release.empty()) {
      const auto released = client->ReleaseLease(args->release);
      if (!released.ok()) return released.status();
      if (args->json) {
        PrintJson({{"lease_id", args->release}, {"released", *released}});
      } else {
        std::printf("%s\n", *released ? "released" : "it had ended");
      }
      return absl::OkStatus();
    }
    const absl::Duration duration = absl::Seconds(args->seconds);
    const auto lease = args->renew.empty()
                           ? client->AcquireLease(RefOf(args->ns, args->session), duration)
                           : client->RenewLease(args->renew, duration);
    if (!lease.ok()) return lease.status();
    if (args->json) {
      PrintJson({{"lease_id", lease->lease_id()},
                 {"tokens", lease->tokens()},
                 {"expires_unix", lease->expires().seconds()}});
    } else {
      std::printf("lease %s on %llu tokens\n", Printable(lease->lease_id()).c_str(),
                  static_cast<unsigned long long>(lease->tokens()));
    }
    return absl::OkStatus();
  });
}

}  // namespace

void AddSessionLifeCommands(CLI::App* app, Globals* globals) {
  AddFork(app, globals);
  AddRewind(app, globals);
  AddUpdate(app, globals);
  AddLease(app, globals);
}

}  // namespace kvcask
