#include "server/config/machine.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>

namespace kvcask {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// "max" (and anything else that is no number) is no limit.
uint64_t ReadLimit(const std::string& path) {
  std::ifstream in(path);
  uint64_t bytes = 0;
  return in >> bytes ? bytes : kNoLimit;
}

// Of cgroup v2: our group's limit and those of all groups around it.
uint64_t ControlGroupLimit(const std::string& root) {
  std::ifstream in(root + "/proc/self/cgroup");
  uint64_t limit = kNoLimit;
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("0::/", 0) != 0) continue;
    for (std::string group = line.substr(3); !group.empty();
         group.resize(std::min(group.size(), group.rfind('/')))) {
      limit = std::min(limit, ReadLimit(root + "/sys/fs/cgroup" + group + "/memory.max"));
    }
    // In a container the group's own path may lie outside what is mounted.
    limit = std::min(limit, ReadLimit(root + "/sys/fs/cgroup/memory.max"));
  }
  // v1, as a container sees it.
  return std::min(limit, ReadLimit(root + "/sys/fs/cgroup/memory/memory.limit_in_bytes"));
}

}  // namespace

uint64_t UsableMemoryBytes(const std::string& root) {
  const auto machine = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  return std::min(machine, ControlGroupLimit(root));
}

}  // namespace kvcask
