// What the store's own work costs, without a byte of KV: chunks of 64 bytes, pages of 128
// tokens, `pages` to a session, the first half of them shared by all sessions of a group of
// ten, as system prompts are.
//   bazel run --config=opt //server/store:session_store_benchmark
// index_bytes_per_chunk is all of the process's heap that a chunk costs, less its bytes.
#include <absl/strings/str_cat.h>
#include <benchmark/benchmark.h>
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "server/store/session_store.h"

namespace kvcask {
namespace {

constexpr uint64_t kPage = 128;
constexpr size_t kChunkBytes = 64;

Digest Id(uint64_t group, uint64_t session, uint64_t page, bool shared) {
  Digest d{};
  std::mt19937_64 rng(group * 1000003 + (shared ? 0 : session + 1) * 7919 + page * 104729);
  for (size_t i = 0; i < d.size(); i += 8) {
    const uint64_t v = rng();
    std::copy_n(reinterpret_cast<const uint8_t*>(&v), 8, d.begin() + i);
  }
  return d;
}

std::vector<Digest> Ids(uint64_t session, uint64_t pages) {
  std::vector<Digest> ids;
  for (uint64_t p = 0; p < pages; ++p) ids.push_back(Id(session / 10, session, p, p < pages / 2));
  return ids;
}

SessionKey Key(uint64_t session) { return {"", absl::StrCat("session-", session)}; }

CommitRequest Run(uint64_t session, uint64_t pages) {
  CommitRequest r;
  r.session = Key(session);
  r.traits.model_id = "model";
  r.traits.codec = "int8";
  r.tokens = pages * kPage;
  const auto ids = Ids(session, pages);
  for (uint64_t p = 0; p < pages; ++p) {
    NewChunk c;
    c.token_begin = p * kPage;
    c.tokens = kPage;
    c.bytes.resize(kChunkBytes);
    c.raw_bytes = 1000;
    c.prefix_id = ids[p];
    r.chunks.push_back(std::move(c));
  }
  return r;
}

struct Filled {
  std::unique_ptr<SessionStore> store;
  uint64_t sessions = 0, pages = 0;
  double index_bytes_per_chunk = 0;
};

// A store of so many sessions, made once for all benchmarks.
const Filled& FilledStore(uint64_t sessions, uint64_t pages) {
  static auto& made = *new std::map<std::pair<uint64_t, uint64_t>, Filled>;
  Filled& f = made[{sessions, pages}];
  if (f.store) return f;
  const size_t before = mallinfo2().uordblks;
  f.store = std::make_unique<SessionStore>(kPage);
  f.sessions = sessions;
  f.pages = pages;
  for (uint64_t s = 0; s < sessions; ++s) {
    if (!f.store->Commit(Run(s, pages)).ok()) std::abort();
  }
  const StoreUsage usage = f.store->Usage();
  f.index_bytes_per_chunk =
      (static_cast<double>(mallinfo2().uordblks - before) - usage.stored_bytes) / usage.chunks;
  return f;
}

// p50 and p99 of `step`, each call timed by itself.
template <typename Step>
void TimeEach(benchmark::State& state, Step step) {
  std::vector<double> us;
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    step();
    const auto end = std::chrono::steady_clock::now();
    us.push_back(std::chrono::duration<double, std::micro>(end - begin).count());
  }
  std::sort(us.begin(), us.end());
  state.counters["p50_us"] = us[us.size() / 2];
  state.counters["p99_us"] = us[us.size() * 99 / 100];
}

void BM_Lookup(benchmark::State& state) {
  const Filled& f = FilledStore(state.range(0), state.range(1));
  std::mt19937_64 rng(1);
  std::vector<std::vector<Digest>> queries;
  for (int i = 0; i < 1000; ++i) queries.push_back(Ids(rng() % f.sessions, f.pages));
  size_t next = 0;
  uint64_t found = 0, asked = 0;
  TimeEach(state, [&] {
    const auto held = f.store->Lookup("", queries[next++ % queries.size()]);
    found += held.size() == 1 && held[0].tokens == f.pages * kPage;
    ++asked;
  });
  if (found != asked) state.SkipWithError("a lookup did not find what was stored");
  state.counters["chunks"] = f.store->Usage().chunks;
  state.counters["index_bytes_per_chunk"] = f.index_bytes_per_chunk;
}

void BM_OpenRead(benchmark::State& state) {
  const Filled& f = FilledStore(state.range(0), state.range(1));
  std::mt19937_64 rng(1);
  TimeEach(state, [&] {
    auto plan = f.store->OpenRead(Key(rng() % f.sessions), 0, 0);
    if (!plan.ok()) state.SkipWithError("a session is gone");
    benchmark::DoNotOptimize(plan);
  });
}

// A fork at the middle of a page, and its end, of a session of so many tokens.
void BM_ForkAndDelete(benchmark::State& state) {
  const uint64_t pages = state.range(0) / kPage;
  SessionStore store(kPage);
  if (!store.Commit(Run(0, pages)).ok()) std::abort();
  const uint64_t tokens = pages * kPage - kPage / 2;
  const SessionKey to{"", "fork"};
  TimeEach(state, [&] {
    const auto fork = store.Fork(Key(0), to, tokens, absl::ZeroDuration(), {});
    if (!fork.ok() || fork->tokens != tokens) state.SkipWithError("a fork went wrong");
    if (!store.Delete(to).ok()) state.SkipWithError("a fork is gone");
  });
  if (store.Usage().chunks != pages) state.SkipWithError("a fork has copied");
}

// Rewinds of forks: a search that goes back.
void BM_ForkAndRewind(benchmark::State& state) {
  const uint64_t pages = state.range(0) / kPage;
  SessionStore store(kPage);
  if (!store.Commit(Run(0, pages)).ok()) std::abort();
  const SessionKey to{"", "fork"};
  TimeEach(state, [&] {
    const auto fork = store.Fork(Key(0), to, pages * kPage, absl::ZeroDuration(), {});
    const auto cut = store.Rewind(to, kPage / 2, 0);
    if (!fork.ok() || !cut.ok() || cut->tokens != kPage / 2 || !store.Delete(to).ok()) {
      state.SkipWithError("a rewind went wrong");
    }
  });
}

// A session of one page comes and goes.
void BM_CommitAndDelete(benchmark::State& state) {
  const Filled& f = FilledStore(state.range(0), state.range(1));
  uint64_t next = 1'000'000'000;
  TimeEach(state, [&] {
    const uint64_t session = next++;
    if (!f.store->Commit(Run(session, 1)).ok() || !f.store->Delete(Key(session)).ok()) {
      state.SkipWithError("a commit or delete was refused");
    }
  });
}

void Sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"sessions", "pages"})
      ->Args({10, 10})
      ->Args({1000, 10})
      ->Args({100'000, 10})
      ->Args({100'000, 18})
      ->Args({10'000, 180});
}
BENCHMARK(BM_Lookup)->Apply(Sizes)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_ForkAndDelete)
    ->ArgName("tokens")
    ->Arg(1'000)
    ->Arg(100'000)
    ->Arg(1'000'000)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_ForkAndRewind)->ArgName("tokens")->Arg(100'000)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_OpenRead)->Apply(Sizes)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_CommitAndDelete)->Apply(Sizes)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace kvcask

BENCHMARK_MAIN();
