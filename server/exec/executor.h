// A fixed set of threads that run tasks in order of arrival.
//
// Thread-safe. Tasks may submit tasks. Tasks must not throw.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include <absl/time/time.h>

namespace kvcask {

class Executor {
 public:
  // threads 0: one for each core.
  explicit Executor(int threads);
  ~Executor();  // Shutdown

  // After Shutdown the caller's thread runs the task: none is ever lost.
  void Submit(std::function<void()> task);
  // Runs what is queued (and what that submits), then joins. Not to be called by a task.
  void Shutdown();

  int threads() const;
  size_t queue_depth() const;          // tasks waiting
  absl::Duration queue_age() const;    // of the oldest waiting; zero when none

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvcask
