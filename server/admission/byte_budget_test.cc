#include "server/admission/byte_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace kvcask {
namespace {

using ::testing::HasSubstr;

TEST(ByteBudget, TakesAndGivesBack) {
  ByteBudget budget(100);
  {
    auto r = budget.Reserve(60, "a run");
    ASSERT_TRUE(r.ok()) << r.status();
    EXPECT_EQ(r->bytes(), 60u);
    EXPECT_EQ(budget.used(), 60u);
  }
  EXPECT_EQ(budget.used(), 0u);
}

TEST(ByteBudget, RefusesWhatIsNotFreeAndSaysSo) {
  ByteBudget budget(100);
  auto held = budget.Reserve(60, "a run");
  ASSERT_TRUE(held.ok());
  auto r = budget.Reserve(41, "a run of 7 tokens");
  EXPECT_EQ(r.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(r.status().message(), HasSubstr("a run of 7 tokens needs 41 bytes"));
  EXPECT_THAT(r.status().message(), HasSubstr("40 of the memory budget's 100 are free"));
  EXPECT_FALSE(budget.NeverFits(41));
  EXPECT_EQ(budget.used(), 60u);
  EXPECT_TRUE(budget.Reserve(40, "what is left").ok());
}

TEST(ByteBudget, SaysWhenWaitingWillNotHelp) {
  ByteBudget budget(100);
  auto r = budget.Reserve(std::numeric_limits<uint64_t>::max(), "a run");
  EXPECT_EQ(r.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(r.status().message(), HasSubstr("waiting will not help"));
  EXPECT_TRUE(budget.NeverFits(101));
  EXPECT_FALSE(budget.NeverFits(100));
}

TEST(Reservation, ShrinksButNeverGrows) {
  ByteBudget budget(100);
  auto r = budget.Reserve(60, "a run");
  r->ShrinkTo(70);
  EXPECT_EQ(r->bytes(), 60u);
  r->ShrinkTo(10);
  EXPECT_EQ(r->bytes(), 10u);
  EXPECT_EQ(budget.used(), 10u);
}

TEST(Reservation, SplitMovesBytesAndNoMoreThanItHolds) {
  ByteBudget budget(100);
  auto r = budget.Reserve(60, "a run");
  Reservation a = r->Split(20);
  Reservation b = r->Split(1000);
  EXPECT_EQ(a.bytes(), 20u);
  EXPECT_EQ(b.bytes(), 40u);
  EXPECT_EQ(r->bytes(), 0u);
  EXPECT_EQ(budget.used(), 60u);
  b = Reservation();
  EXPECT_EQ(budget.used(), 20u);
}

TEST(Reservation, MovingLeavesNothingBehind) {
  ByteBudget budget(100);
  Reservation a = *budget.Reserve(30, "a");
  Reservation b = *budget.Reserve(50, "b");
  b = std::move(a);
  EXPECT_EQ(budget.used(), 30u);  // b's own 50 went back
  a = Reservation();              // moved from: gives back nothing
  EXPECT_EQ(budget.used(), 30u);
  Reservation& self = b;
  b = std::move(self);
  EXPECT_EQ(b.bytes(), 30u);
}

TEST(Reservation, AnEmptyOneCanBeSplitAndShrunk) {
  Reservation none;
  none.ShrinkTo(0);
  EXPECT_EQ(none.Split(10).bytes(), 0u);
}

// Threads that reserve, split, shrink and drop at random never exceed the limit and leave
// nothing behind.
TEST(ByteBudget, ManyThreadsStayWithinTheLimit) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  constexpr uint64_t kLimit = 1000;
  ByteBudget budget(kLimit);
  std::vector<std::thread> threads;
  std::atomic<int> refused{0}, over{0};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937 rng(seed + i);
      std::vector<Reservation> held;
      for (int step = 0; step < 5000; ++step) {
        auto r = budget.Reserve(rng() % 300, "x");
        if (budget.used() > kLimit) ++over;
        if (!r.ok()) {
          ++refused;
          if (!held.empty()) held.pop_back();
          continue;
        }
        held.push_back(r->Split(r->bytes() / 2));
        r->ShrinkTo(rng() % 100);
        held.push_back(*std::move(r));
        if (held.size() > 6) held.erase(held.begin(), held.begin() + 4);
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(over, 0);
  EXPECT_GT(refused, 0);  // the limit was met, or this shows nothing
  EXPECT_EQ(budget.used(), 0u);
}

}  // namespace
}  // namespace kvcask
