// The store against an obvious model of it: random commits (good ones and each kind of bad
// one), deletes, expiry, reads and lookups, everything compared after each step. Then the
// same with many threads, each with sessions of its own over texts that all share.
// Sequences are repeatable: --gtest_filter and KVCASK_TEST_SEED=<the seed printed>.
#include <absl/strings/str_cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "server/store/session_store.h"
#include "server/store/store_test_util.h"

namespace kvcask {
namespace {

using store_test::Digested;
using store_test::kPage;
using store_test::MakeRun;
using store_test::PrefixIds;
using store_test::Sequence;
using store_test::Tokens;
using store_test::Traits;
using Code = absl::StatusCode;

unsigned Seed() {
  const char* fixed = std::getenv("KVCASK_TEST_SEED");
  const unsigned seed = fixed ? std::strtoul(fixed, nullptr, 10) : std::random_device()();
  std::cout << "seed " << seed << std::endl;
  return seed;
}

// --- the model: whole chains as they were put, everything else computed by looking

struct ModelShard {
  Tokens tokens;
  uint64_t version = 0;
  bool sealed = false;
  std::vector<NewChunk> chunks;
  std::map<std::string, CommitResult> puts;
};

struct ModelSession {
  SessionTraits traits;
  bool ids = true;  // its runs have token ids
  std::map<uint32_t, ModelShard> shards;
  absl::Time modified;
  absl::Duration ttl;

  uint64_t visible() const {
    if (shards.size() < traits.shard_count) return 0;
    uint64_t n = ~uint64_t{0};
    for (const auto& [i, s] : shards) n = std::min<uint64_t>(n, s.tokens.size());
    return n;
  }
  // Chunks as they are told apart in the store: shared ones by name, others by place.
  std::vector<std::pair<std::string, const NewChunk*>> identities(const SessionKey& key) const {
    std::vector<std::pair<std::string, const NewChunk*>> out;
    for (const auto& [i, s] : shards) {
      for (const NewChunk& c : s.chunks) {
        out.emplace_back(
            c.prefix_id ? absl::StrCat(key.ns, "#", traits.codec, traits.shard_count, "#", i, "#",
                                       std::string(c.prefix_id->begin(), c.prefix_id->end()))
                        : absl::StrCat(key.ns, "/", key.id, "/", i, "/", c.token_begin),
            &c);
      }
    }
    return out;
  }
};

using KeyPair = std::pair<std::string, std::string>;  // namespace, id
using Model = std::map<KeyPair, ModelSession>;

// Sealed shards fix the length: nobody is longer, and all sealed ones are equal.
bool SealsAgree(const ModelSession& session) {
  for (const auto& [i, a] : session.shards) {
    for (const auto& [j, b] : session.shards) {
      if (a.sealed && b.tokens.size() > a.tokens.size()) return false;
      if (a.sealed && b.sealed && b.tokens.size() != a.tokens.size()) return false;
    }
  }
  return true;
}

bool PrefixIdsAgree(const ModelSession& session) {
  for (const auto& [i, a] : session.shards) {
    for (const auto& [j, b] : session.shards) {
      for (size_t p = 0; p < std::min(a.chunks.size(), b.chunks.size()); ++p) {
        const auto &x = a.chunks[p].prefix_id, &y = b.chunks[p].prefix_id;
        if (x && y && *x != *y) return false;
      }
    }
  }
  return true;
}

// Three texts that begin alike, and one that does not.
Tokens Text(int which, size_t length) {
  Tokens t = Sequence(which == 3 ? 1000 : 0, static_cast<int>(length));
  for (size_t i = 6 * which; which > 0 && i < t.size(); ++i) t[i] += 100 * which;
  return t;
}

constexpr size_t kQueryTokens = 60;

// Of 60 tokens of each text: made once, since they are asked for after every step.
const std::vector<Digest>& QueryIds(int text) {
  static const auto& ids = *new std::vector<std::vector<Digest>>{
      PrefixIds(Text(0, kQueryTokens)), PrefixIds(Text(1, kQueryTokens)),
      PrefixIds(Text(2, kQueryTokens)), PrefixIds(Text(3, kQueryTokens))};
  return ids[text];
}

// One client: random steps on the sessions named after it, against its own model.
class Client {
 public:
  Client(SessionStore* store, ByteBudget* budget, std::string name, unsigned seed)
      : store_(store), budget_(budget), name_(std::move(name)), rng_(seed) {}

