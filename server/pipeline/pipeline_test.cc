// The pipeline against an obvious model: a cache in plain arrays.
#include "server/pipeline/pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <random>
#include <thread>

#include <absl/strings/str_cat.h>

#include "codec/base/crc32c.h"
#include "server/pipeline/errors.h"
#include "server/pipeline/get_run.h"
#include "server/pipeline/put_run.h"

namespace kvcask {
namespace {

using Bytes = std::vector<uint8_t>;

Geometry SmallModel(int layers = 3, int heads = 4, int dim = 8) {
  return UniformGeometry(layers, heads, dim, StandardRope(RopeStyle::kRotateHalf, dim, 1e4));
}

// bf16 elements of every plane: [layer][stream][head][token][dim].
class Cache {
 public:
  Cache(const Geometry& g, int tokens, uint32_t seed) : g_(g), tokens_(tokens) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    for (const auto& l : g.layers) {
      planes_.emplace_back();
      for (const auto& s : l.streams) {
        std::vector<uint16_t> plane(size_t(s.heads) * tokens * s.head_dim);
        for (auto& x : plane) x = FloatToBf16(normal(rng));
        planes_.back().push_back(std::move(plane));
      }
    }
  }
  int tokens() const { return tokens_; }
  std::vector<uint32_t> ids(uint64_t from, uint32_t n) const {
    std::vector<uint32_t> out;
    for (uint32_t i = 0; i < n; ++i) out.push_back(static_cast<uint32_t>((from + i) * 7919 % 50000));
    return out;
  }
  Bytes Payload(int l0, int ln, int h0, int hn, uint64_t t0, uint32_t tn, bool k = true,
                bool v = true) const {
    Bytes out;
    for (int l = l0; l < l0 + ln; ++l) {
      for (size_t s = 0; s < g_.layers[l].streams.size(); ++s) {
        if ((s == 0 && !k) || (s == 1 && !v)) continue;
        const auto& st = g_.layers[l].streams[s];
        for (int h = h0; h < h0 + hn; ++h) {
          const uint16_t* row =
              planes_[l][s].data() + (size_t(h) * tokens_ + t0) * st.head_dim;
          const auto* p = reinterpret_cast<const uint8_t*>(row);
          out.insert(out.end(), p, p + size_t(tn) * st.head_dim * 2);
        }
      }
    }
    return out;
  }

 private:
  const Geometry g_;
  const int tokens_;
  std::vector<std::vector<std::vector<uint16_t>>> planes_;
};

class PipelineTest : public ::testing::Test {
 protected:
  explicit PipelineTest(uint64_t budget = 64 << 20)
      : budget_(budget),
        store_(kPageTokens, NoEviction()),
        profiles_(&budget_),
        executor_(2),
        metrics_("test", "test", "cpu"),
        pipeline_(&store_, &budget_, &profiles_, &executor_, &metrics_, {}) {}

  // A full budget refuses here; what eviction does is the store's tests'.
  static SessionStoreOptions NoEviction() {
    SessionStoreOptions o;
    o.evict = false;
    return o;
  }

