// Protobuf to the pipeline's plain values, checked; and back. Everything that a client may
// get wrong in a single message is refused here with INVALID_ARGUMENT: what was found,
// what was expected, in which field.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include "kvcask/v1/cache.pb.h"
#include "kvcask/v1/profiles.pb.h"
#include "kvcask/v1/sessions.pb.h"
#include "server/pipeline/get_run.h"
#include "server/pipeline/pipeline.h"
#include "server/pipeline/profile_registry.h"
#include "server/pipeline/put_run.h"
#include "server/store/session_store.h"

namespace kvcask {

absl::StatusOr<SessionKey> FromProto(const v1::SessionRef& ref);
absl::StatusOr<Geometry> FromProto(const v1::Geometry& geometry);
absl::StatusOr<PutParams> FromProto(const v1::PutOpen& open);
absl::StatusOr<RectangleSpec> FromProto(const v1::Rectangle& rectangle);
absl::StatusOr<GetParams> FromProto(const v1::GetRequest& request);
absl::Status CheckNamespace(const std::string& ns);
absl::Status CheckIdentity(const v1::ModelIdentity& identity);
absl::Status CheckLabels(const google::protobuf::Map<std::string, std::string>& labels);
// An idempotency key.
absl::Status CheckCallId(absl::string_view field, const std::string& id);
// From `least` to `most`, of a lease.
absl::Status CheckLeaseSeconds(absl::string_view field, uint64_t seconds, uint64_t least,
                               absl::Duration most);

v1::Geometry ToProto(const Geometry& geometry);
v1::PutCommitted ToProto(const CommitResult& result);
// `whole`: with the geometry and shards, which lists leave out.
v1::Session ToProto(const SessionStat& stat, bool whole);
v1::Profile ToProto(const ProfileRegistry::Entry& entry, bool whole);
v1::GetHeader HeaderOf(const GetRun& run);
v1::Dtype ToProto(Dtype dtype);

}  // namespace kvcask
