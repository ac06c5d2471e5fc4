// Preloaded into a daemon, sets its wall clock: as many nanoseconds off as the file that
// KVCASK_TEST_CLOCK names says, at any moment. Other clocks go as they do.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

namespace {

constexpr int64_t kSecond = 1000000000;

int64_t Offset() {
  static const volatile int64_t* const offset = [] {
    const char* path = getenv("KVCASK_TEST_CLOCK");
    const int fd = path == nullptr ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) abort();
    void* p = mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) abort();
    close(fd);
    return static_cast<const volatile int64_t*>(p);
  }();
  return *offset;
}

int64_t WallNanos(clockid_t clock, int* result) {
  using Function = int (*)(clockid_t, timespec*);
  static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "clock_gettime"));
  timespec t;
  *result = real(clock, &t);
  int64_t nanos = t.tv_sec * kSecond + t.tv_nsec;
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) nanos += Offset();
  return nanos;
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* t) noexcept {
  int result = 0;
  const int64_t nanos = WallNanos(clock, &result);
  if (result == 0) *t = {nanos / kSecond, nanos % kSecond};
  return result;
}

int gettimeofday(timeval* t, void*) noexcept {
  int result = 0;
  const int64_t nanos = WallNanos(CLOCK_REALTIME, &result);
  if (result == 0) *t = {nanos / kSecond, nanos % kSecond / 1000};
  return result;
}

time_t time(time_t* t) noexcept {
  int result = 0;
  const time_t seconds = WallNanos(CLOCK_REALTIME, &result) / kSecond;
  if (t != nullptr) *t = seconds;
  return seconds;
}

}
