// kvcaskd: the daemon. Puts the parts together, runs until a signal, drains.
#include <absl/strings/str_cat.h>
#include <pthread.h>
#include <signal.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>

#include "codec/api/codec.h"
#include "codec/builtin_codecs.h"
#include "codec/profile/profile.h"
#include "server/clock/steady_now.h"
#include "server/config/machine.h"
#include "server/exec/device_codec.h"
#include "server/log/log.h"
#include "server/rpc/grpc_server.h"
#include "server/store_setup.h"
#include "server/version.h"

namespace kvcask {
namespace {

constexpr int kExitError = 1, kExitUsage = 2;

// Of every service, as metrics name them.
constexpr const char* kMethods[] = {"Put",           "Get",           "Lookup",
                                    "CreateSession", "StatSession",   "ListSessions",
                                    "DeleteSession", "ForkSession",   "RewindSession",
                                    "UpdateSession", "AcquireLease",  "RenewLease",
                                    "ReleaseLease",  "AddProfile",    "ListProfiles",
                                    "GetProfile",    "RemoveProfile", "GetServerInfo"};

int Fail(int code, const absl::Status& status) {
  std::fprintf(stderr, "kvcaskd: %s\n", std::string(status.message()).c_str());
  return code;
}

absl::Status LoadProfile(const std::string& path, ProfileRegistry* profiles) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return absl::InvalidArgumentError(absl::StrCat("--profile ", path, ": cannot read it"));
  const auto size = static_cast<uint64_t>(in.tellg());
  if (size > kMaxProfileBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--profile ", path, ": found ", size,
                                                   " bytes, expected at most ", kMaxProfileBytes));
  }
  std::vector<uint8_t> file(size);
  in.seekg(0);
  in.read(reinterpret_cast<char*>(file.data()), static_cast<std::streamsize>(size));
  auto added = profiles->Add(std::move(file));
  if (!added.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--profile ", path, ": ", added.status().message()));
  }
  Log(LogLevel::kInfo, "profile registered",
      {{"file", path},
       {"fingerprint", ToHex(added->profile->fingerprint())},
       {"codec", added->profile->codec()}});
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  auto parsed = ParseConfig(argc, argv);
  if (!parsed.ok()) return Fail(kExitUsage, parsed.status());
  if (parsed->action == ConfigAction::kVersion) {
    std::printf("kvcaskd %s (%s)\n", kVersion, kCommit);
    return 0;
  }
  if (parsed->action == ConfigAction::kHelp) {
    std::fputs(parsed->text.c_str(), stdout);
    return 0;
  }

  // Signals are waited for below; every thread inherits the mask.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);  // a file at its limit is an error of that write
  InitRuntime();

  Serving serving;
  serving.config = parsed->config;
  const Config& config = serving.config;
  if (!SetupLog(config.log_level, config.log_format)) {
    return Fail(kExitUsage,
                absl::InvalidArgumentError(absl::StrCat(
                    "--log-level ", config.log_level, " --log-format ", config.log_format,
                    ": expected debug|info|warning|error and text|json")));
  }
  serving.version = kVersion;
  serving.commit = kCommit;
  serving.started = absl::Now();
  std::unique_ptr<DeviceBackend> device;
  DeviceState device_state;
  serving.cuda_detail = "not asked for";
  if (config.backend != "cpu") {
    auto found = FindCudaBackend();
    if (found.ok()) {
      device = *std::move(found);
      serving.device = device.get();
      serving.device_state = &device_state;
      serving.cuda_detail = device->detail();
    } else if (config.backend == "cuda") {
      return Fail(kExitError, absl::UnavailableError(absl::StrCat("--backend cuda: ",
                                                                  found.status().message())));
    } else {
      serving.cuda_detail = std::string(found.status().message());
    }
  }

  auto gpu = MakeGpuChunks(config, device.get(), &device_state);
  if (!gpu.ok()) return Fail(kExitError, gpu.status());

  const uint64_t budget_bytes =
      config.memory_budget_bytes != 0 ? config.memory_budget_bytes : UsableMemoryBytes() / 2;
  ByteBudget budget(budget_bytes);
  ByteBudget read_budget(std::max<uint64_t>(budget_bytes / 4, uint64_t{64} << 20));
  Metrics metrics(kVersion, kCommit, serving.backend());
  auto tier = OpenTier(config);
  if (!tier.ok()) return Fail(kExitError, tier.status());
  ProfileRegistry profiles(&budget, tier->get());
  auto kept_profiles = profiles.Restore();
  if (!kept_profiles.ok()) return Fail(kExitError, kept_profiles.status());
  SessionStore store(kPageTokens,
                     StoreOptions(config, tier->get(), &budget, &profiles, gpu->get()));
  const absl::Time restore_start = SteadyNow();
  auto restored = store.Restore();
  if (!restored.ok()) return Fail(kExitError, restored.status());
  if (*tier != nullptr) {
    Log(LogLevel::kInfo, "restored from disk",
        {{"sessions", restored->sessions},
         {"chunks", restored->chunks},
         {"profiles", *kept_profiles},
         {"dropped_sessions", restored->dropped_sessions},
         {"dropped_chunks", restored->dropped_chunks},
         {"ms", absl::ToInt64Milliseconds(SteadyNow() - restore_start)}});
    for (const std::string& p : restored->problems) {
      Log(LogLevel::kError, "not restored", {{"problem", p}});
    }
  }
  store.Start();
  Executor executor(config.encode_threads);
  Pipeline::Options options;
  options.default_codec = config.default_codec;
  auto secret = HashSecret(tier->get());
  if (!secret.ok()) return Fail(kExitError, secret.status());
  options.hash_secret = *secret;
  options.make_codec = [&](const CodecEntry& entry, const CodecSpec& spec) {
    CodecSpec here = spec;
    here.short_segments = config.fklt_segments == "short";
    return MakeCodecOn(device.get(), &device_state, entry, here);
  };
  options.gpu = gpu->get();
  options.shadow.fraction = config.shadow_fraction;
  options.shadow.bytes = config.shadow_bytes;
  Pipeline pipeline(&store, &budget, &profiles, &executor, &metrics, options);
  serving.store = &store;
  serving.gpu = gpu->get();
  serving.budget = &budget;
  serving.read_budget = &read_budget;
  serving.profiles = &profiles;
  serving.pipeline = &pipeline;
  serving.executor = &executor;
  serving.metrics = &metrics;
  Metrics::Sources sources;
  sources.queue_depth = [&] { return static_cast<double>(executor.queue_depth()); };
  sources.queue_age_seconds = [&] { return absl::ToDoubleSeconds(executor.queue_age()); };
  sources.budget_bytes = [&] { return static_cast<double>(budget.limit()); };
  sources.used_bytes = [&] { return static_cast<double>(budget.used()); };
  sources.stored_bytes = [&] { return static_cast<double>(store.Usage().stored_bytes); };
  sources.sessions = [&] { return static_cast<double>(store.Usage().sessions); };
  sources.chunks = [&] { return static_cast<double>(store.Usage().chunks); };
  sources.profiles = [&] { return static_cast<double>(profiles.List().size()); };
  sources.ready = [&] { return serving.draining ? 0.0 : 1.0; };
  std::unique_ptr<Scrubber> scrubber;
  if (*tier != nullptr) {
    scrubber = std::make_unique<Scrubber>(&store, config.scrub_bytes_per_second);
  }
  sources.store = [&] {
    auto values = StoreMetrics(store, scrubber ? scrubber->checked() : 0,
                               scrubber ? scrubber->corrupt() : 0);
    for (const auto& value : DeviceMetrics(device_state, gpu->get())) values.push_back(value);
    return values;
  };
  metrics.SetSources(std::move(sources));
  // What the sources look at ends before the metrics do, on every way out.
  struct SourcesGuard {
    Metrics* metrics;
    ~SourcesGuard() { metrics->SetSources({}); }
  } sources_guard{&metrics};
  for (const CodecEntry& codec : BuiltinCodecs()) metrics.DeclareCodec(codec.name);
  for (const char* method : kMethods) metrics.DeclareMethod(method);

  for (const std::string& p : config.profiles) {
    if (absl::Status s = LoadProfile(p, &profiles); !s.ok()) return Fail(kExitError, s);
  }
  std::string& metrics_address = serving.metrics_address;
  if (!config.metrics.empty()) {
    auto port = metrics.Serve(config.metrics);
    if (!port.ok()) return Fail(kExitError, port.status());
    metrics_address = absl::StrCat(config.metrics.substr(0, config.metrics.rfind(':')), ":", *port);
  }
  auto server = GrpcServer::Start(&serving);
  if (!server.ok()) return Fail(kExitError, server.status());

  // Scripts wait for these lines.
  std::printf("kvcaskd %s (%s), backend %s (cuda: %s), budget %.2f GiB, %d threads\n", kVersion,
              kCommit, serving.backend().c_str(), serving.cuda_detail.c_str(),
              static_cast<double>(budget_bytes) / (1 << 30), executor.threads());
  if (!metrics_address.empty()) {
    std::printf("metrics http://%s/metrics\n", metrics_address.c_str());
  }
  for (const std::string& a : (*server)->addresses()) std::printf("listening %s\n", a.c_str());
  std::fflush(stdout);
  Log(LogLevel::kInfo, "ready", {{"version", kVersion}, {"commit", kCommit}});

  if (device != nullptr) (*server)->SetDeviceHealth(!device_state.lost());
  const timespec tick = {0, 250 * 1000 * 1000};
  while (sigtimedwait(&signals, nullptr, &tick) < 0) {
    serving.EndIdlersSince(SteadyNow() - config.idle_put_timeout);
    if (device != nullptr && device_state.lost()) {
      (*server)->SetDeviceHealth(false);
      if (*gpu != nullptr) (*gpu)->Lose();
    }
    // Room before it is asked for, so that puts do not wait for it.
    if (budget.used() > budget.limit() / 10 * 9 && (*tier != nullptr)) {
      store.MakeRoom(budget.limit() / 5);
    }
    if (const int n = store.Expire(SteadyNow()); n > 0) {
      Log(LogLevel::kInfo, "sessions expired", {{"count", n}});
    }
  }
  Log(LogLevel::kInfo, "draining",
      {{"calls", serving.AwaitCalls(absl::InfinitePast())}, {"deadline", absl::FormatDuration(config.drain_timeout)}});
  (*server)->Drain(absl::Now() + config.drain_timeout);
  executor.Shutdown();
  server->reset();
  scrubber.reset();
  store.Stop();  // saves what is not saved yet
  Log(LogLevel::kInfo, "stopped");
  return 0;
}

}  // namespace
}  // namespace kvcask

int main(int argc, char** argv) { return kvcask::Main(argc, argv); }
