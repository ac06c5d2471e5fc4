#include "client/cli/top_view.h"

#include <absl/strings/match.h>
#include <absl/strings/str_split.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvcask {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr char kBefore[] = R"(# HELP kvcask_requests_total Calls
kvcask_requests_total{method="Put",code="OK"} 100
kvcask_received_bytes_total 1000000
)";
constexpr char kNow[] = R"(
kvcask_requests_total{method="Put",code="OK"} 130
kvcask_requests_total{method="Put",code="DATA_LOSS"} 1
kvcask_requests_total{method="Put",code="RESOURCE_EXHAUSTED"} 9
kvcask_requests_total{method="Get",code="OK"} 0
kvcask_request_seconds_bucket{method="Put",le="0.001"} 20
kvcask_request_seconds_bucket{method="Put",le="0.01"} 40
kvcask_request_seconds_bucket{method="Put",le="+Inf"} 40
kvcask_received_bytes_total 5000000
kvcask_memory_budget_bytes 2e9
kvcask_memory_used_bytes 5e8
kvcask_sessions 7
kvcask_ready 1
kvcask_raw_bytes_total{codec="int8"} 4e6
kvcask_raw_bytes_total{codec="raw"} 0
kvcask_stored_bytes_total{codec="int8"} 2e6 1700000000
kvcask_predicted_kld_bucket{codec="int8",le="0.1"} 0
kvcask_predicted_kld_bucket{codec="int8",le="0.3"} 4
kvcask_predicted_kld_bucket{codec="int8",le="+Inf"} 4
)";

Scrape Parse(absl::string_view text, int second) {
  auto scrape = ParseScrape(text, absl::FromUnixSeconds(second));
  EXPECT_TRUE(scrape.ok()) << scrape.status();
  return *std::move(scrape);
}

TEST(TopView, RatesAreOfWhatHappenedBetween) {
  const std::string line = RenderLine(Parse(kBefore, 100), Parse(kNow, 102));
  EXPECT_THAT(line, HasSubstr("calls_per_s=20.0"));  // 30 + 1 + 9 in two seconds
  EXPECT_THAT(line, HasSubstr("failed=10 our_fault=1 "));
  EXPECT_THAT(line, HasSubstr("in_MB_per_s=2.0"));
  EXPECT_THAT(line, HasSubstr("used_bytes=500000000 budget_bytes=2000000000"));
  EXPECT_THAT(line, HasSubstr("get_p99_ms=- ratio=2.00"));
  EXPECT_THAT(line, HasSubstr("put_p99_ms=9.82 "));  // 1 + 9 x (39.6 - 20) / 20
  EXPECT_THAT(line, Not(HasSubstr("\n")));
}

TEST(TopView, TheScreenHasWhatMovesAndFitsItsWidth) {
  const std::string screen = RenderScreen("kvcaskd", Parse(kBefore, 100), Parse(kNow, 102), 200);
  EXPECT_THAT(screen, HasSubstr("25.0 % of 2000.0 MB"));
  EXPECT_THAT(screen, HasSubstr("\nPut "));
  EXPECT_THAT(screen, Not(HasSubstr("\nGet ")));  // nothing happened
  EXPECT_THAT(screen, HasSubstr("\nint8         2.00"));
  EXPECT_THAT(screen, HasSubstr("0.2000"));  // the middle of its bucket
  EXPECT_THAT(screen, Not(HasSubstr("\nraw ")));
  EXPECT_THAT(screen, Not(HasSubstr("NOT READY")));
  for (const auto& line :
       absl::StrSplit(RenderScreen("kvcaskd", Parse(kBefore, 100), Parse(kNow, 102), 40), '\n')) {
    EXPECT_LE(line.size(), 40u);
  }
}

TEST(TopView, ATierOnTheGpuHasALineOfItsOwn) {
  const char before[] = "kvcask_gpu_hits_total 10\n";
  const std::string now =
      "kvcask_gpu_budget_bytes 8e9\nkvcask_gpu_bytes 2e9\nkvcask_gpu_chunks 31\n"
      "kvcask_gpu_hits_total 40\nkvcask_gpu_misses_total 5\n";
  const auto screen = [&](const std::string& text) {
    return RenderScreen("kvcaskd", Parse(before, 100), Parse(text, 102), 200);
  };
  EXPECT_THAT(screen(now), HasSubstr("\ngpu     31 chunks copied (2000.0 MB of 8000.0 MB), 15.0 "
                                     "reads/s found theirs, 2.5 did not\n"));
  EXPECT_THAT(screen(now + "kvcask_device_lost 1\n"), HasSubstr("THE DEVICE IS LOST\n"));
  EXPECT_THAT(screen(kNow), Not(HasSubstr("\ngpu ")));  // a daemon without
}

TEST(TopView, ACounterThatFellHasBegunAnew) {
  const std::string line = RenderLine(Parse(kNow, 102), Parse(kBefore, 104));
  EXPECT_THAT(line, HasSubstr("calls_per_s=50.0"));
  EXPECT_THAT(line, HasSubstr("in_MB_per_s=0.5"));
}

TEST(TopView, WhatIsNoSampleIsNamed) {
  for (const char* text : {"kvcask_ready\n", "kvcask_ready one\n", " 5 5 x\n<html>\n"}) {
    const auto scrape = ParseScrape(text, absl::UnixEpoch());
    EXPECT_EQ(scrape.status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_THAT(std::string(ParseScrape("<html>", absl::UnixEpoch()).status().message()),
              HasSubstr("<html>"));
}

TEST(TopView, NobodyAtTheAddressIsUnavailable) {
  for (const char* address : {"127.0.0.1:1", "nowhere", "no host:1"}) {
    const auto text = FetchMetrics(address, absl::Seconds(5));
    EXPECT_EQ(text.status().code(), absl::StatusCode::kUnavailable) << text.status();
    EXPECT_THAT(std::string(text.status().message()), HasSubstr(address));
  }
}

}  // namespace
}  // namespace kvcask
