// kvcask project: what a session will take in the store. kvcask codecs --explain: each codec's
// bytes as a formula, as projected, and as the daemon holds them.
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_split.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "client/cc/convert.h"
#include "client/cli/command.h"
#include "codec/base/dtype.h"
#include "codec/base/geometry_json.h"
#include "codec/fixed/presets.h"
#include "codec/recipe/layer_plan.h"
#include "codec/recipe/projection.h"
#include "codec/recipe/recipe.h"

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
absl::StatusOr<Geometry> ReadGeometry(const std::string& path) {
  auto text = ReadText(path, kMaxModelConfigBytes);
  if (!text.ok()) return text.status();
  const json root = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  auto geometry = root.is_object() && root.contains("layers") ? GeometryFromJson(*text)
                                                              : GeometryFromModelConfig(*text);
  if (!geometry.ok()) return Annotate(geometry.status(), Printable(path));
  return geometry;
}

struct ProjectArgs {
  std::string model;
  std::vector<std::string> codecs;
  std::vector<int64_t> tokens;
  bool whole = false, open = false, token_ids = false, profile = false, as_json = false;
};

absl::Status RunProject(const ProjectArgs& args) {
  ProjectionSpec spec;
  auto geometry = ReadGeometry(args.model);
  if (!geometry.ok()) return geometry.status();
  spec.model = *std::move(geometry);
  spec.token_ids = args.token_ids;
  spec.profile = args.profile;
  spec.sealed = !args.open;
  spec.windows_only = !args.whole;
  json rows = json::array();
  if (!args.as_json) {
    std::printf("%s: %s\n%-24s %10s %12s %12s %7s  %s\n", Printable(args.model).c_str(),
                DescribeLayers(spec.model).c_str(), "codec", "tokens", "raw", "stored", "ratio",
                "kept as received");
  }
  for (const std::string& name : args.codecs) {
    std::tie(spec.codec, spec.setting) = SplitCodec(name);
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
      "project", "What a session will take, exact for codecs of constant size; asks no daemon");
  c->add_option("model", args->model, "The model's config.json, or a geometry as JSON")->required();
  args->codecs = {"raw", "int8", "fp8", "int4", "turbo4", "turbo3", "k8v4", "e8:q38", "e8:q10"};
  c->add_option("--codec", args->codecs, "NAME or NAME:SETTING; repeatable");
  args->tokens = {2048, 8192, 32768, 131072};
  c->add_option("--tokens", args->tokens, "Repeatable")->check(CLI::PositiveNumber);
  c->add_flag("--whole", args->whole,
              "Sliding and chunked layers with all tokens, not the last window alone");
  c->add_flag("--open", args->open, "Not sealed: an incomplete last page stays raw");
  c->add_flag("--token-ids", args->token_ids, "Token ids are sent and kept");
  c->add_flag("--profile", args->profile, "A profile is named");
  c->add_flag("--json", args->as_json, "Print as JSON");
  OnRun(c, globals, [=] { return RunProject(*args); });
}

}  // namespace kvcask
