// Gathers items into batches and hands each batch to a sink. A batch closes when it holds
// enough bytes or items, or its oldest item is old enough. The batcher does not know what
// it batches:
//   Batcher<Task> b(limits, [](std::vector<Task> batch) {...});
//   b.Add(std::move(task), task_bytes);
//
// Thread-safe. The sink is called without a lock held, from Add, Flush, the destructor or
// the batcher's own timer thread, possibly from several threads at once. Every item reaches
// the sink exactly once.
#pragma once

#include <absl/time/time.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace kvcask {

struct BatchLimits {
  size_t max_bytes = 8 << 20;  // an item larger than this is a batch of its own
  size_t max_items = 256;
  absl::Duration max_age = absl::Milliseconds(1);  // zero: every item goes at once
};

// kThread: a thread of the batcher closes what is old. kManual: nothing does but
// Batcher::Tick, for tests.
enum class BatchTimer { kThread, kManual };

// Item: movable.
template <typename Item>
class Batcher {
 public:
  using Sink = std::function<void(std::vector<Item>)>;

  Batcher(BatchLimits limits, Sink sink, BatchTimer timer = BatchTimer::kThread)
      : limits_(limits), sink_(std::move(sink)), manual_(timer == BatchTimer::kManual) {
    if (!manual_) timer_ = std::thread([this] { RunTimer(); });
  }
  // Flushes. No other call may be under way.
  ~Batcher() {
    if (timer_.joinable()) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
      }
      wake_.notify_one();
      timer_.join();
    }
    Flush();
  }
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // Adds `item`, which counts as `bytes`. A batch that it would overfill closes before it,
  // one that it fills closes with it.
  void Add(Item item, size_t bytes) {
    std::vector<Item> before, filled;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      // bytes_ < max_bytes for an open batch, so this does not overflow.
      if (!items_.empty() && bytes > limits_.max_bytes - bytes_) before = Take();
      if (items_.empty()) oldest_ = Now();
      items_.push_back(std::move(item));
      bytes_ += bytes;
      const bool full = bytes_ >= limits_.max_bytes || items_.size() >= limits_.max_items ||
                        limits_.max_age <= absl::ZeroDuration();
      if (full) {
        filled = Take();
      } else if (timer_idle_) {
        wake_.notify_one();
      }
    }
    Deliver(std::move(before));
    Deliver(std::move(filled));
  }

  // Closes the open batch now. Returns when the sink has taken it.
  void Flush() {
    std::vector<Item> batch;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      batch = Take();
    }
    Deliver(std::move(batch));
  }

  // kManual only: `elapsed` passes.
  void Tick(absl::Duration elapsed) {
    std::vector<Item> batch;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      manual_now_ += absl::ToChronoNanoseconds(elapsed);
      if (!items_.empty() && Now() >= Due()) batch = Take();
    }
    Deliver(std::move(batch));
  }

 private:
  using Clock = std::chrono::steady_clock;

  Clock::time_point Now() const { return manual_ ? manual_now_ : Clock::now(); }
  Clock::time_point Due() const { return oldest_ + absl::ToChronoNanoseconds(limits_.max_age); }

  std::vector<Item> Take() {
    bytes_ = 0;
    return std::exchange(items_, {});
  }
  void Deliver(std::vector<Item> batch) {
    if (!batch.empty()) sink_(std::move(batch));
  }

  // Sleeps until a batch is due. Add wakes it only out of the idle state: a batch that
  // closed early costs the timer one needless look, not each batch a notification.
  void RunTimer() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopping_) {
      if (items_.empty()) {
        timer_idle_ = true;
        wake_.wait(lock, [this] { return stopping_ || !items_.empty(); });
        timer_idle_ = false;
      } else if (Now() < Due()) {
        wake_.wait_until(lock, Due());
      } else {
        std::vector<Item> batch = Take();
        lock.unlock();
        Deliver(std::move(batch));
        lock.lock();
      }
    }
  }

  const BatchLimits limits_;
  const Sink sink_;
  const bool manual_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Item> items_;
  size_t bytes_ = 0;
  Clock::time_point oldest_;  // when the first of items_ came
  Clock::time_point manual_now_;
  bool timer_idle_ = false;
  bool stopping_ = false;
  std::thread timer_;
};

}  // namespace kvcask
