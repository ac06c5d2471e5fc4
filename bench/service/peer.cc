#include "bench/service/peer.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <grpcpp/create_channel.h>
#include <hiredis/hiredis.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "client/cc/raw_call.h"
#include "codec/base/dtype.h"
#include "proto/wire/kv_frame.h"
#include "tests/e2e/daemon.h"
#include "tests/e2e/process.h"

namespace kvcask::bench {
namespace {

constexpr char kProfile[] = "examples/smollm2-135m-layer.fklt.profile.safetensors";
constexpr char kBareServer[] = "bench/service/bare_server";
constexpr char kRedisServer[] = "/usr/bin/redis-server";

void Check(const absl::Status& status, const char* what) {
  if (!status.ok()) Die(absl::StrCat(what, ": ", Describe(status)));
}

double RelativeRms(const std::vector<uint8_t>& put, const std::vector<uint8_t>& got) {
  if (put.size() != got.size()) Die(absl::StrCat("got ", got.size(), " of ", put.size(), " bytes"));
  if (put == got) return 0;
  double error = 0, size = 0;
  for (size_t i = 0; i < put.size(); i += 2) {
    const double x = LoadElement(&put[i], Dtype::kBf16), y = LoadElement(&got[i], Dtype::kBf16);
    error += (x - y) * (x - y);
    size += x * x;
  }
  return std::max(std::sqrt(error / size), 1e-12);
}

// ---- kvcaskd

// One daemon for all codecs, so that rows differ in nothing else. Ended with the program.
Daemon& TheDaemon() {
  static Daemon daemon({"--memory-budget", "8GiB", "--log-level", "warning"});
  return daemon;
}

class KvcaskPeer : public Peer {
 public:
  KvcaskPeer(const std::string& codec, bool crc32c) : codec_(codec), crc32c_(crc32c) {
    if (codec != "fklt") return;
    std::ifstream in(kProfile, std::ios::binary);
    const std::vector<uint8_t> file{std::istreambuf_iterator<char>(in), {}};
    Client client = TheDaemon().Connect();
    const auto added = client.AddProfile(file);
    Check(added.status(), "profile");
    profile_ = added->fingerprint();
  }
  std::unique_ptr<Connection> Connect(bool unix_socket, const Run& run) override;
  pid_t pid() const override { return TheDaemon().process().pid(); }
  double ratio() const override { return ratio_; }

 private:
  friend class KvcaskConnection;
  const std::string codec_;
  const bool crc32c_;
  std::string profile_;
  std::atomic<double> ratio_{0};
};

class KvcaskConnection : public Connection {
 public:
  KvcaskConnection(KvcaskPeer* peer, Client client, const Run& run)
      : peer_(peer), client_(std::move(client)), run_(run) {}

  void Put(const std::string& name) override {
    v1::PutOpen open = OpenOf(name, peer_->codec_, 0, 1);
    open.set_token_count(static_cast<uint32_t>(run_.tokens()));
    open.clear_token_ids();  // unshared: every block is stored
    open.mutable_codec()->set_profile_fingerprint(peer_->profile_);
    // The keys are rotated as the example's: a profile is of no use for other positions.
    for (int t = 0; t < run_.tokens(); ++t) {
      open.mutable_positions()->add_explicit_(static_cast<uint32_t>(t % Run::kExampleTokens));
    }
    PutRunOptions options;
    options.message_bytes = kMessageBytes;
    const auto put = client_.PutRun(open, run_.source(), Seal(), options);
    Check(put.status(), "put");
    peer_->ratio_ =
        static_cast<double>(put->raw_bytes()) / static_cast<double>(put->stored_bytes());
  }
  void Get(const std::string& name) override {
    auto stream = client_.OpenGet(Request(name));
    Check(stream.status(), "get");
    for (;;) {
      auto piece = stream->Next();
      Check(piece.status(), "get");
      if (!piece->has_value()) break;
    }
    if (stream->received_bytes() != run_.bytes()) Die("get: other bytes than were put");
  }
  void Remove(const std::string& name) override {
    Check(client_.DeleteSession(Ref(name), false).status(), "delete");
  }
  double Error(const std::string& name) override {
    const auto got = Fetch(client_, Request(name));
    Check(got.status(), "get");
    std::vector<uint8_t> bytes;
    for (const auto& plane : got->planes) bytes.insert(bytes.end(), plane.begin(), plane.end());
    return RelativeRms(run_.data(), bytes);
  }

 private:
  v1::GetRequest Request(const std::string& name) const {
    v1::GetRequest request = RequestOf(name);
    request.set_crc32c(peer_->crc32c_);
    return request;
  }
  KvcaskPeer* const peer_;
  Client client_;
  const Run& run_;
};

std::unique_ptr<Connection> KvcaskPeer::Connect(bool unix_socket, const Run& run) {
  auto client =
      Client::Connect(unix_socket ? TheDaemon().unix_address() : TheDaemon().tcp_address());
  Check(client.status(), "connect");
  return std::make_unique<KvcaskConnection>(this, *std::move(client), run);
}

// ---- the bare server

class BareConnection : public Connection {
 public:
  BareConnection(std::shared_ptr<grpc::Channel> channel, const Run& run)
      : channel_(std::move(channel)), run_(run) {}

