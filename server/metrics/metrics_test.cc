#include "server/metrics/metrics.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace kvcask {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// The value of one series, "name{labels}"; "absent" when there is none.
std::string Value(const Metrics& metrics, const std::string& series) {
  for (absl::string_view line : absl::StrSplit(metrics.Text(), '\n')) {
    if (line.size() > series.size() && line.substr(0, series.size()) == series &&
        line[series.size()] == ' ') {
      return std::string(line.substr(series.size() + 1));
    }
  }
  return "absent";
}

// What promtool says of `text`; "" is praise. Package prometheus; tools/setup installs it.
std::string Promtool(const std::string& text) {
  const std::string stem = absl::StrCat(testing::TempDir(), "/metrics_", getpid());
  std::ofstream(stem + ".in") << text;
  const int rc = std::system(
      absl::StrCat("promtool check metrics < ", stem, ".in > ", stem, ".out 2>&1").c_str());
  std::ifstream in(stem + ".out");
  const std::string out((std::istreambuf_iterator<char>(in)), {});
  return rc == 0 ? out : absl::StrCat("exit ", WEXITSTATUS(rc), ": ", out);
}

// GET /metrics, the whole answer.
std::string Scrape(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0) {
    const std::string ask = "GET /metrics HTTP/1.0\r\nConnection: close\r\n\r\n";
    if (write(fd, ask.data(), ask.size()) == static_cast<ssize_t>(ask.size())) {
      char buffer[4096];
      for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) answer.append(buffer, n);
    }
  }
  close(fd);
  return answer;
}

Metrics::Sources AllSources() {
  Metrics::Sources s;
  s.queue_depth = [] { return 3; };
  s.queue_age_seconds = [] { return .25; };
  s.budget_bytes = [] { return 1e9; };
  s.used_bytes = [] { return 5e8; };
  s.stored_bytes = [] { return 4e8; };
  s.sessions = [] { return 12; };
  s.chunks = [] { return 345; };
  s.profiles = [] { return 2; };
  s.ready = [] { return 1; };
  return s;
}

void TouchEverything(Metrics* m) {
  m->SetSources(AllSources());
  m->DeclareCodec("raw");
  m->DeclareMethod("Put");
  m->Encoded("int8", 1000, 510, absl::Milliseconds(3));
  m->Decoded("int8", 1000, absl::Milliseconds(2));
  m->Committed("int8", 1000, 510);
  m->Received(1000);
  m->Sent(2000);
  m->Finished("Put", "OK", absl::Milliseconds(20));
  m->Finished("Get", "NOT_FOUND", absl::Milliseconds(1));
  m->ChecksumFailure("received");
  m->PutAborted("idle");
}

TEST(Metrics, PromtoolFindsNothingToSay) {
  Metrics metrics("0.1.0", "abc", "cpu");
  EXPECT_EQ(Promtool(metrics.Text()), "") << "before anything happened";
  TouchEverything(&metrics);
  EXPECT_EQ(Promtool(metrics.Text()), "");
}

TEST(Metrics, PromtoolWouldFindABadName) {
  EXPECT_THAT(Promtool("# TYPE kvcask_puts counter\nkvcask_puts 1\n"), HasSubstr("_total"));
}

TEST(Metrics, SeriesAreThereBeforeTheyAreUsed) {
  Metrics metrics("0.1.0", "abc", "cpu");
  metrics.DeclareCodec("raw");
  metrics.DeclareMethod("Put");
  for (const char* series : {"kvcask_raw_bytes_total{codec=\"raw\"}",
                             "kvcask_stored_bytes_total{codec=\"raw\"}",
                             "kvcask_encode_input_bytes_total{codec=\"raw\"}",
                             "kvcask_encode_output_bytes_total{codec=\"raw\"}",
                             "kvcask_decode_output_bytes_total{codec=\"raw\"}",
                             "kvcask_encode_seconds_count{codec=\"raw\"}",
                             "kvcask_decode_seconds_count{codec=\"raw\"}",
                             "kvcask_request_seconds_count{method=\"Put\"}",
                             "kvcask_checksum_failures_total{where=\"received\"}",
                             "kvcask_checksum_failures_total{where=\"stored\"}",
                             "kvcask_put_aborts_total{reason=\"cancelled\"}",
                             "kvcask_put_aborts_total{reason=\"idle\"}",
                             "kvcask_put_aborts_total{reason=\"error\"}",
                             "kvcask_received_bytes_total",
                             "kvcask_sent_bytes_total",
                             "kvcask_queue_depth",
                             "kvcask_queue_age_seconds",
                             "kvcask_memory_budget_bytes",
                             "kvcask_memory_used_bytes",
                             "kvcask_stored_unique_bytes",
                             "kvcask_sessions",
                             "kvcask_chunks",
                             "kvcask_profiles",
                             "kvcask_ready"}) {
    EXPECT_EQ(Value(metrics, series), "0") << series;
  }
  EXPECT_THAT(metrics.Text(), HasSubstr("kvcask_requests_total{"));
}

