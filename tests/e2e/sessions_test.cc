// Sessions over time: identity, versions, prefixes, sharing, removal.
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

class SessionsTest : public testing::Test {
 protected:
  v1::PrefixRef Prefix(uint64_t tokens) {
    const CacheInfo& info = Example().info();
    v1::PrefixRef prefix;
    prefix.mutable_identity()->set_model_id(info.metadata.model);
    prefix.mutable_token_ids()->Add(info.token_ids.begin(), info.token_ids.begin() + tokens);
    return prefix;
  }
  uint64_t LookUp(const v1::PrefixRef& prefix) {
    const auto found = client_.Lookup(prefix);
    EXPECT_TRUE(found.ok()) << Describe(found.status());
    return found.ok() ? found->tokens() : 0;
  }

  Daemon daemon_;
  Client client_ = daemon_.Connect();
};

TEST_F(SessionsTest, StatTellsWhatWasPut) {
  v1::PutOpen open = OpenOf("s", "int8");
  (*open.mutable_labels())["team"] = "search";
  open.set_ttl_seconds(3600);
  const auto put = PutExample(client_, open);
  ASSERT_TRUE(put.ok()) << Describe(put.status());
  const auto stat = client_.StatSession(Ref("s"));
  ASSERT_TRUE(stat.ok()) << Describe(stat.status());
  EXPECT_EQ(stat->tokens(), 256u);
  EXPECT_EQ(stat->codec(), "int8");
  EXPECT_TRUE(stat->sealed());
  EXPECT_EQ(stat->raw_bytes(), 5898240u);
  EXPECT_EQ(stat->stored_bytes(), put->stored_bytes());
  EXPECT_EQ(stat->unique_bytes(), put->stored_bytes());
  EXPECT_EQ(stat->dtype(), v1::DTYPE_BF16);
  EXPECT_EQ(stat->labels().at("team"), "search");
  EXPECT_EQ(stat->ttl_seconds(), 3600u);
  EXPECT_EQ(stat->identity().model_id(), Example().info().metadata.model);
  EXPECT_EQ(stat->geometry().layers_size(), 30);
  ASSERT_EQ(stat->shards_size(), 1);
  EXPECT_EQ(stat->shards(0).version(), 1u);
}

TEST_F(SessionsTest, ARepeatedPutIdIsAnsweredWithTheFirstResult) {
  v1::PutOpen open = OpenOf("s", "raw", 0, 100);
  open.set_put_id("once");
  const auto first = PutExample(client_, open, false);
  ASSERT_TRUE(first.ok()) << Describe(first.status());
  EXPECT_FALSE(first->replayed());
  const auto again = PutExample(client_, open, false);
  ASSERT_TRUE(again.ok()) << Describe(again.status());
  EXPECT_TRUE(again->replayed());
  EXPECT_EQ(again->version(), first->version());
  EXPECT_EQ(again->stored_bytes(), first->stored_bytes());
  const auto stat = client_.StatSession(Ref("s"));
  ASSERT_TRUE(stat.ok());
  EXPECT_EQ(stat->tokens(), 100u);
}

TEST_F(SessionsTest, AnotherVersionThanExpectedAborts) {
  ASSERT_TRUE(PutExample(client_, OpenOf("s", "raw", 0, 64), false).ok());
  v1::PutOpen open = OpenOf("s", "raw", 64, 128);
  open.set_expected_version(7);
  const auto put = PutExample(client_, open, false);
  EXPECT_EQ(put.status().code(), absl::StatusCode::kAborted) << put.status();
  EXPECT_EQ(DetailsOf(put.status()).reason, "VERSION");
  EXPECT_EQ(DetailsOf(put.status()).domain, "kvcask");
  open.set_expected_version(1);
  const auto right = PutExample(client_, open, false);
  ASSERT_TRUE(right.ok()) << Describe(right.status());
  EXPECT_EQ(right->version(), 2u);
}

TEST_F(SessionsTest, OfTwoWritersFromOneVersionOneLoses) {
  auto a = client_.OpenPut(OpenOf("s", "raw", 0, 10));
  auto b = client_.OpenPut(OpenOf("s", "raw", 0, 10));
  ASSERT_TRUE(a.ok() && b.ok());
  const v1::Rectangle r = MakeRectangle(0, 30, 0, 10);
  ASSERT_TRUE(a->Write(r, ExampleBytes(r)).ok());
  ASSERT_TRUE(b->Write(r, ExampleBytes(r)).ok());
  EXPECT_TRUE(a->Commit(Seal(false)).ok());
  const auto lost = b->Commit(Seal(false));
  EXPECT_EQ(lost.status().code(), absl::StatusCode::kAborted) << lost.status();
  const auto stat = client_.StatSession(Ref("s"));
  ASSERT_TRUE(stat.ok());
  EXPECT_EQ(stat->tokens(), 10u);
}

TEST_F(SessionsTest, LookupFindsTheLongestStoredPrefixInWholePages) {
  EXPECT_EQ(LookUp(Prefix(256)), 0u);
  ASSERT_TRUE(PutExample(client_, OpenOf("s", "raw", 0, 200), false).ok());
  EXPECT_EQ(LookUp(Prefix(256)), 128u);
  EXPECT_EQ(LookUp(Prefix(127)), 0u);
  ASSERT_TRUE(PutExample(client_, OpenOf("s", "raw", 200, 256), false).ok());
  EXPECT_EQ(LookUp(Prefix(256)), 256u);
  v1::PrefixRef other = Prefix(256);
  other.set_token_ids(130, other.token_ids(130) + 1);
  EXPECT_EQ(LookUp(other), 128u);
  other = Prefix(256);
  other.mutable_identity()->set_model_id("another");
  EXPECT_EQ(LookUp(other), 0u);
  other = Prefix(256);
  other.mutable_identity()->set_extra_key("lora-7");
  EXPECT_EQ(LookUp(other), 0u);
  other = Prefix(256);
  other.set_namespace_("elsewhere");
  EXPECT_EQ(LookUp(other), 0u);
}