  PutParams Params(const Geometry& g, const std::string& id, uint64_t begin, uint32_t count) {
    PutParams p;
    p.session = {"", id};
    p.model_id = "test-model";
    p.geometry = g;
    p.shard.layer_end = static_cast<int>(g.layers.size());
    p.shard.head_end = g.layers[0].streams[0].heads;
    p.codec = "raw";
    p.token_begin = begin;
    p.token_count = count;
    return p;
  }
  static absl::Status Add(PutRun& run, const RectangleSpec& r, const Bytes& payload,
                          std::optional<uint32_t> crc = std::nullopt) {
    // In two pieces, as transports deliver.
    const auto all = absl::MakeSpan(payload);
    const size_t cut = payload.size() / 3;
    const absl::Span<const uint8_t> pieces[] = {all.subspan(0, cut), all.subspan(cut)};
    return run.Add(r, pieces, crc);
  }
  static absl::StatusOr<CommitResult> Commit(PutRun& run, bool seal) {
    std::promise<absl::StatusOr<CommitResult>> done;
    run.Commit(seal, /*durable=*/false, [&](absl::StatusOr<CommitResult> r) { done.set_value(std::move(r)); });
    return done.get_future().get();
  }
  static RectangleSpec Rect(int l0, int ln, uint64_t t0, uint32_t tn) {
    RectangleSpec r;
    r.layer_begin = l0;
    r.layer_count = ln;
    r.token_begin = t0;
    r.token_count = tn;
    return r;
  }
  // Puts tokens [begin, begin + count) in one rectangle.
  absl::StatusOr<CommitResult> Put(const Cache& c, PutParams p, bool seal) {
    const ShardRange s = p.shard;
    const uint64_t begin = p.token_begin;
    const uint32_t count = p.token_count;
    auto run = pipeline_.OpenPut(std::move(p));
    if (!run.ok()) return run.status();
    if ((*run)->replayed()) return *(*run)->replayed();
    absl::Status st = Add(**run, Rect(s.layer_begin, s.layer_end - s.layer_begin, begin, count),
                          c.Payload(s.layer_begin, s.layer_end - s.layer_begin, s.head_begin,
                                    s.head_end - s.head_begin, begin, count));
    if (!st.ok()) return st;
    return Commit(**run, seal);
  }
  // Every rectangle of a get, checked against the cache; bytes that came.
  uint64_t CheckGet(const Cache& c, const GetParams& p) {
    auto run = pipeline_.OpenGet(p);
    EXPECT_TRUE(run.ok()) << run.status();
    if (!run.ok()) return 0;
    uint64_t bytes = 0;
    for (const GetRectangle& r : (*run)->rectangles()) {
      Bytes out(r.bytes, 0xEE);
      const absl::Status s = (*run)->Decode(r, absl::MakeSpan(out));
      EXPECT_TRUE(s.ok()) << s;
      const auto stored = (*run)->AsStored(r);
      EXPECT_TRUE(stored.ok()) << stored.status();
      if (stored.ok() && *stored) {
        ++as_stored_;
        Bytes same;
        for (const auto& p : (*stored)->pieces) same.insert(same.end(), p.begin(), p.end());
        EXPECT_EQ(same, out);
        EXPECT_EQ((*stored)->crc32c, Crc32c(out));
      }
      const GetRun::Place at = (*run)->PlaceOf(r);
      EXPECT_EQ(out, c.Payload(at.layer_begin, at.layer_count, at.head_begin, at.head_count,
                               at.token_begin, at.token_count))
          << "layers from " << at.layer_begin << ", tokens from " << at.token_begin;
      bytes += r.bytes;
    }
    EXPECT_EQ(bytes, (*run)->payload_bytes());
    return bytes;
  }
  GetParams Whole(const std::string& id) {
    GetParams p;
    p.session = SessionKey{"", id};
    return p;
  }

