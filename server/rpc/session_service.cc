#include "server/rpc/session_service.h"

#include <absl/strings/str_cat.h>

#include <algorithm>

#include "codec/builtin_codecs.h"
#include "kvcask/v1/sessions.grpc.pb.h"
#include "server/pipeline/errors.h"
#include "server/rpc/convert.h"
#include "server/rpc/unary.h"

namespace kvcask {
namespace {

class SessionImpl final : public v1::SessionService::CallbackService {
 public:
  explicit SessionImpl(Serving* serving) : serving_(serving) {}

  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* context, const v1::CreateSessionRequest* request,
                       v1::Session* response) override {
    return RunUnary(serving_, context, "CreateSession", NameOf(request->session()),
               [this, request, response]() -> absl::Status {
                 if (absl::Status s = serving_->CheckServing(); !s.ok()) return s;
                 auto key = FromProto(request->session());
                 if (!key.ok()) return key.status();
                 if (absl::Status s = CheckLabels(request->labels()); !s.ok()) return s;
                 const absl::Duration ttl = absl::Seconds(
                     std::min<uint64_t>(request->ttl_seconds(), uint64_t{1} << 32));
                 absl::Status s = serving_->store->Create(
                     *key, nullptr, ttl, {request->labels().begin(), request->labels().end()});
                 if (!s.ok()) return s;
                 return Fill(*key, response);
               });
  }
  grpc::ServerUnaryReactor* StatSession(grpc::CallbackServerContext* context, const v1::StatSessionRequest* request,
                     v1::Session* response) override {
    return RunUnary(serving_, context, "StatSession", NameOf(request->session()),
               [this, request, response]() -> absl::Status {
                 auto key = FromProto(request->session());
                 if (!key.ok()) return key.status();
                 return Fill(*key, response);
               });
  }
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* context, const v1::ListSessionsRequest* request,
                      v1::ListSessionsResponse* response) override {
    return RunUnary(serving_, context, "ListSessions", "",
               [this, request, response]() -> absl::Status {
                 if (absl::Status s = CheckNamespace(request->namespace_()); !s.ok()) return s;
                 const int limit =
                     request->page_size() == 0 ? 100 : std::min(request->page_size(), 1000u);
                 const auto found = serving_->store->List(request->namespace_(),
                                                          request->page_token(), limit + 1);
                 for (size_t i = 0; i < found.size() && i < static_cast<size_t>(limit); ++i) {
                   *response->add_sessions() = Convert(found[i], false);
                 }
                 if (found.size() > static_cast<size_t>(limit)) {
                   response->set_next_page_token(found[limit - 1].key.id);
                 }
                 return absl::OkStatus();
               });
  }
  // Answered when it cannot come back: with a disk tier, when that has forgotten it too.
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* context,
                                          const v1::DeleteSessionRequest* request,
                                          v1::DeleteSessionResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    auto record = std::make_shared<CallRecord>(serving_, context, "DeleteSession");
    record->set_session(NameOf(request->session()));
    const auto finish = [reactor, record](const absl::Status& s) {
      reactor->Finish(record->Finish(s));
    };
    serving_->executor->Submit([this, request, response, finish] {
      auto key = FromProto(request->session());
      if (!key.ok()) return finish(key.status());
      auto freed = serving_->store->Delete(*key);
      const bool missing = absl::IsNotFound(freed.status()) && request->allow_missing();
      if (!freed.ok() && !missing) return finish(freed.status());
      response->set_deleted(freed.ok());
      response->set_freed_bytes(freed.value_or(0));
      if (serving_->config.disk_path.empty()) return finish(absl::OkStatus());
      serving_->store->WhenDurable(
          *key, [finish](absl::Status s) { finish(WithReason(s, "DURABILITY")); });
    });
    return reactor;
  }
  grpc::ServerUnaryReactor* ForkSession(grpc::CallbackServerContext* context,
                                        const v1::ForkSessionRequest* request,
                                        v1::Session* response) override {
    return RunUnary(serving_, context, "ForkSession", NameOf(request->from()),
                    [this, request, response]() -> absl::Status {
                      if (absl::Status s = serving_->CheckServing(); !s.ok()) return s;
                      auto from = FromProto(request->from());
                      if (!from.ok()) return from.status();
                      v1::SessionRef to_ref = request->from();
                      to_ref.set_session_id(request->session_id());
                      auto to = FromProto(to_ref);
                      if (!to.ok()) return to.status();
                      if (absl::Status s = CheckLabels(request->labels()); !s.ok()) return s;
                      if (absl::Status s = CheckCallId("fork_id", request->fork_id()); !s.ok()) {
                        return s;
                      }
                      if (!request->all() && request->tokens() == kAllTokens) {
                        return absl::OutOfRangeError("tokens: no session has so many");
                      }
                      auto stat = serving_->store->Fork(
                          *from, *to, request->all() ? kAllTokens : request->tokens(),
                          Seconds(request->ttl_seconds()),
                          {request->labels().begin(), request->labels().end()},
                          request->fork_id());
                      return Answer(stat, response);
                    });
  }
  grpc::ServerUnaryReactor* RewindSession(grpc::CallbackServerContext* context,
                                          const v1::RewindSessionRequest* request,
                                          v1::Session* response) override {
    return RunUnary(serving_, context, "RewindSession", NameOf(request->session()),
                    [this, request, response]() -> absl::Status {
                      if (absl::Status s = serving_->CheckServing(); !s.ok()) return s;
                      auto key = FromProto(request->session());
                      if (!key.ok()) return key.status();
                      if (absl::Status s = CheckCallId("rewind_id", request->rewind_id());
                          !s.ok()) {
                        return s;
                      }
                      auto stat = serving_->store->Rewind(*key, request->tokens(),
                                                          request->expected_version(),
                                                          request->rewind_id());
                      if (absl::IsAborted(stat.status())) {
                        return WithReason(stat.status(), "VERSION");
                      }
                      return Answer(stat, response);
                    });
  }
  grpc::ServerUnaryReactor* UpdateSession(grpc::CallbackServerContext* context,
                                          const v1::UpdateSessionRequest* request,
                                          v1::Session* response) override {
    return RunUnary(serving_, context, "UpdateSession", NameOf(request->session()),
                    [this, request, response]() -> absl::Status {
                      if (absl::Status s = serving_->CheckServing(); !s.ok()) return s;
                      auto key = FromProto(request->session());
                      if (!key.ok()) return key.status();
                      if (absl::Status s = CheckLabels(request->labels()); !s.ok()) return s;
                      SessionStore::Change change;
                      if (request->has_pinned()) change.pinned = request->pinned();
                      if (request->has_ttl_seconds()) change.ttl = Seconds(request->ttl_seconds());
                      if (request->replace_labels()) {
                        change.labels.emplace(request->labels().begin(), request->labels().end());
                      }
                      return Answer(serving_->store->Update(*key, change), response);
                    });
  }
  grpc::ServerUnaryReactor* AcquireLease(grpc::CallbackServerContext* context,
                                         const v1::AcquireLeaseRequest* request,
                                         v1::Lease* response) override {
    return RunUnary(serving_, context, "AcquireLease", NameOf(request->session()),
                    [this, request, response]() -> absl::Status {
                      if (absl::Status s = serving_->CheckServing(); !s.ok()) return s;
                      auto key = FromProto(request->session());
                      if (!key.ok()) return key.status();
                      if (absl::Status s = CheckSeconds(request->seconds()); !s.ok()) return s;
                      return Answer(
                          serving_->store->LeaseSession(*key, absl::Seconds(request->seconds())),
                          response);
                    });
  }
  grpc::ServerUnaryReactor* RenewLease(grpc::CallbackServerContext* context,
                                       const v1::RenewLeaseRequest* request,
                                       v1::Lease* response) override {
    return RunUnary(serving_, context, "RenewLease", "",
                    [this, request, response]() -> absl::Status {
                      if (absl::Status s = CheckSeconds(request->seconds()); !s.ok()) return s;
                      return Answer(serving_->store->RenewLease(
                                        request->lease_id(), absl::Seconds(request->seconds())),
                                    response);
                    });
  }
  grpc::ServerUnaryReactor* ReleaseLease(grpc::CallbackServerContext* context,
                                         const v1::ReleaseLeaseRequest* request,
                                         v1::ReleaseLeaseResponse* response) override {
    return RunUnary(serving_, context, "ReleaseLease", "",
                    [this, request, response]() -> absl::Status {
                      response->set_released(serving_->store->ReleaseLease(request->lease_id()));
                      return absl::OkStatus();
                    });
  }

 private:
  static absl::Duration Seconds(uint64_t seconds) {
    return absl::Seconds(std::min<uint64_t>(seconds, uint64_t{1} << 32));
  }
  absl::Status CheckSeconds(uint64_t seconds) const {
    return CheckLeaseSeconds("seconds", seconds, 1, serving_->config.max_lease);
  }
  // With where the session's codec runs now.
  v1::Session Convert(const SessionStat& stat, bool whole) const {
    v1::Session out = ToProto(stat, whole);
    const CodecEntry* const codec = FindCodec(stat.traits.codec);
    const bool device =
        codec != nullptr && serving_->device != nullptr && serving_->device->Codes(codec->id);
    out.set_backend(device ? serving_->backend() : "cpu");
    return out;
  }
  absl::Status Answer(const absl::StatusOr<SessionStat>& stat, v1::Session* response) const {
    if (!stat.ok()) return stat.status();
    *response = Convert(*stat, true);
    return absl::OkStatus();
  }
  static absl::Status Answer(const absl::StatusOr<Lease>& lease, v1::Lease* response) {
    if (absl::IsResourceExhausted(lease.status())) return WithReason(lease.status(), "LEASES");
    if (!lease.ok()) return lease.status();
    response->set_lease_id(lease->id);
    response->mutable_expires()->set_seconds(absl::ToUnixSeconds(lease->expires));
    response->set_tokens(lease->tokens);
    return absl::OkStatus();
  }
  absl::Status Fill(const SessionKey& key, v1::Session* response) {
    auto stat = serving_->store->Stat(key);
    if (!stat.ok()) return stat.status();
    *response = Convert(*stat, true);
    return absl::OkStatus();
  }
  Serving* const serving_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewSessionService(Serving* serving) {
  return std::make_unique<SessionImpl>(serving);
}

}  // namespace kvcask
