// What is put comes back: whole, in parts, put in parts, from many clients.
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "client/cc/convert.h"
#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

constexpr uint64_t kTokens = 256;
constexpr uint32_t kLayers = 30;
constexpr uint64_t kRawBytes = 5898240;  // 30 layers x 2 x 3 heads x 64 x 256 tokens x 2 bytes

#define ASSERT_OK(expression)                           \
  do {                                                  \
    const auto& status_or = (expression);               \
    ASSERT_TRUE(status_or.ok()) << StatusOf(status_or); \
  } while (0)
std::string StatusOf(const absl::Status& s) { return Describe(s); }
template <typename T>
std::string StatusOf(const absl::StatusOr<T>& s) {
  return Describe(s.status());
}

class RoundTripTest : public testing::Test {
 protected:
  Daemon daemon_;
  Client client_ = daemon_.Connect();
};

TEST_F(RoundTripTest, RawIsByteExactOverUnixAndTcp) {
  for (const std::string& address : {daemon_.unix_address(), daemon_.tcp_address()}) {
    SCOPED_TRACE(address);
    auto client = Client::Connect(address);
    ASSERT_OK(client);
    const std::string session = absl::StrCat("over-", address.substr(0, 4));
    const auto put = PutExample(*client, OpenOf(session, "raw"));
    ASSERT_OK(put);
    EXPECT_EQ(put->visible_tokens(), kTokens);
    EXPECT_EQ(put->raw_bytes(), kRawBytes);
    EXPECT_GE(put->stored_bytes(), kRawBytes);
    EXPECT_LT(put->stored_bytes(), kRawBytes * 101 / 100);
    const auto got = Fetch(*client, RequestOf(session));
    ASSERT_OK(got);
    EXPECT_EQ(DifferenceFromExample(*got), "");
    EXPECT_EQ(got->header.codec(), "raw");
    EXPECT_EQ(got->header.total_tokens(), kTokens);
    EXPECT_EQ(got->header.payload_bytes(), kRawBytes);
    const auto& ids = Example().info().token_ids;
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), got->header.token_ids().begin(),
                           got->header.token_ids().end()));
    EXPECT_EQ(got->geometry.ComputeFingerprint(), Example().geometry().ComputeFingerprint());
  }
}

// codec/scalar/int8.h: |x^ - x| <= (1/2 + 2^-15) scale, scale = the row's largest magnitude /
// 127 rounded up to a half; then x^ is rounded to bf16 (relative 2^-8).
TEST_F(RoundTripTest, Int8ErrorIsWithinItsStatedBound) {
  const auto put = PutExample(client_, OpenOf("s", "int8"));
  ASSERT_OK(put);
  EXPECT_LT(put->stored_bytes(), kRawBytes * 55 / 100);
  const auto got = Fetch(client_, RequestOf("s"));
  ASSERT_OK(got);
  const ConstKvView view = Example().view();
  double worst = 0;  // error over bound
  for (size_t p = 0; p < got->planes.size(); ++p) {
    for (int h = 0; h < 3; ++h) {
      for (uint64_t t = 0; t < kTokens; ++t) {
        const uint8_t* x = view.At(static_cast<int>(p), h, static_cast<int64_t>(t), 0);
        const uint8_t* y = got->planes[p].data() + (h * kTokens + t) * 128;
        double largest = 0;
        for (int d = 0; d < 64; ++d) {
          largest = std::max(largest, std::abs(double{LoadElement(x + 2 * d, Dtype::kBf16)}));
        }
        const double scale = largest / 127 * (1 + 0x1p-10) + 0x1p-24;
        for (int d = 0; d < 64; ++d) {
          const double a = LoadElement(x + 2 * d, Dtype::kBf16);
          const double b = LoadElement(y + 2 * d, Dtype::kBf16);
          const double bound = (.5 + 0x1p-15) * scale + std::abs(b) * 0x1p-8;
          worst = std::max(worst, std::abs(a - b) / bound);
          ASSERT_LE(std::abs(a - b), bound)
              << "plane " << p << " head " << h << " token " << t << " element " << d;
        }
      }
    }
  }
  EXPECT_GT(worst, .5);  // the bound is one that could be broken
  EXPECT_NE(DifferenceFromExample(*got), "");
}

