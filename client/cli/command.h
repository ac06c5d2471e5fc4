// What the commands of `kvcask` share: the options that all of them take, exit codes, and how
// results are shown. Each command is one Add... function, which declares its options and what
// it does; main.cc names them all.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "client/cc/client.h"

namespace kvcask {

// Documented in docs/cli.md and `kvcask --help`; scripts depend on them.
enum ExitCode {
  kExitOk = 0,
  kExitError = 1,
  kExitUsage = 2,
  kExitNotFound = 3,
  kExitDiffers = 4,  // DATA_LOSS, or `diff` found a difference
  kExitRetry = 5,    // UNAVAILABLE, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, ABORTED
};
ExitCode ExitCodeOf(const absl::Status& status);

struct Globals {
  std::string server = "127.0.0.1:7420";
  double timeout_s = 300;
  bool tls = false;
  TlsOptions tls_options;
  ExitCode exit_code = kExitOk;

  absl::StatusOr<Client> Connect() const;
};

// Runs `body` -> absl::Status when the command is parsed; prints a failure and sets the exit
// code.
template <typename Body>
void OnRun(CLI::App* command, Globals* globals, Body body) {
  command->callback([globals, body = std::move(body)]() mutable {
    const absl::Status status = body();
    if (status.ok()) return;
    globals->exit_code = ExitCodeOf(status);
    std::fprintf(stderr, "kvcask: %s\n", Describe(status).c_str());
  });
}

void AddPutCommand(CLI::App* app, Globals* globals);
void AddGetCommand(CLI::App* app, Globals* globals);
void AddSessionCommands(CLI::App* app, Globals* globals);  // stat, ls, rm, lookup
void AddSessionLifeCommands(CLI::App* app, Globals* globals);  // fork, rewind, update, lease
nlohmann::json SessionJson(const v1::Session& session);
void AddServerCommands(CLI::App* app, Globals* globals);   // info, codecs
void AddTopCommand(CLI::App* app, Globals* globals);
void AddProfileCommands(CLI::App* app, Globals* globals);  // profile add, ls, show, rm
void AddProjectCommand(CLI::App* app, Globals* globals);
void AddDiffCommand(CLI::App* app, Globals* globals);

// `codecs --explain`: puts, measures and removes a session of `tokens` for each codec.
absl::Status Explain(const Globals& globals, int tokens, bool as_json);

// "A:B", "A:", ":B" or ":"; B 0 or absent: to the end. INVALID_ARGUMENT names `what`.
absl::StatusOr<v1::Range> ParseRange(absl::string_view what, absl::string_view text);

// A quality, a setting or a recipe as given on the command line: "@FILE" is what the file holds
// (at most 64 KiB), anything else itself.
absl::StatusOr<std::string> ReadSetting(const std::string& text);

// "5.9 MB", in powers of ten.
std::string HumanBytes(uint64_t bytes);
// raw / stored, 0 when nothing is stored.
double Ratio(uint64_t raw, uint64_t stored);
std::string Hex(absl::string_view bytes);
// Nothing that a daemon or a file says reaches the terminal as a control character.
std::string Printable(absl::string_view text);
void PrintJson(const nlohmann::json& value);

// The fingerprint (32 bytes) of a profile named on the command line: a file, which is
// registered when the daemon lacks it, or hex digits of one that is there. Sets *codec to
// what the profile is for.
absl::StatusOr<std::string> ResolveProfile(Client& client, const std::string& name,
                                           std::string* codec);

// One line on a terminal, rewritten as things go on; nothing anywhere else.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar() { Clear(); }
  void Show(uint64_t done, uint64_t total);
  void Clear();  // takes the line away

 private:
  const std::string label_;
  const bool on_;
  int last_percent_ = -1;
};

}  // namespace kvcask
