#include "server/pipeline/pipeline.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include "codec/base/geometry_json.h"
#include "codec/builtin_codecs.h"
#include "codec/profile/means.h"
#include "server/clock/steady_now.h"
#include "server/pipeline/errors.h"
#include "server/pipeline/get_run.h"
#include "server/pipeline/put_run.h"

namespace kvcask {
namespace {

absl::Status UnknownCodec(const std::string& name) {
  std::vector<std::string> names;
  for (const CodecEntry& e : BuiltinCodecs()) names.push_back(e.name);
  return WithReason(absl::UnimplementedError(absl::StrCat("unknown codec '", name, "', expected ",
                                                          absl::StrJoin(names, ", "))),
                    "UNKNOWN_CODEC");
}

}  // namespace

Pipeline::Pipeline(SessionStore* store, ByteBudget* budget, ProfileRegistry* profiles,
                   Executor* executor, Metrics* metrics, Options options)
    : store_(store),
      budget_(budget),
      profiles_(profiles),
      executor_(executor),
      metrics_(metrics),
      options_(std::move(options)),
      hasher_(options_.hash_secret ? PrefixHasher(*options_.hash_secret) : PrefixHasher()),
      codecs_(options_.make_codec),
      shadow_(options_.shadow, metrics) {
  encode_batcher_ = std::make_unique<Batcher<EncodeTask>>(
      BatchLimits{}, [this](std::vector<EncodeTask> batch) {
        auto shared = std::make_shared<std::vector<EncodeTask>>(std::move(batch));
        executor_->Submit([this, shared] { RunEncodeBatch(std::move(*shared)); });
      });
}

Pipeline::~Pipeline() = default;

absl::StatusOr<std::shared_ptr<PutRun>> Pipeline::OpenPut(PutParams params) {
  const CodecEntry* entry =
      FindCodec(params.codec.empty() ? options_.default_codec : params.codec);
  if (entry == nullptr) return UnknownCodec(params.codec);
  params.codec = entry->name;
  absl::StatusOr<Quality> quality = Quality::kDefault;
  std::string setting;
  if (entry->canonical_setting != nullptr) {
    auto canonical = entry->canonical_setting(params.quality);
    if (!canonical.ok()) return WithReason(canonical.status(), "QUALITY");
    setting = *std::move(canonical);
  } else {
    quality = ParseQuality(params.quality);
    if (!quality.ok()) return WithReason(quality.status(), "QUALITY");
    if (!entry->has_quality && *quality != Quality::kDefault) {
      return WithReason(absl::InvalidArgumentError(absl::StrCat(
                            "codec ", entry->name, " has no quality setting, found '",
                            params.quality, "'")),
                        "QUALITY");
    }
  }
  if (params.token_count == 0 || params.token_count > options_.max_run_tokens) {
    return WithReason(absl::InvalidArgumentError(
                          absl::StrCat("token_count is ", params.token_count, ", expected 1 to ",
                                       options_.max_run_tokens)),
                      "TOKEN_COUNT");
  }
  if (absl::Status s = params.geometry.Validate(); !s.ok()) return WithReason(s, "GEOMETRY");

  auto run = std::shared_ptr<PutRun>(new PutRun);
  run->pipeline_ = this;
  run->quality_ = *quality;
  run->setting_ = setting;
  auto attachment = std::make_shared<SessionAttachment>();
  attachment->geometry = params.geometry;
  CodecSpec spec;
  spec.model = params.geometry;
  spec.shard = params.shard;
  spec.setting = setting;
  if (params.profile) {
    auto profile = profiles_->Find(*params.profile);
    if (!profile.ok()) return profile.status();
    const std::string& profile_codec = profile->profile->codec();
    if (profile_codec != entry->name && !(entry->takes_means && ProfileHasMeans(profile_codec))) {
      return WithReason(absl::FailedPreconditionError(absl::StrCat(
                            "profile ", ToHex(*params.profile).substr(0, 16), " is for codec ",
                            profile->profile->codec(), ", not ", entry->name)),
                        "WRONG_PROFILE");
    }
    spec.profile = profile->profile;
    attachment->profile = profile->profile;
    attachment->profile_use = profile->use;
  } else if (entry->needs_profile) {
    return WithReason(absl::FailedPreconditionError(absl::StrCat(
                          "codec ", entry->name, " needs a profile of the model; register one "
                          "with `kvcask profile add FILE` and name it")),
                      "PROFILE_NEEDED");
  }
  run->geometry_fingerprint_ = params.geometry.ComputeFingerprint();
  auto sliced = SliceGeometry(params.geometry, params.shard);
  if (!sliced.ok()) return WithReason(sliced.status(), "SHARD");
  run->shard_geometry_ = *std::move(sliced);
  auto codec = codecs_.Get(*entry, spec, run->geometry_fingerprint_);
  if (!codec.ok()) {
    // Said of the client's own text where it can be: a canonical form has lost its lines.
    spec.setting = params.quality;
    const absl::Status own =
        setting.empty() ? absl::OkStatus() : entry->make(spec).status();
    return WithReason(own.ok() ? codec.status() : own, "CODEC");
  }
  run->codec_ = *std::move(codec);
  spec.profile = nullptr;
  spec.setting.clear();
  auto raw = codecs_.Get(*FindCodec(CodecId::kRaw), spec, run->geometry_fingerprint_);
  if (!raw.ok()) return raw.status();
  run->raw_codec_ = *std::move(raw);

  SessionTraits& traits = run->traits_;
  traits.model_id = params.model_id;
  traits.extra_key = params.extra_key;
  traits.codec = entry->name;
  traits.quality = entry->canonical_setting ? setting : std::string(QualityName(*quality));
  traits.dtype = std::string(DtypeName(params.dtype));
  traits.geometry = run->geometry_fingerprint_;
  if (params.profile) traits.profile = *params.profile;
  traits.first_position = params.first_position;
  traits.shard_count = static_cast<uint32_t>(params.shard.count);
  traits.attachment = attachment;
  traits.descriptor = GeometryToJson(params.geometry);

  const uint32_t shard = static_cast<uint32_t>(params.shard.index);
  if (!params.put_id.empty()) {
    run->replayed_ = store_->FindPut(params.session, shard, params.put_id);
    if (run->replayed_) {
      run->replayed_->replayed = true;
      return run;
    }
  }
  auto before = store_->BeginWrite(params.session, traits, shard);
  if (!before.ok()) return before.status();
  run->before_ = *std::move(before);
  if (params.expected_version != 0 && params.expected_version != run->before_.version) {
    return WithReason(absl::AbortedError(absl::StrCat("shard ", shard, " is at version ",
                                                      run->before_.version, ", expected ",
                                                      params.expected_version)),
                      "VERSION");
  }
  if (params.token_begin != run->before_.tokens) {
    const std::string text =
        absl::StrCat("the run begins at token ", params.token_begin, ", but shard ", shard,
                     " of the session holds ", run->before_.tokens);
    return params.token_begin < run->before_.tokens
               ? WithReason(absl::AlreadyExistsError(text), "TOKENS_EXIST")
               : WithReason(absl::InvalidArgumentError(text), "TOKEN_GAP");
  }
  run->params_ = std::move(params);
  if (absl::Status s = run->Init(); !s.ok()) return s;
  return run;
}

absl::StatusOr<std::shared_ptr<GetRun>> Pipeline::OpenGet(const GetParams& params) {
  auto run = std::shared_ptr<GetRun>(new GetRun);
  if (absl::Status s = run->Init(this, params); !s.ok()) return s;
  return run;
}

std::vector<PrefixId> Pipeline::PrefixIds(const std::string& ns, const std::string& model_id,
                                          const std::string& extra_key, uint64_t first_position,
                                          absl::Span<const uint32_t> token_ids) const {
  std::vector<PrefixId> ids;
  PrefixId parent = hasher_.Root(ns, model_id, extra_key, first_position);
  for (size_t t = 0; t + kPageTokens <= token_ids.size(); t += kPageTokens) {
    parent = hasher_.Page(ns, parent, token_ids.subspan(t, kPageTokens));
    ids.push_back(parent);
  }
  return ids;
}

absl::StatusOr<LookupResult> Pipeline::Lookup(const std::string& ns, const std::string& model_id,
                                              const std::string& extra_key,
                                              absl::Span<const uint32_t> token_ids,
                                              absl::Duration lease) {
  LookupResult r;
  const auto ids = PrefixIds(ns, model_id, extra_key, 0, token_ids);
  // The lease first: what it holds cannot vanish before it is looked up.
  if (lease > absl::ZeroDuration()) {
    auto granted = store_->LeasePrefix(ns, ids, lease);
    if (granted.ok()) {
      r.lease = *std::move(granted);
    } else if (!absl::IsNotFound(granted.status())) {
      return WithReason(granted.status(), "LEASES");
    }
  }
  r.held = store_->Lookup(ns, ids);
  for (const HeldPrefix& h : r.held) {
    r.tokens = std::max(r.tokens, h.tokens);
    r.decode_time.push_back(decode_rates_.Estimate(h.codec, h.raw_bytes));
  }
  return r;
}

absl::StatusOr<std::shared_ptr<const void>> RestoreAttachment(const SessionTraits& traits,
                                                              const ProfileRegistry& profiles) {
  auto attachment = std::make_shared<SessionAttachment>();
  auto geometry = GeometryFromJson(traits.descriptor);
  if (!geometry.ok()) return geometry.status();
  if (geometry->ComputeFingerprint() != traits.geometry) {
    return absl::DataLossError("a stored geometry differs from its fingerprint");
  }
  if (FindCodec(traits.codec) == nullptr) return UnknownCodec(traits.codec);
  attachment->geometry = *std::move(geometry);
  if (traits.profile != Digest{}) {
    auto profile = profiles.Find(traits.profile);
    if (!profile.ok()) return profile.status();
    attachment->profile = profile->profile;
    attachment->profile_use = profile->use;
  }
  return std::shared_ptr<const void>(std::move(attachment));
}

absl::StatusOr<uint64_t> Pipeline::RemoveProfile(const Fingerprint& fingerprint) {
  auto removed = profiles_->Remove(fingerprint);
  if (removed.ok()) codecs_.DropProfile(fingerprint);
  return removed;
}

// One Encode call for each codec in the batch.
void Pipeline::RunEncodeBatch(std::vector<EncodeTask> batch) {
  // A run that ended meanwhile (cancelled, past its deadline, refused) is not paid for.
  const auto dead = std::stable_partition(batch.begin(), batch.end(),
                                          [](const EncodeTask& t) { return !t.run->dead(); });
  for (auto t = dead; t != batch.end(); ++t) {
    EncodeJob dropped;
    dropped.status = absl::CancelledError("the run has ended");
    t->run->OnEncoded(*t, dropped, nullptr);
  }
  batch.erase(dead, batch.end());
  std::stable_sort(batch.begin(), batch.end(), [](const EncodeTask& a, const EncodeTask& b) {
    return a.run->codec_.get() < b.run->codec_.get();
  });
  for (size_t begin = 0; begin < batch.size();) {
    const Codec* codec = batch[begin].run->codec_.get();
    size_t end = begin;
    while (end < batch.size() && batch[end].run->codec_.get() == codec) ++end;
    EncodeRange(*codec, absl::MakeConstSpan(batch).subspan(begin, end - begin));
    begin = end;
  }
}

// Tasks of one codec. Each tile keeps the memory that it was encoded into.
void Pipeline::EncodeRange(const Codec& codec, absl::Span<const EncodeTask> tasks) {
  thread_local Workspace workspace;
  const size_t n = tasks.size();
  std::vector<EncodeJob> finished(n), jobs;
  std::vector<std::unique_ptr<uint8_t[]>> data(n);
  std::vector<std::vector<ConstPlaneView>> planes;
  std::vector<size_t> encoding;  // the jobs' places in tasks
  planes.reserve(n);
  uint64_t raw_bytes = 0, stored_bytes = 0;
  for (size_t i = 0; i < n; ++i) {
    const EncodeTask& t = tasks[i];
    const PutRun& run = *t.run;
    const PutRun::Page& page = run.pages_[t.page];
    const PutRun::Tile& tile = page.tiles[t.group];
    const PutRun::Unit& unit = run.units_[run.group_units_[t.group]];
    raw_bytes += 2 * uint64_t(unit.elements) * tile.tokens / unit.groups.size();
    const size_t most = codec.MaxTileBytes(t.group, tile.tokens, run.params_.dtype);
    data[i].reset(new uint8_t[most]);
    const Group range = codec.groups()[t.group];
    planes.push_back(run.Views(page, range.layer_begin, range.layer_end, tile.token_begin));
    EncodeJob job;
    job.group = t.group;
    job.tokens = tile.tokens;
    job.source.dtype = run.params_.dtype;
    job.source.planes = planes.back();
    job.positions = run.Slice(run.positions_, page, tile.token_begin, tile.tokens);
    job.token_ids = run.Slice(run.token_ids_, page, tile.token_begin, tile.tokens);
    job.quality = run.quality_;
    job.destination = absl::MakeSpan(data[i].get(), most);
    jobs.push_back(job);
    encoding.push_back(i);
  }
  const absl::Time start = SteadyNow();
  if (!jobs.empty()) {
    const absl::Status status = codec.Encode(absl::MakeSpan(jobs), workspace);
    for (size_t j = 0; j < jobs.size(); ++j) {
      if (!status.ok() && jobs[j].status.ok()) jobs[j].status = status;
      finished[encoding[j]] = jobs[j];
    }
  }
  const absl::Duration took = SteadyNow() - start;
  for (const EncodeJob& job : finished) stored_bytes += job.bytes;
  metrics_->Encoded(FindCodec(codec.id())->name, raw_bytes, stored_bytes, took);
  for (size_t i = 0; i < n; ++i) {
    const size_t most = finished[i].destination.size();
    if (finished[i].status.ok() && finished[i].bytes < most - most / 8) {
      std::unique_ptr<uint8_t[]> exact(new uint8_t[finished[i].bytes]);
      std::memcpy(exact.get(), data[i].get(), finished[i].bytes);
      data[i] = std::move(exact);
    }
    tasks[i].run->OnEncoded(tasks[i], finished[i], std::move(data[i]));
  }
}

}  // namespace kvcask
