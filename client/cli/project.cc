// kvcask project: what a session will take in the store. kvcask codecs --explain: each codec's
// bytes as a formula, as projected, and as the daemon holds them.
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "client/cc/convert.h"
#include "client/cli/cache_file.h"
#include "client/cli/command.h"
#include "client/cli/mapped_file.h"
#include "codec/base/dtype.h"
#include "codec/base/geometry_json.h"
#include "codec/builtin_codecs.h"
#include "codec/fixed/presets.h"
#include "codec/profile/profile.h"
#include "codec/recipe/layer_plan.h"
#include "codec/recipe/projection.h"
#include "codec/recipe/recipe.h"
#include "codec/recipe/sampled_size.h"

namespace kvcask {
namespace {

using nlohmann::json;

// "e8:q10": a codec and its setting.
std::pair<std::string, std::string> SplitCodec(const std::string& text) {
  return absl::StrSplit(text, absl::MaxSplits(':', 1));
}

absl::StatusOr<std::string> ReadText(const std::string& path, size_t limit) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(Printable(path), ": cannot be opened"));
  std::string text;
  text.resize(limit + 1);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat(Printable(path), ": over ", limit, " bytes"));
  }
  return text;
}

// A model's config.json, or a geometry (its "layers" is a list).
absl::StatusOr<Geometry> ReadGeometry(const std::string& path, MlaCache mla) {
  auto text = ReadText(path, kMaxModelConfigBytes);
  if (!text.ok()) return text.status();
  const json root = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  const bool is_geometry = root.is_object() && root.contains("layers");
  if (is_geometry && mla == MlaCache::kDecompressed) {
    return absl::InvalidArgumentError(absl::StrCat(
        Printable(path), ": a geometry already says what is kept; expected a config.json with "
                         "--decompressed"));
  }
  auto geometry = is_geometry ? GeometryFromJson(*text) : GeometryFromModelConfig(*text, mla);
  if (!geometry.ok()) return Annotate(geometry.status(), Printable(path));
  return geometry;
}

struct ProjectArgs {
  std::string model, geometry, profile;
  std::vector<std::string> codecs, like;
  std::vector<int64_t> tokens;
  bool decompressed = false, whole = false, open = false, token_ids = false, as_json = false;
};

absl::Status RunProject(const ProjectArgs& args) {
  ProjectionSpec spec;
  const std::string& model = args.model.empty() ? args.geometry : args.model;
  auto geometry =
      ReadGeometry(model, args.decompressed ? MlaCache::kDecompressed : MlaCache::kLatent);
  if (!geometry.ok()) return geometry.status();
  spec.model = *std::move(geometry);
  spec.token_ids = args.token_ids;
  spec.profile = !args.profile.empty();
  spec.sealed = !args.open;
  spec.windows_only = !args.whole;
  json rows = json::array();
  if (!args.as_json) {
    std::printf("%s: %s\n%-24s %10s %12s %12s %7s  %s\n", Printable(model).c_str(),
                DescribeLayers(spec.model).c_str(), "codec", "tokens", "raw", "stored", "ratio",
                "kept as received");
  }
  std::vector<std::string> codecs = args.codecs;
  if (codecs.empty()) {
    codecs = {"raw", "int8", "fp8", "int4", "turbo4", "turbo3", "k8v4", "e8:q38", "e8:q10"};
  }
  for (const std::string& name : codecs) {
    std::tie(spec.codec, spec.setting) = SplitCodec(name);
    auto setting = ReadSetting(spec.setting);
    if (!setting.ok()) return setting.status();
    spec.setting = *std::move(setting);
    for (int64_t tokens : args.tokens) {
      spec.tokens = tokens;
      const auto p = Project(spec);
      if (!p.ok()) return Annotate(p.status(), Printable(name));
      if (args.as_json) {
        rows.push_back({{"codec", name},
                        {"tokens", tokens},
                        {"raw_bytes", p->raw_bytes},
                        {"stored_bytes", p->stored_bytes},
                        {"tile_bytes", p->tile_bytes},
                        {"exact_bytes", p->exact_bytes},
                        {"ratio", p->ratio()},
                        {"projection", true}});
        continue;
      }
      std::printf("%-24s %10lld %12s %12s %7.3f  %s (projection)\n", Printable(name).c_str(),
                  static_cast<long long>(tokens), HumanBytes(p->raw_bytes).c_str(),
                  HumanBytes(p->stored_bytes).c_str(), p->ratio(),
                  HumanBytes(p->exact_bytes).c_str());
    }
  }
  if (args.as_json) PrintJson(rows);
  return absl::OkStatus();
}

