// What deploy/ and docs/operations.md say agrees with the daemon: every metric they name
// exists and every one that exists is explained, every alert has its page, the shipped
// configuration parses, and the unit waits longer than a drain lasts.
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <string>

#include "server/config/config.h"
#include "server/exec/device_backend.h"
#include "server/metrics/metrics.h"
#include "server/store_setup.h"

namespace kvcask {
namespace {

constexpr char kRules[] = "deploy/prometheus/kvcask_rules.yml";
constexpr char kDashboard[] = "deploy/grafana/kvcask.json";
constexpr char kManual[] = "docs/operations.md";
constexpr char kConfig[] = "deploy/systemd/kvcaskd.yaml";
constexpr char kUnit[] = "deploy/systemd/kvcaskd.service";

std::string Read(const std::string& path) {
  std::ifstream in(path);
  EXPECT_TRUE(in) << path;
  return std::string(std::istreambuf_iterator<char>(in), {});
}

std::set<std::string> Matches(const std::string& text, const char* pattern) {
  std::set<std::string> found;
  const std::regex re(pattern);
  for (std::sregex_iterator it(text.begin(), text.end(), re), end; it != end; ++it) {
    found.insert((*it)[1]);
  }
  return found;
}

// Families of the daemon, without the suffixes of histograms.
std::set<std::string> Families() {
  Metrics metrics("v", "c", "b");
  metrics.DeclareCodec("raw");  // families without series are not shown
  metrics.DeclareMethod("Put");
  const SessionStore store(128);
  Metrics::Sources sources;
  const DeviceState device;
  sources.store = [&] {
    auto values = StoreMetrics(store, 0, 0);
    for (const auto& value : DeviceMetrics(device, nullptr)) values.push_back(value);
    return values;
  };
  metrics.SetSources(std::move(sources));
  return Matches(metrics.Text(), "# HELP (kvcask_[a-z_]+) ");
}

std::set<std::string> NamesIn(const std::string& text) {
  std::set<std::string> names;
  for (std::string name : Matches(text, "\\b(kvcask_[a-z_]+)\\b")) {
    for (const char* suffix : {"_bucket", "_sum", "_count"}) {
      if (absl::EndsWith(name, suffix)) name.resize(name.size() - std::string(suffix).size());
    }
    names.insert(name);
  }
  // Files, and groups of rules.
  for (const char* other :
       {"kvcask_rules", "kvcask_rules_test", "kvcask_recording", "kvcask_alerts"}) {
    names.erase(other);
  }
  return names;
}

TEST(Deploy, EveryMetricThatIsNamedExists) {
  const std::set<std::string> families = Families();
  ASSERT_GT(families.size(), 20u);
  for (const char* file : {kRules, kDashboard, kManual}) {
    const auto names = NamesIn(Read(file));
    EXPECT_GT(names.size(), 8u) << file;
    for (const std::string& name : names) EXPECT_TRUE(families.count(name)) << file << ": " << name;
  }
}

TEST(Deploy, EveryMetricIsExplained) {
  const auto explained = NamesIn(Read(kManual));
  for (const std::string& name : Families()) EXPECT_TRUE(explained.count(name)) << name;
}

TEST(Deploy, EveryRecordedSeriesThatIsNamedIsRecorded) {
  const auto recorded = Matches(Read(kRules), "record: (kvcask:[a-z_0-9:]+)");
  EXPECT_EQ(recorded.size(), 4u);
  for (const char* file : {kRules, kDashboard, kManual}) {
    for (const auto& name : Matches(Read(file), "\\b(kvcask:[a-z_0-9:]+)")) {
      EXPECT_TRUE(recorded.count(name)) << file << ": " << name;
    }
  }
}

TEST(Deploy, EveryAlertHasItsPageAndEveryPageItsAlert) {
  const auto alerts = Matches(Read(kRules), "alert: (Kvcask[A-Za-z]+)");
  EXPECT_EQ(alerts.size(), 15u);
  EXPECT_EQ(Matches(Read(kManual), "\n### (Kvcask[A-Za-z]+)\n"), alerts);
}

TEST(Deploy, EveryPanelHasAQueryAndADescription) {
  const auto dashboard = nlohmann::json::parse(Read(kDashboard));
  ASSERT_GT(dashboard["panels"].size(), 10u);
  std::set<int> ids;
  for (const auto& panel : dashboard["panels"]) {
    EXPECT_TRUE(ids.insert(panel["id"].get<int>()).second);
    EXPECT_FALSE(panel["targets"].empty()) << panel["title"];
    EXPECT_FALSE(panel["description"].get<std::string>().empty()) << panel["title"];
    for (const auto& target : panel["targets"]) {
      EXPECT_THAT(target["expr"].get<std::string>(), testing::HasSubstr("instance=~\"$instance\""));
    }
  }
}

TEST(Deploy, TheShippedConfigurationParses) {
  const char* argv[] = {"kvcaskd", "--config", kConfig, nullptr};
  const auto parsed = ParseConfig(3, argv);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_FALSE(parsed->config.insecure);
  EXPECT_EQ(parsed->config.listen.size(), 2u);
}

TEST(Deploy, TheUnitWaitsLongerThanADrain) {
  const char* argv[] = {"kvcaskd", "--config", kConfig, nullptr};
  const auto parsed = ParseConfig(3, argv);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto stop = Matches(Read(kUnit), "\nTimeoutStopSec=([0-9]+s)\n");
  ASSERT_EQ(stop.size(), 1u);
  absl::Duration wait;
  ASSERT_TRUE(absl::ParseDuration(*stop.begin(), &wait));
  EXPECT_GE(wait, parsed->config.drain_timeout + absl::Seconds(5));
}

// `key: value` of the manual's prose names settings: they must exist.
TEST(Deploy, SettingsThatAreNamedExist) {
  const char* argv[] = {"kvcaskd", "--help", nullptr};
  const std::string help = ParseConfig(2, argv)->text;
  const auto options = Matches(help, "--([a-z][a-z-]+)");
  for (const auto& name : Matches(Read(kManual), "`-?-?([a-z]+-[a-z-]+)`")) {
    if (name == "x-request-id") continue;
    EXPECT_TRUE(options.count(name)) << name;
  }
}

}  // namespace
}  // namespace kvcask
