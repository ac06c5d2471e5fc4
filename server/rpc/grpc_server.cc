#include "server/rpc/grpc_server.h"

#include <fcntl.h>
#include <google/protobuf/stubs/logging.h>
#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <malloc.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/synchronization/mutex.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include "server/log/log.h"
#include "server/rpc/listener.h"
#include "server/rpc/services.h"

namespace kvcask {
namespace {

// Libraries write to stderr as they please: a client that sends names that are not UTF-8 would
// fill the log with lines that nobody can parse. Such a client is told by its status.
void LogOfProtobuf(google::protobuf::LogLevel level, const char*, int, const std::string& text) {
  Log(level == google::protobuf::LOGLEVEL_FATAL ? LogLevel::kError : LogLevel::kDebug, "protobuf",
      {{"message", text}});
}
void LogOfGrpc(gpr_log_func_args* args) {
  Log(args->severity == GPR_LOG_SEVERITY_ERROR ? LogLevel::kWarning : LogLevel::kDebug, "grpc",
      {{"message", args->message}});
}

}  // namespace

void InitRuntime() {
  google::protobuf::SetLogHandler(LogOfProtobuf);
  gpr_set_log_function(LogOfGrpc);
  // All of these: setting one turns off glibc's own adjustment of the others. Without them
  // multi-megabyte buffers go back to the kernel after every message, and the page faults
  // cost more than the transfer. One arena, since the thresholds hold for the main one only:
  // the others are unmapped as soon as they are free.
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);
  // The system's Abseil looks for lock-order cycles at every lock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  // Held for the life of the process: the last user's shutdown can wait ten seconds.
  grpc_init();
}

namespace {

constexpr char kReadiness[] = "kvcask.v1.CacheService";

// Holds "<path>.lock" so that a second daemon on one socket path is refused instead of
// taking the first one's clients. Gone with the process, however it ends.
class SocketLock {
 public:
  static absl::StatusOr<SocketLock> Take(const std::string& path) {
    const std::string file = path + ".lock";
    const int fd = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
      return absl::UnavailableError(absl::StrCat("cannot listen on unix:", path, ": ", file, ": ",
                                                 std::strerror(errno)));
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      close(fd);
      return absl::UnavailableError(
          absl::StrCat("cannot listen on unix:", path, ": another daemon holds it"));
    }
    return SocketLock(fd, path);
  }
  SocketLock(SocketLock&& o) noexcept : fd_(std::exchange(o.fd_, -1)), path_(std::move(o.path_)) {}
  SocketLock& operator=(SocketLock&&) = delete;
  ~SocketLock() {
    if (fd_ < 0) return;
    unlink(path_.c_str());
    unlink((path_ + ".lock").c_str());
    close(fd_);
  }

 private:
  SocketLock(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream s;
  s << in.rdbuf();
  if (!in) return absl::InvalidArgumentError(absl::StrCat("cannot read ", path));
  return s.str();
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host == "[::1]" || absl::StartsWith(host, "127.");
}

class Impl final : public GrpcServer {
 public:
  explicit Impl(Serving* serving) : serving_(serving), services_(NewServices(serving)) {}

