// What this machine has.
#pragma once

#include <cstdint>
#include <string>

namespace kvcask {

// Bytes of memory that this process may use: the machine's, or less where a control group
// (a container, a systemd unit) limits it. `root` is / but in tests.
uint64_t UsableMemoryBytes(const std::string& root = "");

}  // namespace kvcask
