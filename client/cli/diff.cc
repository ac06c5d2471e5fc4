#include <memory>

#include "client/cli/command.h"
#include "client/cli/compare.h"

namespace kvcask {
namespace {

struct DiffArgs {
  std::string a, b;
  double max_relative_rms = -1;
  bool json = false;
};

void Print(const CacheDifference& d, bool as_json) {
  if (as_json) {
    nlohmann::json streams;
    for (const auto& [name, s] : d.streams) {
      streams[name] = {{"elements", s.elements},
                       {"max_abs_error", s.max_abs_error},
                       {"relative_rms", s.RelativeRms()}};
    }
    PrintJson({{"exact", d.exact},
               {"tokens", d.tokens},
               {"token_begin", d.token_begin},
               {"layers", d.layers},
               {"layer_begin", d.layer_begin},
               {"token_ids_differ", d.token_ids_differ},
               {"streams", streams}});
    return;
  }
  std::printf("%llu tokens from %llu, %d layers from %d: %s\n",
              static_cast<unsigned long long>(d.tokens),
              static_cast<unsigned long long>(d.token_begin), d.layers, d.layer_begin,
              d.exact ? "the same, byte for byte" : "different");
  if (d.token_ids_differ) std::printf("  token_ids differ\n");
  if (d.exact) return;
  for (const auto& [name, s] : d.streams) {
    std::printf("  %-6s relative RMS error %.6f, max abs error %.6g\n", name.c_str(),
                s.RelativeRms(), s.max_abs_error);
  }
}

}  // namespace

void AddDiffCommand(CLI::App* app, Globals* globals) {
  auto args = std::make_shared<DiffArgs>();
  CLI::App* c = app->add_subcommand(
      "diff", "Compare a cache file with a second one, which may hold a part of it");
  c->add_option("a", args->a, "What was put")->required();
  c->add_option("b", args->b, "What came back: all of it, or a range of tokens or layers")
      ->required();
  c->add_option("--max-relative-rms", args->max_relative_rms,
                "Accept (exit 0) when no stream's relative RMS error exceeds this");
  c->add_flag("--json", args->json, "Print as JSON");
  OnRun(c, globals, [=]() -> absl::Status {
    const auto a = CacheFile::Open(args->a);
    if (!a.ok()) return a.status();
    const auto b = CacheFile::Open(args->b);
    if (!b.ok()) return b.status();
    const auto difference = CompareCaches(*a, *b);
    if (!difference.ok()) return difference.status();
    Print(*difference, args->json);
    bool accepted = difference->exact;
    if (args->max_relative_rms >= 0 && !difference->token_ids_differ) {
      accepted = true;
      for (const auto& [name, s] : difference->streams) {
        if (!(s.RelativeRms() <= args->max_relative_rms)) accepted = false;
      }
    }
    if (!accepted) globals->exit_code = kExitDiffers;
    return absl::OkStatus();
  });
}

}  // namespace kvcask
