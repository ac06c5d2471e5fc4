#include "server/exec/executor.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace kvcask {

// std::mutex and not absl::Mutex: ThreadSanitizer sees through the former only, since the
// system's Abseil is not instrumented.
class Executor::Impl {
 public:
  explicit Impl(int threads) {
    const int n = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
    alive_ = n;
    workers_.reserve(n);
    for (int i = 0; i < n; ++i) workers_.emplace_back([this] { Work(); });
  }

  void Submit(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (alive_ > 0) {
        queue_.push_back({std::move(task), Clock::now()});
        wake_.notify_one();
        return;
      }
    }
    task();  // shut down: the caller runs it, so that no task is ever lost
  }

  void Shutdown() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    std::call_once(joined_, [this] {
      for (auto& w : workers_) w.join();
    });
  }

  int threads() const { return static_cast<int>(workers_.size()); }

  size_t queue_depth() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return queue_.size();
  }

  absl::Duration queue_age() const {
    std::lock_guard<std::mutex> lock(mutex_);
    if (queue_.empty()) return absl::ZeroDuration();
    return absl::FromChrono(Clock::now() - queue_.front().since);
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Entry {
    std::function<void()> task;
    Clock::time_point since;
  };

  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) break;  // stopping, and nothing is left
      Entry entry = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      entry.task();
      entry.task = nullptr;  // what it captured ends here, not under the lock
      lock.lock();
    }
    --alive_;
  }

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Entry> queue_;
  bool stopping_ = false;
  int alive_ = 0;  // workers that will still look at the queue
  std::once_flag joined_;
  std::vector<std::thread> workers_;
};

Executor::Executor(int threads) : impl_(std::make_unique<Impl>(threads)) {}
Executor::~Executor() { Shutdown(); }

void Executor::Submit(std::function<void()> task) { impl_->Submit(std::move(task)); }
void Executor::Shutdown() { impl_->Shutdown(); }
int Executor::threads() const { return impl_->threads(); }
size_t Executor::queue_depth() const { return impl_->queue_depth(); }
absl::Duration Executor::queue_age() const { return impl_->queue_age(); }

}  // namespace kvcask
