// A real kvcaskd for one test, and the caches that tests put into it.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/cc/client.h"
#include "client/cli/cache_file.h"
#include "tests/e2e/process.h"

namespace kvcask {

// Generous, since test machines are slow and shared; nothing waits for it when all is well.
inline constexpr absl::Duration kPatience = absl::Seconds(60);

// A new folder under /tmp (the path of a socket has at most 107 bytes), removed with all that
// is in it.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// kvcaskd on a unix socket, a free TCP port and a free metrics port.
class Daemon {
 public:
  // Waits until it listens; ends the test program, showing its log, when it does not.
  explicit Daemon(const std::vector<std::string>& flags = {},
                  const std::vector<std::string>& environment = {});
  ~Daemon();  // shows its log when the test has failed

  const std::string& unix_address() const { return unix_; }
  const std::string& tcp_address() const { return tcp_; }
  const std::string& metrics_address() const { return metrics_; }  // host:port
  Client Connect() const;  // over the unix socket
  Process& process() { return *process_; }
  std::string Log() const;
  const ScratchFolder& folder() const { return folder_; }

 private:
  ScratchFolder folder_;
  std::unique_ptr<Process> process_;
  std::string unix_, tcp_, metrics_;
};

// Calls `condition` until it is true; false after kPatience. For what ends asynchronously on
// the other side of a connection, where there is nothing to wait on.
bool Eventually(const std::function<bool()>& condition);

// The cache of examples/: 256 tokens of SmolLM2-135M, bf16, with token ids.
const CacheFile& Example();

// An open of tokens [begin, end) of the example.
v1::PutOpen OpenOf(const std::string& session, const std::string& codec, uint64_t begin = 0,
                   uint64_t end = 256);
// The example's planes from token `begin` on, for Client::PutRun.
class ExampleRun {
 public:
  explicit ExampleRun(uint64_t begin = 0);
  RunSource source() const;

 private:
  std::vector<ConstPlaneView> planes_;
};
absl::StatusOr<v1::PutCommitted> PutExample(Client& client, const v1::PutOpen& open,
                                            bool seal = true,
                                            PutOrder order = PutOrder::kTokenMajor);
v1::PutCommit Seal(bool seal = true);

// One rectangle of the example, its bytes in the contract's order.
std::vector<uint8_t> ExampleBytes(const v1::Rectangle& rectangle);
v1::Rectangle MakeRectangle(uint32_t layer_begin, uint32_t layer_count, uint64_t token_begin,
                            uint32_t token_count);

// What a Get brought: dense planes of layers [layer_begin, layer_end) x tokens.
struct Fetched {
  v1::GetHeader header;
  Geometry geometry;  // of the whole model
  Dtype dtype = Dtype::kBf16;
  std::vector<std::vector<uint8_t>> planes;
  uint64_t tokens() const { return header.tokens().end() - header.tokens().begin(); }
};
absl::StatusOr<Fetched> Fetch(Client& client, const v1::GetRequest& request);
v1::GetRequest RequestOf(const std::string& session, uint64_t token_begin = 0,
                         uint64_t token_end = 0, uint64_t layer_begin = 0, uint64_t layer_end = 0);

// "": the fetched planes are, byte for byte, those of the example whose token 0 is the
// session's `shift`. Else what differs first.
std::string DifferenceFromExample(const Fetched& fetched, uint64_t shift = 0);

v1::SessionRef Ref(const std::string& session);
// The daemon holds no session, no chunk and no byte that a put took.
bool HoldsNothing(Client& client);

}  // namespace kvcask
