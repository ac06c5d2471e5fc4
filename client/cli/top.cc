#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <memory>

#include "client/cli/command.h"
#include "client/cli/top_view.h"

namespace kvcask {
namespace {

struct TopOptions {
  std::string metrics;
  double interval_s = 2;
  uint64_t count = 0;
};

int TerminalWidth() {
  winsize size = {};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// Where the daemon serves its metrics, as this machine reaches it.
absl::StatusOr<std::string> MetricsAddress(const Globals& globals, const v1::ServerInfo& info) {
  if (info.metrics_address().empty()) {
    return absl::FailedPreconditionError(
        "the daemon serves no metrics (--metrics off), or is older than this command; name the "
        "address with --metrics if there is one");
  }
  const std::string& address = info.metrics_address();
  const size_t colon = address.rfind(':');
  const std::string host = address.substr(0, colon);
  if (host != "0.0.0.0" && host != "[::]") return address;
  // All addresses: the one that the daemon was reached by.
  const bool local = absl::StartsWith(globals.server, "unix:");
  return absl::StrCat(local ? "127.0.0.1" : globals.server.substr(0, globals.server.rfind(':')),
                      address.substr(colon));
}

absl::StatusOr<Scrape> Look(const std::string& address) {
  auto text = FetchMetrics(address, absl::Seconds(10));
  if (!text.ok()) return text.status();
  return ParseScrape(*text, absl::Now());
}

absl::Status Top(const Globals& globals, const TopOptions& options) {
  auto client = globals.Connect();
  if (!client.ok()) return client.status();
  const auto info = client->GetServerInfo();
  if (!info.ok()) return info.status();
  std::string address = options.metrics;
  if (address.empty()) {
    auto found = MetricsAddress(globals, *info);
    if (!found.ok()) return found.status();
    address = *std::move(found);
  }
  const std::string title =
      absl::StrCat("kvcaskd ", Printable(info->version()), " at ", globals.server);
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  auto before = Look(address);
  if (!before.ok()) return before.status();
  for (uint64_t shown = 0; options.count == 0 || shown < options.count; ++shown) {
    absl::SleepFor(absl::Seconds(options.interval_s));
    auto now = Look(address);
    if (!now.ok()) return now.status();
    if (terminal) {
      // From the top left, over what was there, then nothing below: no flicker.
      std::printf("\033[H\033[J%s", RenderScreen(title, *before, *now, TerminalWidth()).c_str());
    } else {
      std::printf("%s\n", RenderLine(*before, *now).c_str());
    }
    std::fflush(stdout);
    before = std::move(now);
  }
  return absl::OkStatus();
}

}  // namespace

void AddTopCommand(CLI::App* app, Globals* globals) {
  auto options = std::make_shared<TopOptions>();
  CLI::App* c = app->add_subcommand(
      "top", "What the daemon does now: a screen on a terminal, else a line each interval");
  c->add_option("--interval", options->interval_s, "Seconds between two looks")
      ->check(CLI::Range(.01, 3600.))
      ->capture_default_str();
  c->add_option("--count", options->count, "Ends after so many; 0: never")->capture_default_str();
  c->add_option("--metrics", options->metrics,
                "host:port of its /metrics, when it is not where the daemon says");
  OnRun(c, globals, [=] { return Top(*globals, *options); });
}

}  // namespace kvcask
