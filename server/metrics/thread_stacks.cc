// Room on the stacks of libcivetweb's threads, which answer scrapes.
//
// Debian builds it with stacks of 100 KiB, off which comes the thread-local storage of all libraries:
// with OpenBLAS's 60 KiB and the CUDA runtime's 8, a scrape overran it. The size cannot be set from
// outside, so the call that sets it is taken over: every thread that asks for less gets kLeast.
// Address space alone until it is touched.
#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <cstddef>

namespace {
constexpr size_t kLeast = size_t{1} << 20;
}  // namespace

extern "C" __attribute__((visibility("default"))) int pthread_attr_setstacksize(
    pthread_attr_t* attributes, size_t bytes) {
  using Function = int (*)(pthread_attr_t*, size_t);
  static const auto real =
      reinterpret_cast<Function>(dlsym(RTLD_NEXT, "pthread_attr_setstacksize"));
  return real(attributes, std::max(bytes, kLeast));
}
