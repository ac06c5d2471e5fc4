// The memory budget: every byte that the daemon keeps for its users, or will, is reserved
// here first. A run takes one reservation for all it may need before its first byte is
// read; what it stores in the end keeps its share, the rest goes back.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

namespace kvcask {

class ByteBudget;

// A share of a budget, given back when destroyed. Movable. The budget must outlive it.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation();

  uint64_t bytes() const { return bytes_; }
  // Gives back all but `bytes`; no effect when it holds less.
  void ShrinkTo(uint64_t bytes);
  // Takes `bytes` (at most what it holds) into a reservation of its own.
  Reservation Split(uint64_t bytes);

 private:
  friend class ByteBudget;
  Reservation(ByteBudget* budget, uint64_t bytes) : budget_(budget), bytes_(bytes) {}
  ByteBudget* budget_ = nullptr;
  uint64_t bytes_ = 0;
};

class ByteBudget {
 public:
  explicit ByteBudget(uint64_t limit_bytes) : limit_(limit_bytes) {}

  // RESOURCE_EXHAUSTED says what was asked for, what is free and what the limit is; when
  // `bytes` exceeds the limit itself the text says that waiting will not help (and
  // NeverFits is true for it).
  absl::StatusOr<Reservation> Reserve(uint64_t bytes, absl::string_view what);
  bool NeverFits(uint64_t bytes) const { return bytes > limit_; }

  uint64_t limit() const { return limit_; }
  uint64_t used() const { return used_.load(std::memory_order_relaxed); }

 private:
  friend class Reservation;
  void Release(uint64_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }
  const uint64_t limit_;
  std::atomic<uint64_t> used_{0};
};

}  // namespace kvcask