TEST_F(RoundTripTest, TokenRangesAreThoseOfTheWhole) {
  for (const std::string codec : {"raw", "int8", "kakeya-1.3"}) {
    ASSERT_OK(PutExample(client_, OpenOf(codec, codec)));
    const auto whole = Fetch(client_, RequestOf(codec));
    ASSERT_OK(whole);
    const std::pair<uint64_t, uint64_t> ranges[] = {{0, 1},     {0, 128},   {127, 129}, {100, 228},
                                                    {128, 256}, {255, 256}, {31, 32},   {200, 0}};
    for (const auto& [begin, end] : ranges) {
      SCOPED_TRACE(absl::StrCat(codec, " ", begin, ":", end));
      const auto part = Fetch(client_, RequestOf(codec, begin, end));
      ASSERT_OK(part);
      const uint64_t stop = end == 0 ? kTokens : end;
      ASSERT_EQ(part->header.tokens().begin(), begin);
      ASSERT_EQ(part->header.tokens().end(), stop);
      ASSERT_EQ(static_cast<uint64_t>(part->header.token_ids_size()), stop - begin);
      EXPECT_EQ(part->header.token_ids(0), Example().info().token_ids[begin]);
      for (size_t p = 0; p < part->planes.size(); ++p) {
        for (int h = 0; h < 3; ++h) {
          ASSERT_EQ(0, std::memcmp(part->planes[p].data() + h * (stop - begin) * 128,
                                   whole->planes[p].data() + (h * kTokens + begin) * 128,
                                   (stop - begin) * 128))
              << "plane " << p << " head " << h;
        }
      }
    }
  }
}

TEST_F(RoundTripTest, LayerRangesAndOrdersBringTheSameBytes) {
  ASSERT_OK(PutExample(client_, OpenOf("s", "raw")));
  for (const auto& [begin, end] :
       {std::pair<uint64_t, uint64_t>{0, 1}, {7, 11}, {29, 30}, {12, 0}}) {
    for (const auto order :
         {v1::GetRequest::ORDER_TOKEN_MAJOR, v1::GetRequest::ORDER_LAYER_MAJOR}) {
      SCOPED_TRACE(absl::StrCat(begin, ":", end, " order ", order));
      auto request = RequestOf("s", 50, 250, begin, end);
      request.set_order(order);
      const auto got = Fetch(client_, request);
      ASSERT_OK(got);
      EXPECT_EQ(got->planes.size(), 2 * ((end == 0 ? kLayers : end) - begin));
      EXPECT_EQ(DifferenceFromExample(*got), "");
    }
  }
}

TEST_F(RoundTripTest, AGetOfSomeHeadsBringsOnlyThose) {
  ASSERT_OK(PutExample(client_, OpenOf("s", "raw")));
  auto request = RequestOf("s", 0, 0, 3, 5);
  request.mutable_shard()->set_head_begin(1);
  request.mutable_shard()->set_head_end(2);
  auto stream = client_.OpenGet(request);
  ASSERT_OK(stream);
  uint64_t bytes = 0;
  for (;;) {
    auto piece = stream->Next();
    ASSERT_OK(piece);
    if (!piece->has_value()) break;
    EXPECT_EQ((*piece)->rectangle().head_begin(), 1u);
    EXPECT_EQ((*piece)->rectangle().head_count(), 1u);
    std::vector<uint8_t> payload;
    for (ConstBytes p : (*piece)->payload()) payload.insert(payload.end(), p.begin(), p.end());
    EXPECT_EQ(payload, ExampleBytes((*piece)->rectangle()));
    bytes += payload.size();
  }
  EXPECT_EQ(bytes, uint64_t{2} * 2 * 64 * kTokens * 2);
}

TEST_F(RoundTripTest, LayerByLayerPutsAreTheSameAsWhole) {
  for (const std::string codec : {"raw", "int8"}) {
    ASSERT_OK(PutExample(client_, OpenOf(codec + "-pages", codec), true, PutOrder::kTokenMajor));
    ASSERT_OK(PutExample(client_, OpenOf(codec + "-layers", codec), true, PutOrder::kLayerMajor));
    const auto pages = Fetch(client_, RequestOf(codec + "-pages"));
    const auto layers = Fetch(client_, RequestOf(codec + "-layers"));
    ASSERT_OK(pages);
    ASSERT_OK(layers);
    EXPECT_EQ(pages->planes, layers->planes) << codec;
  }
}