// The codec "fklt:balanced", made for a model and its profile; *quality is its dial.
absl::StatusOr<std::unique_ptr<Codec>> MakeCodec(const std::string& name, const Geometry& model,
                                                 std::shared_ptr<const Profile> profile,
                                                 Quality* quality) {
  const auto [codec, setting] = SplitCodec(name);
  const CodecEntry* entry = FindCodec(codec);
  if (entry == nullptr) return absl::InvalidArgumentError("no codec of this name");
  CodecSpec spec;
  spec.model = model;
  spec.shard.layer_end = static_cast<int>(model.layers.size());
  for (const LayerGeometry& layer : model.layers) {
    for (const StreamGeometry& s : layer.streams) {
      spec.shard.head_end = std::max(spec.shard.head_end, s.heads);
    }
  }
  if (entry->needs_profile || entry->takes_means) spec.profile = std::move(profile);
  if (entry->canonical_setting != nullptr) {
    auto canonical = entry->canonical_setting(setting);
    if (!canonical.ok()) return canonical.status();
    spec.setting = *std::move(canonical);
  } else {
    const auto parsed = ParseQuality(setting);
    if (!parsed.ok()) return parsed.status();
    if (!entry->has_quality && *parsed != Quality::kDefault) {
      return absl::InvalidArgumentError("this codec has no quality");
    }
    *quality = *parsed;
  }
  return entry->make(spec);
}

void PrintSampled(const std::string& name, int64_t tokens, const SampledSize& size) {
  std::printf("%-24s %10lld %12s %12s %7.3f", Printable(name).c_str(),
              static_cast<long long>(tokens), HumanBytes(size.raw_bytes).c_str(),
              HumanBytes(static_cast<uint64_t>(size.mean_bytes)).c_str(), size.ratio());
  if (size.one_more_bytes < 0) {
    std::printf("  no interval by one sample (projection)\n");
    return;
  }
  const double percent = 100 / size.mean_bytes;
  std::printf("  +- %.1f %% one session, +- %.1f %% their mean (projection)\n",
              size.one_more_bytes * percent, size.mean_of_many_bytes * percent);
}

// Sizes that depend on the data, from caches of the kind that will be kept.
absl::Status RunLike(const ProjectArgs& args) {
  std::vector<CacheFile> files;
  for (const std::string& path : args.like) {
    auto file = CacheFile::Open(path);
    if (!file.ok()) return Annotate(file.status(), Printable(path));
    const std::string difference = files.empty() ? "" : DescribeGeometryDifference(
        files[0].geometry(), file->geometry(), Printable(args.like[0]), Printable(path));
    if (!difference.empty()) return absl::InvalidArgumentError(difference);
    files.push_back(*std::move(file));
  }
  std::shared_ptr<const Profile> profile;
  if (!args.profile.empty()) {
    const auto file = MappedFile::Open(args.profile);
    if (!file.ok()) return file.status();
    auto parsed = Profile::Parse({(*file)->bytes().begin(), (*file)->bytes().end()});
    if (!parsed.ok()) return Annotate(parsed.status(), Printable(args.profile));
    profile = *std::move(parsed);
  }
  std::vector<std::string> codecs = args.codecs;
  if (codecs.empty()) codecs = {"fklt:near_lossless", "fklt:balanced", "fklt:compact"};
  json rows = json::array();
  if (!args.as_json) {
    std::printf("%zu samples: %s\n%-24s %10s %12s %12s %7s\n", files.size(),
                DescribeLayers(files[0].geometry()).c_str(), "codec", "tokens", "raw", "mean",
                "ratio");
  }
  for (const std::string& name : codecs) {
    Quality quality = Quality::kDefault;
    const auto codec = MakeCodec(name, files[0].geometry(), profile, &quality);
    if (!codec.ok()) return Annotate(codec.status(), Printable(name));
    SizeSampler sampler(codec->get(), quality, profile != nullptr);
    for (size_t i = 0; i < files.size(); ++i) {
      const CacheInfo& info = files[i].info();
      const absl::Status s =
          sampler.Add(files[i].view(), info.metadata.tokens,
                      static_cast<uint32_t>(info.metadata.first_position), info.token_ids);
      if (!s.ok()) return Annotate(s, Printable(args.like[i]));
    }
    for (int64_t tokens : args.tokens) {
      const auto size = sampler.Project(tokens);
      if (!size.ok()) return Annotate(size.status(), Printable(name));
      if (!args.as_json) {
        PrintSampled(name, tokens, *size);
        continue;
      }
      json row = {{"codec", name},           {"tokens", tokens},
                  {"raw_bytes", size->raw_bytes}, {"stored_bytes", size->mean_bytes},
                  {"ratio", size->ratio()},  {"samples", files.size()},
                  {"projection", true}};
      if (size->one_more_bytes >= 0) {
        row["interval_one_session_bytes"] = size->one_more_bytes;
        row["interval_mean_bytes"] = size->mean_of_many_bytes;
      }
      rows.push_back(std::move(row));
    }
  }
  if (args.as_json) PrintJson(rows);
  return absl::OkStatus();
}

