// Eviction by value against LRU, on the shapes of 200 recorded conversations of an agent
// (testdata/agent_conversations.txt), which come and go together, and what else a daemon sees:
// long documents that are read once.
//   bazel run --config=opt //server/store:eviction_benchmark
// A simulation of the tree's pages without their bytes: both policies take leaves only, from
// the same requests. saved_% is the share of the prompts' computing cost that a prefix in the
// cache saved; every policy's upper bound is what an endless cache saves.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/store/eviction.h"

namespace kvcask {
namespace {

constexpr int kPage = 128;

struct Call {
  int new_tokens, written;
};
struct Conversation {
  int task = 0;
  std::vector<Call> calls;
};

std::vector<Conversation> ReadConversations(const std::string& path) {
  std::ifstream in(path);
  std::vector<Conversation> all;
  for (std::string line; std::getline(in, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    Conversation c;
    int trial;
    words >> c.task >> trial;
    char colon;
    for (Call call; words >> call.new_tokens >> colon >> call.written;) c.calls.push_back(call);
    all.push_back(c);
  }
  if (all.empty()) {
    std::fprintf(stderr, "%s: no conversations\n", path.c_str());
    std::exit(1);
  }
  return all;
}

// A prompt: its pages by name, equal where prefixes are.
struct Request {
  std::vector<uint64_t> pages;
};

// `scans`: documents of 2,000 to 16,000 tokens among the requests, read once, by share.
std::vector<Request> MakeTrace(const std::vector<Conversation>& conversations, int at_a_time,
                               double scans, unsigned seed) {
  std::mt19937 rng(seed);
  struct Running {
    uint64_t name;
    const Conversation* c;
    size_t call = 0;
    int tokens = 0;
  };
  std::vector<Running> running;
  std::vector<Request> trace;
  uint64_t names = 1;
  const auto page = [&](const Running& r, int p) -> uint64_t {
    // The policy and tools are everyone's.
    const int shared = r.c->calls[0].new_tokens / kPage;
    return p < shared ? static_cast<uint64_t>(p) + 1 : r.name << 20 | (p + 1);
  };
  while (trace.size() < 20'000) {
    while (static_cast<int>(running.size()) < at_a_time) {
      running.push_back({++names, &conversations[rng() % conversations.size()]});
    }
    if (std::uniform_real_distribution<>()(rng) < scans) {
      Request r;
      const int pages = (2000 + static_cast<int>(rng() % 14'000)) / kPage;
      const uint64_t name = ++names;
      for (int p = 0; p < pages; ++p) r.pages.push_back(name << 20 | (p + 1));
      trace.push_back(std::move(r));
      continue;
    }
    // The user of a conversation answers, at times much later than the others.
    const size_t i = rng() % 3 == 0 ? rng() % running.size() : rng() % (running.size() / 4 + 1);
    Running& now = running[i];
    now.tokens += now.c->calls[now.call].new_tokens;
    Request r;
    for (int p = 0; p < now.tokens / kPage; ++p) r.pages.push_back(page(now, p));
    trace.push_back(std::move(r));
    now.tokens += now.c->calls[now.call].written;
    if (++now.call == now.c->calls.size()) running.erase(running.begin() + i);
  }
  return trace;
}

// At this position attention over what is before costs as much as all else does: for a model
// of 7e9 parameters with 32 layers of width 4096.
constexpr double kAttentionParityTokens = 28'000;

double CostOf(int page) { return kPage * (1 + page * kPage / kAttentionParityTokens); }

struct Node {
  Node* parent = nullptr;
  uint64_t name = 0;
  int page = 0, children = 0;
  float uses = 0;
  uint32_t used_at = 0;
  size_t leaf = 0;  // 1 + its place among the leaves; 0: it is none
};

// The share of cost that was saved. `value` false: LRU.
double Run(const std::vector<Request>& trace, size_t capacity, bool value) {
  std::unordered_map<uint64_t, std::unique_ptr<Node>> nodes;
  std::vector<Node*> leaves;
  const auto set_leaf = [&](Node* n, bool is) {
    if (is == (n->leaf != 0)) return;
    if (is) {
      leaves.push_back(n);
      n->leaf = leaves.size();
      return;
    }
    leaves[n->leaf - 1] = leaves.back();
    leaves.back()->leaf = n->leaf;
    leaves.pop_back();
    n->leaf = 0;
  };
  std::minstd_rand rng(1);
  uint32_t clock = 0;
  double saved = 0, all = 0;
  const auto evict = [&](const Node* keep) {
    // As the store does: the least of 64 leaves.
    Node* victim = nullptr;
    double least = 0;
    for (int i = 0; i < 64 || victim == nullptr; ++i) {
      Node* n = leaves[rng() % leaves.size()];
      if (n == keep) continue;
      const double score = value ? EvictionScore(kPage, 100'000, n->uses, clock - n->used_at)
                                 : n->used_at;
      if (victim == nullptr || score < least) {
        victim = n;
        least = score;
      }
    }
    set_leaf(victim, false);
    if (victim->parent != nullptr) {
      if (--victim->parent->children == 0) set_leaf(victim->parent, true);
      victim->parent->used_at = std::max(victim->parent->used_at, victim->used_at);
      victim->parent->uses = std::max(victim->parent->uses, victim->uses);
    }
    nodes.erase(victim->name);
  };
  for (const Request& r : trace) {
    Node* last = nullptr;
    bool hit = true;
    for (size_t p = 0; p < r.pages.size(); ++p) {
      all += CostOf(static_cast<int>(p));
      auto it = nodes.find(r.pages[p]);
      hit = hit && it != nodes.end();
      if (hit) {
        saved += CostOf(static_cast<int>(p));
        last = it->second.get();
        continue;
      }
      while (nodes.size() >= capacity) evict(last);
      auto n = std::make_unique<Node>();
      n->parent = last;
      n->name = r.pages[p];
      n->page = static_cast<int>(p);
      n->used_at = ++clock;
      n->uses = 1;
      if (last != nullptr) {
        ++last->children;
        set_leaf(last, false);
      }
      last = n.get();
      set_leaf(last, true);
      nodes[r.pages[p]] = std::move(n);
    }
    if (last == nullptr) continue;
    ++clock;
    ++last->uses;
    last->used_at = clock;
  }
  return 100 * saved / all;
}

int Main(int argc, char** argv) {
  const auto conversations = ReadConversations(
      argc > 1 ? argv[1] : "server/store/testdata/agent_conversations.txt");
  std::printf("%zu conversations; 20,000 requests; saved %% of prompt cost, seeds 1 to 3\n\n",
              conversations.size());
  std::printf("| at a time | read once | pages held | endless | LRU | by value | difference |\n");
  std::printf("|---:|---:|---:|---:|---:|---:|---:|\n");
  for (int at_a_time : {16, 64}) {
    for (double scans : {0., .1, .3}) {
      for (size_t capacity : {300, 600, 1200}) {
        double endless = 0, lru = 0, value = 0;
        for (unsigned seed : {1, 2, 3}) {
          const auto trace = MakeTrace(conversations, at_a_time, scans, seed);
          endless += Run(trace, 100'000'000, false) / 3;
          lru += Run(trace, capacity, false) / 3;
          value += Run(trace, capacity, true) / 3;
        }
        std::printf("| %d | %.0f %% | %zu | %.1f | %.1f | %.1f | %+.1f |\n", at_a_time, 100 * scans,
                    capacity, endless, lru, value, value - lru);
        std::fflush(stdout);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace kvcask

int main(int argc, char** argv) { return kvcask::Main(argc, argv); }
