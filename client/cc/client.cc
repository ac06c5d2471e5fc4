#include "client/cc/client.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/time/clock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <sstream>
#include <utility>

#include "client/cc/convert.h"
#include "client/cc/runtime.h"
#include "codec/base/strided.h"
#include "kvcask/v1/cache.grpc.pb.h"
#include "kvcask/v1/info.grpc.pb.h"
#include "kvcask/v1/profiles.grpc.pb.h"
#include "kvcask/v1/sessions.grpc.pb.h"

namespace kvcask {
namespace {

constexpr size_t kProfilePieceBytes = 2 << 20;

// The pauses between the attempts of one call.
class Backoff {
 public:
  Backoff(absl::Time deadline, int max_attempts)
      : deadline_(deadline), attempts_left_(max_attempts - 1) {}
  // Sleeps and answers true when another attempt makes sense after `status`.
  bool Retry(const absl::Status& status) {
    if (status.code() != absl::StatusCode::kUnavailable || attempts_left_-- <= 0) return false;
    const absl::Duration pause = DetailsOf(status).retry_after.value_or(
        next_ * std::uniform_real_distribution<>(.5, 1.5)(random_));
    next_ = std::min(next_ * 2, absl::Seconds(5));
    if (absl::Now() + pause >= deadline_) return false;
    absl::SleepFor(pause);
    return true;
  }

 private:
  const absl::Time deadline_;
  int attempts_left_;
  absl::Duration next_ = absl::Milliseconds(100);
  std::minstd_rand random_{std::random_device()()};
};

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  if (!in) return absl::NotFoundError(absl::StrCat("can't read ", path));
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(
    const std::optional<TlsOptions>& tls) {
  if (!tls) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions options;
  for (const auto& [path, field] : {std::pair{tls->ca_file, &options.pem_root_certs},
                                    {tls->cert_file, &options.pem_cert_chain},
                                    {tls->key_file, &options.pem_private_key}}) {
    auto pem = ReadPem(path);
    if (!pem.ok()) return pem.status();
    *field = *std::move(pem);
  }
  return grpc::SslCredentials(options);
}

// READY, or why not. A refused connection is an answer; the library would try for ever.
absl::Status WaitForConnection(grpc::Channel& channel, const std::string& address,
                               absl::Duration timeout) {
  const auto deadline = absl::ToChronoTime(absl::Now() + timeout);
  for (;;) {
    const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) return absl::OkStatus();
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN) {
      return absl::UnavailableError(
          absl::StrCat("no kvcask daemon answers at ", address, "; is kvcaskd running there?"));
    }
    if (!channel.WaitForStateChange(state, deadline)) {
      return absl::UnavailableError(
          absl::StrCat("no connection to ", address, " within ", absl::FormatDuration(timeout)));
    }
  }
}

bool IsContiguous(const ConstKvView& view, const ConstPlaneView& plane, int head_dim) {
  const int64_t element = static_cast<int64_t>(DtypeSize(view.dtype));
  return view.pages.offsets.empty() && plane.dim_stride == element &&
         plane.token_stride == element * head_dim;
}

// Sends the rectangles of a run; the commit is the caller's.
absl::Status SendRun(PutStream& stream, const Geometry& geometry,
                     absl::Span<const v1::Rectangle> rectangles, uint64_t token_begin,
                     const RunSource& source, uint64_t total, const PutRunOptions& options) {
  for (const v1::Rectangle& r : rectangles) {
    const auto planes = PlanesOf(geometry, r);
    if (!planes.ok()) return planes.status();
    const int t0 = static_cast<int>(r.token_begin() - token_begin);
    const int t1 = t0 + static_cast<int>(r.token_count());
    std::vector<ConstBytes> pieces;
    std::shared_ptr<const void> owner = source.owner;
    const bool in_place = std::all_of(planes->begin(), planes->end(), [&](const auto& p) {
      return IsContiguous(source.view, source.view.planes[p.plane], p.head_dim);
    });
    if (in_place) {
      for (const RectanglePlane& p : *planes) {
        const size_t bytes =
            static_cast<size_t>(t1 - t0) * p.head_dim * DtypeSize(source.view.dtype);
        for (int h = p.head_begin; h < p.head_end; ++h) {
          const uint8_t* data = source.view.At(p.plane, h, t0, 0);
          if (!pieces.empty() && pieces.back().data() + pieces.back().size() == data) {
            pieces.back() = ConstBytes(pieces.back().data(), pieces.back().size() + bytes);
          } else {
            pieces.emplace_back(data, bytes);
          }
        }
      }
    } else {
      const int64_t bytes = RectangleBytes(*planes, r.token_count(), source.view.dtype);
      auto gathered = std::make_shared<std::vector<uint8_t>>(bytes);
      uint8_t* to = gathered->data();
      for (const RectanglePlane& p : *planes) {
        for (int h = p.head_begin; h < p.head_end; ++h) {
          GatherHead(source.view, p.plane, h, t0, t1, p.head_dim, to);
          to += static_cast<size_t>(t1 - t0) * p.head_dim * DtypeSize(source.view.dtype);
        }
      }
      pieces.emplace_back(*gathered);
      owner = std::move(gathered);
    }
    if (absl::Status s = stream.Write(r, pieces, std::move(owner)); !s.ok()) return s;
    if (options.progress) options.progress(stream.sent_bytes(), total);
  }
  return absl::OkStatus();
}

}  // namespace