// Layers of 8 heads of 128: the shape in which the documents count.
constexpr int kLayers = 6, kHeads = 8, kHeadDim = 128;

// Puts random numbers as a session, asks what is held of it, and removes it.
absl::StatusOr<v1::Session> Measure(Client& client, const std::string& codec,
                                    const std::string& setting, const Geometry& g, int tokens) {
  auto bytes = std::make_shared<std::vector<uint8_t>>(2 * g.ElementsPerToken() * tokens);
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0, 1);
  for (size_t i = 0; i < bytes->size(); i += 2) {
    StoreElement(normal(rng), Dtype::kBf16, bytes->data() + i);
  }
  std::vector<ConstPlaneView> planes;
  const uint8_t* at = bytes->data();
  for (size_t p = 0; p < 2 * g.layers.size(); ++p) {
    planes.push_back({at, int64_t{2} * tokens * kHeadDim, 2 * kHeadDim, 2});
    at += int64_t{2} * tokens * kHeadDim * kHeads;
  }
  v1::PutOpen open;
  open.mutable_session()->set_namespace_("kvcask-explain");
  open.mutable_session()->set_session_id(NewPutId());
  open.mutable_identity()->set_model_id("explain");
  *open.mutable_geometry() = GeometryToProto(g);
  open.mutable_codec()->set_name(codec);
  open.mutable_codec()->set_quality(setting);
  open.set_dtype(DtypeToProto(Dtype::kBf16));
  open.set_token_count(static_cast<uint32_t>(tokens));
  open.set_ttl_seconds(60);  // should this command die here
  v1::PutCommit commit;
  commit.set_seal(true);
  auto put = client.PutRun(open, {{Dtype::kBf16, planes, {}}, bytes}, commit, {});
  if (!put.ok()) return put.status();
  auto stat = client.StatSession(open.session());
  (void)client.DeleteSession(open.session(), /*allow_missing=*/true);
  return stat;
}

std::string Formula(const std::string& codec, const std::string& setting) {
  if (codec == "raw") return "K 2 D; V 2 D";
  if (codec == "int8") return "K D + 2; V D + 2";
  if (const FixedPreset* found = FindFixedPreset(codec); found != nullptr) {
    const auto preset = WithSetting(*found, setting);
    if (preset.ok()) {
      return absl::StrCat("K ", CoderFormula(preset->key), "; V ", CoderFormula(preset->value));
    }
  }
  return "by layer and stream, as the recipe says";
}

}  // namespace

absl::StatusOr<std::string> ReadSetting(const std::string& text) {
  if (text.empty() || text[0] != '@') return text;
  return ReadText(text.substr(1), size_t{64} << 10);
}

