#include "server/batch/batcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace kvcask {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Batches = std::vector<std::vector<int>>;

BatchLimits Limits(size_t bytes, size_t items, absl::Duration age) {
  BatchLimits limits;
  limits.max_bytes = bytes;
  limits.max_items = items;
  limits.max_age = age;
  return limits;
}

TEST(Batcher, ClosesOnItems) {
  Batches got;
  Batcher<int> b(
      Limits(1000, 3, absl::Seconds(1)), [&](std::vector<int> v) { got.push_back(std::move(v)); },
      BatchTimer::kManual);
  for (int i = 0; i < 7; ++i) b.Add(i, 1);
  EXPECT_THAT(got, ElementsAre(ElementsAre(0, 1, 2), ElementsAre(3, 4, 5)));
  b.Flush();
  EXPECT_THAT(got.back(), ElementsAre(6));
}

TEST(Batcher, ClosesOnBytesWithTheItemThatFillsIt) {
  Batches got;
  Batcher<int> b(
      Limits(10, 100, absl::Seconds(1)), [&](std::vector<int> v) { got.push_back(std::move(v)); },
      BatchTimer::kManual);
  b.Add(1, 6);
  EXPECT_THAT(got, IsEmpty());
  b.Add(2, 4);
  EXPECT_THAT(got, ElementsAre(ElementsAre(1, 2)));
}

TEST(Batcher, AnItemThatWouldOverfillStartsTheNextBatch) {
  Batches got;
  Batcher<int> b(
      Limits(10, 100, absl::Seconds(1)), [&](std::vector<int> v) { got.push_back(std::move(v)); },
      BatchTimer::kManual);
  b.Add(1, 6);
  b.Add(2, 5);
  EXPECT_THAT(got, ElementsAre(ElementsAre(1)));
  b.Add(3, 5);
  EXPECT_THAT(got, ElementsAre(ElementsAre(1), ElementsAre(2, 3)));
}

TEST(Batcher, AnItemLargerThanABatchGoesAlone) {
  Batches got;
  Batcher<int> b(
      Limits(10, 100, absl::Seconds(1)), [&](std::vector<int> v) { got.push_back(std::move(v)); },
      BatchTimer::kManual);
  b.Add(1, 2);
  b.Add(2, std::numeric_limits<size_t>::max());
  b.Add(3, 2);
  EXPECT_THAT(got, ElementsAre(ElementsAre(1), ElementsAre(2)));
}

TEST(Batcher, ClosesWhenTheOldestIsOldEnough) {
  Batches got;
  Batcher<int> b(
      Limits(1000, 100, absl::Milliseconds(10)),
      [&](std::vector<int> v) { got.push_back(std::move(v)); }, BatchTimer::kManual);
  b.Add(1, 1);
  b.Tick(absl::Milliseconds(6));
  b.Add(2, 1);  // younger: the first one's age counts
  b.Tick(absl::Milliseconds(3));
  EXPECT_THAT(got, IsEmpty());
  b.Tick(absl::Milliseconds(1));
  EXPECT_THAT(got, ElementsAre(ElementsAre(1, 2)));
  b.Add(3, 1);  // the next batch has an age of its own
  b.Tick(absl::Milliseconds(9));
  EXPECT_EQ(got.size(), 1u);
  b.Tick(absl::Milliseconds(1));
  EXPECT_EQ(got.size(), 2u);
}

TEST(Batcher, NoAgeMeansAtOnce) {
  Batches got;
  Batcher<int> b(
      Limits(1000, 100, absl::ZeroDuration()),
      [&](std::vector<int> v) { got.push_back(std::move(v)); }, BatchTimer::kManual);
  b.Add(1, 1);
  b.Add(2, 0);
  EXPECT_THAT(got, ElementsAre(ElementsAre(1), ElementsAre(2)));
}

TEST(Batcher, NothingIsHandedOnWhenThereIsNothing) {
  int calls = 0;
  {
    Batcher<int> b(
        Limits(10, 10, absl::Seconds(1)), [&](std::vector<int>) { ++calls; }, BatchTimer::kManual);
    b.Flush();
    b.Tick(absl::Hours(1));
  }
  EXPECT_EQ(calls, 0);
}

TEST(Batcher, TheDestructorFlushes) {
  for (BatchTimer timer : {BatchTimer::kManual, BatchTimer::kThread}) {
    Batches got;
    {
      Batcher<int> b(
          Limits(10, 10, absl::Hours(1)), [&](std::vector<int> v) { got.push_back(std::move(v)); },
          timer);
      b.Add(7, 1);
    }
    EXPECT_THAT(got, ElementsAre(ElementsAre(7)));
  }
}

TEST(Batcher, TakesItemsThatOnlyMove) {
  std::vector<std::unique_ptr<int>> got;
  Batcher<std::unique_ptr<int>> b(
      Limits(10, 1, absl::Hours(1)),
      [&](std::vector<std::unique_ptr<int>> v) { got = std::move(v); }, BatchTimer::kManual);
  b.Add(std::make_unique<int>(5), 1);
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(*got[0], 5);
}

TEST(Batcher, TheSinkMayAdd) {
  std::vector<int> sizes;
  Batcher<int>* self = nullptr;
  Batcher<int> b(
      Limits(100, 2, absl::Hours(1)),
      [&](std::vector<int> v) {
        sizes.push_back(static_cast<int>(v.size()));
        if (v[0] < 3) self->Add(v[0] + 10, 1);
      },
      BatchTimer::kManual);
  self = &b;
  b.Add(1, 1);
  b.Add(2, 1);
  b.Flush();
  EXPECT_THAT(sizes, ElementsAre(2, 1));
}

TEST(Batcher, ItsOwnThreadClosesWhatIsOld) {
  std::mutex m;
  std::condition_variable cv;
  int got = 0;
  Batcher<int> b(Limits(1000, 100, absl::Microseconds(200)), [&](std::vector<int> v) {
    std::lock_guard<std::mutex> lock(m);
    got += static_cast<int>(v.size());
    cv.notify_one();
  });
  for (int round = 1; round <= 3; ++round) {  // it goes idle between rounds and wakes again
    b.Add(round, 1);
    std::unique_lock<std::mutex> lock(m);
    cv.wait(lock, [&] { return got == round; });
  }
}

TEST(Batcher, EveryItemArrivesOnceUnderManyThreads) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  constexpr int kThreads = 8, kItems = 3000;
  std::vector<std::atomic<int>> seen(kThreads * kItems);
  std::atomic<int> too_large{0};
  {
    Batcher<int> b(Limits(64, 16, absl::Microseconds(50)), [&](std::vector<int> v) {
      if (v.size() > 16) ++too_large;
      for (int i : v) ++seen[i];
    });
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 rng(seed + t);
        for (int i = 0; i < kItems; ++i) {
          b.Add(t * kItems + i, rng() % 32);
          if (rng() % 100 == 0) b.Flush();
        }
      });
    }
    for (auto& t : threads) t.join();
  }
  EXPECT_EQ(too_large, 0);
  for (const auto& n : seen) ASSERT_EQ(n, 1);
}

}  // namespace
}  // namespace kvcask
