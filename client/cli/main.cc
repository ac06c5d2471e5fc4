// kvcask: the command line of a kvcask daemon.
#include "client/cc/runtime.h"
#include "client/cli/command.h"
#include "client/cli/mapped_file.h"

int main(int argc, char** argv) {
  using namespace kvcask;
  ReportFilesCutShort();
  InitClientRuntime();
  Globals globals;
  CLI::App app("kvcask: store KV caches in a kvcask daemon and get them back.", "kvcask");
  app.require_subcommand(1);
  app.fallthrough();  // the options below may stand anywhere
  app.add_option("--server", globals.server, "unix:/path or host:port of the daemon")
      ->envname("KVCASK_SERVER")
      ->capture_default_str();
  app.add_option("--timeout", globals.timeout_s, "Seconds a call may take")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--tls", globals.tls, "Speak TLS; implied by --tls-ca and --tls-cert");
  app.add_option("--tls-ca", globals.tls_options.ca_file, "PEM file of the authorities to trust");
  app.add_option("--tls-cert", globals.tls_options.cert_file, "PEM file of this client");
  app.add_option("--tls-key", globals.tls_options.key_file, "PEM file of its key");
  AddPutCommand(&app, &globals);
  AddGetCommand(&app, &globals);
  AddSessionCommands(&app, &globals);
  AddSessionLifeCommands(&app, &globals);
  AddServerCommands(&app, &globals);
  AddTopCommand(&app, &globals);
  AddProfileCommands(&app, &globals);
  AddProjectCommand(&app, &globals);
  AddDiffCommand(&app, &globals);
  app.footer(
      "Exit codes: 0 ok; 1 an error; 2 wrong usage; 3 not found; 4 data loss, or diff found a\n"
      "difference; 5 try later (unavailable, exhausted, deadline, aborted).");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kExitOk : kExitUsage;
  }
  return globals.exit_code;
}
