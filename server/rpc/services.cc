#include "server/rpc/services.h"

#include <optional>
#include <utility>

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>

#include "codec/builtin_codecs.h"
#include "kvcask/v1/cache.grpc.pb.h"
#include "kvcask/v1/info.grpc.pb.h"
#include "kvcask/v1/profiles.grpc.pb.h"
#include "server/pipeline/errors.h"
#include "server/rpc/convert.h"
#include "server/rpc/get_call.h"
#include "server/rpc/put_call.h"
#include "server/rpc/session_service.h"
#include "server/rpc/unary.h"

namespace kvcask {
namespace {

using Context = grpc::CallbackServerContext;
using Unary = grpc::ServerUnaryReactor;

class CacheImpl final
    : public v1::CacheService::WithRawCallbackMethod_Put<v1::CacheService::WithRawCallbackMethod_Get<
          v1::CacheService::WithCallbackMethod_Lookup<v1::CacheService::Service>>> {
 public:
  explicit CacheImpl(Serving* serving) : serving_(serving) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Put(Context* context) override {
    return NewPutCall(serving_, context);
  }
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Get(Context* context,
                                                  const grpc::ByteBuffer* request) override {
    return NewGetCall(serving_, context, request);
  }
  Unary* Lookup(Context* context, const v1::LookupRequest* request,
                v1::LookupResponse* response) override {
    return RunUnary(serving_, context, "Lookup", "", [this, request, response]() -> absl::Status {
      const v1::PrefixRef& p = request->prefix();
      if (absl::Status s = CheckNamespace(p.namespace_()); !s.ok()) return s;
      if (absl::Status s = CheckIdentity(p.identity()); !s.ok()) return s;
      if (p.token_ids_size() > (1 << 20)) {
        return WithReason(absl::InvalidArgumentError(absl::StrCat(
                              "prefix.token_ids: found ", p.token_ids_size(),
                              ", expected at most ", 1 << 20)),
                          "FIELD");
      }
      if (absl::Status s =
              CheckLeaseSeconds("lease_seconds", request->lease_seconds(), 0,
                                serving_->config.max_lease);
          !s.ok()) {
        return s;
      }
      const std::vector<uint32_t> ids(p.token_ids().begin(), p.token_ids().end());
      const auto r = serving_->pipeline->Lookup(
          p.namespace_(), p.identity().model_id(), p.identity().extra_key(), ids,
          absl::Seconds(request->lease_seconds()));
      if (!r.ok()) return r.status();
      response->set_tokens(r->tokens);
      for (size_t i = 0; i < r->held.size(); ++i) {
        const HeldPrefix& h = r->held[i];
        auto* to = response->add_held();
        to->set_codec(h.codec);
        to->set_quality(h.quality);
        to->set_tokens(h.tokens);
        to->set_stored_bytes(h.stored_bytes);
        to->set_disk_bytes(h.stored_bytes - h.host_bytes);
        to->set_raw_bytes(h.raw_bytes);
        to->set_decode_ms(absl::ToDoubleMilliseconds(r->decode_time[i]));
      }
      if (r->lease) response->set_lease_id(r->lease->id);
      return absl::OkStatus();
    });
  }

 private:
  Serving* const serving_;
};

// A profile on its way in: bounded by its declared size, kept only when whole and good.
class AddProfileCall final : public grpc::ServerReadReactor<v1::AddProfileRequest> {
 public:
  AddProfileCall(Serving* serving, Context* context, v1::Profile* response)
      : serving_(serving), response_(response), record_(serving, context, "AddProfile") {
    const absl::Status s = serving_->CheckServing();
    if (s.ok()) {
      StartRead(&in_);
    } else {
      End(s);
    }
  }
  void OnReadDone(bool ok) override {
    if (!ok) return Close();
    if (absl::Status s = Take(); !s.ok()) return End(s);
    StartRead(&in_);
  }
  void OnDone() override { delete this; }

 private:
  static absl::Status Bad(const std::string& text) {
    return WithReason(absl::InvalidArgumentError(text), "BAD_PROFILE");
  }

