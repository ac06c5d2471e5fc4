#include "server/log/log.h"

#include <absl/strings/str_split.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

namespace kvcask {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

// What `f` writes to stderr.
template <typename F>
std::string Captured(F f) {
  testing::internal::CaptureStderr();
  f();
  return testing::internal::GetCapturedStderr();
}

TEST(Log, TextIsOneLineWithTimeLevelEventAndFields) {
  ASSERT_TRUE(SetupLog("info", "text"));
  const std::string out = Captured([] {
    Log(LogLevel::kInfo, "put committed", {{"request", 17}, {"session", "demo"}, {"tokens", 256u}});
  });
  EXPECT_THAT(out, MatchesRegex("[0-9-]+T[0-9:]+\\.[0-9]+Z info put committed request=17 "
                                "session=demo tokens=256\n"));
}

TEST(Log, TextQuotesWhatNeedsIt) {
  ASSERT_TRUE(SetupLog("info", "text"));
  const std::string out = Captured([] {
    Log(LogLevel::kError, "failed", {{"status", "a b"}, {"empty", ""}, {"sneaky", "x=1\nINFO \""}});
  });
  EXPECT_THAT(out, EndsWith(R"(failed status="a b" empty="" sneaky="x=1\nINFO \"")"
                            "\n"));
  EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), 1);
}

TEST(Log, AnEventCannotForgeALine) {
  ASSERT_TRUE(SetupLog("info", "text"));
  const std::string out = Captured([] { Log(LogLevel::kInfo, "a\nb"); });
  EXPECT_THAT(out, EndsWith("info \"a\\nb\"\n"));
}

TEST(Log, BracesInValuesAreNotFormatStrings) {
  ASSERT_TRUE(SetupLog("info", "text"));
  EXPECT_THAT(Captured([] {
                Log(LogLevel::kInfo, "x", {{"v", "{}%v%n"}});
              }),
              EndsWith("x v={}%v%n\n"));
}

TEST(Log, JsonParsesAndKeepsNumbers) {
  ASSERT_TRUE(SetupLog("info", "json"));
  const std::string out = Captured([] {
    Log(LogLevel::kWarning, "put \"x\"",
        {{"n", -3}, {"f", 1.5}, {"bad", std::string("\xff\xfe\n\0z", 5)}});
  });
  const auto j = nlohmann::json::parse(out);
  EXPECT_EQ(j["event"], "put \"x\"");
  EXPECT_EQ(j["level"], "warning");
  EXPECT_EQ(j["n"], -3);
  EXPECT_EQ(j["f"], "1.5");
  EXPECT_EQ(j["bad"], std::string("\xef\xbf\xbd\xef\xbf\xbd\n\0z", 9));
  EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), 1);
  ASSERT_TRUE(SetupLog("info", "text"));
}

TEST(Log, LongValuesAreCut) {
  ASSERT_TRUE(SetupLog("info", "text"));
  const std::string out = Captured([] {
    Log(LogLevel::kInfo, "x", {{"v", std::string(100000, 'a')}});
  });
  EXPECT_LT(out.size(), 1200u);
  EXPECT_THAT(out, HasSubstr(std::string(1024, 'a')));
}

TEST(Log, LevelsBelowAreSilent) {
  ASSERT_TRUE(SetupLog("warning", "text"));
  EXPECT_FALSE(LogEnabled(LogLevel::kInfo));
  EXPECT_TRUE(LogEnabled(LogLevel::kError));
  EXPECT_EQ(Captured([] { Log(LogLevel::kInfo, "no"); }), "");
  EXPECT_NE(Captured([] { Log(LogLevel::kWarning, "yes"); }), "");
}

TEST(Log, UnknownWordsAreRefusedAndChangeNothing) {
  ASSERT_TRUE(SetupLog("error", "text"));
  EXPECT_FALSE(SetupLog("loud", "text"));
  EXPECT_FALSE(SetupLog("debug", "xml"));
  EXPECT_FALSE(LogEnabled(LogLevel::kWarning));
}

TEST(Log, LinesOfManyThreadsStayWhole) {
  ASSERT_TRUE(SetupLog("info", "json"));
  const std::string out = Captured([] {
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < 200; ++i) Log(LogLevel::kInfo, "tick", {{"thread", t}, {"i", i}});
      });
    }
    for (auto& t : threads) t.join();
  });
  const std::vector<std::string> lines = absl::StrSplit(out, '\n', absl::SkipEmpty());
  EXPECT_EQ(lines.size(), 1600u);
  for (const auto& line : lines) ASSERT_TRUE(nlohmann::json::accept(line)) << line;
}

}  // namespace
}  // namespace kvcask