  ByteBudget budget_;
  SessionStore store_;
  ProfileRegistry profiles_;
  Executor executor_;
  Metrics metrics_;
  Pipeline pipeline_;
  int as_stored_ = 0;  // rectangles that CheckGet found to lie in memory as they are wanted
};

TEST_F(PipelineTest, ReturnsTheBytesOfAnyRange) {
  const Geometry g = SmallModel();
  const Cache c(g, 700, 1);
  auto r = Put(c, Params(g, "s", 0, 700), true);
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ(r->raw_bytes, 700u * g.ElementsPerToken() * 2);
  EXPECT_EQ(r->visible_tokens, 700u);
  EXPECT_EQ(CheckGet(c, Whole("s")), r->raw_bytes);
  for (auto [t0, t1] : {std::pair{0, 1}, {127, 129}, {128, 256}, {5, 699}, {640, 700}}) {
    for (bool layer_major : {false, true}) {
      GetParams p = Whole("s");
      p.token_begin = t0;
      p.token_end = t1;
      p.layer_begin = 1;
      p.layer_end = 3;
      p.layer_major = layer_major;
      EXPECT_EQ(CheckGet(c, p), uint64_t(t1 - t0) * 2 * 2 * 4 * 8 * 2);
    }
  }
  GetParams heads = Whole("s");
  heads.head_begin = 1;
  heads.head_end = 3;
  EXPECT_EQ(CheckGet(c, heads), r->raw_bytes / 2);
}

TEST_F(PipelineTest, TakesRectanglesInAnyShapeAndOrder) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 rng(seed);
  const Geometry g = SmallModel();
  for (int round = 0; round < 20; ++round) {
    const uint32_t tokens = 1 + rng() % 600;
    const Cache c(g, static_cast<int>(tokens), rng());
    struct Piece {
      RectangleSpec r;
      Bytes payload;
    };
    std::vector<Piece> pieces;
    for (uint32_t t = 0; t < tokens;) {
      const uint32_t n = std::min<uint32_t>(tokens - t, 1 + rng() % 300);
      for (int l = 0; l < 3;) {
        const int ln = std::min<int>(3 - l, 1 + rng() % 3);
        const bool split = rng() % 2;
        for (int h = 0; h < 4;) {
          const int hn = std::min<int>(4 - h, 1 + rng() % 4);
          for (int stream = 0; stream < (split ? 2 : 1); ++stream) {
            Piece p;
            p.r = Rect(l, ln, t, n);
            p.r.head_begin = h;
            p.r.head_count = hn;
            p.r.k = !split || stream == 0;
            p.r.v = !split || stream == 1;
            p.payload = c.Payload(l, ln, h, hn, t, n, p.r.k, p.r.v);
            pieces.push_back(std::move(p));
          }
          h += hn;
        }
        l += ln;
      }
      t += n;
    }
    std::shuffle(pieces.begin(), pieces.end(), rng);
    const std::string id = absl::StrCat("s", round);
    auto run = pipeline_.OpenPut(Params(g, id, 0, tokens));
    ASSERT_TRUE(run.ok()) << run.status();
    for (const Piece& p : pieces) {
      const absl::Status s = Add(**run, p.r, p.payload, Crc32c(p.payload));
      ASSERT_TRUE(s.ok()) << s;
    }
    auto r = Commit(**run, rng() % 2);
    ASSERT_TRUE(r.ok()) << r.status();
    EXPECT_EQ(CheckGet(c, Whole(id)), r->raw_bytes);
  }
}

TEST_F(PipelineTest, TailsOfAnyLengthFillUp) {
  const Geometry g = SmallModel(2, 1, 8);
  const Cache c(g, 300, 7);
  for (uint32_t tail = 1; tail < 128; tail += 9) {
    const std::string id = absl::StrCat("t", tail);
    for (uint32_t t = 0; t < 300; t += tail) {
      PutParams p = Params(g, id, t, std::min<uint32_t>(tail, 300 - t));
      p.token_ids = c.ids(t, p.token_count);
      auto r = Put(c, std::move(p), false);
      ASSERT_TRUE(r.ok()) << r.status();
      ASSERT_EQ(r->visible_tokens, std::min<uint32_t>(t + tail, 300));
    }
    EXPECT_EQ(CheckGet(c, Whole(id)), 300u * g.ElementsPerToken() * 2);
    EXPECT_EQ(store_.Stat({"", id})->chunks, 3u);
  }
  // The same tokens, whatever sizes they came in, are the same pages.
  GetParams p;
  p.model_id = "test-model";
  p.prefix_token_ids = c.ids(0, 300);
  EXPECT_EQ(pipeline_.Lookup("", "test-model", "", p.prefix_token_ids, absl::ZeroDuration())->tokens, 256u);
  EXPECT_EQ(CheckGet(c, p), 256u * g.ElementsPerToken() * 2);
  EXPECT_EQ(pipeline_.Lookup("", "another-model", "", p.prefix_token_ids, absl::ZeroDuration())->tokens, 0u);
  EXPECT_EQ(pipeline_.Lookup("", "test-model", "lora", p.prefix_token_ids, absl::ZeroDuration())->tokens, 0u);
  EXPECT_LT(store_.Stat({"", "t1"})->unique_bytes, store_.Stat({"", "t1"})->stored_bytes);
}