TEST_F(SessionsTest, AGetByPrefixReadsWhatAnotherSessionStored) {
  ASSERT_TRUE(PutExample(client_, OpenOf("s", "raw")).ok());
  v1::GetRequest request;
  *request.mutable_prefix() = Prefix(200);
  const auto got = Fetch(client_, request);
  ASSERT_TRUE(got.ok()) << Describe(got.status());
  EXPECT_EQ(got->tokens(), 128u);
  EXPECT_EQ(DifferenceFromExample(*got), "");
  request.mutable_prefix()->mutable_identity()->set_model_id("another");
  EXPECT_EQ(Fetch(client_, request).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SessionsTest, EqualPagesAreKeptOnce) {
  ASSERT_TRUE(PutExample(client_, OpenOf("a", "int8")).ok());
  const auto alone = client_.GetServerInfo();
  ASSERT_TRUE(PutExample(client_, OpenOf("b", "int8")).ok());
  const auto both = client_.GetServerInfo();
  ASSERT_TRUE(alone.ok() && both.ok());
  EXPECT_EQ(both->usage().stored_bytes(), alone->usage().stored_bytes());
  EXPECT_EQ(both->usage().sessions(), 2u);
  const auto stat = client_.StatSession(Ref("b"));
  ASSERT_TRUE(stat.ok());
  EXPECT_EQ(stat->unique_bytes(), 0u);
  EXPECT_EQ(stat->stored_bytes(), alone->usage().stored_bytes());
  // What is shared outlives the session that brought it.
  ASSERT_TRUE(client_.DeleteSession(Ref("a"), false).ok());
  EXPECT_TRUE(Fetch(client_, RequestOf("b")).ok());
}

TEST_F(SessionsTest, CreateListAndDelete) {
  v1::CreateSessionRequest create;
  *create.mutable_session() = Ref("made");
  create.mutable_identity()->set_model_id("m");
  ASSERT_TRUE(client_.CreateSession(create).ok());
  EXPECT_EQ(client_.CreateSession(create).status().code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(PutExample(client_, OpenOf("b", "raw", 0, 5)).ok());
  ASSERT_TRUE(PutExample(client_, OpenOf("a", "raw", 0, 6)).ok());
  const auto list = client_.ListSessions("");
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->size(), 3u);
  EXPECT_EQ((*list)[0].ref().session_id(), "a");
  EXPECT_EQ((*list)[1].ref().session_id(), "b");
  EXPECT_EQ((*list)[2].ref().session_id(), "made");
  EXPECT_EQ((*list)[0].tokens(), 6u);

  const auto deleted = client_.DeleteSession(Ref("a"), false);
  ASSERT_TRUE(deleted.ok());
  EXPECT_TRUE(deleted->deleted());
  EXPECT_GE(deleted->freed_bytes(), uint64_t{6} * 30 * 2 * 3 * 64 * 2);
  EXPECT_EQ(client_.DeleteSession(Ref("a"), false).status().code(), absl::StatusCode::kNotFound);
  const auto missing = client_.DeleteSession(Ref("a"), true);
  ASSERT_TRUE(missing.ok());
  EXPECT_FALSE(missing->deleted());
  EXPECT_EQ(client_.StatSession(Ref("a")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Fetch(client_, RequestOf("a")).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(client_.DeleteSession(Ref("b"), false).ok());
  ASSERT_TRUE(client_.DeleteSession(Ref("made"), false).ok());
  EXPECT_TRUE(Eventually([&] { return HoldsNothing(client_); }));
}

TEST_F(SessionsTest, AReadUnderWayOutlivesTheSession) {
  ASSERT_TRUE(PutExample(client_, OpenOf("s", "raw")).ok());
  auto stream = client_.OpenGet(RequestOf("s"));
  ASSERT_TRUE(stream.ok());
  ASSERT_TRUE(client_.DeleteSession(Ref("s"), false).ok());
  uint64_t bytes = 0;
  for (;;) {
    auto piece = stream->Next();
    ASSERT_TRUE(piece.ok()) << Describe(piece.status());
    if (!piece->has_value()) break;
    bytes += (*piece)->payload_bytes();
  }
  EXPECT_EQ(bytes, 5898240u);
}

TEST_F(SessionsTest, NamespacesKeepSessionsApart) {
  v1::PutOpen open = OpenOf("s", "raw", 0, 8);
  open.mutable_session()->set_namespace_("tenant-1");
  ASSERT_TRUE(PutExample(client_, open).ok());
  EXPECT_EQ(client_.StatSession(Ref("s")).status().code(), absl::StatusCode::kNotFound);
  const auto here = client_.ListSessions("tenant-1");
  ASSERT_TRUE(here.ok());
  EXPECT_EQ(here->size(), 1u);
  const auto other = client_.ListSessions("");
  ASSERT_TRUE(other.ok());
  EXPECT_TRUE(other->empty());
}

}  // namespace
}  // namespace kvcask
