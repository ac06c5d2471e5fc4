#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_split.h>
#include <absl/time/clock.h>

#include <memory>
#include <optional>
#include <vector>

#include "client/cc/convert.h"
#include "client/cli/cache_file.h"
#include "client/cli/command.h"

namespace kvcask {
namespace {

struct PutArgs {
  std::string file, session, ns, model_id, extra_key, codec, profile, quality, put_id, tokens;
  std::vector<std::string> shards, labels;
  std::string shard_layers, shard_heads;
  bool durable = false, no_seal = false, layer_by_layer = false, json = false;
  uint64_t expected_version = 0, ttl_seconds = 0;
};

// "i/n": layers cut into n runs as even as can be, unless a cut was given.
absl::StatusOr<v1::Shard> ParseShard(const std::string& text, const PutArgs& args, int layers) {
  const std::vector<std::string> parts = absl::StrSplit(text, '/');
  uint32_t index = 0, count = 0;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &index) ||
      !absl::SimpleAtoi(parts[1], &count) || count == 0 || index >= count) {
    return absl::InvalidArgumentError(
        absl::StrCat("--shard ", Printable(text), ": expected i/n with i of 0 to n - 1"));
  }
  v1::Shard shard;
  shard.set_index(index);
  shard.set_count(count);
  if (args.shard_layers.empty() && args.shard_heads.empty()) {
    if (count > static_cast<uint32_t>(layers)) {
      return absl::InvalidArgumentError(absl::StrCat("--shard ", text, ": the model has ", layers,
                                                     " layers, expected at least ", count));
    }
    shard.set_layer_begin(static_cast<uint32_t>(uint64_t{index} * layers / count));
    shard.set_layer_end(static_cast<uint32_t>((uint64_t{index} + 1) * layers / count));
    return shard;
  }
  const auto layer_range = ParseRange("--shard-layers", args.shard_layers);
  if (!layer_range.ok()) return layer_range.status();
  const auto head_range = ParseRange("--shard-heads", args.shard_heads);
  if (!head_range.ok()) return head_range.status();
  shard.set_layer_begin(static_cast<uint32_t>(layer_range->begin()));
  shard.set_layer_end(static_cast<uint32_t>(layer_range->end()));
  shard.set_head_begin(static_cast<uint32_t>(head_range->begin()));
  shard.set_head_end(static_cast<uint32_t>(head_range->end()));
  return shard;
}

// What part of the file is put: all of it unless --tokens says otherwise.
absl::StatusOr<v1::Range> TokensOf(const PutArgs& args, const CacheFile& file) {
  auto range = ParseRange("--tokens", args.tokens);
  if (!range.ok()) return range;
  if (range->end() == 0) range->set_end(file.tokens());
  if (range->end() > file.tokens() || range->begin() >= range->end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tokens ", args.tokens, ": the file has ", file.tokens(), " tokens"));
  }
  return range;
}

absl::StatusOr<v1::PutOpen> MakeOpen(const PutArgs& args, const CacheFile& file,
                                     const v1::Range& tokens) {
  const CacheInfo& info = file.info();
  v1::PutOpen open;
  open.mutable_session()->set_namespace_(args.ns);
  open.mutable_session()->set_session_id(args.session);
  const std::string& model = args.model_id.empty() ? info.metadata.model : args.model_id;
  if (model.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        args.file, ": its metadata names no model; give --model-id (weights and revision)"));
  }
  open.mutable_identity()->set_model_id(model);
  open.mutable_identity()->set_extra_key(args.extra_key.empty() ? info.extra_key : args.extra_key);
  *open.mutable_geometry() = GeometryToProto(file.geometry());
  open.mutable_codec()->set_name(args.codec);
  auto quality = ReadSetting(args.quality);
  if (!quality.ok()) return quality.status();
  open.mutable_codec()->set_quality(*std::move(quality));
  open.set_dtype(DtypeToProto(info.metadata.dtype));
  open.set_token_begin(tokens.begin());
  open.set_token_count(static_cast<uint32_t>(tokens.end() - tokens.begin()));
  open.mutable_positions()->set_first_position(static_cast<uint64_t>(info.metadata.first_position));
  if (!info.token_ids.empty()) {
    open.mutable_token_ids()->Add(info.token_ids.begin() + tokens.begin(),
                                  info.token_ids.begin() + tokens.end());
  }
  open.set_expected_version(args.expected_version);
  open.set_ttl_seconds(args.ttl_seconds);
  for (const std::string& label : args.labels) {
    const std::pair<std::string, std::string> kv = absl::StrSplit(label, absl::MaxSplits('=', 1));
    if (label.find('=') == label.npos || kv.first.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--label ", Printable(label), ": expected KEY=VALUE"));
    }
    (*open.mutable_labels())[kv.first] = kv.second;
  }
  return open;
}

void PrintResult(const PutArgs& args, const v1::PutOpen& open, const v1::PutCommitted& result,
                 uint64_t raw_bytes, uint64_t stored_bytes, bool sealed, double seconds) {
  const double ratio = Ratio(raw_bytes, stored_bytes);
  if (args.json) {
    PrintJson({{"session", args.session},
               {"namespace", args.ns},
               {"model_id", open.identity().model_id()},
               {"codec", open.codec().name()},
               {"tokens", open.token_count()},
               {"shard_tokens", result.shard_tokens()},
               {"visible_tokens", result.visible_tokens()},
               {"version", result.version()},
               {"raw_bytes", raw_bytes},
               {"stored_bytes", stored_bytes},
               {"ratio", ratio},
               {"predicted_kld", result.predicted_kld()},
               {"replayed", result.replayed()},
               {"sealed", sealed},
               {"seconds", seconds}});
    return;
  }
  std::printf("%s: %u tokens, raw %s, stored %s, ratio %.2f, %.0f ms%s\n",
              Printable(args.session).c_str(), open.token_count(), HumanBytes(raw_bytes).c_str(),
              HumanBytes(stored_bytes).c_str(), ratio, seconds * 1e3,
              result.replayed() ? " (was there already)" : "");
}