TEST_F(PipelineTest, ARunIsVisibleWhenAllShardsHaveCommitted) {
  const Geometry g = SmallModel();
  const Cache c(g, 200, 3);
  PutParams left = Params(g, "s", 0, 200), right = left;
  left.shard.count = right.shard.count = 2;
  left.shard.head_end = 1;
  right.shard.index = 1;
  right.shard.head_begin = 1;
  auto r = Put(c, left, true);
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ(r->visible_tokens, 0u);
  EXPECT_FALSE(pipeline_.OpenGet(Whole("s")).ok());
  r = Put(c, right, true);
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ(r->visible_tokens, 200u);
  EXPECT_EQ(CheckGet(c, Whole("s")), 200u * g.ElementsPerToken() * 2);
  GetParams one = Whole("s");
  one.head_begin = 0;
  one.head_end = 2;  // cuts the second shard
  EXPECT_EQ(CheckGet(c, one), 200u * g.ElementsPerToken());
}

TEST_F(PipelineTest, SlidingLayersMayLackOldTokensAndGetReportsThem) {
  Geometry g = SmallModel(3, 2, 8);
  g.layers[1].kind = LayerKind::kSliding;
  g.layers[1].window = 100;
  const Cache c(g, 400, 5);
  auto run = pipeline_.OpenPut(Params(g, "s", 0, 400));
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_TRUE(Add(**run, Rect(0, 1, 0, 400), c.Payload(0, 1, 0, 2, 0, 400)).ok());
  ASSERT_TRUE(Add(**run, Rect(2, 1, 0, 400), c.Payload(2, 1, 0, 2, 0, 400)).ok());
  ASSERT_TRUE(Add(**run, Rect(1, 1, 290, 110), c.Payload(1, 1, 0, 2, 290, 110)).ok());
  auto r = Commit(**run, true);
  ASSERT_TRUE(r.ok()) << r.status();
  const uint64_t token = 2 * 2 * 8 * 2;
  EXPECT_EQ(r->raw_bytes, (800 + 110) * token);
  EXPECT_EQ(CheckGet(c, Whole("s")), (800 + 110) * token);
  auto get = pipeline_.OpenGet(Whole("s"));
  ASSERT_EQ((*get)->absent().size(), 1u);
  EXPECT_EQ((*get)->absent()[0].layer, 1);
  EXPECT_EQ((*get)->absent()[0].token_begin, 0u);
  EXPECT_EQ((*get)->absent()[0].token_end, 290u);

  // Inside the window nothing may lack, nor anything of a full layer.
  for (int lacking : {0, 1}) {
    auto bad = pipeline_.OpenPut(Params(g, "bad", 0, 400));
    ASSERT_TRUE(bad.ok());
    for (int l = 0; l < 3; ++l) {
      const uint32_t from = l == lacking ? 310 : 0;
      ASSERT_TRUE(Add(**bad, Rect(l, 1, from, 400 - from), c.Payload(l, 1, 0, 2, from, 400 - from)).ok());
    }
    auto refused = Commit(**bad, true);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ReasonOf(refused.status()), "INCOMPLETE");
    EXPECT_NE(refused.status().message().find(absl::StrCat("layer ", lacking)), std::string::npos)
        << refused.status();
  }
  EXPECT_FALSE(store_.Stat({"", "bad"}).ok());
}

