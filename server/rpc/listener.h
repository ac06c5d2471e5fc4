// A listening address whose connections are handed on.
//
// It is ours because gRPC 1.51's own listener closes for good the first time that accept
// fails, as it does when descriptors run out: connected clients would stay and new ones
// would wait for ever. This one waits until there are descriptors again.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <functional>
#include <memory>
#include <string>

namespace kvcask {

class Listener {
 public:
  // Takes over `fd`: connected, non-blocking, close-on-exec.
  using Handler = std::function<void(int listener_fd, int fd)>;

  // Binds and listens; accepts nothing yet. `address`: "unix:/path", where a socket that is
  // there is replaced, or "host:port", port 0 for a free one; all addresses of the host.
  // INVALID_ARGUMENT: no such host. UNAVAILABLE names the address and the system's reason.
  static absl::StatusOr<std::unique_ptr<Listener>> Open(const std::string& address);
  virtual ~Listener() = default;  // stops and closes; leaves a unix socket's path

  // As clients may use it: with the port that was taken.
  virtual const std::string& address() const = 0;
  // Accepts from now on, on a thread of its own, which calls `handler`.
  virtual void Start(Handler handler) = 0;
};

}  // namespace kvcask
