#include "server/exec/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <thread>
#include <vector>

namespace kvcask {
namespace {

TEST(Executor, OneThreadKeepsTheOrderOfArrival) {
  std::vector<int> seen;
  {
    Executor executor(1);
    for (int i = 0; i < 100; ++i) executor.Submit([&seen, i] { seen.push_back(i); });
  }
  ASSERT_EQ(seen.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(seen[i], i);
}

TEST(Executor, TasksRunSideBySide) {
  // Each of the two waits for the other: with one thread this would never end.
  Executor executor(2);
  EXPECT_EQ(executor.threads(), 2);
  std::promise<void> a, b;
  executor.Submit([&] {
    a.set_value();
    b.get_future().wait();
  });
  executor.Submit([&] {
    b.set_value();
    a.get_future().wait();
  });
  executor.Shutdown();
}

TEST(Executor, ZeroMeansOneThreadACore) {
  Executor executor(0);
  EXPECT_GE(executor.threads(), 1);
}

TEST(Executor, DepthAndAgeAreOfWaitingTasks) {
  Executor executor(1);
  EXPECT_EQ(executor.queue_depth(), 0u);
  EXPECT_EQ(executor.queue_age(), absl::ZeroDuration());
  std::promise<void> started, release;
  executor.Submit([&] {
    started.set_value();
    release.get_future().wait();
  });
  started.get_future().wait();
  EXPECT_EQ(executor.queue_depth(), 0u);  // the one that runs does not wait
  executor.Submit([] {});
  executor.Submit([] {});
  EXPECT_EQ(executor.queue_depth(), 2u);
  const absl::Duration first = executor.queue_age();
  EXPECT_GE(first, absl::ZeroDuration());
  EXPECT_GE(executor.queue_age(), first);
  release.set_value();
  executor.Shutdown();
  EXPECT_EQ(executor.queue_depth(), 0u);
  EXPECT_EQ(executor.queue_age(), absl::ZeroDuration());
}

TEST(Executor, ShutdownRunsWhatIsQueuedAndWhatThatSubmits) {
  std::atomic<int> ran{0};
  Executor executor(2);
  for (int i = 0; i < 50; ++i) {
    executor.Submit([&] {
      ++ran;
      executor.Submit([&] {
        ++ran;
        executor.Submit([&] { ++ran; });
      });
    });
  }
  executor.Shutdown();
  EXPECT_EQ(ran, 150);
}

TEST(Executor, AfterShutdownTheCallerRunsTheTask) {
  Executor executor(1);
  executor.Shutdown();
  executor.Shutdown();  // again: nothing
  std::thread::id by;
  executor.Submit([&] { by = std::this_thread::get_id(); });
  EXPECT_EQ(by, std::this_thread::get_id());
}

TEST(Executor, WhatATaskCapturedIsGoneWhenItIsDone) {
  auto token = std::make_shared<int>(1);
  Executor executor(1);
  executor.Submit([token] {});
  executor.Shutdown();
  EXPECT_EQ(token.use_count(), 1);
}

TEST(Executor, NoTaskIsLostOrRunTwiceWhileItShutsDown) {
  static constexpr int kThreads = 8, kTasks = 2000;
  std::vector<std::atomic<int>> ran(kThreads * kTasks);
  Executor executor(3);
  std::vector<std::thread> submitters;
  for (int t = 0; t < kThreads; ++t) {
    submitters.emplace_back([&, t] {
      for (int i = 0; i < kTasks; ++i) {
        executor.Submit([&ran, t, i] { ++ran[t * kTasks + i]; });
        if (t == 0 && i == kTasks / 2) executor.Shutdown();
      }
    });
  }
  for (auto& s : submitters) s.join();
  executor.Shutdown();
  for (const auto& n : ran) ASSERT_EQ(n, 1);
}

}  // namespace
}  // namespace kvcask
