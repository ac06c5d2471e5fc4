#include "server/admission/byte_budget.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <utility>

namespace kvcask {

Reservation::Reservation(Reservation&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this == &other) return *this;
  ShrinkTo(0);
  budget_ = std::exchange(other.budget_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

Reservation::~Reservation() { ShrinkTo(0); }

void Reservation::ShrinkTo(uint64_t bytes) {
  if (bytes >= bytes_) return;
  budget_->Release(bytes_ - bytes);
  bytes_ = bytes;
}

Reservation Reservation::Split(uint64_t bytes) {
  const uint64_t taken = std::min(bytes, bytes_);
  bytes_ -= taken;
  return Reservation(budget_, taken);
}

absl::StatusOr<Reservation> ByteBudget::Reserve(uint64_t bytes, absl::string_view what) {
  if (NeverFits(bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat(what, " needs ", bytes,
                                                     " bytes and the memory budget is ", limit_,
                                                     " in all: waiting will not help"));
  }
  uint64_t used = used_.load(std::memory_order_relaxed);
  do {
    // used <= limit_ always, so neither side overflows.
    const uint64_t free = limit_ - used;
    if (bytes > free) {
      return absl::ResourceExhaustedError(absl::StrCat(what, " needs ", bytes, " bytes, ", free,
                                                       " of the memory budget's ", limit_,
                                                       " are free"));
    }
  } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  return Reservation(this, bytes);
}

}  // namespace kvcask
