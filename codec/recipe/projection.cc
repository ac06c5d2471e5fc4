#include "codec/recipe/projection.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "codec/api/jobs.h"
#include "codec/fixed/fixed_codec.h"
#include "codec/fixed/presets.h"
#include "codec/format/chunk.h"
#include "codec/recipe/recipe.h"

namespace kvcask {
namespace {

enum class Kind { kRaw, kInt8, kFixed };

struct TileSize {
  size_t bytes = 0, exact = 0;
};

// One layer's streams with their coders.
struct LayerPlan {
  std::vector<PlaneInfo> planes;
  std::vector<CoderSpec> coders;
  int64_t elements = 0;  // of one token
  int64_t rows = 0;      // heads of all streams
  int64_t first_token = 0;
  // Pages of one kind are alike: (kind, position as far as sinks care, tokens).
  mutable std::map<std::tuple<Kind, int64_t, int>, TileSize> known;
};

class Projector {
 public:
  explicit Projector(const ProjectionSpec& spec) : spec_(spec) {}
  absl::Status Init();
  Projection Run() const;

 private:
  TileSize Tile(const LayerPlan& layer, Kind kind, int64_t begin, int tokens) const;
  TileSize Compute(const LayerPlan& layer, Kind kind, int64_t begin, int tokens) const;
  void AddChunk(Kind kind, int64_t begin, int tokens, Projection* out) const;