TEST(Metrics, EventsAreCountedWhereTheyBelong) {
  Metrics metrics("0.1.0", "abc", "cpu");
  TouchEverything(&metrics);
  metrics.Encoded("int8", 24, 10, absl::Seconds(100));
  EXPECT_EQ(Value(metrics, "kvcask_raw_bytes_total{codec=\"int8\"}"), "1000");
  EXPECT_EQ(Value(metrics, "kvcask_stored_bytes_total{codec=\"int8\"}"), "510");
  EXPECT_EQ(Value(metrics, "kvcask_encode_input_bytes_total{codec=\"int8\"}"), "1024");
  EXPECT_EQ(Value(metrics, "kvcask_encode_output_bytes_total{codec=\"int8\"}"), "520");
  EXPECT_EQ(Value(metrics, "kvcask_decode_output_bytes_total{codec=\"int8\"}"), "1000");
  EXPECT_EQ(Value(metrics, "kvcask_encode_seconds_count{codec=\"int8\"}"), "2");
  EXPECT_EQ(Value(metrics, "kvcask_encode_seconds_sum{codec=\"int8\"}"), "100.003");
  EXPECT_EQ(Value(metrics, "kvcask_encode_seconds_bucket{codec=\"int8\",le=\"0.005\"}"), "1");
  EXPECT_EQ(Value(metrics, "kvcask_decode_seconds_count{codec=\"int8\"}"), "1");
  EXPECT_EQ(Value(metrics, "kvcask_received_bytes_total"), "1000");
  EXPECT_EQ(Value(metrics, "kvcask_sent_bytes_total"), "2000");
  EXPECT_EQ(Value(metrics, "kvcask_request_seconds_count{method=\"Get\"}"), "1");
  EXPECT_EQ(Value(metrics, "kvcask_checksum_failures_total{where=\"received\"}"), "1");
  EXPECT_EQ(Value(metrics, "kvcask_put_aborts_total{reason=\"idle\"}"), "1");
  EXPECT_EQ(Value(metrics, "kvcask_sessions"), "12");
  EXPECT_EQ(Value(metrics, "kvcask_queue_age_seconds"), "0.25");
  EXPECT_THAT(metrics.Text(), HasSubstr("code=\"NOT_FOUND\""));
  EXPECT_THAT(metrics.Text(), HasSubstr("kvcask_build_info{"));
}

TEST(Metrics, ServesWhatTextSays) {
  Metrics metrics("0.1.0", "abc", "cpu");
  TouchEverything(&metrics);
  const auto port = metrics.Serve("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  const std::string answer = Scrape(*port);
  EXPECT_THAT(answer, HasSubstr("200 OK"));
  EXPECT_THAT(answer, HasSubstr("kvcask_sessions 12\n"));
  EXPECT_THAT(answer, HasSubstr("kvcask_raw_bytes_total{codec=\"int8\"} 1000\n"));
  const size_t body = answer.find("\r\n\r\n");
  ASSERT_NE(body, std::string::npos);
  // Also with what the HTTP library adds about itself.
  EXPECT_EQ(Promtool(answer.substr(body + 4)), "");
}

// As much as libraries may bring; it comes off every thread's stack (thread_stacks.cc).
thread_local volatile char thread_storage[88 << 10];

TEST(Metrics, AScrapeHasRoomBesideMuchThreadLocalStorage) {
  thread_storage[0] = 1;
  Metrics metrics("v", "c", "b");
  const auto port = metrics.Serve("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  EXPECT_THAT(Scrape(*port), HasSubstr("kvcask_ready"));
}

TEST(Metrics, ATakenPortIsAnErrorThatNamesIt) {
  Metrics first("0.1.0", "abc", "cpu"), second("0.1.0", "abc", "cpu");
  const auto port = first.Serve("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  const std::string address = absl::StrCat("127.0.0.1:", *port);
  const auto again = second.Serve(address);
  EXPECT_EQ(again.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(again.status().message(), HasSubstr(address));
  EXPECT_TRUE(second.Serve("127.0.0.1:0").ok());  // and it can try another
}

TEST(Metrics, MalformedAddressesAreRefused) {
  Metrics metrics("0.1.0", "abc", "cpu");
  for (const char* address :
       {"", "7421", ":7421", "127.0.0.1:", "127.0.0.1:7421s", "127.0.0.1:99999",
        "127.0.0.1:1,127.0.0.1:2", "a b:1", "127.0.0.1:-1"}) {
    EXPECT_EQ(metrics.Serve(address).status().code(), absl::StatusCode::kInvalidArgument)
        << address;
  }
}

TEST(Metrics, ClearedSourcesAreNotCalledAgain) {
  Metrics metrics("0.1.0", "abc", "cpu");
  int calls = 0;
  Metrics::Sources sources;
  sources.sessions = [&calls] { return ++calls; };
  metrics.SetSources(sources);
  metrics.Text();
  metrics.SetSources({});
  EXPECT_EQ(Value(metrics, "kvcask_sessions"), "0");
  EXPECT_EQ(calls, 1);
}

TEST(Metrics, ManyThreadsLoseNoCount) {
  Metrics metrics("0.1.0", "abc", "cpu");
  metrics.SetSources(AllSources());
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) {
        metrics.Committed(t % 2 ? "raw" : "int8", 2, 1);
        metrics.Finished("Put", i % 2 ? "OK" : "ABORTED", absl::Milliseconds(1));
        if (i % 100 == 0) metrics.Text();
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(Value(metrics, "kvcask_raw_bytes_total{codec=\"raw\"}"), "3000");
  EXPECT_EQ(Value(metrics, "kvcask_request_seconds_count{method=\"Put\"}"), "3000");
}

}  // namespace
}  // namespace kvcask