  void Step(absl::Time now) {
    const int what = Pick(100);
    if (what < 60) {
      CommitStep(now);
    } else if (what < 75) {
      ReadStep();
    } else if (what < 80) {
      DeleteStep();
    } else if (what < 83) {
      CreateStep(now);
    } else {
      StatStep();
    }
  }

  Model& model() { return model_; }
  KeyPair RandomKey() { return {Pick(2) ? "" : "ns", absl::StrCat(name_, Pick(5))}; }
  int Pick(int n) { return static_cast<int>(rng_() % n); }
  int refused() const { return refused_; }
  int committed() const { return committed_; }

  void CheckEverything() {
    for (const auto& [key, session] : model_) CheckSession(key, session);
  }

 private:
  static SessionKey ToKey(const KeyPair& k) { return {k.first, k.second}; }

  void CommitStep(absl::Time now) {
    const KeyPair key = RandomKey();
    const auto it = model_.find(key);
    ModelSession next;
    if (it != model_.end()) {
      next = it->second;
    }
    if (next.traits.model_id.empty()) {
      next.traits = Traits(Pick(2) ? "int8" : "raw", 1 + Pick(3));
      next.ids = Pick(5) != 0;
    }
    const SessionTraits good_traits = next.traits;
    SessionTraits traits = good_traits;
    const uint32_t shard = Pick(traits.shard_count);
    ModelShard& s = next.shards[shard];
    const uint64_t version = s.version;

    // The run: more tokens of a text; at times of another one than before.
    const int text = Pick(10) == 0 ? Pick(4) : static_cast<int>(key.second.back()) % 4;
    const size_t begin = s.tokens.size();
    const size_t end = begin + (Pick(6) == 0 ? 0 : 1 + Pick(11));
    Tokens all = s.tokens;
    const Tokens source = Text(text, end);
    all.insert(all.end(), source.begin() + begin, source.end());

    CommitRequest r = MakeRun(ToKey(key), all, begin, version, traits, shard, next.ids);
    if (r.tokens == 0 && Pick(2)) r.chunks.clear();
    r.seal = Pick(8) == 0;
    if (Pick(3) == 0) r.put_id = absl::StrCat("p", ++puts_);
    if (Pick(4) == 0) r.ttl = absl::Seconds(Pick(50));
    auto reservation = budget_->Reserve(4096, "run");
    ASSERT_TRUE(reservation.ok()) << reservation.status();
    r.reservation = *std::move(reservation);

    // One fault at most, so that the answer is certain.
    Code expected = Code::kOk;
    const bool was_sealed = s.sealed;
    const int fault = was_sealed ? 0 : Pick(20);
    if (was_sealed) {
      expected = Code::kFailedPrecondition;
    } else if (fault == 1) {
      r.base_version += 1 + Pick(3);
      expected = Code::kAborted;
    } else if (fault == 2 && version > 0) {
      r.traits.dtype = "f32";
      expected = Code::kFailedPrecondition;
    } else if (fault == 3 && r.tokens > 0 && !r.chunks.empty()) {
      r.chunks.pop_back();
      expected = Code::kInvalidArgument;
    } else if (fault == 4 && r.tokens > 0) {
      // As if the shard held a token less than it does, or more.
      const bool gap = begin == 0 || Pick(2);
      const Tokens longer = Text(text, end + 3);
      r = MakeRun(ToKey(key), longer, gap ? begin + 1 : begin - 1, version, traits, shard, false);
      expected = gap ? Code::kInvalidArgument : Code::kAlreadyExists;
    } else if (fault == 5 && !s.puts.empty()) {
      // A repeat of an earlier put.
      const auto& [put_id, result] = *s.puts.rbegin();
      r = MakeRun(ToKey(key), Text(0, result.token_begin + result.tokens), result.token_begin, 0,
                  traits, shard, false);
      r.put_id = put_id;
      const auto again = store_->Commit(std::move(r));
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_TRUE(again->replayed);
      EXPECT_EQ(again->version, result.version);
      EXPECT_EQ(again->raw_bytes, result.raw_bytes);
      EXPECT_EQ(again->visible_tokens, it->second.visible());
      return;
    }

    // What the session would be. A tail's chunk is replaced when chunks are given.
    if (!r.chunks.empty()) s.chunks.resize(begin / kPage);
    for (const NewChunk& c : r.chunks) s.chunks.push_back(c);
    s.tokens = all;
    s.version = version + 1;
    s.sealed = r.seal;
    if (r.ttl) next.ttl = *r.ttl;
    next.modified = now;
    if (expected == Code::kOk && (!SealsAgree(next) || !PrefixIdsAgree(next))) {
      expected = Code::kFailedPrecondition;
    }

    const std::string put_id = r.put_id;
    const auto result = store_->Commit(std::move(r));
    ASSERT_EQ(result.status().code(), expected) << result.status();
    if (!result.ok()) {
      ++refused_;
      return;
    }
    ++committed_;
    EXPECT_EQ(result->version, s.version);
    EXPECT_EQ(result->shard_tokens, s.tokens.size());
    EXPECT_EQ(result->raw_bytes, 30 * (end - begin) * (s.chunks.empty() ? 0 : 1));
    EXPECT_EQ(result->visible_tokens, next.visible());
    if (!put_id.empty()) s.puts = {{put_id, *result}};
    model_[key] = std::move(next);
  }