TEST_F(PipelineTest, RefusesWhatDoesNotFitTheRunAndStoresNothing) {
  const Geometry g = SmallModel();
  const Cache c(g, 200, 9);
  const Bytes page = c.Payload(0, 3, 0, 4, 0, 128);
  struct Case {
    RectangleSpec r;
    Bytes payload;
    std::optional<uint32_t> crc;
    const char* reason;
  };
  RectangleSpec heads = Rect(0, 3, 0, 128);
  heads.head_begin = 3;
  heads.head_count = 2;
  RectangleSpec latent = Rect(0, 3, 0, 128);
  latent.k = latent.v = false;
  const Case cases[] = {
      {Rect(0, 3, 100, 128), page, {}, "RECTANGLE_RANGE"},
      {Rect(2, 3, 0, 128), page, {}, "RECTANGLE_RANGE"},
      {Rect(0, 3, UINT64_MAX - 5, 128), page, {}, "RECTANGLE_RANGE"},
      {heads, page, {}, "RECTANGLE_RANGE"},
      {latent, page, {}, "EMPTY_RECTANGLE"},
      {Rect(0, 0, 0, 128), page, {}, "EMPTY_RECTANGLE"},
      {Rect(0, 3, 0, 0), page, {}, "EMPTY_RECTANGLE"},
      {Rect(0, 3, 0, 127), page, {}, "PAYLOAD_SIZE"},
      {Rect(0, 3, 0, 128), page, Crc32c(page) + 1, "PAYLOAD_CHECKSUM"},
  };
  for (const Case& k : cases) {
    SCOPED_TRACE(k.reason);
    auto run = pipeline_.OpenPut(Params(g, "s", 0, 200));
    ASSERT_TRUE(run.ok()) << run.status();
    const absl::Status s = Add(**run, k.r, k.payload, k.crc);
    EXPECT_EQ(ReasonOf(s), k.reason) << s;
  }
  auto overlap = pipeline_.OpenPut(Params(g, "s", 0, 200));
  ASSERT_TRUE(overlap.ok());
  ASSERT_TRUE(Add(**overlap, Rect(0, 3, 0, 128), page).ok());
  EXPECT_EQ(ReasonOf(Add(**overlap, Rect(1, 1, 127, 2), c.Payload(1, 1, 0, 4, 127, 2))), "OVERLAP");
  // The run is dead then, whatever follows.
  EXPECT_EQ(ReasonOf(Add(**overlap, Rect(0, 3, 128, 72), c.Payload(0, 3, 0, 4, 128, 72))), "OVERLAP");
  EXPECT_EQ(Commit(**overlap, true).status().code(), absl::StatusCode::kInvalidArgument);
  overlap = absl::CancelledError();
  EXPECT_EQ(store_.Usage().sessions, 0u);
  EXPECT_EQ(store_.Usage().chunks, 0u);
}

