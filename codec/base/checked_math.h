// Arithmetic that says when it overflows, for numbers that come from outside.
//
// Thread-safe: pure functions.
#pragma once

#include <type_traits>

namespace kvcask {

// True, with the result in *out, unless the exact result does not fit in T.
template <typename T>
[[nodiscard]] bool CheckedAdd(T a, T b, T* out) {
  static_assert(std::is_integral<T>::value, "integers only");
  return !__builtin_add_overflow(a, b, out);
}
template <typename T>
[[nodiscard]] bool CheckedMul(T a, T b, T* out) {
  static_assert(std::is_integral<T>::value, "integers only");
  return !__builtin_mul_overflow(a, b, out);
}

// `value` rounded up to a multiple of `unit`, a power of two; false on overflow.
template <typename T>
[[nodiscard]] bool CheckedRoundUp(T value, T unit, T* out) {
  T raised;
  if (!CheckedAdd<T>(value, unit - 1, &raised)) return false;
  *out = raised & ~(unit - 1);
  return true;
}

}  // namespace kvcask