  void ReadStep() {
    const KeyPair key = RandomKey();
    const auto it = model_.find(key);
    const uint64_t begin = Pick(20), end = Pick(3) ? Pick(30) : 0;
    const auto plan = store_->OpenRead(ToKey(key), begin, end);
    if (it == model_.end()) {
      ASSERT_EQ(plan.status().code(), Code::kNotFound);
      return;
    }
    const uint64_t last = end == 0 ? it->second.visible() : end;
    if (begin >= last || last > it->second.visible()) {
      ASSERT_EQ(plan.status().code(), Code::kOutOfRange);
      return;
    }
    ASSERT_TRUE(plan.ok()) << plan.status();
    ASSERT_EQ(plan->shards.size(), it->second.shards.size());
    for (const auto& shard : plan->shards) {
      const ModelShard& s = it->second.shards.at(shard.shard);
      const size_t first = begin / kPage, count = (last - 1) / kPage + 1 - first;
      ASSERT_EQ(shard.chunks.size(), count);
      for (size_t i = 0; i < count; ++i) {
        EXPECT_EQ(shard.chunks[i]->bytes, s.chunks[first + i].bytes);
        EXPECT_EQ(shard.chunks[i]->token_begin, s.chunks[first + i].token_begin);
        EXPECT_EQ(shard.chunks[i]->tokens, s.chunks[first + i].tokens);
      }
    }
  }

  void DeleteStep() {
    const KeyPair key = RandomKey();
    const auto freed = store_->Delete(ToKey(key));
    EXPECT_EQ(freed.ok(), model_.erase(key) == 1) << freed.status();
  }

  void CreateStep(absl::Time now) {
    const KeyPair key = RandomKey();
    const absl::Status s = store_->Create(ToKey(key), nullptr, absl::ZeroDuration(), {});
    if (model_.count(key)) {
      EXPECT_EQ(s.code(), Code::kAlreadyExists);
    } else {
      ASSERT_TRUE(s.ok()) << s;
      model_[key].modified = now;
    }
  }

  void StatStep() {
    const KeyPair key = RandomKey();
    const auto it = model_.find(key);
    if (it == model_.end()) {
      EXPECT_EQ(store_->Stat(ToKey(key)).status().code(), Code::kNotFound);
    } else {
      CheckSession(key, it->second);
    }
  }

  void CheckSession(const KeyPair& key, const ModelSession& session) {
    const auto stat = store_->Stat(ToKey(key));
    ASSERT_TRUE(stat.ok()) << stat.status();
    EXPECT_EQ(stat->tokens, session.visible());
    EXPECT_EQ(stat->ttl, session.ttl);
    uint64_t raw = 0, stored = 0, chunks = 0;
    double kld = 0;
    bool sealed = !session.shards.empty() && session.shards.size() == session.traits.shard_count;
    for (const auto& [i, s] : session.shards) {
      double sum = 0;
      for (const NewChunk& c : s.chunks) {
        raw += c.raw_bytes;
        stored += c.bytes.size();
        ++chunks;
        if (c.predicted_kld > 0) sum += c.predicted_kld * c.tokens;
      }
      if (!s.tokens.empty()) kld += sum / s.tokens.size();
      sealed = sealed && s.sealed;
    }
    EXPECT_EQ(stat->raw_bytes, raw);
    EXPECT_EQ(stat->stored_bytes, stored);
    EXPECT_EQ(stat->chunks, chunks);
    EXPECT_NEAR(stat->predicted_kld, kld, 1e-9);
    EXPECT_EQ(stat->sealed, sealed);
    EXPECT_LE(stat->unique_bytes, stat->stored_bytes);
    ASSERT_EQ(stat->shards.size(), session.shards.size());
    for (const ShardState& state : stat->shards) {
      const ModelShard& s = session.shards.at(state.shard);
      EXPECT_EQ(state.tokens, s.tokens.size());
      EXPECT_EQ(state.version, s.version);
    }
  }