class Client::Impl {
 public:
  Impl(std::shared_ptr<grpc::Channel> channel, ClientOptions options)
      : channel(std::move(channel)),
        options(std::move(options)),
        cache(v1::CacheService::NewStub(this->channel)),
        sessions(v1::SessionService::NewStub(this->channel)),
        profiles(v1::ProfileService::NewStub(this->channel)),
        info(v1::InfoService::NewStub(this->channel)) {}

  absl::Time DeadlineOf(const CallOptions& call) const {
    return absl::Now() + call.timeout.value_or(options.call_timeout);
  }

  std::unique_ptr<grpc::ClientContext> NewContext(const CallOptions& call,
                                                  absl::Time deadline) const {
    auto context = std::make_unique<grpc::ClientContext>();
    if (deadline != absl::InfiniteFuture()) context->set_deadline(absl::ToChronoTime(deadline));
    for (const auto& [key, value] : call.metadata) context->AddMetadata(key, value);
    return context;
  }

  std::unique_ptr<RawCall> StartRaw(const char* method, const CallOptions& call,
                                    absl::Time deadline, size_t read_ahead) const {
    return std::make_unique<RawCall>(channel, method, NewContext(call, deadline), read_ahead);
  }

  // One unary call: `invoke(context, &response)` -> grpc::Status.
  template <typename Response, typename Invoke>
  absl::StatusOr<Response> Unary(const CallOptions& call, bool may_retry, Invoke invoke) const {
    const absl::Time deadline = DeadlineOf(call);
    Backoff backoff(deadline, may_retry ? options.max_attempts : 1);
    for (;;) {
      Response response;
      const auto context = NewContext(call, deadline);
      absl::Status status = FromGrpc(invoke(context.get(), &response));
      if (status.ok()) return response;
      if (!backoff.Retry(status)) return status;
    }
  }

  const std::shared_ptr<grpc::Channel> channel;
  const ClientOptions options;
  const std::unique_ptr<v1::CacheService::Stub> cache;
  const std::unique_ptr<v1::SessionService::Stub> sessions;
  const std::unique_ptr<v1::ProfileService::Stub> profiles;
  const std::unique_ptr<v1::InfoService::Stub> info;
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;
Client::~Client() = default;

absl::StatusOr<Client> Client::Connect(const std::string& address, ClientOptions options) {
  InitClientRuntime();
  if (!absl::StartsWith(address, "unix:") && !absl::StrContains(address, ':')) {
    return absl::InvalidArgumentError(
        absl::StrCat("address \"", address, "\": expected unix:/path or host:port"));
  }
  auto credentials = MakeCredentials(options.tls);
  if (!credentials.ok()) return credentials.status();
  grpc::ChannelArguments args;
  const int limit = static_cast<int>(std::min<uint64_t>(options.max_message_bytes, INT32_MAX));
  args.SetMaxReceiveMessageSize(limit);
  args.SetMaxSendMessageSize(limit);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // http_proxy is for the web
  // A connection of its own: gRPC would let all clients of a process share one, and one
  // connection carries what one core can.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (options.tls && !options.tls->server_name.empty()) {
    args.SetSslTargetNameOverride(options.tls->server_name);
  }
  auto channel = grpc::CreateCustomChannel(address, *credentials, args);
  if (absl::Status s = WaitForConnection(*channel, address, options.connect_timeout); !s.ok()) {
    return s;
  }
  return Client(std::make_unique<Impl>(std::move(channel), std::move(options)));
}

absl::StatusOr<v1::ServerInfo> Client::GetServerInfo(const CallOptions& call) {
  return impl_->Unary<v1::ServerInfo>(call, true, [&](auto* context, auto* response) {
    return impl_->info->GetServerInfo(context, v1::GetServerInfoRequest(), response);
  });
}

absl::StatusOr<PutStream> Client::OpenPut(const v1::PutOpen& open, const CallOptions& call) {
  return PutStream::Open(impl_->StartRaw("/kvcask.v1.CacheService/Put", call,
                                         impl_->DeadlineOf(call), /*read_ahead=*/64),
                         open);
}