TEST_F(RoundTripTest, RectanglesMayComeInAnyOrderAndShape) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  std::vector<v1::Rectangle> rectangles;
  for (uint32_t layer = 0; layer < kLayers; layer += 3) {
    for (const v1::StreamKind stream : {v1::STREAM_KIND_K, v1::STREAM_KIND_V}) {
      for (uint32_t head = 0; head < 3; ++head) {
        for (uint32_t t = 0; t < kTokens;) {
          const uint32_t count =
              std::min<uint32_t>(static_cast<uint32_t>(kTokens) - t, 20 + random() % 150);
          v1::Rectangle r = MakeRectangle(layer, 3, t, count);
          r.add_streams(stream);
          r.set_head_begin(head);
          r.set_head_count(1);
          rectangles.push_back(r);
          t += count;
        }
      }
    }
  }
  std::shuffle(rectangles.begin(), rectangles.end(), random);
  auto put = client_.OpenPut(OpenOf("s", "raw"));
  ASSERT_OK(put);
  for (const v1::Rectangle& r : rectangles) ASSERT_OK(put->Write(r, ExampleBytes(r)));
  ASSERT_OK(put->Commit(Seal()));
  const auto got = Fetch(client_, RequestOf("s"));
  ASSERT_OK(got);
  EXPECT_EQ(DifferenceFromExample(*got), "");
}

TEST_F(RoundTripTest, TwoShardsBecomeVisibleTogether) {
  struct Cut {
    const char* name;
    uint32_t layer[3], head[3];  // [0] to [1] is shard 0's; 0: all
  };
  for (const Cut& cut :
       {Cut{"layers", {0, 11, 30}, {0, 0, 0}}, Cut{"heads", {0, 0, 0}, {0, 1, 3}}}) {
    SCOPED_TRACE(cut.name);
    for (uint32_t i = 0; i < 2; ++i) {
      v1::PutOpen open = OpenOf(cut.name, "int8");
      v1::Shard* shard = open.mutable_shard();
      shard->set_index(i);
      shard->set_count(2);
      shard->set_layer_begin(cut.layer[i]);
      shard->set_layer_end(cut.layer[i + 1]);
      shard->set_head_begin(cut.head[i]);
      shard->set_head_end(cut.head[i + 1]);
      const auto put = PutExample(client_, open);
      ASSERT_OK(put);
      EXPECT_EQ(put->visible_tokens(), i == 0 ? 0 : kTokens);
      const auto stat = client_.StatSession(Ref(cut.name));
      ASSERT_OK(stat);
      EXPECT_EQ(stat->tokens(), i == 0 ? 0 : kTokens);
    }
    ASSERT_OK(PutExample(client_, OpenOf("whole", "int8")));
    const auto whole = Fetch(client_, RequestOf("whole"));
    const auto got = Fetch(client_, RequestOf(cut.name));
    ASSERT_OK(whole);
    ASSERT_OK(got);
    EXPECT_EQ(got->planes, whole->planes);
    EXPECT_TRUE(client_.DeleteSession(Ref("whole"), false).ok());
  }
}

TEST_F(RoundTripTest, ASessionMayStartAtPosition5000) {
  v1::PutOpen open = OpenOf("s", "raw");
  open.mutable_positions()->set_first_position(5000);
  ASSERT_OK(PutExample(client_, open));
  const auto got = Fetch(client_, RequestOf("s", 10, 20));
  ASSERT_OK(got);
  EXPECT_EQ(got->header.first_position(), 5000u);
  EXPECT_EQ(DifferenceFromExample(*got), "");
}