  const ProjectionSpec& spec_;
  Kind kind_ = Kind::kRaw;
  std::vector<LayerPlan> layers_;
};

absl::Status Projector::Init() {
  if (absl::Status s = spec_.model.Validate(); !s.ok()) return s;
  if (spec_.tokens < 1 || spec_.tokens > int64_t{1} << 31) {
    return absl::InvalidArgumentError(
        absl::StrCat("project: ", spec_.tokens, " tokens; expected 1 to 2^31"));
  }
  std::vector<CoderSpec> coders;
  const int count = static_cast<int>(spec_.model.layers.size());
  const std::vector<PlaneInfo> planes = ListPlanes(spec_.model, 0, count);
  if (spec_.codec == "raw") {
    kind_ = Kind::kRaw;
  } else if (spec_.codec == "int8") {
    kind_ = Kind::kInt8;
  } else if (spec_.codec == "recipe") {
    kind_ = Kind::kFixed;
    const auto recipe = FindRecipe(spec_.setting);
    if (!recipe.ok()) return recipe.status();
    auto plan = recipe->Plan(spec_.model);
    if (!plan.ok()) return plan.status();
    coders = *std::move(plan);
  } else if (const FixedPreset* found = FindFixedPreset(spec_.codec); found != nullptr) {
    kind_ = Kind::kFixed;
    const auto preset = WithSetting(*found, spec_.setting);
    if (!preset.ok()) return preset.status();
    for (const PlaneInfo& plane : planes) {
      coders.push_back(plane.kind == StreamKind::kK ? preset->key : preset->value);
    }
  } else {
    return absl::UnimplementedError(
        absl::StrCat("project: the size of codec \"", spec_.codec,
                     "\" does not follow from the shape; give caches to measure it on"));
  }
  for (CoderSpec& coder : coders) {
    if (spec_.profile && coder.minus_mean) coder.sinks = std::max(coder.sinks, kSinksWithMean);
  }
  if (kind_ != Kind::kFixed) {
    if (!spec_.setting.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("codec ", spec_.codec, " has no setting"));
    }
    coders.resize(planes.size());
  }
  for (const Group& group : OneGroupPerLayer(spec_.model)) {
    LayerPlan layer;
    const LayerGeometry& g = spec_.model.layers[group.layer_begin];
    for (size_t p = 0; p < planes.size(); ++p) {
      if (planes[p].layer != group.layer_begin) continue;
      layer.planes.push_back(planes[p]);
      layer.coders.push_back(coders[p]);
      layer.elements += int64_t{planes[p].heads} * planes[p].head_dim;
      layer.rows += planes[p].heads;
    }
    if (spec_.windows_only && g.window > 0) {
      layer.first_token = std::max<int64_t>(0, spec_.tokens - g.window);
      if (g.kind == LayerKind::kChunked) {  // attends within the chunk of the last token
        layer.first_token = (spec_.tokens - 1) / g.window * g.window;
      }
    }
    layers_.push_back(std::move(layer));
  }
  return absl::OkStatus();
}

TileSize Projector::Tile(const LayerPlan& layer, Kind kind, int64_t begin, int tokens) const {
  const int64_t position = std::min<int64_t>(spec_.first_position + begin, kPageTokens);
  const auto [at, inserted] = layer.known.try_emplace({kind, position, tokens});
  if (inserted) at->second = Compute(layer, kind, begin, tokens);
  return at->second;
}

TileSize Projector::Compute(const LayerPlan& layer, Kind kind, int64_t begin, int tokens) const {
  const size_t raw = static_cast<size_t>(layer.elements) * tokens * DtypeSize(spec_.dtype);
  if (kind == Kind::kRaw) return {raw, raw};
  constexpr size_t kForm = 4;
  if (kind == Kind::kInt8) {
    const size_t coded = static_cast<size_t>(layer.elements + 2 * layer.rows) * tokens;
    return coded < raw ? TileSize{kForm + coded, 0} : TileSize{kForm + raw, raw};
  }
  TileSize size{kForm + layer.planes.size() * kCoderSpecBytes, 0};
  for (size_t p = 0; p < layer.planes.size(); ++p) {
    const PlaneInfo& plane = layer.planes[p];
    const CoderSpec& coder = layer.coders[p];
    const int64_t position = spec_.first_position + begin;
    const int sinks = static_cast<int>(std::clamp<int64_t>(coder.sinks - position, 0, tokens));
    const size_t exact = ExactRowBytes(plane, coder, tokens, sinks, spec_.dtype);
    size.exact += exact;
    size.bytes += exact + CodedRowBytes(plane, coder, tokens, sinks);
  }
  return size.bytes < kForm + raw ? size : TileSize{kForm + raw, raw};
}

void Projector::AddChunk(Kind kind, int64_t begin, int tokens, Projection* out) const {
  ChunkHeader header;
  header.tokens = tokens;
  header.positions.resize(tokens);
  for (int t = 0; t < tokens; ++t) header.positions[t] = static_cast<uint32_t>(t);
  if (spec_.token_ids) header.token_ids.resize(tokens);
  if (spec_.profile && kind != Kind::kRaw) header.profile.emplace();
  std::vector<size_t> tiles;
  for (const LayerPlan& layer : layers_) {
    const int64_t first = std::max(begin, layer.first_token);
    const int held = static_cast<int>(std::max<int64_t>(0, begin + tokens - first));
    const TileSize tile = held == 0 ? TileSize{} : Tile(layer, kind, first, held);
    tiles.push_back(tile.bytes);
    out->raw_bytes += 2 * static_cast<uint64_t>(layer.elements) * held;
    out->tile_bytes += tile.bytes;
    out->exact_bytes += tile.exact;
  }
  out->stored_bytes += ChunkSize(header, tiles);
}

Projection Projector::Run() const {
  Projection out;
  const int64_t pages = spec_.tokens / kPageTokens;
  for (int64_t page = 0; page < pages; ++page) {
    AddChunk(kind_, page * kPageTokens, kPageTokens, &out);
  }
  const int rest = static_cast<int>(spec_.tokens % kPageTokens);
  if (rest > 0) AddChunk(spec_.sealed ? kind_ : Kind::kRaw, pages * kPageTokens, rest, &out);
  return out;
}

}  // namespace

absl::StatusOr<Projection> Project(const ProjectionSpec& spec) {
  Projector projector(spec);
  if (absl::Status s = projector.Init(); !s.ok()) return s;
  return projector.Run();
}

}  // namespace kvcask
