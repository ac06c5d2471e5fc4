#include "client/cc/runtime.h"

#include <absl/synchronization/mutex.h>
#include <grpc/grpc.h>
#include <malloc.h>

namespace kvcask {

void InitClientRuntime() {
  static const bool done = [] {
    // All three: setting one turns off glibc's own adjustment of the others.
    mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most it accepts
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_TOP_PAD, 64 << 20);
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
    grpc_init();
    return true;
  }();
  (void)done;
}

}  // namespace kvcask