// Keys of position p fetched with an offset are those of position p + offset: so the model's
// own keys come back after a turn forth and one back, up to bf16's rounding, and values never
// change.
TEST_F(RoundTripTest, APositionOffsetTurnsKeysAndOnlyKeys) {
  ASSERT_OK(PutExample(client_, OpenOf("s", "raw")));
  auto request = RequestOf("s");
  request.set_position_offset(5000);
  const auto turned = Fetch(client_, request);
  ASSERT_OK(turned);

  v1::PutOpen open = OpenOf("t", "raw");
  open.mutable_positions()->set_first_position(5000);
  std::vector<ConstPlaneView> planes;
  for (const auto& p : turned->planes) planes.push_back({p.data(), kTokens * 128, 128, 2});
  ASSERT_OK(client_.PutRun(open, {{Dtype::kBf16, planes, {}}, nullptr}, Seal()));
  request = RequestOf("t");
  request.set_position_offset(-5000);
  const auto back = Fetch(client_, request);
  ASSERT_OK(back);

  const ConstKvView view = Example().view();
  double error = 0, moved = 0, size = 0;
  for (size_t p = 0; p < back->planes.size(); ++p) {
    const uint8_t* original = view.planes[p].data;
    if (p % 2 == 1) {
      EXPECT_EQ(0, std::memcmp(back->planes[p].data(), original, back->planes[p].size()));
      EXPECT_EQ(0, std::memcmp(turned->planes[p].data(), original, back->planes[p].size()));
      continue;
    }
    for (size_t i = 0; i < back->planes[p].size(); i += 2) {
      const double x = LoadElement(original + i, Dtype::kBf16);
      const double y = LoadElement(back->planes[p].data() + i, Dtype::kBf16);
      const double z = LoadElement(turned->planes[p].data() + i, Dtype::kBf16);
      error += (x - y) * (x - y);
      moved += (x - z) * (x - z);
      size += x * x;
    }
  }
  EXPECT_LT(std::sqrt(error / size), .005);
  EXPECT_GT(std::sqrt(moved / size), .1);
}

TEST_F(RoundTripTest, TailsOfEveryLengthAndTheAppendsThatCompleteThem) {
  for (uint64_t tail = 1; tail < 128; ++tail) {
    SCOPED_TRACE(absl::StrCat("tail of ", tail));
    const std::string session = absl::StrCat("tail-", tail);
    ASSERT_OK(PutExample(client_, OpenOf(session, "raw", 0, tail), /*seal=*/false));
    const auto first = Fetch(client_, RequestOf(session));
    ASSERT_OK(first);
    ASSERT_EQ(first->tokens(), tail);
    ASSERT_EQ(DifferenceFromExample(*first), "");
    const auto put = PutExample(client_, OpenOf(session, "raw", tail, 128), false);
    ASSERT_OK(put);
    ASSERT_EQ(put->shard_tokens(), 128u);
    const auto got = Fetch(client_, RequestOf(session));
    ASSERT_OK(got);
    ASSERT_EQ(DifferenceFromExample(*got), "");
    ASSERT_OK(client_.DeleteSession(Ref(session), false));
  }
}

// Appended pages are encoded as if they had been put at once: int8 is deterministic.
TEST_F(RoundTripTest, AppendsAcrossPagesEqualOnePut) {
  ASSERT_OK(PutExample(client_, OpenOf("once", "int8")));
  uint64_t at = 0;
  for (const uint64_t end : {1, 60, 127, 130, 200, 256}) {
    ASSERT_OK(PutExample(client_, OpenOf("steps", "int8", at, end), end == kTokens));
    at = end;
  }
  const auto once = Fetch(client_, RequestOf("once"));
  const auto steps = Fetch(client_, RequestOf("steps"));
  ASSERT_OK(once);
  ASSERT_OK(steps);
  EXPECT_EQ(once->planes, steps->planes);
}

TEST_F(RoundTripTest, SixteenClientsAtOnce) {
  std::vector<std::thread> threads;
  std::vector<std::string> failures(16);
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&, i] {
      auto client = Client::Connect(i % 2 == 0 ? daemon_.unix_address() : daemon_.tcp_address());
      if (!client.ok()) {
        failures[i] = Describe(client.status());
        return;
      }
      const std::string session = absl::StrCat("client-", i);
      for (int round = 0; round < 2 && failures[i].empty(); ++round) {
        const auto put = PutExample(*client, OpenOf(session, "raw"), true,
                                    i % 3 == 0 ? PutOrder::kLayerMajor : PutOrder::kTokenMajor);
        const auto got =
            put.ok() ? Fetch(*client, RequestOf(session)) : absl::StatusOr<Fetched>(put.status());
        failures[i] = got.ok() ? DifferenceFromExample(*got) : Describe(got.status());
        const auto removed = client->DeleteSession(Ref(session), false);
        if (!removed.ok()) failures[i] += Describe(removed.status());
      }
    });
  }
  for (std::thread& t : threads) t.join();
  for (int i = 0; i < 16; ++i) EXPECT_EQ(failures[i], "") << "client " << i;
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client_); }));
}

}  // namespace
}  // namespace kvcask