absl::Status Put(const Globals& globals, const PutArgs& args) {
  // The file is checked whole before anything is sent.
  const auto file = CacheFile::Open(args.file);
  if (!file.ok()) return file.status();
  const auto tokens = TokensOf(args, *file);
  if (!tokens.ok()) return tokens.status();
  auto open = MakeOpen(args, *file, *tokens);
  if (!open.ok()) return open.status();
  std::vector<v1::Shard> shards(1);  // the whole model
  if (!args.shards.empty()) {
    shards.clear();
    for (const std::string& text : args.shards) {
      auto shard = ParseShard(text, args, static_cast<int>(file->geometry().layers.size()));
      if (!shard.ok()) return shard.status();
      shards.push_back(*std::move(shard));
    }
  }

  auto client = globals.Connect();
  if (!client.ok()) return client.status();
  if (!args.profile.empty()) {
    std::string codec;
    auto fingerprint = ResolveProfile(*client, args.profile, &codec);
    if (!fingerprint.ok()) return fingerprint.status();
    open->mutable_codec()->set_profile_fingerprint(*fingerprint);
    if (args.codec.empty()) open->mutable_codec()->set_name(codec);
  }

  ConstKvView view = file->view();
  std::vector<ConstPlaneView> planes(view.planes.begin(), view.planes.end());
  for (ConstPlaneView& p : planes) {
    p.data += p.token_stride * static_cast<int64_t>(tokens->begin());
  }
  view.planes = planes;
  v1::PutCommit commit;
  if (args.durable) commit.set_durability(v1::DURABILITY_DISK);
  commit.set_seal(!args.no_seal && tokens->end() == file->tokens());
  PutRunOptions options;
  options.order = args.layer_by_layer ? PutOrder::kLayerMajor : PutOrder::kTokenMajor;
  ProgressBar bar("put");
  if (!args.json) options.progress = [&](uint64_t sent, uint64_t all) { bar.Show(sent, all); };

  const std::string put_id = args.put_id.empty() ? NewPutId() : args.put_id;
  const absl::Time start = absl::Now();
  v1::PutCommitted result;
  uint64_t raw_bytes = 0, stored_bytes = 0;
  for (const v1::Shard& shard : shards) {
    *open->mutable_shard() = shard;
    open->set_put_id(shards.size() == 1 ? put_id : absl::StrCat(put_id, ".", shard.index()));
    auto committed = client->PutRun(*open, {view, file->owner()}, commit, options);
    if (!committed.ok()) return committed.status();
    result = *std::move(committed);
    raw_bytes += result.raw_bytes();
    stored_bytes += result.stored_bytes();
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  if (open->codec().name().empty()) {  // the daemon chose; say what
    auto stat = client->StatSession(open->session());
    if (stat.ok()) open->mutable_codec()->set_name(stat->codec());
  }
  bar.Clear();
  PrintResult(args, *open, result, raw_bytes, stored_bytes, commit.seal(), seconds);
  return absl::OkStatus();
}

}  // namespace

void AddPutCommand(CLI::App* app, Globals* globals) {
  auto args = std::make_shared<PutArgs>();
  CLI::App* c = app->add_subcommand("put", "Store a cache file as a session");
  c->add_option("file", args->file, "Cache file (safetensors)")->required();
  c->add_option("-s,--session", args->session, "Session to create or to append to")->required();
  c->add_option("--namespace", args->ns, "Namespace of the session");
  c->add_option("--model-id", args->model_id,
                "Weights and revision (default: the file's metadata 'model')");
  c->add_option("--extra-key", args->extra_key, "LoRA, multimodal hash or salt");
  c->add_option("--codec", args->codec,
                "raw, int8, ... see 'kvcask codecs' (default: the profile's, else the daemon's)");
  c->add_option("--profile", args->profile,
                "Profile file, registered when the daemon lacks it; or the first hex digits of a "
                "registered one");
  c->add_option("--quality", args->quality, "near_lossless, balanced or compact; a lattice's Q; a recipe, or @FILE with one");
  c->add_option("--tokens", args->tokens,
                "A:B, that part of the file; A must be what the session holds already");
  c->add_option("--shard", args->shards,
                "i/n, repeatable: put only shard i of n, a range of layers")
      ->allow_extra_args(false);
  c->add_option("--shard-layers", args->shard_layers, "A:B, the shard's layers")->needs("--shard");
  c->add_option("--shard-heads", args->shard_heads, "A:B, the shard's heads")->needs("--shard");
  c->add_flag("--no-seal", args->no_seal,
              "More tokens will come (default: sealed when the file's last token is put)");
  c->add_flag("--layer-by-layer", args->layer_by_layer,
              "Send one layer after the other, as engines save while they compute");
  c->add_option("--put-id", args->put_id, "Idempotency key (default: a random one)");
  c->add_option("--expected-version", args->expected_version,
                "Fail with ABORTED when the shard's version is another");
  c->add_flag("--durable", args->durable, "Answer when the daemon's disk has it, and not before");
  c->add_option("--ttl", args->ttl_seconds, "Seconds the session lives after its last commit");
  c->add_option("--label", args->labels, "KEY=VALUE, repeatable")->allow_extra_args(false);
  c->add_flag("--json", args->json, "Print the result as JSON");
  OnRun(c, globals, [=] { return Put(*globals, *args); });
}

}  // namespace kvcask