  SessionStore* const store_;
  ByteBudget* const budget_;
  const std::string name_;
  std::mt19937 rng_;
  Model model_;
  int puts_ = 0;
  int refused_ = 0, committed_ = 0;
};

// Unique bytes, usage and the budget, over all sessions there are.
void CheckSharing(const SessionStore& store, const Model& model, const ByteBudget& budget) {
  std::map<std::string, std::set<KeyPair>> holders;
  std::map<std::string, uint64_t> bytes;
  for (const auto& [key, session] : model) {
    for (const auto& [identity, chunk] : session.identities({key.first, key.second})) {
      holders[identity].insert(key);
      bytes[identity] = chunk->bytes.size();
    }
  }
  std::map<KeyPair, uint64_t> unique;
  uint64_t all = 0;
  for (const auto& [identity, who] : holders) {
    all += bytes[identity];
    if (who.size() == 1) unique[*who.begin()] += bytes[identity];
  }
  const StoreUsage usage = store.Usage();
  EXPECT_EQ(usage.sessions, model.size());
  EXPECT_EQ(usage.chunks, holders.size());
  EXPECT_EQ(usage.stored_bytes, all);
  EXPECT_EQ(budget.used(), all);
  for (const auto& [key, session] : model) {
    EXPECT_EQ(store.Stat({key.first, key.second})->unique_bytes, unique[key]);
  }
}

// The bytes of a shard's first `tokens` tokens in any session that has those of `query`; 0: none.
uint64_t BytesHeld(const Model& model, const std::string& ns, const std::string& codec,
                   uint32_t shard_count, uint32_t shard, const Tokens& query, uint64_t tokens) {
  for (const auto& [key, session] : model) {
    const auto s = session.shards.find(shard);
    if (key.first != ns || !session.ids || s == session.shards.end() ||
        session.traits.codec != codec || session.traits.shard_count != shard_count ||
        s->second.tokens.size() < tokens ||
        !std::equal(query.begin(), query.begin() + tokens, s->second.tokens.begin())) {
      continue;
    }
    uint64_t bytes = 0;
    for (uint64_t p = 0; p < tokens / kPage; ++p) bytes += s->second.chunks[p].bytes.size();
    return bytes;
  }
  return 0;
}

// Every text's lookup, by comparing it with every session token by token. What some session
// shows must be found; what the shards of several sessions hold between them may be.
void CheckLookups(const SessionStore& store, const Model& model) {
  for (const std::string ns : {"", "ns"}) {
    for (int text = 0; text < 4; ++text) {
      const Tokens query = Text(text, kQueryTokens);
      std::map<std::string, uint64_t> longest;                   // by codec
      std::map<std::string, std::set<uint64_t>> possible_bytes;  // of the longest
      std::map<std::pair<std::string, uint32_t>, std::map<uint32_t, uint64_t>> between;
      for (const auto& [key, session] : model) {
        if (key.first != ns || !session.ids) continue;
        for (const auto& [i, s] : session.shards) {
          uint64_t same = 0;
          while (same < std::min(s.tokens.size(), query.size()) && s.tokens[same] == query[same]) {
            ++same;
          }
          uint64_t& best = between[{session.traits.codec, session.traits.shard_count}][i];
          best = std::max(best, same / kPage * kPage);
        }
      }
      std::map<std::string, uint64_t> most;
      std::map<std::string, std::set<uint64_t>> between_bytes;
      for (const auto& [form, shards] : between) {
        if (shards.size() < form.second) continue;
        uint64_t tokens = ~uint64_t{0};
        for (const auto& [i, n] : shards) tokens = std::min(tokens, n);
        most[form.first] = std::max(most[form.first], tokens);
      }
      // Forms that several sessions hold between them compete at that length with all others.
      for (const auto& [form, shards] : between) {
        const auto& [codec, shard_count] = form;
        const uint64_t tokens = most[codec];
        if (tokens == 0 || shards.size() < shard_count) continue;
        uint64_t bytes = 0;
        const bool whole = std::all_of(shards.begin(), shards.end(), [&](const auto& shard) {
          bytes += BytesHeld(model, ns, codec, shard_count, shard.first, query, tokens);
          return shard.second >= tokens;
        });
        if (whole) between_bytes[codec].insert(bytes);
      }
      for (const auto& [key, session] : model) {
        if (key.first != ns || !session.ids || session.visible() == 0) continue;
        const Tokens& held = session.shards.begin()->second.tokens;
        uint64_t same = 0;
        while (same < std::min<uint64_t>(session.visible(), query.size()) && held[same] == query[same]) {
          ++same;
        }
        const uint64_t pages = same / kPage;
        if (pages == 0) continue;
        uint64_t bytes = 0;
        for (const auto& [i, s] : session.shards) {
          for (uint64_t p = 0; p < pages; ++p) bytes += s.chunks[p].bytes.size();
        }
        uint64_t& best = longest[session.traits.codec];
        if (pages * kPage > best) possible_bytes[session.traits.codec].clear();
        best = std::max(best, pages * kPage);
        if (pages * kPage == best) possible_bytes[session.traits.codec].insert(bytes);
      }
      const auto held = store.Lookup(ns, QueryIds(text));
      ASSERT_GE(held.size(), longest.size());
      for (const HeldPrefix& h : held) {
        EXPECT_GT(h.tokens, 0u);
        EXPECT_GE(h.tokens, longest[h.codec]);
        EXPECT_LE(h.tokens, most[h.codec]);
        if (longest[h.codec] == most[h.codec] && possible_bytes[h.codec].size() > 0) {
          EXPECT_TRUE(possible_bytes[h.codec].count(h.stored_bytes) ||
                      between_bytes[h.codec].count(h.stored_bytes))
              << h.stored_bytes;
        }
        EXPECT_LE(h.tokens, held[0].tokens);
      }
      for (const auto& [codec, tokens] : longest) {
        EXPECT_TRUE(std::any_of(held.begin(), held.end(),
                                [&](const HeldPrefix& h) { return h.codec == codec; }));
      }
      const auto plan = store.OpenPrefix(ns, QueryIds(text), 0, 0);
      ASSERT_EQ(plan.ok(), !held.empty());
      if (plan.ok()) {
        EXPECT_EQ(plan->token_end, held[0].tokens);
        EXPECT_EQ(plan->stat.traits.codec, held[0].codec);
      }
    }
  }
}

void CheckLists(const SessionStore& store, const Model& model) {
  for (const std::string ns : {"", "ns"}) {
    std::vector<std::string> expected, found;
    for (const auto& [key, session] : model) {
      if (key.first == ns) expected.push_back(key.second);
    }
    std::string after;
    while (true) {
      const auto page = store.List(ns, after, 2);
      if (page.empty()) break;
      for (const auto& s : page) found.push_back(s.key.id);
      after = found.back();
    }
    EXPECT_EQ(found, expected);
  }
}

TEST(StoreModel, RandomStepsAgree) {
  const unsigned seed = Seed();
  int committed = 0, refused = 0, expired = 0;
  for (int round = 0; round < 4 && !testing::Test::HasFailure(); ++round) {
    ByteBudget budget(1 << 20);
    absl::Time now = absl::FromUnixSeconds(1'000'000);
    SessionStoreOptions options;
    options.now = [&now] { return now; };
    SessionStore store(kPage, options);
    Client client(&store, &budget, "s", seed + round);
    for (int step = 0; step < 300 && !testing::Test::HasFailure(); ++step) {
      SCOPED_TRACE(absl::StrCat("seed ", seed, " round ", round, " step ", step));
      now += absl::Seconds(client.Pick(3));
      client.Step(now);
      if (client.Pick(20) == 0) {
        int gone = 0;
        for (auto it = client.model().begin(); it != client.model().end();) {
          const ModelSession& s = it->second;
          const bool dies = s.ttl > absl::ZeroDuration() && s.modified + s.ttl <= now;
          gone += dies;
          it = dies ? client.model().erase(it) : std::next(it);
        }
        EXPECT_EQ(store.Expire(now), gone);
        expired += gone;
      }
      if (step % 4 != 0) continue;  // all of it costs much more than a step
      client.CheckEverything();
      CheckSharing(store, client.model(), budget);
      CheckLookups(store, client.model());
      CheckLists(store, client.model());
    }
    committed += client.committed();
    refused += client.refused();
  }
  // The walk went where it should.
  EXPECT_GT(committed, 200);
  EXPECT_GT(refused, 50);
  EXPECT_GT(expired, 5);
}

TEST(StoreModel, ManyClientsSharingTextsAgreeInTheEnd) {
  const unsigned seed = Seed();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  ByteBudget budget(1 << 24);
  const absl::Time now = absl::FromUnixSeconds(1'000'000);
  SessionStoreOptions options;
  options.now = [now] { return now; };
  SessionStore store(kPage, options);
  constexpr int kClients = 8;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.push_back(std::make_unique<Client>(
        &store, &budget, std::string(1, static_cast<char>('a' + i)), seed + i));
  }
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (auto& client : clients) {
    threads.emplace_back([&] {
      for (int step = 0; step < 300 && !testing::Test::HasFailure(); ++step) client->Step(now);
    });
  }
  // One that looks across all of them meanwhile: what it sees must hang together.
  threads.emplace_back([&] {
    while (!done) {
      for (int text = 0; text < 4; ++text) {
        const Tokens tokens = Text(text, kQueryTokens);
        const auto plan = store.OpenPrefix("", QueryIds(text), 0, 0);
        if (!plan.ok()) {
          EXPECT_EQ(plan.status().code(), Code::kNotFound);
          continue;
        }
        for (const auto& shard : plan->shards) {
          const auto expected =
              store_test::Chunks(Tokens(tokens.begin(), tokens.begin() + plan->token_end), 0,
                                 plan->stat.traits, shard.shard, true);
          ASSERT_EQ(shard.chunks.size(), expected.size());
          for (size_t i = 0; i < expected.size(); ++i) {
            EXPECT_EQ(shard.chunks[i]->bytes, expected[i].bytes);
          }
        }
      }
      store.List("", "", 100);
      store.Usage();
    }
  });
  for (int i = 0; i < kClients; ++i) threads[i].join();
  done = true;
  threads.back().join();

