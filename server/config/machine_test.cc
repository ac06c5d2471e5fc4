#include "server/config/machine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace kvcask {
namespace {

// A made-up / with the files that are read.
class FakeRoot {
 public:
  FakeRoot() : path_(testing::TempDir() + "/root_" + std::to_string(getpid()) + "_" + Count()) {}
  ~FakeRoot() { std::filesystem::remove_all(path_); }
  void Write(const std::string& file, const std::string& text) {
    const std::filesystem::path full = path_ + file;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }
  const std::string& path() const { return path_; }

 private:
  static std::string Count() {
    static int n = 0;
    return std::to_string(++n);
  }
  std::string path_;
};

TEST(UsableMemory, WithoutLimitsIsTheMachines) {
  FakeRoot root;
  const uint64_t machine = UsableMemoryBytes(root.path());
  EXPECT_GT(machine, uint64_t{16} << 20);
  root.Write("/proc/self/cgroup", "0::/a/b\n");
  root.Write("/sys/fs/cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(UsableMemoryBytes(root.path()), machine);
}

TEST(UsableMemory, TheTightestGroupAroundUsCounts) {
  FakeRoot root;
  root.Write("/proc/self/cgroup", "1:name=systemd:/x\n0::/a/b\n");
  root.Write("/sys/fs/cgroup/a/b/memory.max", "9000000\n");
  root.Write("/sys/fs/cgroup/a/memory.max", "8000000\n");
  EXPECT_EQ(UsableMemoryBytes(root.path()), 8000000u);
}

TEST(UsableMemory, AContainersOwnRootCounts) {
  FakeRoot root;
  root.Write("/proc/self/cgroup", "0::/../outside\n");
  root.Write("/sys/fs/cgroup/memory.max", "7000000\n");
  EXPECT_EQ(UsableMemoryBytes(root.path()), 7000000u);
}

TEST(UsableMemory, VersionOneCountsToo) {
  FakeRoot root;
  root.Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "6000000\n");
  EXPECT_EQ(UsableMemoryBytes(root.path()), 6000000u);
}

TEST(UsableMemory, ThisMachineHasSome) { EXPECT_GT(UsableMemoryBytes(), uint64_t{16} << 20); }

}  // namespace
}  // namespace kvcask