  absl::Status Listen() {
    const Config& c = serving_->config;
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(static_cast<int>(c.max_message_bytes));
    builder.SetMaxSendMessageSize(static_cast<int>(c.max_message_bytes));
    std::shared_ptr<grpc::ServerCredentials> tcp = grpc::InsecureServerCredentials();
    const bool tls = !c.tls_cert.empty();
    if (tls) {
      auto cert = ReadFile(c.tls_cert);
      auto key = ReadFile(c.tls_key);
      if (!cert.ok()) return cert.status();
      if (!key.ok()) return key.status();
      grpc::SslServerCredentialsOptions o;
      o.pem_key_cert_pairs.push_back({*key, *cert});
      tcp = grpc::SslServerCredentials(o);
    }
    using Connections = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
    unix_acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
        Connections::FROM_FD, grpc::InsecureServerCredentials());
    tcp_acceptor_ =
        builder.experimental().AddExternalConnectionAcceptor(Connections::FROM_FD, tcp);
    for (const std::string& address : c.listen) {
      if (absl::StartsWith(address, "unix:")) {
        const std::string path = address.substr(5);
        if (path.empty() || path.size() > 107) {
          return absl::InvalidArgumentError(absl::StrCat(
              "--listen ", address, ": a socket path has 1 to 107 bytes, found ", path.size()));
        }
        auto lock = SocketLock::Take(path);
        if (!lock.ok()) return lock.status();
        locks_.push_back(*std::move(lock));
        if (absl::Status s = Open(address, unix_acceptor_.get()); !s.ok()) return s;
        continue;
      }
      const size_t colon = address.rfind(':');
      int port = -1;
      if (colon == std::string::npos || colon == 0 ||
          !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
        return absl::InvalidArgumentError(absl::StrCat(
            "--listen ", address, ": expected unix:/path or host:port with a port of 0 to 65535"));
      }
      if (!IsLoopback(address.substr(0, colon)) && !tls && !c.insecure) {
        return absl::InvalidArgumentError(absl::StrCat(
            "--listen ", address, ": other machines could reach it without TLS; give --tls-cert "
            "and --tls-key, or --insecure if you mean it"));
      }
      if (absl::Status s = Open(address, tcp_acceptor_.get()); !s.ok()) return s;
    }
    for (auto& s : services_) builder.RegisterService(s.get());
    server_ = builder.BuildAndStart();
    if (!server_) return absl::UnavailableError("cannot start the gRPC server");
    for (auto& [listener, acceptor] : listeners_) {
      listener->Start([to = acceptor](int listener_fd, int fd) {
        grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters p;
        p.listener_fd = listener_fd;
        p.fd = fd;
        to->HandleNewConnection(&p);
      });
    }
    // Liveness is "" and stays up while the process serves; readiness is the service's.
    server_->GetHealthCheckService()->SetServingStatus(kReadiness, true);
    return absl::OkStatus();
  }

  std::vector<std::string> addresses() const override { return addresses_; }

  void SetDeviceHealth(bool good) override {
    server_->GetHealthCheckService()->SetServingStatus("kvcask.device", good);
  }

  void Drain(absl::Time deadline) override {
    serving_->draining = true;
    server_->GetHealthCheckService()->SetServingStatus(kReadiness, false);
    // Shutdown comes last: gRPC 1.51 sends GOAWAY at once and closes a connection on which a
    // call is begun after it, with the calls that were under way there. Until then the
    // listeners stay, and the handlers refuse new work by status.
    const int left = serving_->AwaitCalls(deadline);
    if (left > 0) Log(LogLevel::kWarning, "calls are cancelled", {{"calls", left}});
    listeners_.clear();
    server_->Shutdown(absl::ToChronoTime(deadline));
    server_->Wait();
  }

 private:
  using Acceptor = grpc::experimental::ExternalConnectionAcceptor;

  absl::Status Open(const std::string& address, Acceptor* acceptor) {
    auto listener = Listener::Open(address);
    if (!listener.ok()) return listener.status();
    addresses_.push_back((*listener)->address());
    listeners_.emplace_back(*std::move(listener), acceptor);
    return absl::OkStatus();
  }

  Serving* const serving_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::vector<SocketLock> locks_;
  std::unique_ptr<Acceptor> unix_acceptor_, tcp_acceptor_;
  std::unique_ptr<grpc::Server> server_;
  std::vector<std::pair<std::unique_ptr<Listener>, Acceptor*>> listeners_;
  std::vector<std::string> addresses_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(Serving* serving) {
  auto impl = std::make_unique<Impl>(serving);
  if (absl::Status s = impl->Listen(); !s.ok()) return s;
  return impl;
}

}  // namespace kvcask