absl::StatusOr<v1::PutCommitted> Client::PutRun(const v1::PutOpen& open, const RunSource& source,
                                                const v1::PutCommit& commit,
                                                const PutRunOptions& options) {
  const auto geometry = GeometryFromProto(open.geometry());
  if (!geometry.ok()) return Annotate(geometry.status(), "geometry");
  const uint64_t token_end = open.token_begin() + open.token_count();
  const auto rectangles = CutRun(*geometry, open.shard(), source.view.dtype, open.token_begin(),
                                 token_end, options.order, options.message_bytes);
  uint64_t total = 0;
  for (const v1::Rectangle& r : rectangles) {
    const auto planes = PlanesOf(*geometry, r);
    if (!planes.ok()) return Annotate(planes.status(), "shard");
    total += static_cast<uint64_t>(RectangleBytes(*planes, r.token_count(), source.view.dtype));
  }

  const absl::Time deadline = impl_->DeadlineOf(options);
  Backoff backoff(deadline, impl_->options.max_attempts);
  for (;;) {
    absl::Status status;
    bool commit_sent = false;
    auto stream = PutStream::Open(
        impl_->StartRaw("/kvcask.v1.CacheService/Put", options, deadline, /*read_ahead=*/64), open);
    status = stream.status();
    if (status.ok() && !stream->replayed()) {
      status = SendRun(*stream, *geometry, rectangles, open.token_begin(), source, total, options);
    }
    if (status.ok()) {
      commit_sent = true;
      auto committed = stream->Commit(commit);
      if (committed.ok()) return committed;
      status = committed.status();
    }
    if ((commit_sent && open.put_id().empty()) || !backoff.Retry(status)) return status;
  }
}

absl::StatusOr<GetStream> Client::OpenGet(const v1::GetRequest& request, const CallOptions& call) {
  const absl::Time deadline = impl_->DeadlineOf(call);
  Backoff backoff(deadline, impl_->options.max_attempts);
  for (;;) {
    auto stream = GetStream::Open(
        impl_->StartRaw("/kvcask.v1.CacheService/Get", call, deadline, /*read_ahead=*/1), request);
    if (stream.ok() || !backoff.Retry(stream.status())) return stream;
  }
}

absl::StatusOr<v1::LookupResponse> Client::Lookup(const v1::PrefixRef& prefix,
                                                  const CallOptions& call) {
  v1::LookupRequest request;
  *request.mutable_prefix() = prefix;
  return impl_->Unary<v1::LookupResponse>(call, true, [&](auto* context, auto* response) {
    return impl_->cache->Lookup(context, request, response);
  });
}

absl::StatusOr<v1::LookupResponse> Client::Lookup(const v1::LookupRequest& request,
                                                  const CallOptions& call) {
  const bool retry = request.lease_seconds() == 0;
  return impl_->Unary<v1::LookupResponse>(call, retry, [&](auto* context, auto* response) {
    return impl_->cache->Lookup(context, request, response);
  });
}

absl::StatusOr<v1::Session> Client::CreateSession(const v1::CreateSessionRequest& request,
                                                  const CallOptions& call) {
  return impl_->Unary<v1::Session>(call, false, [&](auto* context, auto* response) {
    return impl_->sessions->CreateSession(context, request, response);
  });
}

absl::StatusOr<v1::Session> Client::StatSession(const v1::SessionRef& ref,
                                                const CallOptions& call) {
  v1::StatSessionRequest request;
  *request.mutable_session() = ref;
  return impl_->Unary<v1::Session>(call, true, [&](auto* context, auto* response) {
    return impl_->sessions->StatSession(context, request, response);
  });
}