  Model all;
  for (auto& client : clients) all.insert(client->model().begin(), client->model().end());
  for (auto& client : clients) client->CheckEverything();
  CheckSharing(store, all, budget);
  CheckLookups(store, all);
  CheckLists(store, all);
  for (const auto& [key, session] : all) EXPECT_TRUE(store.Delete({key.first, key.second}).ok());
  EXPECT_EQ(store.Usage().chunks, 0u);
  EXPECT_EQ(store.Usage().sessions, 0u);
  EXPECT_EQ(budget.used(), 0u);
}

// Writers of one shard race: each token is taken once, nobody's commit is lost or doubled.
TEST(StoreModel, WritersOfOneShardLoseNothing) {
  const unsigned seed = Seed();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  SessionStore store(kPage);
  const SessionKey key{"", "contended"};
  constexpr int kWriters = 6, kRuns = 40;
  std::atomic<uint64_t> tokens{0}, aborted{0};
  std::vector<std::thread> writers;
  for (int w = 0; w < kWriters; ++w) {
    writers.emplace_back([&, w] {
      std::mt19937 rng(seed + w);
      for (int done = 0; done < kRuns;) {
        const auto snapshot = store.BeginWrite(key, Traits(), 0);
        ASSERT_TRUE(snapshot.ok()) << snapshot.status();
        const uint64_t begin = snapshot->tokens;
        CommitRequest r =
            MakeRun(key, Sequence(0, begin + 1 + rng() % 9), begin, snapshot->version);
        r.incarnation = snapshot->incarnation;
        const uint64_t count = r.tokens;
        const auto result = store.Commit(std::move(r));
        if (result.ok()) {
          tokens += count;
          ++done;
        } else {
          ASSERT_EQ(result.status().code(), Code::kAborted) << result.status();
          ++aborted;
        }
      }
    });
  }
  for (auto& w : writers) w.join();
  const auto plan = store.OpenRead(key, 0, 0);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->token_end, tokens);
  EXPECT_EQ(plan->stat.shards[0].version, uint64_t{kWriters * kRuns});
  const auto expected = store_test::Chunks(Sequence(0, tokens), 0, Traits(), 0, true);
  ASSERT_EQ(plan->shards[0].chunks.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(plan->shards[0].chunks[i]->bytes, expected[i].bytes);
  }
  std::cout << aborted << " aborts" << std::endl;
}

}  // namespace
}  // namespace kvcask
