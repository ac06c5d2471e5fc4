// Bytes that are written after they are sized: resize() and the sizing constructor leave new
// elements unset, where std::vector<uint8_t> would write zeros that nobody reads (for memory
// taken anew, a pass over it as dear as the copy that follows).
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace kvcask {

template <typename T>
struct UnsetAllocator : std::allocator<T> {
  template <typename U>
  struct rebind {
    using other = UnsetAllocator<U>;
  };
  UnsetAllocator() = default;
  template <typename U>
  UnsetAllocator(const UnsetAllocator<U>&) {}
  template <typename U>
  void construct(U* p) {
    ::new (static_cast<void*>(p)) U;  // not U(): that would be zero
  }
  template <typename U, typename... Args>
  void construct(U* p, Args&&... args) {
    ::new (static_cast<void*>(p)) U(std::forward<Args>(args)...);
  }
};

using UnsetBytes = std::vector<uint8_t, UnsetAllocator<uint8_t>>;

}  // namespace kvcask
