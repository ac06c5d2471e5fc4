#include "codec/base/crc32c.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace kvcask {
namespace {

// Bit by bit, from the definition.
uint32_t SlowCrc32c(uint32_t crc, absl::Span<const uint8_t> bytes) {
  crc = ~crc;
  for (uint8_t b : bytes) {
    crc ^= b;
    for (int i = 0; i < 8; ++i) crc = (crc >> 1) ^ ((crc & 1) ? 0x82f63b78u : 0);
  }
  return ~crc;
}

absl::Span<const uint8_t> Bytes(const std::string& s) {
  return {reinterpret_cast<const uint8_t*>(s.data()), s.size()};
}

TEST(Crc32cTest, MatchesPublishedVectors) {
  EXPECT_EQ(Crc32c({}), 0u);
  EXPECT_EQ(Crc32c(Bytes("123456789")), 0xe3069283u);
  EXPECT_EQ(Crc32c(Bytes(std::string(32, '\0'))), 0x8a9136aau);  // RFC 3720 B.4
  EXPECT_EQ(Crc32c(Bytes(std::string(32, '\xff'))), 0x62a8ab43u);
}

TEST(Crc32cTest, EveryWayOfComputingAgreesWithTheBitwiseDefinition) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  std::vector<uint8_t> data(40000);
  for (auto& b : data) b = rng();
  for (int i = 0; i < 60; ++i) {
    const size_t begin = rng() % 100;
    const size_t n = i < 40 ? rng() % 300 : rng() % (data.size() - begin);
    const auto bytes = absl::MakeConstSpan(data).subspan(begin, n);
    const uint32_t want = SlowCrc32c(0, bytes);
    EXPECT_EQ(Crc32c(bytes), want);
    const size_t cut = n ? rng() % n : 0;
    EXPECT_EQ(Crc32cConcat(Crc32c(bytes.first(cut)), Crc32c(bytes.subspan(cut)), n - cut), want);
    EXPECT_EQ(Crc32cExtend(Crc32c(bytes.first(cut)), bytes.subspan(cut)), want);
    std::vector<uint8_t> copy(n + 1, 0xa5);
    uint32_t crc = Crc32cCopy(copy.data(), bytes.data(), cut);
    crc = Crc32cCopy(copy.data() + cut, bytes.data() + cut, n - cut, crc);
    EXPECT_EQ(crc, want);
    EXPECT_EQ(std::memcmp(copy.data(), bytes.data(), n), 0);
    EXPECT_EQ(copy[n], 0xa5) << "wrote past the end";
    const size_t shift = rng() % 64;  // any place in a cache line
    std::vector<uint8_t> far(shift + n + 1, 0xa5);
    crc = Crc32cCopyPastCache(&far[shift], bytes.data(), cut);
    crc = Crc32cCopyPastCache(&far[shift + cut], bytes.data() + cut, n - cut, crc);
    EXPECT_EQ(crc, want);
    EXPECT_EQ(std::memcmp(&far[shift], bytes.data(), n), 0);
    EXPECT_EQ(far[shift + n], 0xa5) << "wrote past the end";
    EXPECT_TRUE(std::all_of(far.begin(), far.begin() + shift, [](uint8_t b) { return b == 0xa5; }))
        << "wrote before the beginning";
  }
}

}  // namespace
}  // namespace kvcask
