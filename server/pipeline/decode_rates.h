// How fast each codec decodes here, from the decodes that there were: what a lookup tells of
// the cost of loading.
//
// Thread-safe.
#pragma once

#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include <map>
#include <mutex>
#include <string>

namespace kvcask {

class DecodeRates {
 public:
  // One batch on one thread; raw_bytes as everywhere, 2 bytes x elements.
  void Add(absl::string_view codec, uint64_t raw_bytes, absl::Duration elapsed) {
    std::lock_guard<std::mutex> lock(mu_);
    Sums& s = sums_[std::string(codec)];
    // Older ones count less and less.
    s.bytes = s.bytes * kDecay + static_cast<double>(raw_bytes);
    s.seconds = s.seconds * kDecay + absl::ToDoubleSeconds(elapsed);
  }
  // Zero: nothing of it was decoded yet.
  absl::Duration Estimate(absl::string_view codec, uint64_t raw_bytes) const {
    std::lock_guard<std::mutex> lock(mu_);
    const auto it = sums_.find(std::string(codec));
    if (it == sums_.end() || it->second.bytes == 0) return absl::ZeroDuration();
    return absl::Seconds(static_cast<double>(raw_bytes) * it->second.seconds / it->second.bytes);
  }

 private:
  static constexpr double kDecay = .98;
  struct Sums {
    double bytes = 0, seconds = 0;
  };
  mutable std::mutex mu_;
  std::map<std::string, Sums> sums_;
};

}  // namespace kvcask
