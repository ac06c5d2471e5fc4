// kvcask::Client: a kvcask daemon from C++.
//
//   auto client = kvcask::Client::Connect("127.0.0.1:7420");
//   if (!client.ok()) ...
//   auto info = client->GetServerInfo();
//   auto stream = client->OpenGet(request);
//   while (auto piece = stream->Next()) ...
//
// Messages are the contract's own (proto/kvcask/v1 is the reference manual). Errors are
// absl::Status with the daemon's code and message; DetailsOf and Describe (status.h) give its
// reason and when to try again.
//
// Retries, on UNAVAILABLE only, with growing pauses, within the call's deadline: what reads
// (info, stat, list, lookup, profiles, OpenGet), what is idempotent (AddProfile,
// DeleteSession with allow_missing), and PutRun as its comment says. Nothing else.
//
// One connection for each client; several clients carry more than one does. Thread-safe;
// movable. Streams it opened keep the connection alive on their own.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/cc/rectangles.h"
#include "client/cc/status.h"
#include "client/cc/streams.h"
#include "codec/base/geometry.h"
#include "codec/base/views.h"
#include "kvcask/v1/cache.pb.h"
#include "kvcask/v1/info.pb.h"
#include "kvcask/v1/profiles.pb.h"
#include "kvcask/v1/sessions.pb.h"

namespace kvcask {

struct TlsOptions {
  std::string ca_file;              // PEM; "": the system's roots
  std::string cert_file, key_file;  // PEM, of this client; "": none
  std::string server_name;          // expected in the certificate; "": the address's host
};

struct ClientOptions {
  std::optional<TlsOptions> tls;
  absl::Duration connect_timeout = absl::Seconds(5);
  absl::Duration call_timeout = absl::Seconds(60);  // of calls that are not given another
  int max_attempts = 4;                             // of a call that may be retried
  uint64_t max_message_bytes = uint64_t{256} << 20;
};

struct CallOptions {
  std::optional<absl::Duration> timeout;        // of the whole call, streams included
  std::map<std::string, std::string> metadata;  // "traceparent" and the like
};

// A run of tokens in memory.
struct RunSource {
  // Planes of the whole model in the geometry's order; token 0 is open.token_begin. Planes
  // outside the shard are not read.
  ConstKvView view;
  // Keeps the memory; while it is held, bytes are sent from where they are, as far as they
  // lie contiguously. Null: they are copied as they are sent.
  std::shared_ptr<const void> owner;
};

struct PutRunOptions : CallOptions {
  PutOrder order = PutOrder::kTokenMajor;
  uint64_t message_bytes = 2 << 20;  // payload of a message, about
  std::function<void(uint64_t sent, uint64_t total)> progress;
};

class Client {
 public:
  // `address`: "unix:/path" or "host:port". Waits until the connection stands; UNAVAILABLE
  // tells the address and what failed, at once when nobody listens there.
  static absl::StatusOr<Client> Connect(const std::string& address, ClientOptions options = {});

  Client(Client&&) noexcept;
  Client& operator=(Client&&) noexcept;
  ~Client();

  absl::StatusOr<v1::ServerInfo> GetServerInfo(const CallOptions& call = {});

  // ---- cache
  absl::StatusOr<PutStream> OpenPut(const v1::PutOpen& open, const CallOptions& call = {});
  // One whole run: opens, cuts into rectangles, sends, commits. On UNAVAILABLE it starts
  // again when that is safe: nothing was committed yet, or open.put_id lets the daemon
  // recognise a repeat.
  absl::StatusOr<v1::PutCommitted> PutRun(const v1::PutOpen& open, const RunSource& source,
                                          const v1::PutCommit& commit,
                                          const PutRunOptions& options = {});
  absl::StatusOr<GetStream> OpenGet(const v1::GetRequest& request, const CallOptions& call = {});
  absl::StatusOr<v1::LookupResponse> Lookup(const v1::PrefixRef& prefix,
                                            const CallOptions& call = {});
  // With a lease on what is found, when lease_seconds is set. Not retried then.
  absl::StatusOr<v1::LookupResponse> Lookup(const v1::LookupRequest& request,
                                            const CallOptions& call = {});

  // ---- sessions
  absl::StatusOr<v1::Session> CreateSession(const v1::CreateSessionRequest& request,
                                            const CallOptions& call = {});
  absl::StatusOr<v1::Session> StatSession(const v1::SessionRef& ref, const CallOptions& call = {});
  // All pages of them, in order.
  absl::StatusOr<std::vector<v1::Session>> ListSessions(const std::string& ns,
                                                        const CallOptions& call = {});
  absl::StatusOr<v1::DeleteSessionResponse> DeleteSession(const v1::SessionRef& ref,
                                                          bool allow_missing,
                                                          const CallOptions& call = {});
  // These two are retried only with a fork_id or rewind_id.
  absl::StatusOr<v1::Session> ForkSession(const v1::ForkSessionRequest& request,
                                          const CallOptions& call = {});
  absl::StatusOr<v1::Session> RewindSession(const v1::RewindSessionRequest& request,
                                            const CallOptions& call = {});
  absl::StatusOr<v1::Session> UpdateSession(const v1::UpdateSessionRequest& request,
                                            const CallOptions& call = {});
  absl::StatusOr<v1::Lease> AcquireLease(const v1::SessionRef& ref, absl::Duration duration,
                                         const CallOptions& call = {});
  absl::StatusOr<v1::Lease> RenewLease(const std::string& lease_id, absl::Duration duration,
                                       const CallOptions& call = {});
  // Whether there was one.
  absl::StatusOr<bool> ReleaseLease(const std::string& lease_id, const CallOptions& call = {});

  // ---- profiles
  // `file`: the bytes of a profile. Sent in pieces of 2 MiB.
  absl::StatusOr<v1::Profile> AddProfile(ConstBytes file, const CallOptions& call = {});
  absl::StatusOr<std::vector<v1::Profile>> ListProfiles(const CallOptions& call = {});
  // By fingerprint or a unique prefix of it, hex.
  absl::StatusOr<v1::Profile> GetProfile(const std::string& hex, const CallOptions& call = {});
  absl::StatusOr<v1::RemoveProfileResponse> RemoveProfile(const std::string& hex,
                                                          const CallOptions& call = {});

 private:
  class Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// A put_id that nobody else has: 128 random bits, hex.
std::string NewPutId();

}  // namespace kvcask
