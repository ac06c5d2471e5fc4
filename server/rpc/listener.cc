#include "server/rpc/listener.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "server/log/log.h"

namespace kvcask {
namespace {

constexpr int kBacklog = 4096;           // the kernel takes less where somaxconn says so
constexpr int kRetryMilliseconds = 100;  // while descriptors are short

absl::Status ErrnoStatus(const std::string& address, int error) {
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", address, ": ", std::strerror(error)));
}

class Impl final : public Listener {
 public:
  explicit Impl(std::string address) : address_(std::move(address)) {}

  ~Impl() override {
    if (thread_.joinable()) {
      const uint64_t one = 1;
      (void)!write(stop_, &one, sizeof(one));
      thread_.join();
    }
    for (const int fd : fds_) close(fd);
    if (stop_ >= 0) close(stop_);
  }

  absl::Status Bind() {
    stop_ = eventfd(0, EFD_CLOEXEC);
    if (stop_ < 0) return ErrnoStatus(address_, errno);
    return absl::StartsWith(address_, "unix:") ? BindUnix(address_.substr(5)) : BindTcp();
  }

  const std::string& address() const override { return address_; }

  void Start(Handler handler) override {
    handler_ = std::move(handler);
    thread_ = std::thread([this] { Run(); });
  }

 private:
  absl::Status BindUnix(const std::string& path) {
    sockaddr_un to = {};
    to.sun_family = AF_UNIX;
    if (path.size() >= sizeof(to.sun_path)) return ErrnoStatus(address_, ENAMETOOLONG);
    std::memcpy(to.sun_path, path.data(), path.size());
    struct stat st;
    // A dead daemon's; a living one holds the lock beside it, which we have.
    if (lstat(path.c_str(), &st) == 0 && S_ISSOCK(st.st_mode)) unlink(path.c_str());
    return BindOne(AF_UNIX, reinterpret_cast<const sockaddr*>(&to), sizeof(to));
  }

  absl::Status BindTcp() {
    const size_t colon = address_.rfind(':');
    std::string host = address_.substr(0, colon), port = address_.substr(colon + 1);
    const std::string shown_host = host;
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
      host = host.substr(1, host.size() - 2);
    }
    addrinfo hints = {}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV;
    if (const int e = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); e != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot listen on ", address_, ": ", gai_strerror(e)));
    }
    absl::Status status = absl::OkStatus();
    uint16_t taken = 0;  // the first one's port is the others'
    for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
      auto* v4 = reinterpret_cast<sockaddr_in*>(a->ai_addr);  // the port is at the same place
      static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port), "");
      if (taken != 0) v4->sin_port = taken;
      const absl::Status s = BindOne(a->ai_family, a->ai_addr, a->ai_addrlen);
      if (!s.ok()) {
        if (status.ok()) status = s;
        continue;
      }
      sockaddr_storage bound = {};
      socklen_t length = sizeof(bound);
      getsockname(fds_.back(), reinterpret_cast<sockaddr*>(&bound), &length);
      taken = reinterpret_cast<sockaddr_in*>(&bound)->sin_port;
    }
    freeaddrinfo(found);
    // A host with an address that this machine lacks (::1 without IPv6) is served on the rest;
    // a port that somebody holds on one of them is refused.
    if (fds_.empty() || (!status.ok() && in_use_)) return status;
    address_ = absl::StrCat(shown_host, ":", ntohs(taken));
    return absl::OkStatus();
  }

  absl::Status BindOne(int family, const sockaddr* to, socklen_t length) {
    const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return ErrnoStatus(address_, errno);
    const int on = 1, off = 0;
    if (family != AF_UNIX) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    if (bind(fd, to, length) != 0 || listen(fd, kBacklog) != 0) {
      const int error = errno;
      in_use_ = in_use_ || error == EADDRINUSE;
      close(fd);
      return ErrnoStatus(address_, error);
    }
    fds_.push_back(fd);
    return absl::OkStatus();
  }

  void Run() {
    std::vector<pollfd> watched = {{stop_, POLLIN, 0}};
    for (const int fd : fds_) watched.push_back({fd, POLLIN, 0});
    bool short_of_descriptors = false;
    for (;;) {
      // Short of descriptors, a waiting connection would make poll return at once.
      const bool pause = short_of_descriptors;
      if (poll(watched.data(), pause ? 1 : watched.size(), pause ? kRetryMilliseconds : -1) < 0 &&
          errno != EINTR) {
        Log(LogLevel::kError, "listener stopped", {{"address", address_}});
        return;
      }
      if (watched[0].revents != 0) return;
      const bool before = std::exchange(short_of_descriptors, false);
      for (const int fd : fds_) {
        if (!AcceptAll(fd)) short_of_descriptors = true;
      }
      if (short_of_descriptors && !before) {
        Log(LogLevel::kWarning, "connections wait: out of descriptors or memory",
            {{"address", address_}});
      }
    }
  }

  // False when something that connections need has run out.
  bool AcceptAll(int listener) {
    for (;;) {
      const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd >= 0) {
        const int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // no-op on a unix socket
        handler_(listener, fd);
        continue;
      }
      if (errno == EAGAIN || errno == EWOULDBLOCK) return true;
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) return false;
      // A connection that ended before it was taken, or a signal: the next one.
      if (errno != EINTR && errno != ECONNABORTED && errno != EPROTO && errno != EPERM) return true;
    }
  }

  std::string address_;
  std::vector<int> fds_;
  bool in_use_ = false;
  int stop_ = -1;
  Handler handler_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Listener>> Listener::Open(const std::string& address) {
  auto impl = std::make_unique<Impl>(address);
  if (absl::Status s = impl->Bind(); !s.ok()) return s;
  return impl;
}

}  // namespace kvcask
