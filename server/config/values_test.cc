#include "server/config/values.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace kvcask {
namespace {

using ::testing::HasSubstr;

TEST(ParseSize, KnowsBothFamiliesOfUnits) {
  EXPECT_EQ(*ParseSize("0"), 0u);
  EXPECT_EQ(*ParseSize("4096"), 4096u);
  EXPECT_EQ(*ParseSize("7B"), 7u);
  EXPECT_EQ(*ParseSize("8GiB"), uint64_t{8} << 30);
  EXPECT_EQ(*ParseSize("512MiB"), uint64_t{512} << 20);
  EXPECT_EQ(*ParseSize("3KiB"), 3072u);
  EXPECT_EQ(*ParseSize("2TiB"), uint64_t{2} << 40);
  EXPECT_EQ(*ParseSize("5kB"), 5000u);
  EXPECT_EQ(*ParseSize("1TB"), 1'000'000'000'000u);
  EXPECT_EQ(*ParseSize("18446744073709551615"), std::numeric_limits<uint64_t>::max());
}

TEST(ParseSize, RefusesTheRest) {
  for (const char* text :
       {"", "GiB", "-1", "+1", "1.5GiB", "8 GiB", "8gib", "8G", "0x10", " 8", "8GiB ", "8GiBs"}) {
    EXPECT_EQ(ParseSize(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  for (const char* text : {"18446744073709551616", "16777216TiB", "99999999999999999999999GiB"}) {
    EXPECT_THAT(std::string(ParseSize(text).status().message()), HasSubstr("too large")) << text;
  }
}

TEST(FormatSize, IsReadBack) {
  for (uint64_t bytes : {uint64_t{0}, uint64_t{1}, uint64_t{1000}, uint64_t{1} << 20,
                         uint64_t{3} << 30, uint64_t{5} << 50, (uint64_t{1} << 30) + 1}) {
    EXPECT_EQ(*ParseSize(FormatSize(bytes)), bytes) << FormatSize(bytes);
  }
  EXPECT_EQ(FormatSize(uint64_t{64} << 20), "64MiB");
}

TEST(ParsePositiveDuration, TakesWhatIsAboveZeroAndEnds) {
  EXPECT_EQ(*ParsePositiveDuration("20s"), absl::Seconds(20));
  EXPECT_EQ(*ParsePositiveDuration("500ms"), absl::Milliseconds(500));
  EXPECT_EQ(*ParsePositiveDuration("1m30s"), absl::Seconds(90));
  for (const char* text : {"", "20", "0", "0s", "-1s", "inf", "1 s", "soon"}) {
    EXPECT_FALSE(ParsePositiveDuration(text).ok()) << text;
  }
}

TEST(CheckListenAddress, TakesSocketsAndHostPorts) {
  for (const char* address :
       {"unix:/run/kvcask.sock", "unix:relative", "127.0.0.1:0", "0.0.0.0:65535", "localhost:7420",
        "host-1.example.org:1", "[::1]:7420", "[fe80::1]:1"}) {
    EXPECT_TRUE(CheckListenAddress(address).ok()) << address;
  }
  for (const std::string& address :
       {std::string(""), std::string("unix:"), "unix:/" + std::string(107, 'a'),
        std::string("7420"), std::string(":7420"), std::string("a:"), std::string("a:b"),
        std::string("a:65536"), std::string("a:-1"), std::string("::1:7420"),
        std::string("[::1:7420"), std::string("[zz]:1"), std::string("a b:1"),
        std::string("a:99999999999"), std::string("[::1]7420")}) {
    EXPECT_FALSE(CheckListenAddress(address).ok()) << address;
  }
  EXPECT_TRUE(CheckListenAddress("unix:/" + std::string(106, 'a')).ok());
}

TEST(IsLocalAddress, IsSureOrSaysNo) {
  for (const char* a : {"unix:/x", "localhost:1", "127.0.0.1:1", "127.255.0.1:1", "[::1]:1"}) {
    EXPECT_TRUE(IsLocalAddress(a)) << a;
  }
  for (const char* a : {"0.0.0.0:1", "[::]:1", "128.0.0.1:1", "localhost.example.org:1",
                        "127.0.0.1.example.org:1", "nonsense"}) {
    EXPECT_FALSE(IsLocalAddress(a)) << a;
  }
}

TEST(NearestWord, FindsNearMissesOnly) {
  const std::vector<std::string> words = {"listen", "metrics", "memory-budget"};
  EXPECT_EQ(NearestWord("lisen", words), "listen");
  EXPECT_EQ(NearestWord("memory_budget", words), "memory-budget");
  EXPECT_EQ(NearestWord("budget", words), "");
  EXPECT_EQ(NearestWord("", words), "");
  EXPECT_EQ(NearestWord("x", {}), "");
}

}  // namespace
}  // namespace kvcask