  absl::Status Take() {
    if (in_.has_open()) {
      if (open_) return Bad("found a second open, expected data");
      open_ = in_.open();
      if (open_->size_bytes() == 0 || open_->size_bytes() > kMaxProfileBytes) {
        return Bad(absl::StrCat("size_bytes: found ", open_->size_bytes(), ", expected 1 to ",
                                kMaxProfileBytes));
      }
      if (!open_->fingerprint().empty() && open_->fingerprint().size() != 32) {
        return Bad(absl::StrCat("fingerprint: found ", open_->fingerprint().size(),
                                " bytes, expected 32"));
      }
      auto r = serving_->budget->Reserve(open_->size_bytes(), "a profile on its way");
      if (!r.ok()) return WithReason(WithRetry(r.status(), absl::Seconds(1)), "OVER_BUDGET");
      reservation_ = *std::move(r);
      return absl::OkStatus();
    }
    if (!open_) return Bad("found data before open");
    if (in_.data().size() > kMaxProfilePiece) {
      return Bad(absl::StrCat("data: found ", in_.data().size(), " bytes, expected at most ",
                              kMaxProfilePiece));
    }
    if (in_.data().size() > open_->size_bytes() - file_.size()) {
      return Bad(absl::StrCat("more data came than size_bytes, ", open_->size_bytes()));
    }
    file_.insert(file_.end(), in_.data().begin(), in_.data().end());
    return absl::OkStatus();
  }

  void Close() {
    if (ended_) return;
    if (!open_ || file_.size() != open_->size_bytes()) {
      return End(Bad(absl::StrCat("the stream ended after ", file_.size(), " of ",
                                  open_ ? open_->size_bytes() : 0, " bytes")));
    }
    serving_->executor->Submit([this] {
      reservation_ = Reservation();  // the registry takes its own
      auto added = serving_->profiles->Add(std::move(file_));
      if (!added.ok()) return End(added.status());
      const Fingerprint& f = added->profile->fingerprint();
      if (!open_->fingerprint().empty() &&
          !std::equal(f.begin(), f.end(), open_->fingerprint().begin(),
                      [](uint8_t a, char b) { return a == static_cast<uint8_t>(b); })) {
        (void)serving_->pipeline->RemoveProfile(f);
        return End(WithReason(absl::DataLossError(absl::StrCat(
                                  "the file's SHA-256 is ", ToHex(f), ", not the one announced")),
                              "BAD_PROFILE"));
      }
      *response_ = ToProto(*added, true);
      End(absl::OkStatus());
    });
  }

  void End(const absl::Status& s) {
    ended_ = true;
    Finish(record_.Finish(s));
  }

  Serving* const serving_;
  v1::Profile* const response_;
  CallRecord record_;
  v1::AddProfileRequest in_;
  std::optional<v1::AddProfileRequest::Open> open_;
  Reservation reservation_;
  std::vector<uint8_t> file_;
  bool ended_ = false;
};

class ProfileImpl final : public v1::ProfileService::CallbackService {
 public:
  explicit ProfileImpl(Serving* serving) : serving_(serving) {}

  grpc::ServerReadReactor<v1::AddProfileRequest>* AddProfile(Context* context,
                                                             v1::Profile* response) override {
    return new AddProfileCall(serving_, context, response);
  }
  Unary* ListProfiles(Context* context, const v1::ListProfilesRequest*,
                      v1::ListProfilesResponse* response) override {
    return RunUnary(serving_, context, "ListProfiles", "", [this, response]() -> absl::Status {
      for (const auto& e : serving_->profiles->List()) *response->add_profiles() = WithChunks(ToProto(e, false));
      return absl::OkStatus();
    });
  }
  Unary* GetProfile(Context* context, const v1::GetProfileRequest* request,
                    v1::Profile* response) override {
    return RunUnary(serving_, context, "GetProfile", "", [this, request, response]() -> absl::Status {
      auto e = serving_->profiles->FindHex(request->fingerprint());
      if (!e.ok()) return e.status();
      *response = WithChunks(ToProto(*e, true));
      return absl::OkStatus();
    });
  }
  Unary* RemoveProfile(Context* context, const v1::RemoveProfileRequest* request,
                       v1::RemoveProfileResponse* response) override {
    return RunUnary(serving_, context, "RemoveProfile", "", [this, request, response]() -> absl::Status {
      Fingerprint f;
      {
        auto e = serving_->profiles->FindHex(request->fingerprint());
        if (!e.ok()) return e.status();
        f = e->profile->fingerprint();
      }  // the entry would count as a user
      auto freed = serving_->pipeline->RemoveProfile(f);
      if (!freed.ok()) return freed.status();
      response->set_freed_bytes(*freed);
      return absl::OkStatus();
    });
  }

