#include "client/cli/mapped_file.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

namespace kvcask {
namespace {

class MappedFileTest : public testing::Test {
 protected:
  MappedFileTest() {
    const int fd = mkstemp(path_);
    EXPECT_GE(fd, 0);
    close(fd);
    std::ofstream(path_) << std::string(3 << 12, 'x');
  }
  ~MappedFileTest() override { unlink(path_); }
  char path_[64] = "/tmp/kvcask-mapped.XXXXXX";
};

// Reads the last page after somebody has cut the file to its first.
void ReadAfterCut(const char* path, bool report) {
  if (report) ReportFilesCutShort();
  const auto file = MappedFile::Open(path);
  if (!file.ok() || truncate(path, 1 << 12) != 0) _exit(9);
  const volatile uint8_t* last = (*file)->bytes().data() + (*file)->bytes().size() - 1;
  _exit(*last == 'x' ? 8 : 7);
}

TEST_F(MappedFileTest, AFileCutShortWhileItIsReadIsReportedByName) {
  EXPECT_EXIT(ReadAfterCut(path_, true), testing::ExitedWithCode(1),
              std::string(path_) + ": it was cut short");
}

TEST_F(MappedFileTest, ABusErrorElsewhereStillKills) {
  EXPECT_EXIT(
      {
        ReportFilesCutShort();
        raise(SIGBUS);
      },
      testing::KilledBySignal(SIGBUS), "");
}

TEST_F(MappedFileTest, FilesComeAndGo) {
  for (int i = 0; i < 100; ++i) {  // more than are remembered at a time
    const auto file = MappedFile::Open(path_);
    ASSERT_TRUE(file.ok());
    EXPECT_EQ((*file)->bytes()[i], 'x');
  }
  EXPECT_EQ(MappedFile::Open(std::string(path_) + "-none").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace kvcask
