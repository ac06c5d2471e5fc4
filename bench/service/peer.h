// What the service benchmark compares: the same bytes put into and got from kvcaskd, a bare
// gRPC server (the transport's ceiling) and Redis. Peers are processes of their own.
//
// A Connection is one socket and belongs to one thread at a time. Failures end the program:
// a benchmark of something that does not work is worth nothing.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "client/cc/client.h"
#include "codec/base/views.h"

namespace kvcask::bench {

[[noreturn]] void Die(const std::string& why);

// Real KV, dense: the example's 256 tokens, repeated to `tokens`.
class Run {
 public:
  static constexpr int kExampleTokens = 256;
  explicit Run(int tokens);
  int tokens() const { return tokens_; }
  uint64_t bytes() const { return data_->size(); }
  const std::vector<uint8_t>& data() const { return *data_; }
  std::shared_ptr<const void> owner() const { return data_; }
  RunSource source() const { return {{Dtype::kBf16, planes_, {}}, data_}; }
  const std::vector<ConstPlaneView>& planes() const { return planes_; }

 private:
  int tokens_;
  std::shared_ptr<std::vector<uint8_t>> data_;  // [plane][head][token][dim]
  std::vector<ConstPlaneView> planes_;
};

class Connection {
 public:
  virtual ~Connection() = default;
  virtual void Put(const std::string& name) = 0;
  virtual void Get(const std::string& name) = 0;  // all bytes, dropped where they arrive
  virtual void Remove(const std::string& name) = 0;
  // Gets, and compares with what was put: sqrt(sum (x^-x)^2 / sum x^2); 0 only when every
  // byte is the same.
  virtual double Error(const std::string& name) = 0;
};

class Peer {
 public:
  virtual ~Peer() = default;
  virtual std::unique_ptr<Connection> Connect(bool unix_socket, const Run& run) = 0;
  virtual pid_t pid() const = 0;
  // Raw bytes for each byte kept, of what was put last.
  virtual double ratio() const { return 1; }
};

inline constexpr uint64_t kMessageBytes = 2 << 20;

// `crc32c`: Gets ask for a checksum of each rectangle, and verify it.
std::unique_ptr<Peer> NewKvcaskPeer(const std::string& codec, bool crc32c = false);
std::unique_ptr<Peer> NewBarePeer();
// Null when there is no redis-server here.
std::unique_ptr<Peer> NewRedisPeer();

// User and system CPU seconds of a process so far.
struct Cpu {
  double user = 0, system = 0;
};
Cpu CpuOf(pid_t pid);
uint64_t ResidentBytes(pid_t pid);

}  // namespace kvcask::bench
