#include "server/config/config.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

namespace kvcask {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

absl::StatusOr<ParsedConfig> Parse(std::vector<const char*> args) {
  args.insert(args.begin(), "kvcaskd");
  args.push_back(nullptr);
  return ParseConfig(static_cast<int>(args.size()) - 1, args.data());
}

// The message of an error with INVALID_ARGUMENT.
std::string Refusal(std::vector<const char*> args) {
  const auto parsed = Parse(std::move(args));
  if (parsed.ok()) return "accepted";
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << parsed.status();
  return std::string(parsed.status().message());
}

// A file with `text`, gone with it.
class YamlFile {
 public:
  explicit YamlFile(const std::string& text) {
    static int count = 0;
    path_ = absl::StrCat(testing::TempDir(), "/kvcaskd_", getpid(), "_", ++count, ".yaml");
    std::ofstream(path_) << text;
  }
  ~YamlFile() { unlink(path_.c_str()); }
  const char* path() const { return path_.c_str(); }

 private:
  std::string path_;
};

TEST(Config, DefaultsServeThisMachineOnly) {
  const auto parsed = Parse({});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->action, ConfigAction::kRun);
  const Config& c = parsed->config;
  EXPECT_THAT(c.listen, ElementsAre("127.0.0.1:7420"));
  EXPECT_EQ(c.metrics, "127.0.0.1:7421");
  EXPECT_EQ(c.backend, "auto");
  EXPECT_EQ(c.memory_budget_bytes, 0u);
  EXPECT_EQ(c.default_codec, "int8");
  EXPECT_EQ(c.drain_timeout, absl::Seconds(20));
  EXPECT_FALSE(c.insecure);
  EXPECT_EQ(c.log_level, "info");
}