absl::StatusOr<std::vector<v1::Session>> Client::ListSessions(const std::string& ns,
                                                              const CallOptions& call) {
  std::vector<v1::Session> all;
  v1::ListSessionsRequest request;
  request.set_namespace_(ns);
  request.set_page_size(1000);
  do {
    auto page = impl_->Unary<v1::ListSessionsResponse>(call, true, [&](auto* context, auto* r) {
      return impl_->sessions->ListSessions(context, request, r);
    });
    if (!page.ok()) return page.status();
    for (v1::Session& s : *page->mutable_sessions()) all.push_back(std::move(s));
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  return all;
}

absl::StatusOr<v1::DeleteSessionResponse> Client::DeleteSession(const v1::SessionRef& ref,
                                                                bool allow_missing,
                                                                const CallOptions& call) {
  v1::DeleteSessionRequest request;
  *request.mutable_session() = ref;
  request.set_allow_missing(allow_missing);
  return impl_->Unary<v1::DeleteSessionResponse>(
      call, allow_missing, [&](auto* context, auto* response) {
        return impl_->sessions->DeleteSession(context, request, response);
      });
}

absl::StatusOr<v1::Session> Client::ForkSession(const v1::ForkSessionRequest& request,
                                                const CallOptions& call) {
  const bool may_retry = !request.fork_id().empty();
  return impl_->Unary<v1::Session>(call, may_retry, [&](auto* context, auto* response) {
    return impl_->sessions->ForkSession(context, request, response);
  });
}

absl::StatusOr<v1::Session> Client::RewindSession(const v1::RewindSessionRequest& request,
                                                  const CallOptions& call) {
  const bool may_retry = !request.rewind_id().empty();
  return impl_->Unary<v1::Session>(call, may_retry, [&](auto* context, auto* response) {
    return impl_->sessions->RewindSession(context, request, response);
  });
}

absl::StatusOr<v1::Session> Client::UpdateSession(const v1::UpdateSessionRequest& request,
                                                  const CallOptions& call) {
  return impl_->Unary<v1::Session>(call, true, [&](auto* context, auto* response) {
    return impl_->sessions->UpdateSession(context, request, response);
  });
}

absl::StatusOr<v1::Lease> Client::AcquireLease(const v1::SessionRef& ref, absl::Duration duration,
                                               const CallOptions& call) {
  v1::AcquireLeaseRequest request;
  *request.mutable_session() = ref;
  request.set_seconds(static_cast<uint64_t>(absl::ToInt64Seconds(duration)));
  return impl_->Unary<v1::Lease>(call, false, [&](auto* context, auto* response) {
    return impl_->sessions->AcquireLease(context, request, response);
  });
}

absl::StatusOr<v1::Lease> Client::RenewLease(const std::string& lease_id, absl::Duration duration,
                                             const CallOptions& call) {
  v1::RenewLeaseRequest request;
  request.set_lease_id(lease_id);
  request.set_seconds(static_cast<uint64_t>(absl::ToInt64Seconds(duration)));
  return impl_->Unary<v1::Lease>(call, true, [&](auto* context, auto* response) {
    return impl_->sessions->RenewLease(context, request, response);
  });
}

absl::StatusOr<bool> Client::ReleaseLease(const std::string& lease_id, const CallOptions& call) {
  v1::ReleaseLeaseRequest request;
  request.set_lease_id(lease_id);
  auto answer =
      impl_->Unary<v1::ReleaseLeaseResponse>(call, true, [&](auto* context, auto* response) {
        return impl_->sessions->ReleaseLease(context, request, response);
      });
  if (!answer.ok()) return answer.status();
  return answer->released();
}

absl::StatusOr<v1::Profile> Client::AddProfile(ConstBytes file, const CallOptions& call) {
  return impl_->Unary<v1::Profile>(call, true, [&](auto* context, auto* response) {
    const auto writer = impl_->profiles->AddProfile(context, response);
    v1::AddProfileRequest request;
    request.mutable_open()->set_size_bytes(file.size());
    bool sent = writer->Write(request);
    for (size_t at = 0; sent && at < file.size(); at += kProfilePieceBytes) {
      const ConstBytes piece = file.subspan(at, kProfilePieceBytes);
      request.set_data(piece.data(), piece.size());
      sent = writer->Write(request);
    }
    if (sent) writer->WritesDone();
    return writer->Finish();
  });
}

absl::StatusOr<std::vector<v1::Profile>> Client::ListProfiles(const CallOptions& call) {
  auto list = impl_->Unary<v1::ListProfilesResponse>(call, true, [&](auto* context, auto* r) {
    return impl_->profiles->ListProfiles(context, v1::ListProfilesRequest(), r);
  });
  if (!list.ok()) return list.status();
  return std::vector<v1::Profile>(list->profiles().begin(), list->profiles().end());
}

absl::StatusOr<v1::Profile> Client::GetProfile(const std::string& hex, const CallOptions& call) {
  v1::GetProfileRequest request;
  request.set_fingerprint(hex);
  return impl_->Unary<v1::Profile>(call, true, [&](auto* context, auto* response) {
    return impl_->profiles->GetProfile(context, request, response);
  });
}

absl::StatusOr<v1::RemoveProfileResponse> Client::RemoveProfile(const std::string& hex,
                                                                const CallOptions& call) {
  v1::RemoveProfileRequest request;
  request.set_fingerprint(hex);
  // A repeat of one that went through answers NOT_FOUND: so it is not retried.
  return impl_->Unary<v1::RemoveProfileResponse>(call, false, [&](auto* context, auto* response) {
    return impl_->profiles->RemoveProfile(context, request, response);
  });
}

std::string NewPutId() {
  std::random_device random;
  return absl::StrFormat("%08x%08x%08x%08x", random(), random(), random(), random());
}

}  // namespace kvcask
