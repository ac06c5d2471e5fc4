// What a process that speaks gRPC in bulk does once, first in main.
#pragma once

namespace kvcask {

// Three things that gRPC 1.51 on Debian 12 needs, as measured:
// - glibc returns multi-megabyte message buffers to the kernel and takes them again for
//   each message; the page faults cost more than the transfer. Thresholds raised.
// - gRPC shuts down with its last channel, which can take 10 s on a busy machine: held open
//   for the life of the process.
// - Debian's Abseil looks for lock-order cycles at every lock (43 ns instead of 8): off.
//
// Thread-safe; later calls do nothing.
void InitClientRuntime();

}  // namespace kvcask