TEST(Config, EveryFlagReachesItsField) {
  const auto parsed = Parse({"--listen=unix:/tmp/a",
                             "--listen",
                             "localhost:0",
                             "--metrics",
                             "127.0.0.1:0",
                             "--backend=cpu",
                             "--memory-budget=8GiB",
                             "--profile=a",
                             "--profile",
                             "b",
                             "--default-codec=raw",
                             "--encode-threads=3",
                             "--drain-timeout=500ms",
                             "--idle-put-timeout=1m30s",
                             "--max-lease=90s",
                             "--shadow-fraction=0.25",
                             "--shadow-bytes=64MiB",
                             "--put-credit=16MiB",
                             "--get-window=4MiB",
                             "--max-message=8MiB",
                             "--insecure",
                             "--tls-cert=c.pem",
                             "--tls-key=k.pem",
                             "--log-level=debug",
                             "--log-format=json",
                             "--ready-fd=3"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const Config& c = parsed->config;
  EXPECT_THAT(c.listen, ElementsAre("unix:/tmp/a", "localhost:0"));
  EXPECT_EQ(c.metrics, "127.0.0.1:0");
  EXPECT_EQ(c.backend, "cpu");
  EXPECT_EQ(c.memory_budget_bytes, uint64_t{8} << 30);
  EXPECT_THAT(c.profiles, ElementsAre("a", "b"));
  EXPECT_EQ(c.default_codec, "raw");
  EXPECT_EQ(c.encode_threads, 3);
  EXPECT_EQ(c.drain_timeout, absl::Milliseconds(500));
  EXPECT_EQ(c.idle_put_timeout, absl::Seconds(90));
  EXPECT_EQ(c.max_lease, absl::Seconds(90));
  EXPECT_EQ(c.shadow_fraction, .25);
  EXPECT_EQ(c.shadow_bytes, uint64_t{64} << 20);
  EXPECT_EQ(c.put_credit_bytes, uint64_t{16} << 20);
  EXPECT_EQ(c.get_window_bytes, uint64_t{4} << 20);
  EXPECT_EQ(c.max_message_bytes, uint64_t{8} << 20);
  EXPECT_TRUE(c.insecure);
  EXPECT_EQ(c.tls_cert, "c.pem");
  EXPECT_EQ(c.tls_key, "k.pem");
  EXPECT_EQ(c.log_level, "debug");
  EXPECT_EQ(c.log_format, "json");
  EXPECT_EQ(c.ready_fd, "3");
}

TEST(Config, MetricsCanBeOff) { EXPECT_EQ(Parse({"--metrics=off"})->config.metrics, ""); }

TEST(Config, TheLastOfARepeatedFlagCounts) {
  EXPECT_EQ(Parse({"--backend=cuda", "--backend=cpu"})->config.backend, "cpu");
}

TEST(Config, FlagsOverrideTheFileAndTheRestStays) {
  const YamlFile file(
      "# how we run it\n"
      "listen: [unix:/tmp/x, 127.0.0.1:1]\n"
      "memory-budget: 512MiB\n"
      "insecure: true\n"
      "profile: one.safetensors\n"
      "drain-timeout: 5s\n");
  auto parsed = Parse({"--config", file.path()});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->config.listen, ElementsAre("unix:/tmp/x", "127.0.0.1:1"));
  EXPECT_EQ(parsed->config.memory_budget_bytes, uint64_t{512} << 20);
  EXPECT_THAT(parsed->config.profiles, ElementsAre("one.safetensors"));
  EXPECT_TRUE(parsed->config.insecure);
  EXPECT_EQ(parsed->config.drain_timeout, absl::Seconds(5));

  // Wherever --config stands.
  parsed = Parse({"--listen=unix:/tmp/y", "--memory-budget=1GiB", "--config", file.path(),
                  "--insecure=false", "--profile=two", "--profile=three"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->config.listen, ElementsAre("unix:/tmp/y"));
  EXPECT_EQ(parsed->config.memory_budget_bytes, uint64_t{1} << 30);
  EXPECT_FALSE(parsed->config.insecure);
  EXPECT_THAT(parsed->config.profiles, ElementsAre("two", "three"));
  EXPECT_EQ(parsed->config.drain_timeout, absl::Seconds(5));
}

TEST(Config, AnEmptyFileIsFine) {
  const YamlFile empty(""), comments("# nothing\n\n");
  EXPECT_TRUE(Parse({"--config", empty.path()}).ok());
  EXPECT_TRUE(Parse({"--config", comments.path()}).ok());
}

TEST(Config, AMissingFileIsNamed) {
  const auto parsed = Parse({"--config=/nonexistent/kvcaskd.yaml"});
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(parsed.status().message(), HasSubstr("/nonexistent/kvcaskd.yaml"));
}

struct BadFile {
  const char* text;
  const char* expected;  // after the path
};

class BadFiles : public testing::TestWithParam<BadFile> {};

TEST_P(BadFiles, AreRefusedWithFileLineAndReason) {
  const YamlFile file(GetParam().text);
  EXPECT_THAT(Refusal({"--config", file.path()}),
              HasSubstr(absl::StrCat(file.path(), GetParam().expected)));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadFiles,
    testing::Values(
        BadFile{"backend: cpu\nmemry-budget: 1GiB\n",
                ":2: unknown key 'memry-budget'; did you mean 'memory-budget'?"},
        BadFile{"memory_budget: 1GiB\n",
                ":1: unknown key 'memory_budget'; did you mean 'memory-budget'?"},
        BadFile{"zzzzzz: 1\n", ":1: unknown key 'zzzzzz'; kvcaskd --help lists them"},
        BadFile{"config: x\n", ":1: unknown key 'config'"},
        BadFile{"\n\nmemory-budget: lots\n", ":3: memory-budget: 'lots' is not a size"},
        BadFile{"backend: cpu\nbackend: cuda\n", ":2: backend a second time"},
        BadFile{"backend: [cpu]\n", ":1: backend: a list, expected one value"},
        BadFile{"backend: {a: b}\n", ":1: backend: expected a value or a list of values, found a"},
        BadFile{"backend:\n", ":1: backend: expected a value or a list of values, found nothing"},
        BadFile{"listen: [[a]]\n", ":1: listen: an item that is no value"},
        BadFile{"- a\n- b\n", ":1: expected lines of the form `key: value`"},
        BadFile{"insecure: yes\n", ":1: insecure: 'yes', expected true or false"},
        BadFile{"backend: cpu\nlisten: [a\n", ":"},  // the parser's own words
        BadFile{"listen: [7420]\n", ":1: listen: '7420': no port"}));

TEST(Config, TheOneBadValueOfAFlagIsNamed) {
  EXPECT_THAT(Refusal({"--memory-budget=8GX"}),
              AllOf(HasSubstr("--memory-budget: '8GX'"), HasSubstr("8GiB")));
  EXPECT_THAT(Refusal({"--memory-budget=1KiB"}), HasSubstr("at least 1MiB"));
  EXPECT_THAT(Refusal({"--drain-timeout=20"}), HasSubstr("--drain-timeout: '20'"));
  EXPECT_THAT(Refusal({"--backend=gpu"}), HasSubstr("--backend: 'gpu', expected auto, cpu, cuda"));
  EXPECT_THAT(Refusal({"--encode-threads=-1"}), HasSubstr("--encode-threads"));
  EXPECT_THAT(Refusal({"--listen=nowhere"}), HasSubstr("--listen: 'nowhere': no port"));
  EXPECT_THAT(Refusal({"--metrics=unix:/tmp/x"}), HasSubstr("--metrics"));
  EXPECT_THAT(Refusal({"--log-level=loud"}), HasSubstr("debug, info, warning, error"));
  EXPECT_THAT(Refusal({"--insecure=perhaps"}), Not(HasSubstr("accepted")));
}

TEST(Config, UnknownFlagsAreRefusedWithASuggestion) {
  EXPECT_THAT(Refusal({"--memry-budget=1GiB"}),
              HasSubstr("unknown flag --memry-budget=1GiB; did you mean --memory-budget?"));
  EXPECT_THAT(Refusal({"--xyzzy"}), HasSubstr("unknown flag --xyzzy; see --help"));
  EXPECT_THAT(Refusal({"extra"}), HasSubstr("'extra': expected flags only"));
  EXPECT_THAT(Refusal({"--listen"}), HasSubstr("--listen"));  // without its value
}

TEST(Config, OthersReachingItNeedsTlsOrInsecure) {
  for (const char* address :
       {"--listen=0.0.0.0:1", "--listen=[::]:1", "--listen=10.0.0.1:1", "--listen=example.org:1"}) {
    EXPECT_THAT(Refusal({address}), HasSubstr("--insecure")) << address;
    EXPECT_TRUE(Parse({address, "--insecure"}).ok()) << address;
    EXPECT_TRUE(Parse({address, "--tls-cert=c", "--tls-key=k"}).ok()) << address;
  }
  for (const char* address : {"--listen=127.0.0.1:1", "--listen=127.8.8.8:1", "--listen=[::1]:1",
                              "--listen=localhost:1", "--listen=unix:/tmp/x"}) {
    EXPECT_TRUE(Parse({address}).ok()) << address;
  }
}

TEST(Config, AFractionIsOfOne) {
  for (const char* bad : {"1.1", "-0.1", "nan", "half"}) {
    EXPECT_THAT(Refusal({absl::StrCat("--shadow-fraction=", bad).c_str()}),
                HasSubstr("a number from 0 to 1"))
        << bad;
  }
}

TEST(Config, TlsNeedsBothFiles) {
  EXPECT_THAT(Refusal({"--tls-cert=c"}), HasSubstr("--tls-cert without --tls-key"));
  EXPECT_THAT(Refusal({"--tls-key=k"}), HasSubstr("--tls-key without --tls-cert"));
}

TEST(Config, AGpuBudgetNeedsABackendThatMayHaveOne) {
  EXPECT_THAT(Refusal({"--gpu-budget=1GiB", "--backend=cpu"}),
              HasSubstr("--gpu-budget with --backend cpu"));
  EXPECT_EQ(Parse({"--gpu-budget=1GiB", "--backend=cuda"})->config.gpu_budget_bytes,
            uint64_t{1} << 30);
  EXPECT_TRUE(Parse({"--gpu-budget=1GiB"}).ok());
  EXPECT_EQ(Parse({})->config.gpu_budget_bytes, 0u);
}

TEST(Config, SegmentsAreLongOrShort) {
  EXPECT_EQ(Parse({})->config.fklt_segments, "long");
  EXPECT_EQ(Parse({"--fklt-segments=short"})->config.fklt_segments, "short");
  EXPECT_THAT(Refusal({"--fklt-segments=tiny"}), HasSubstr("long"));
}

TEST(Config, HelpTeaches) {
  for (const char* flag : {"--help", "-h"}) {
    const auto parsed = Parse({flag});
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->action, ConfigAction::kHelp);
    for (const char* what :
         {"--listen",        "--metrics",          "--backend",       "--memory-budget",
          "--profile",       "--config",           "--default-codec", "--encode-threads",
          "--drain-timeout", "--idle-put-timeout", "--put-credit",    "--get-window",
          "--max-message",   "--insecure",         "--tls-cert",      "--tls-key",
          "--log-level",     "--log-format",       "--version",       "--help",
          "--max-lease",     "--shadow-fraction",  "--shadow-bytes",  "--gpu-budget",
          "--fklt-segments",
          "127.0.0.1:7420",  "127.0.0.1:7421",     "Examples:",       "SIGTERM",
          "Exit codes"}) {
      EXPECT_THAT(parsed->text, HasSubstr(what));
    }
    EXPECT_THAT(parsed->text, Not(HasSubstr("ready-fd")));
    for (absl::string_view line : absl::StrSplit(parsed->text, '\n')) {
      EXPECT_LE(line.size(), 100u) << line;
    }
  }
}

TEST(Config, HelpWinsOverWhatElseIsWrong) {
  EXPECT_EQ(Parse({"--backend=gpu", "--help"})->action, ConfigAction::kHelp);
}

TEST(Config, VersionIsOneLine) {
  const auto parsed = Parse({"--version"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->action, ConfigAction::kVersion);
  EXPECT_THAT(parsed->text, testing::MatchesRegex("kvcaskd [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

}  // namespace
}  // namespace kvcask
