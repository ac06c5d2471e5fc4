// The daemon beside the limits of its transport: see docs/performance.md for what the columns
// mean and for figures.
//
//   bazel run --config=opt //bench/service:service_benchmark -- [--megabytes=256] [--rounds=3]
//       [--only=throughput,latency,sessions] [--sessions=100000] [--seconds=10]
//       [--what=bare,raw,...] [--dir=put|get] [--streams=1|4|8]     fewer rows
//
// Every row's result is compared with what was put before it is timed; a wrong one ends the
// program with status 1.
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>
#include <absl/time/clock.h>
#include <grpcpp/create_channel.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <thread>

#include "bench/service/peer.h"
#include "client/cc/runtime.h"
#include "kvcask/v1/sessions.grpc.pb.h"
#include "tests/e2e/daemon.h"

namespace kvcask::bench {
namespace {

struct Flags {
  int megabytes = 256, rounds = 3, sessions = 100000;
  int run_tokens = 1024;  // 23.6 MB: a run of some pages, more than a cache holds
  double seconds = 10;
  std::string only = "throughput,latency,sessions", what, dir;
  int streams = 0;
} flags;

constexpr int kBlockTokens = 45;  // 1,036,800 bytes: the block of the latency rows

double Seconds(absl::Time since) { return absl::ToDoubleSeconds(absl::Now() - since); }

double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

struct Named {
  std::string name;
  Peer* peer;
  double scale;  // of the bytes to move: slow codecs move fewer
};

// f(stream) on `streams` threads; the seconds they took together.
double OnThreads(int streams, const std::function<void(int)>& f) {
  const absl::Time start = absl::Now();
  std::vector<std::thread> threads;
  for (int i = 1; i < streams; ++i) threads.emplace_back(f, i);
  f(0);
  for (std::thread& t : threads) t.join();
  return Seconds(start);
}

struct Row {
  std::vector<double> gb_s;
  double cpu_server = 0, cpu_client = 0, system = 0, gb = 0, error = 0, ratio = 0;
};

void Measure(const Named& n, bool put, bool unix_socket, int streams, const Run& run, Row* row) {
  const int runs = std::max(
      1, static_cast<int>(std::lround(flags.megabytes * 1e6 * n.scale / run.bytes() / streams)));
  std::vector<std::unique_ptr<Connection>> connections;
  for (int s = 0; s < streams; ++s) connections.push_back(n.peer->Connect(unix_socket, run));
  const auto name = [&](int s, int r) { return absl::StrCat("bench-", s, "-", r); };
  connections[0]->Put("check");
  row->error = connections[0]->Error("check");
  row->ratio = n.peer->ratio();
  connections[0]->Remove("check");
  const auto all = [&](bool is_put) {
    return OnThreads(streams, [&](int s) {
      for (int r = 0; r < runs; ++r) {
        is_put ? connections[s]->Put(name(s, r)) : connections[s]->Get(name(s, r));
      }
    });
  };
  if (!put) all(true);
  const Cpu server = CpuOf(n.peer->pid()), client = CpuOf(getpid());
  const double seconds = all(put);
  const Cpu server_end = CpuOf(n.peer->pid()), client_end = CpuOf(getpid());
  const double gb = 1e-9 * static_cast<double>(run.bytes()) * runs * streams;
  row->gb_s.push_back(gb / seconds);
  row->gb += gb;
  row->cpu_server += server_end.user - server.user;
  row->cpu_client += client_end.user - client.user;
  row->system += server_end.system - server.system + client_end.system - client.system;
  for (int s = 0; s < streams; ++s) {
    for (int r = 0; r < runs; ++r) connections[s]->Remove(name(s, r));
  }
}

void Throughput(const std::vector<Named>& peers, Peer* bare) {
  const Run run(flags.run_tokens);
  std::printf(
      "\n## Throughput: runs of %d tokens, %.1f MB, messages of 2 MiB; %d MB a row, %d rounds\n",
      flags.run_tokens, run.bytes() * 1e-6, flags.megabytes, flags.rounds);
  std::vector<uint8_t> copy(run.bytes());
  std::vector<double> memcpys;
  for (int i = 0; i < 9; ++i) {
    const absl::Time start = absl::Now();
    std::memcpy(copy.data(), run.data().data(), copy.size());
    memcpys.push_back(1e-9 * static_cast<double>(copy.size()) / Seconds(start));
  }
  if (copy != run.data()) Die("memcpy");
  std::printf("memcpy of one run: %.2f GB/s (median of 9)\n\n", Median(memcpys));
  std::printf("%-4s %-4s %2s  %-8s %7s %15s %8s %7s %9s  %s\n", "dir", "over", "n", "what", "GB/s",
              "(least..most)", "ceiling", "ratio", "error",
              "CPU s/GB: daemon user + client user + system");
  for (const bool put : {true, false}) {
    if (!flags.dir.empty() && flags.dir != (put ? "put" : "get")) continue;
    for (const bool unix_socket : {true, false}) {
      for (const int streams : {1, 4, 8}) {
        if (flags.streams != 0 && flags.streams != streams) continue;
        // Rounds outside: what disturbs the machine meets every row.
        std::map<std::string, Row> rows;
        for (int round = flags.rounds > 1 ? -1 : 0; round < flags.rounds; ++round) {
          for (const Named& n : peers) {
            if (round == 0) rows[n.name] = Row();  // the one before was to warm up
            Measure(n, put, unix_socket, streams, run, &rows[n.name]);
          }
        }
        double ceiling = 0;
        for (const Named& n : peers) {
          if (n.peer == bare) ceiling = Median(rows[n.name].gb_s);
        }
        for (const Named& n : peers) {
          const Row& r = rows[n.name];
          const auto [least, most] = std::minmax_element(r.gb_s.begin(), r.gb_s.end());
          std::printf(
              "%-4s %-4s %2d  %-8s %7.3f (%5.3f..%5.3f) %7.0f%% %7.2f %9.2g  %.2f + %.2f + %.2f\n",
              put ? "put" : "get", unix_socket ? "unix" : "tcp", streams, n.name.c_str(),
              Median(r.gb_s), *least, *most, 100 * Median(r.gb_s) / ceiling, r.ratio, r.error,
              r.cpu_server / r.gb, r.cpu_client / r.gb, r.system / r.gb);
          std::fflush(stdout);
        }
      }
    }
  }
}

// Requests that arrive at random times whether or not the ones before have ended; a
// latency counts from when its request was due, so that waiting counts.
void LatencyRow(const Named& n, bool put, double load, double capacity, const Run& block) {
  constexpr int kWorkers = 4, kStored = 64;
  std::mt19937_64 random(12345);  // the same arrivals for all
  std::exponential_distribution<double> gap(load * capacity);
  std::vector<double> due;
  for (double t = gap(random); t < flags.seconds; t += gap(random)) due.push_back(t);
  std::vector<double> latency_ms(due.size());
  std::vector<std::unique_ptr<Connection>> connections;
  for (int s = 0; s < kWorkers; ++s) connections.push_back(n.peer->Connect(true, block));
  for (int i = 0; !put && i < kStored; ++i) connections[0]->Put(absl::StrCat("block-", i));
  std::atomic<size_t> next{0};
  const absl::Time start = absl::Now();
  OnThreads(kWorkers, [&](int s) {
    for (size_t i; (i = next.fetch_add(1)) < due.size();) {
      absl::SleepFor(start + absl::Seconds(due[i]) - absl::Now());
      const std::string name =
          put ? absl::StrCat("fresh-", i) : absl::StrCat("block-", i % kStored);
      put ? connections[s]->Put(name) : connections[s]->Get(name);
      latency_ms[i] = 1e3 * (Seconds(start) - due[i]);
      if (put) connections[s]->Remove(name);
    }
  });
  for (int i = 0; !put && i < kStored; ++i) connections[0]->Remove(absl::StrCat("block-", i));
  std::sort(latency_ms.begin(), latency_ms.end());
  const auto quantile = [&](double q) {
    return latency_ms.empty() ? 0 : latency_ms[static_cast<size_t>(q * (latency_ms.size() - 1))];
  };
  std::printf("%-4s %-8s %3.0f%% %8.0f %8zu %8.2f %8.2f %8.2f\n", put ? "put" : "get",
              n.name.c_str(), 100 * load, load * capacity, due.size(), quantile(.5), quantile(.99),
              quantile(.999));
  std::fflush(stdout);
}

void Latency(const std::vector<Named>& peers) {
  const Run block(kBlockTokens);
  std::printf(
      "\n## Latency of a block of %d bytes, unix socket, 4 connections, Poisson arrivals for %g s\n"
      "load 100%% is what 4 connections carry when each asks again at once\n\n",
      static_cast<int>(block.bytes()), flags.seconds);
  std::printf("%-4s %-8s %4s %8s %8s %8s %8s %8s  ms\n", "dir", "what", "load", "blocks/s",
              "blocks", "p50", "p99", "p999");
  for (const bool put : {true, false}) {
    for (const Named& n : peers) {
      std::vector<std::unique_ptr<Connection>> connections;
      for (int s = 0; s < 4; ++s) connections.push_back(n.peer->Connect(true, block));
      connections[0]->Put("block");
      const int each = std::max(5, static_cast<int>(10 * flags.seconds * n.scale));
      const double seconds = OnThreads(4, [&](int s) {
        for (int i = 0; i < each; ++i) {
          if (!put) {
            connections[s]->Get("block");
            continue;
          }
          const std::string name = absl::StrCat("capacity-", s, "-", i);
          connections[s]->Put(name);
          connections[s]->Remove(name);
        }
      });
      connections[0]->Remove("block");
      for (const double load : {.1, .5, .9}) LatencyRow(n, put, load, 4 * each / seconds, block);
    }
  }
}

// Small sessions, one after the other, and what each step costs as they grow.
void Sessions() {
  Daemon daemon({"--memory-budget", "8GiB", "--log-level", "warning"});
  Client client = daemon.Connect();
  const Run run(1);
  std::printf("\n## Sessions of one token (23,040 bytes) each, one client, unix socket\n\n");
  std::printf("%9s %12s %12s %12s %12s %14s\n", "sessions", "put ms", "get ms", "stat ms",
              "list 100 ms", "bytes/session");
  const uint64_t before = ResidentBytes(daemon.process().pid());
  const auto mean_ms = [](int times, const std::function<void(int)>& f) {
    const absl::Time start = absl::Now();
    for (int i = 0; i < times; ++i) f(i);
    return 1e3 * Seconds(start) / times;
  };
  const auto check = [](const absl::Status& s) {
    if (!s.ok()) Die(Describe(s));
  };
  int held = 0;
  for (int target = 10; target <= flags.sessions; target *= 10) {
    const auto put = [&](int) {
      v1::PutOpen open = OpenOf(absl::StrCat("session-", held++), "raw", 0, 1);
      open.clear_token_ids();
      check(client.PutRun(open, run.source(), Seal()).status());
    };
    const int timed = std::min(target / 2, 500);
    mean_ms(target - held - timed, put);
    const double put_ms = mean_ms(timed, put);
    std::mt19937 random(7);
    const auto any = [&] { return absl::StrCat("session-", random() % held); };
    double error = 0;
    const double get_ms = mean_ms(200, [&](int) {
      const auto got = Fetch(client, RequestOf(any()));
      check(got.status());
      error += DifferenceFromExample(*got).empty() ? 0 : 1;
    });
    if (error != 0) Die("sessions: other bytes than were put");
    const double stat_ms =
        mean_ms(200, [&](int) { check(client.StatSession(Ref(any())).status()); });
    auto stub = v1::SessionService::NewStub(
        grpc::CreateChannel(daemon.unix_address(), grpc::InsecureChannelCredentials()));
    const double list_ms = mean_ms(50, [&](int) {
      grpc::ClientContext context;
      v1::ListSessionsRequest request;
      request.set_page_size(100);
      request.set_page_token(any());
      v1::ListSessionsResponse response;
      if (!stub->ListSessions(&context, request, &response).ok()) Die("list");
    });
    std::printf("%9d %12.3f %12.3f %12.3f %12.3f %14.0f\n", held, put_ms, get_ms, stat_ms, list_ms,
                (static_cast<double>(ResidentBytes(daemon.process().pid())) - before) / held);
    std::fflush(stdout);
  }
}

int Main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    absl::string_view a = argv[i];
    const bool known =
        (absl::ConsumePrefix(&a, "--megabytes=") && absl::SimpleAtoi(a, &flags.megabytes)) ||
        (absl::ConsumePrefix(&a, "--run-tokens=") && absl::SimpleAtoi(a, &flags.run_tokens)) ||
        (absl::ConsumePrefix(&a, "--rounds=") && absl::SimpleAtoi(a, &flags.rounds)) ||
        (absl::ConsumePrefix(&a, "--sessions=") && absl::SimpleAtoi(a, &flags.sessions)) ||
        (absl::ConsumePrefix(&a, "--seconds=") && absl::SimpleAtod(a, &flags.seconds)) ||
        (absl::ConsumePrefix(&a, "--what=") && !(flags.what = std::string(a)).empty()) ||
        (absl::ConsumePrefix(&a, "--dir=") && !(flags.dir = std::string(a)).empty()) ||
        (absl::ConsumePrefix(&a, "--streams=") && absl::SimpleAtoi(a, &flags.streams)) ||
        (absl::ConsumePrefix(&a, "--only=") && !(flags.only = std::string(a)).empty());
    if (!known || flags.rounds < 1) Die(absl::StrCat("unknown flag ", argv[i]));
  }
  InitClientRuntime();
  const auto bare = NewBarePeer();
  const auto raw = NewKvcaskPeer("raw"), raw_crc = NewKvcaskPeer("raw", true);
  const auto int8 = NewKvcaskPeer("int8"), fklt = NewKvcaskPeer("fklt");
  const auto redis = NewRedisPeer();
  std::vector<Named> peers = {
      {"bare", bare.get(), 1}, {"raw", raw.get(), 1}, {"raw+crc", raw_crc.get(), 1}};
  if (redis != nullptr) {
    peers.push_back({"redis", redis.get(), 1});
  } else {
    std::printf("no redis-server here (package redis-server): its rows are left out\n");
  }
  peers.push_back({"int8", int8.get(), .5});
  peers.push_back({"fklt", fklt.get(), .1});
  if (!flags.what.empty()) {
    const std::vector<std::string> wanted = absl::StrSplit(flags.what, ',');
    peers.erase(std::remove_if(peers.begin(), peers.end(),
                               [&](const Named& n) {
                                 return std::find(wanted.begin(), wanted.end(), n.name) ==
                                        wanted.end();
                               }),
                peers.end());
  }
  if (absl::StrContains(flags.only, "throughput")) Throughput(peers, bare.get());
  if (absl::StrContains(flags.only, "latency")) Latency(peers);
  if (absl::StrContains(flags.only, "sessions")) Sessions();
  return 0;
}

}  // namespace
}  // namespace kvcask::bench

int main(int argc, char** argv) { return kvcask::bench::Main(argc, argv); }