  void Put(const std::string& name) override {
    if (name == kLoaded) return Send("/bare/Load", name);
    Send("/bare/Sink", "");
  }
  void Get(const std::string& name) override { Receive(name, nullptr); }
  void Remove(const std::string&) override {}
  double Error(const std::string& name) override {
    std::vector<uint8_t> bytes;
    Receive(name, &bytes);
    return RelativeRms(run_.data(), bytes);
  }

  // Of all names only this one is kept: a sink drops what it gets.
  static constexpr char kLoaded[] = "loaded";

 private:
  RawCall Call(const char* method) {
    return RawCall(channel_, method, std::make_unique<grpc::ClientContext>(), 1);
  }
  static grpc::ByteBuffer Message(const std::string& text) {
    const grpc::Slice slice(text);
    return grpc::ByteBuffer(&slice, 1);
  }
  void Send(const char* method, const std::string& name) {
    RawCall call = Call(method);
    if (!name.empty()) call.Write(Message(name));
    for (uint64_t at = 0; at < run_.bytes(); at += kMessageBytes) {
      const uint64_t n = std::min(kMessageBytes, run_.bytes() - at);
      const grpc::Slice slice(const_cast<uint8_t*>(run_.data().data()) + at, n,
                              grpc::Slice::STATIC_SLICE);
      call.Write(grpc::ByteBuffer(&slice, 1));
    }
    call.WritesDone();
    grpc::ByteBuffer answer;
    if (!call.Read(&answer)) Die("sink: no answer");
    Check(call.Finish(), "sink");
  }
  void Receive(const std::string&, std::vector<uint8_t>* out) {
    RawCall call = Call("/bare/Source");
    call.Write(Message(kLoaded));
    call.WritesDone();
    uint64_t bytes = 0;
    grpc::ByteBuffer message;
    while (call.Read(&message)) {
      bytes += message.Length();
      if (out == nullptr) continue;
      std::vector<grpc::Slice> slices;
      if (!message.Dump(&slices).ok()) Die("source: no bytes");
      for (const grpc::Slice& s : slices) out->insert(out->end(), s.begin(), s.end());
    }
    Check(call.Finish(), "source");
    if (bytes != run_.bytes()) Die("source: other bytes than were loaded");
  }
  const std::shared_ptr<grpc::Channel> channel_;
  const Run& run_;
};

class BarePeer : public Peer {
 public:
  BarePeer() {
    unix_ = "unix:" + folder_.File("s");
    process_ = std::make_unique<Process>(
        std::vector<std::string>{kBareServer, unix_, "127.0.0.1:0"}, folder_.File("log"));
    for (std::string* address : {&unix_, &tcp_}) {
      const auto line = process_->ReadLine(kPatience);
      if (!line || !absl::StartsWith(*line, "listening ")) Die("bare_server does not start");
      *address = line->substr(std::strlen("listening "));
    }
  }
  std::unique_ptr<Connection> Connect(bool unix_socket, const Run& run) override {
    grpc::ChannelArguments args;
    args.SetMaxReceiveMessageSize(-1);
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a socket of its own
    auto connection = std::make_unique<BareConnection>(
        grpc::CreateCustomChannel(unix_socket ? unix_ : tcp_, grpc::InsecureChannelCredentials(),
                                  args),
        run);
    if (loaded_bytes_ != run.bytes()) connection->Put(BareConnection::kLoaded);
    loaded_bytes_ = run.bytes();
    return connection;
  }
  pid_t pid() const override { return process_->pid(); }

 private:
  ScratchFolder folder_;
  std::unique_ptr<Process> process_;
  std::string unix_, tcp_;
  uint64_t loaded_bytes_ = 0;
};

// ---- Redis

// A value for each message's worth of bytes; requests are sent ahead of their answers.
class RedisConnection : public Connection {
 public:
  RedisConnection(redisContext* context, const Run& run) : context_(context), run_(run) {
    if (context == nullptr || context->err != 0) Die("no connection to redis-server");
  }
  ~RedisConnection() override { redisFree(context_); }

  void Put(const std::string& name) override {
    Pipelined(
        [&](uint64_t at, uint64_t n) {
          const std::string key = absl::StrCat(name, ":", at);
          const char* argv[] = {"SET", key.data(), reinterpret_cast<const char*>(&run_.data()[at])};
          const size_t lengths[] = {3, key.size(), n};
          redisAppendCommandArgv(context_, 3, argv, lengths);
        },
        [](uint64_t, uint64_t, const redisReply& r) {
          if (r.type != REDIS_REPLY_STATUS) Die("redis SET failed");
        });
  }
  void Get(const std::string& name) override { Receive(name, nullptr); }
  double Error(const std::string& name) override {
    std::vector<uint8_t> bytes;
    Receive(name, &bytes);
    return RelativeRms(run_.data(), bytes);
  }
  void Remove(const std::string& name) override {
    Pipelined(
        [&](uint64_t at, uint64_t) {
          redisAppendCommand(context_, "DEL %s:%llu", name.c_str(),
                             static_cast<unsigned long long>(at));
        },
        [](uint64_t, uint64_t, const redisReply&) {});
  }