absl::Status Explain(const Globals& globals, int tokens, bool as_json) {
  auto client = globals.Connect();
  if (!client.ok()) return client.status();
  const auto info = client->GetServerInfo();
  if (!info.ok()) return info.status();
  const Geometry g = UniformGeometry(kLayers, kHeads, kHeadDim,
                                     StandardRope(RopeStyle::kRotateHalf, kHeadDim, 1e4));
  json rows = json::array();
  if (!as_json) {
    std::printf(
        "Bytes of one head and token (K and V) at D = head_dim = %d, of tiles and of all that is\n"
        "kept (headers, directories, checksums); %d layers of %d heads, %d tokens, sealed.\n\n"
        "%-28s %10s %10s %10s %7s  %s\n",
        kHeadDim, kLayers, kHeads, tokens, "codec", "tiles", "projected", "stored", "ratio",
        "formula");
  }
  int differing = 0;
  for (const auto& c : info->codecs()) {
    std::vector<std::string> settings(c.qualities().begin(), c.qualities().end());
    if (settings.empty()) settings.push_back("");
    for (const std::string& setting : settings) {
      ProjectionSpec spec;
      spec.model = g;
      spec.codec = c.name();
      spec.setting = setting;
      spec.tokens = tokens;
      const auto projected = Project(spec);
      if (!projected.ok()) {
        if (!as_json && &setting == &settings[0]) {
          std::printf("%-28s size follows from the data; `kvcask stat` counts it\n",
                      Printable(c.name()).c_str());
        }
        continue;
      }
      const auto stat = Measure(*client, c.name(), setting, g, tokens);
      if (!stat.ok()) return Annotate(stat.status(), Printable(c.name()));
      const bool same = stat->stored_bytes() == projected->stored_bytes;
      differing += !same;
      const double rows_of_k_and_v = static_cast<double>(kLayers) * kHeads * tokens;
      const std::string name = setting.empty() ? c.name() : absl::StrCat(c.name(), ":", setting);
      if (as_json) {
        rows.push_back({{"codec", c.name()},
                        {"setting", setting},
                        {"formula", Formula(c.name(), setting)},
                        {"projected_bytes", projected->stored_bytes},
                        {"stored_bytes", stat->stored_bytes()},
                        {"raw_bytes", stat->raw_bytes()},
                        {"tile_bytes", projected->tile_bytes}});
        continue;
      }
      std::printf("%-28s %10.2f %10.2f %10.2f %7.3f  %s%s\n", Printable(name).c_str(),
                  projected->tile_bytes / rows_of_k_and_v,
                  projected->stored_bytes / rows_of_k_and_v,
                  stat->stored_bytes() / rows_of_k_and_v,
                  Ratio(stat->raw_bytes(), stat->stored_bytes()),
                  Formula(c.name(), setting).c_str(), same ? "" : "  DIFFERS");
    }
  }
  if (as_json) PrintJson(rows);
  if (differing == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(differing, " codecs are held in other sizes than "
                                                     "projected"));
}

void AddProjectCommand(CLI::App* app, Globals* globals) {
  auto args = std::make_shared<ProjectArgs>();
  CLI::App* c = app->add_subcommand(
      "project", "What a session will take; asks no daemon");
  c->add_option("model", args->model, "The model's config.json, or a geometry as JSON");
  c->add_option("--geometry", args->geometry, "The same, as an option");
  c->add_option("--like", args->like,
                "Instead of a model: cache files of the kind that will be kept,\n"
                "for codecs whose sizes depend on the data; repeatable");
  c->add_option("--codec", args->codecs,
                "NAME, NAME:SETTING or recipe:@FILE; repeatable (default: some;\n"
                "with --like, fklt)");
  args->tokens = {2048, 8192, 32768, 131072};
  c->add_option("--tokens", args->tokens, "Repeatable")->check(CLI::PositiveNumber);
  c->add_flag("--decompressed", args->decompressed,
              "Of a config.json with latent layers (MLA): keys and values, as engines keep\n"
              "them that expand the latent");
  c->add_flag("--whole", args->whole,
              "Sliding and chunked layers with all tokens, not the last window alone");
  c->add_flag("--open", args->open, "Not sealed: an incomplete last page stays raw");
  c->add_flag("--token-ids", args->token_ids, "Token ids are sent and kept");
  c->add_option("--profile", args->profile,
                "Profile file that is named at put (of fixed codecs, means)");
  c->add_flag("--json", args->as_json, "Print as JSON");
  OnRun(c, globals, [=]() -> absl::Status {
    if ((args->model.empty() ? 0 : 1) + (args->geometry.empty() ? 0 : 1) +
            (args->like.empty() ? 0 : 1) != 1) {
      return absl::InvalidArgumentError("give one of: a model, --geometry, --like");
    }
    if (args->like.empty()) return RunProject(*args);
    if (args->decompressed || args->whole || args->open || args->token_ids) {
      return absl::InvalidArgumentError(
          "--like takes its samples as they are: sealed, whole, with the token ids they have");
    }
    return RunLike(*args);
  });
}

}  // namespace kvcask
