// The daemon's time: the wall clock's at the first call, and what has passed since by the steady
// clock. A wall clock that is set while the daemon runs ends no session, lease or put, delays the
// end of none, and falsifies no duration.
//
// Thread-safe.
#pragma once

#include <absl/time/clock.h>
#include <absl/time/time.h>

#include <chrono>
#include <utility>

namespace kvcask {

inline absl::Time SteadyNow() {
  using Clock = std::chrono::steady_clock;
  static const std::pair<absl::Time, Clock::time_point> start = {absl::Now(), Clock::now()};
  return start.first + absl::FromChrono(Clock::now() - start.second);
}

}  // namespace kvcask