TEST_F(PipelineTest, TilesOfADeadRunAreNotEncoded) {
  const Geometry g = SmallModel();
  const Cache c(g, 128, 9);
  PutParams params = Params(g, "s", 0, 128);
  params.codec = "int8";
  auto run = pipeline_.OpenPut(params);
  ASSERT_TRUE(run.ok());
  // Both workers are held, so that the tiles are still waiting when the run dies.
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  for (int i = 0; i < 2; ++i) executor_.Submit([released] { released.wait(); });
  ASSERT_TRUE(Add(**run, Rect(0, 3, 0, 128), c.Payload(0, 3, 0, 4, 0, 128)).ok());
  (*run)->Abort();
  release.set_value();
  EXPECT_EQ(Commit(**run, true).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ((*run)->progress().stored_bytes, 0u);
}

TEST_F(PipelineTest, AnAbortedRunGivesItsMemoryBack) {
  const Geometry g = SmallModel();
  const Cache c(g, 512, 9);
  {
    auto run = pipeline_.OpenPut(Params(g, "s", 0, 512));
    ASSERT_TRUE(run.ok());
    EXPECT_GT(budget_.used(), 512u * g.ElementsPerToken() * 2);
    ASSERT_TRUE(Add(**run, Rect(0, 3, 0, 300), c.Payload(0, 3, 0, 4, 0, 300)).ok());
    (*run)->Abort();
  }
  // Tiles under way hold the run.
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (budget_.used() > 0 && absl::Now() < deadline) std::this_thread::yield();
  EXPECT_EQ(budget_.used(), 0u);
  EXPECT_EQ(store_.Usage().sessions, 0u);
}

class SmallBudget : public PipelineTest {
 protected:
  SmallBudget() : PipelineTest(90000) {}
};

TEST_F(SmallBudget, RefusesBeforeTheFirstByteAndSaysWhetherWaitingHelps) {
  const Geometry g = SmallModel();
  const Cache c(g, 512, 9);
  auto never = pipeline_.OpenPut(Params(g, "never", 0, 512));
  EXPECT_EQ(never.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(RetryOf(never.status()).has_value());
  ASSERT_TRUE(Put(c, Params(g, "one", 0, 128), true).ok());
  auto later = pipeline_.OpenPut(Params(g, "two", 0, 128));
  EXPECT_EQ(later.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryOf(later.status()).has_value());
  ASSERT_TRUE(store_.Delete({"", "one"}).ok());
  EXPECT_TRUE(pipeline_.OpenPut(Params(g, "two", 0, 128)).ok());
}

TEST_F(PipelineTest, TwoWritersOfOneShardOneIsAborted) {
  const Geometry g = SmallModel();
  const Cache c(g, 128, 9);
  auto a = pipeline_.OpenPut(Params(g, "s", 0, 128));
  auto b = pipeline_.OpenPut(Params(g, "s", 0, 128));
  ASSERT_TRUE(a.ok() && b.ok());
  for (auto* run : {&a, &b}) {
    ASSERT_TRUE(Add(***run, Rect(0, 3, 0, 128), c.Payload(0, 3, 0, 4, 0, 128)).ok());
  }
  EXPECT_TRUE(Commit(**a, false).ok());
  EXPECT_EQ(Commit(**b, false).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(CheckGet(c, Whole("s")), 128u * g.ElementsPerToken() * 2);
}

TEST_F(PipelineTest, APutIdIsCommittedOnce) {
  const Geometry g = SmallModel();
  const Cache c(g, 128, 9);
  PutParams p = Params(g, "s", 0, 128);
  p.put_id = "abc";
  auto first = Put(c, p, false);
  auto again = Put(c, p, false);
  ASSERT_TRUE(first.ok() && again.ok()) << again.status();
  EXPECT_FALSE(first->replayed);
  EXPECT_TRUE(again->replayed);
  EXPECT_EQ(again->version, first->version);
  p.put_id = "def";
  EXPECT_EQ(Put(c, p, false).status().code(), absl::StatusCode::kAlreadyExists);
  p.token_begin = 256;
  EXPECT_EQ(ReasonOf(pipeline_.OpenPut(p).status()), "TOKEN_GAP");
}

TEST_F(PipelineTest, ManyWritersAndReadersAtOnce) {
  const Geometry g = SmallModel();
  const Cache c(g, 400, 11);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 5; ++k) {
        const std::string id = absl::StrCat("s", i, "-", k);
        PutParams p = Params(g, id, 0, 400);
        p.token_ids = c.ids(0, 400);  // the same pages in every session
        auto r = Put(c, std::move(p), k % 2);
        ASSERT_TRUE(r.ok()) << r.status();
        EXPECT_EQ(CheckGet(c, Whole(id)), r->raw_bytes);
        if (k % 2) {
          EXPECT_TRUE(store_.Delete({"", id}).ok());
        }
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(store_.Usage().sessions, 24u);
  // Three whole pages once, a raw tail for each session.
  EXPECT_EQ(store_.Usage().chunks, 3u + 24u);
}

// Raw pages are laid out before their bytes come: in whatever order they come, whole or in
// parts, with checksums or without, and after a tail, the chunk is a good one.
TEST_F(PipelineTest, APageFilledInAnyOrderIsAGoodChunk) {
  const Geometry g = SmallModel();
  const Cache c(g, 300, 17);
  const auto sum = [](const Bytes& b) { return Crc32c(b); };
  // Tokens 0 to 100 first, unsealed; then the rest, its pages filled from the end.
  ASSERT_TRUE(Put(c, Params(g, "s", 0, 100), false).ok());
  auto run = pipeline_.OpenPut(Params(g, "s", 100, 200));
  ASSERT_TRUE(run.ok()) << run.status();
  for (const auto& [begin, end] :
       std::vector<std::pair<int, int>>{{256, 300}, {200, 256}, {128, 160}, {160, 200}, {100, 128}}) {
    for (int l = 2; l >= 0; --l) {
      const Bytes payload = c.Payload(l, 1, 0, 4, begin, end - begin);
      std::optional<uint32_t> crc;
      if (l != 1) crc = sum(payload);
      ASSERT_TRUE(Add(**run, Rect(l, 1, begin, end - begin), payload, crc).ok());
    }
  }
  ASSERT_TRUE(Commit(**run, true).ok());
  auto plan = store_.OpenRead({"", "s"}, 0, 0);
  ASSERT_TRUE(plan.ok());
  ASSERT_EQ(plan->shards[0].chunks.size(), 3u);
  for (const ChunkRef& chunk : plan->shards[0].chunks) {
    const auto view = ParseChunk(chunk->bytes, Verify::kAll);
    ASSERT_TRUE(view.ok()) << view.status();
    for (size_t t = 0; t < view->tiles.size(); ++t) {
      EXPECT_TRUE(VerifyTile(*view, static_cast<int>(t)).ok());
    }
  }
  CheckGet(c, Whole("s"));
}

// What lies in memory as a reader wants it is not copied; everything else is decoded.
TEST_F(PipelineTest, OnlyWholeRawPagesAsTheyWerePutAreGivenAsStored) {
  const Geometry g = SmallModel();
  const Cache c(g, 200, 19);
  ASSERT_TRUE(Put(c, Params(g, "s", 0, 128), true).ok());
  CheckGet(c, Whole("s"));
  EXPECT_EQ(as_stored_, 1);
  ASSERT_TRUE(Put(c, Params(g, "two", 0, 200), true).ok());
  const auto none = [&](GetParams p, const char* why) {
    auto run = pipeline_.OpenGet(p);
    ASSERT_TRUE(run.ok()) << run.status();
    for (const GetRectangle& r : (*run)->rectangles()) {
      const auto stored = (*run)->AsStored(r);
      ASSERT_TRUE(stored.ok()) << stored.status();
      EXPECT_FALSE(stored->has_value()) << why;
    }
  };
  GetParams p = Whole("s");
  p.dtype = Dtype::kF32;
  none(p, "another dtype");
  p = Whole("s");
  p.position_offset = 1;
  none(p, "keys turned");
  p = Whole("s");
  p.head_end = 2;
  none(p, "some heads");
  p = Whole("s");
  p.token_begin = 3;
  p.token_end = 120;
  none(p, "part of a page");
  none(Whole("two"), "pages of one rectangle, head by head");
  PutParams int8 = Params(g, "other", 0, 128);
  int8.codec = "int8";
  ASSERT_TRUE(Put(c, int8, true).ok());
  none(Whole("other"), "codes");
}

TEST_F(PipelineTest, AFlippedBitIsDataLoss) {
  const Geometry g = SmallModel();
  const Cache c(g, 128, 13);
  ASSERT_TRUE(Put(c, Params(g, "s", 0, 128), true).ok());
  auto plan = store_.OpenRead({"", "s"}, 0, 0);
  ASSERT_TRUE(plan.ok());
  auto& bytes = const_cast<ChunkBytes&>(plan->shards[0].chunks[0]->bytes);
  bytes[bytes.size() / 2] ^= 16;
  auto run = pipeline_.OpenGet(Whole("s"));
  ASSERT_TRUE(run.ok()) << run.status();
  absl::Status worst;
  for (const GetRectangle& r : (*run)->rectangles()) {
    Bytes out(r.bytes);
    const absl::Status decoded = (*run)->Decode(r, absl::MakeSpan(out));
    const auto stored = (*run)->AsStored(r);
    EXPECT_EQ(decoded.code(), stored.status().code());
    worst.Update(decoded);
  }
  EXPECT_EQ(worst.code(), absl::StatusCode::kDataLoss) << worst;
}

// int8 whose every decode is off by one in one element of each group.
class WrongInt8 : public Codec {
 public:
  explicit WrongInt8(std::unique_ptr<Codec> right) : right_(std::move(right)) {}
  CodecId id() const override { return right_->id(); }
  const Geometry& geometry() const override { return right_->geometry(); }
  absl::Span<const Group> groups() const override { return right_->groups(); }
  size_t MaxTileBytes(int group, int tokens, Dtype dtype) const override {
    return right_->MaxTileBytes(group, tokens, dtype);
  }
  absl::Status Encode(absl::Span<EncodeJob> jobs, Workspace& w) const override {
    absl::Status s = right_->Encode(jobs, w);
    for (EncodeJob& job : jobs) job.certificate.predicted_kld = .001;
    return s;
  }
  absl::Status Decode(absl::Span<DecodeJob> jobs, Workspace& w) const override {
    absl::Status s = right_->Decode(jobs, w);
    for (DecodeJob& job : jobs) {
      uint8_t* at = job.destination.At(0, 0, 0, 0);
      StoreElement(LoadElement(at, job.destination.dtype) + 1, job.destination.dtype, at);
    }
    return s;
  }
  double MeasureKld(const EncodeJob& job, const ConstKvView& decoded) const override {
    return std::abs(LoadElement(job.source.At(0, 0, 0, 0), job.source.dtype) -
                    LoadElement(decoded.At(0, 0, 0, 0), decoded.dtype));
  }

 private:
  const std::unique_ptr<Codec> right_;
};

class ShadowedPipelineTest : public PipelineTest {
 protected:
  // Puts `tokens` of int8, sealed, through a pipeline with shadow mode.
  void PutShadowed(Pipeline::Options options, int tokens, bool in_layers) {
    Pipeline pipeline(&store_, &budget_, &profiles_, &executor_, &metrics_, options);
    const Geometry g = SmallModel();
    const Cache c(g, tokens, 23);
    PutParams p = Params(g, "s", 0, tokens);
    p.codec = "int8";
    auto run = pipeline.OpenPut(p);
    ASSERT_TRUE(run.ok()) << run.status();
    for (int l = 0; l < 3; l += in_layers ? 1 : 3) {
      const int n = in_layers ? 1 : 3;
      ASSERT_TRUE(Add(**run, Rect(l, n, 0, tokens), c.Payload(l, n, 0, 4, 0, tokens)).ok());
    }
    const auto put = Commit(**run, true);
    ASSERT_TRUE(put.ok()) << put.status();
    run->reset();
    pipeline.shadow().WaitIdle();
    EXPECT_EQ(pipeline.shadow().kept_bytes(), 0u) << "raw forms go once they are measured";
  }
  int Count(const std::string& series) const {
    const std::string text = "\n" + metrics_.Text();
    const size_t at = text.find("\n" + series + " ");
    if (at == std::string::npos) return 0;
    return std::stoi(text.substr(at + series.size() + 2));
  }
};

TEST_F(ShadowedPipelineTest, PagesOfThePutAreMeasuredHoweverTheyCame) {
  Pipeline::Options options;
  options.shadow.fraction = 1;
  PutShadowed(options, 300, false);
  const std::string measured =
      "kvcask_shadow_chunks_total{codec=\"int8\",result=\"uncertified\"}";
  EXPECT_EQ(Count(measured), 3);
  ASSERT_TRUE(store_.Delete({"", "s"}).ok());
  PutShadowed(options, 300, true);
  EXPECT_EQ(Count(measured), 6);
  // int8: a 254th of each row's range.
  EXPECT_EQ(Count("kvcask_shadow_relative_error_bucket{codec=\"int8\",le=\"0.001\"}"), 0);
  EXPECT_EQ(Count("kvcask_shadow_relative_error_bucket{codec=\"int8\",le=\"0.02\"}"), 6);
}

TEST_F(ShadowedPipelineTest, AWrongDecodeIsCounted) {
  Pipeline::Options options;
  options.shadow.fraction = 1;
  options.make_codec = [](const CodecEntry& entry, const CodecSpec& spec)
      -> absl::StatusOr<std::unique_ptr<Codec>> {
    auto codec = entry.make(spec);
    if (!codec.ok() || entry.id != CodecId::kInt8) return codec;
    return std::unique_ptr<Codec>(new WrongInt8(*std::move(codec)));
  };
  PutShadowed(options, 128, false);
  EXPECT_EQ(Count("kvcask_shadow_chunks_total{codec=\"int8\",result=\"over\"}"), 1);
}

TEST_F(ShadowedPipelineTest, WithoutRoomThePutGoesOnAndIsSkipped) {
  Pipeline::Options options;
  options.shadow.fraction = 1;
  options.shadow.bytes = 1000;
  PutShadowed(options, 256, false);
  EXPECT_EQ(Count("kvcask_shadow_skipped_total"), 2);
  EXPECT_EQ(Count("kvcask_shadow_relative_error_count{codec=\"int8\"}"), 0);
}

TEST_F(ShadowedPipelineTest, OffNothingIsKept) {
  PutShadowed({}, 256, false);
  EXPECT_EQ(Count("kvcask_shadow_skipped_total"), 0);
  EXPECT_EQ(Count("kvcask_shadow_relative_error_count{codec=\"int8\"}"), 0);
}

}  // namespace
}  // namespace kvcask