 private:
  v1::Profile WithChunks(v1::Profile profile) const {
    Digest fingerprint{};
    std::copy(profile.fingerprint().begin(), profile.fingerprint().end(), fingerprint.begin());
    profile.set_chunks(serving_->store->ChunksOf(fingerprint));
    return profile;
  }
  Serving* const serving_;
};

class InfoImpl final : public v1::InfoService::CallbackService {
 public:
  explicit InfoImpl(Serving* serving) : serving_(serving) {}

  Unary* GetServerInfo(Context* context, const v1::GetServerInfoRequest*,
                       v1::ServerInfo* out) override {
    CallRecord record(serving_, context, "GetServerInfo");
    const Config& c = serving_->config;
    out->set_version(serving_->version);
    out->set_commit(serving_->commit);
    out->set_backend(serving_->backend());
    auto* cpu = out->add_backends();
    cpu->set_name("cpu");
    cpu->set_available(true);
    auto* cuda = out->add_backends();
    cuda->set_name("cuda");
    cuda->set_available(serving_->backend() == "cuda");
    const bool lost = serving_->device != nullptr && serving_->device_state->lost();
    cuda->set_detail(lost ? absl::StrCat("lost: ", serving_->device_state->why().message())
                          : serving_->cuda_detail);
    for (const CodecEntry& e : BuiltinCodecs()) {
      auto* codec = out->add_codecs();
      codec->set_name(e.name);
      codec->set_description(e.description);
      codec->set_needs_profile(e.needs_profile);
      codec->set_lossless(e.lossless);
      for (absl::string_view s : absl::StrSplit(e.settings, ' ', absl::SkipEmpty())) {
        codec->add_qualities(std::string(s));
      }
      if (!e.has_quality) continue;
      for (Quality q : {Quality::kNearLossless, Quality::kBalanced, Quality::kCompact}) {
        codec->add_qualities(std::string(QualityName(q)));
      }
    }
    auto* l = out->mutable_limits();
    l->set_memory_budget_bytes(serving_->budget->limit());
    l->set_max_message_bytes(c.max_message_bytes);
    l->set_max_run_tokens(1 << 20);
    l->set_max_profile_bytes(kMaxProfileBytes);
    l->set_put_credit_bytes(c.put_credit_bytes);
    l->set_get_window_bytes(c.get_window_bytes);
    l->set_page_tokens(kPageTokens);
    l->set_idle_put_seconds(static_cast<uint64_t>(absl::ToInt64Seconds(c.idle_put_timeout)));
    l->set_max_lease_seconds(static_cast<uint64_t>(absl::ToInt64Seconds(c.max_lease)));
    l->set_disk_tier(!c.disk_path.empty());
    l->set_disk_budget_bytes(c.disk_budget_bytes);
    if (serving_->gpu != nullptr) {
      const GpuChunksUsage g = serving_->gpu->Usage();
      l->set_gpu_budget_bytes(g.capacity_bytes);
      out->mutable_usage()->set_gpu_bytes(g.bytes);
    }
    const StoreUsage u = serving_->store->Usage();
    auto* usage = out->mutable_usage();
    usage->set_used_bytes(serving_->budget->used());
    usage->set_stored_bytes(u.stored_bytes);
    usage->set_sessions(u.sessions);
    usage->set_chunks(u.chunks);
    usage->set_host_bytes(u.host_bytes);
    usage->set_disk_bytes(u.disk_bytes);
    usage->set_leases(u.leases);
    usage->set_profiles(serving_->profiles->List().size());
    out->mutable_started()->set_seconds(absl::ToUnixSeconds(serving_->started));
    out->set_draining(serving_->draining);
    out->set_metrics_address(serving_->metrics_address);
    Unary* reactor = context->DefaultReactor();
    reactor->Finish(record.Finish(absl::OkStatus()));
    return reactor;
  }

 private:
  Serving* const serving_;
};

}  // namespace

std::vector<std::unique_ptr<grpc::Service>> NewServices(Serving* serving) {
  std::vector<std::unique_ptr<grpc::Service>> out;
  out.push_back(std::make_unique<CacheImpl>(serving));
  out.push_back(NewSessionService(serving));
  out.push_back(std::make_unique<ProfileImpl>(serving));
  out.push_back(std::make_unique<InfoImpl>(serving));
  return out;
}

}  // namespace kvcask