 private:
  static constexpr int kAhead = 4;

  template <typename Send, typename Take>
  void Pipelined(Send send, Take take) {
    uint64_t sent = 0, taken = 0;
    const auto size = [&](uint64_t at) { return std::min(kMessageBytes, run_.bytes() - at); };
    while (taken < run_.bytes()) {
      while (sent < run_.bytes() && sent < taken + kAhead * kMessageBytes) {
        send(sent, size(sent));
        sent += size(sent);
      }
      void* reply = nullptr;
      if (redisGetReply(context_, &reply) != REDIS_OK) Die("redis: no answer");
      take(taken, size(taken), *static_cast<redisReply*>(reply));
      freeReplyObject(reply);
      taken += size(taken);
    }
  }
  void Receive(const std::string& name, std::vector<uint8_t>* out) {
    Pipelined(
        [&](uint64_t at, uint64_t) {
          redisAppendCommand(context_, "GET %s:%llu", name.c_str(),
                             static_cast<unsigned long long>(at));
        },
        [&](uint64_t, uint64_t n, const redisReply& r) {
          if (r.type != REDIS_REPLY_STRING || r.len != n) Die("redis GET: another value");
          if (out != nullptr) out->insert(out->end(), r.str, r.str + r.len);
        });
  }
  redisContext* const context_;
  const Run& run_;
};

class RedisPeer : public Peer {
 public:
  RedisPeer() {
    // A free port: asked for and let go; Redis cannot pick one itself.
    for (int attempt = 0; attempt < 5 && process_ == nullptr; ++attempt) {
      port_ = 20000 + static_cast<int>((getpid() * 7 + attempt * 1013) % 20000);
      process_ = std::make_unique<Process>(
          std::vector<std::string>{kRedisServer, "--port", absl::StrCat(port_), "--bind",
                                   "127.0.0.1", "--unixsocket", folder_.File("s"), "--save", "",
                                   "--appendonly", "no", "--dir", folder_.path()},
          folder_.File("log"));
      for (;;) {
        const auto line = process_->ReadLine(kPatience);
        if (!line) {
          process_.reset();
          break;
        }
        if (absl::StrContains(*line, "at " + folder_.File("s"))) break;
      }
    }
    if (process_ == nullptr) Die("redis-server does not start");
  }
  std::unique_ptr<Connection> Connect(bool unix_socket, const Run& run) override {
    return std::make_unique<RedisConnection>(unix_socket
                                                 ? redisConnectUnix(folder_.File("s").c_str())
                                                 : redisConnect("127.0.0.1", port_),
                                             run);
  }
  pid_t pid() const override { return process_->pid(); }

 private:
  ScratchFolder folder_;
  std::unique_ptr<Process> process_;
  int port_ = 0;
};

}  // namespace

void Die(const std::string& why) {
  std::fprintf(stderr, "service_benchmark: %s\n", why.c_str());
  std::exit(1);
}

Run::Run(int tokens) : tokens_(tokens) {
  const ConstKvView view = Example().view();
  constexpr int kHeads = 3, kRow = 64 * 2;
  data_ = std::make_shared<std::vector<uint8_t>>(view.planes.size() * kHeads * kRow *
                                                 static_cast<size_t>(tokens));
  uint8_t* to = data_->data();
  for (size_t p = 0; p < view.planes.size(); ++p) {
    planes_.push_back({to, static_cast<int64_t>(tokens) * kRow, kRow, 2});
    for (int h = 0; h < kHeads; ++h) {
      for (int t = 0; t < tokens; ++t, to += kRow) {
        std::memcpy(to, view.At(static_cast<int>(p), h, t % kExampleTokens, 0), kRow);
      }
    }
  }
}

std::unique_ptr<Peer> NewKvcaskPeer(const std::string& codec, bool crc32c) {
  return std::make_unique<KvcaskPeer>(codec, crc32c);
}
std::unique_ptr<Peer> NewBarePeer() { return std::make_unique<BarePeer>(); }
std::unique_ptr<Peer> NewRedisPeer() {
  return access(kRedisServer, X_OK) == 0 ? std::make_unique<RedisPeer>() : nullptr;
}

Cpu CpuOf(pid_t pid) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/stat"));
  std::string line;
  std::getline(in, line);
  // After the name's last parenthesis: state is field 3; utime 14, stime 15.
  const std::vector<std::string> f =
      absl::StrSplit(line.substr(std::min(line.size(), line.rfind(')') + 2)), ' ');
  if (f.size() < 13) Die("no /proc/PID/stat");
  const double tick = static_cast<double>(sysconf(_SC_CLK_TCK));
  return {std::atof(f[11].c_str()) / tick, std::atof(f[12].c_str()) / tick};
}

uint64_t ResidentBytes(pid_t pid) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/statm"));
  uint64_t size = 0, resident = 0;
  in >> size >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace kvcask::bench
