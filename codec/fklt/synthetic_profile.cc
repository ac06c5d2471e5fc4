#include "codec/fklt/synthetic_profile.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "codec/base/dtype.h"
#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/entropy/rans_test_tables.h"
#include "codec/fklt/fklt_reference.h"

namespace kvcask::fklt {
namespace {

template <typename T>
RawTensor Tensor(const char* dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
  RawTensor t{dtype, std::move(shape), {}};
  t.bytes.resize(values.size() * sizeof(T));
  std::memcpy(t.bytes.data(), values.data(), t.bytes.size());
  return t;
}

RawTensor HalfTensor(std::vector<int64_t> shape, const std::vector<double>& values) {
  std::vector<uint16_t> half;
  for (double v : values) half.push_back(FloatToF16(static_cast<float>(v)));
  return Tensor("F16", std::move(shape), half);
}

RawTensor FloatTensor(std::vector<int64_t> shape, const std::vector<double>& values) {
  return Tensor("F32", std::move(shape), std::vector<float>(values.begin(), values.end()));
}

// The cosine transform with rows and columns shuffled and signs drawn: dense and orthogonal, at
// the cost of writing it.
std::vector<double> RandomOrthogonal(int d, std::mt19937& rng) {
  std::vector<int> rows(d), columns(d);
  std::iota(rows.begin(), rows.end(), 0);
  std::iota(columns.begin(), columns.end(), 0);
  std::shuffle(rows.begin(), rows.end(), rng);
  std::shuffle(columns.begin(), columns.end(), rng);
  std::vector<double> cosines(4 * d);
  for (int n = 0; n < 4 * d; ++n) cosines[n] = std::cos(M_PI * n / (2.0 * d));
  std::vector<double> u(static_cast<size_t>(d) * d);
  for (int r = 0; r < d; ++r) {
    const int k = rows[r];
    const double scale = std::sqrt((k == 0 ? 1.0 : 2.0) / d) * (rng() & 1 ? 1 : -1);
    for (int c = 0; c < d; ++c) {
      const int64_t n = static_cast<int64_t>(2 * columns[c] + 1) * k % (4 * d);
      u[static_cast<size_t>(r) * d + c] = scale * cosines[n];
    }
  }
  return u;
}

void AddGroup(const SyntheticOptions& o, int index, std::mt19937& rng, RawProfile* out) {
  const std::string prefix = "group." + std::to_string(index) + ".";
  std::normal_distribution<double> normal;
  std::vector<int> members;
  std::vector<double> mu, l;
  for (const auto& [layer, stream, head] : o.partition[index]) {
    members.insert(members.end(), {layer, stream, head});
    int hd = 0;
    for (const StreamGeometry& s : o.geometry.layers[layer].streams) {
      if (static_cast<int>(s.kind) == stream) hd = s.head_dim;
    }
    for (int i = 0; i < hd; ++i) {
      mu.push_back(2 * normal(rng));
      for (int j = 0; j < i; ++j) l.push_back(.3 / std::sqrt(hd) * normal(rng));
      l.push_back(.5 + .5 * std::fabs(normal(rng)));
    }
  }
  const int64_t d = mu.size();
  // sigma / step falls from top_octaves to log2(.4) at the last active row, and on.
  std::vector<int16_t> sigma;
  for (int r = 0; r < d; ++r) {
    const double at = (r + .5) / d;
    const double steps = o.top_octaves - (o.top_octaves + 1.32) * std::sqrt(at / o.active);
    sigma.push_back(static_cast<int16_t>(std::max(
        -1024.0, std::min(1023.0, std::round(16 * steps) + 2 * o.step_exponent))));
  }
  const int64_t m = std::min<int64_t>(96, d);
  std::vector<double> sensitivity(1 + 2 * m, 0.0);
  sensitivity[0] = -o.sensitivity * m;
  for (int r = 0; r < m; ++r) sensitivity[1 + m + r] = o.sensitivity;
  out->tensors[prefix + "members"] =
      Tensor("I32", {static_cast<int64_t>(members.size() / 3), 3}, members);
  out->tensors[prefix + "mu"] = HalfTensor({d}, mu);
  const std::vector<int64_t> triangle = {static_cast<int64_t>(l.size())};
  out->tensors[prefix + "L"] = o.f16_metric ? HalfTensor(triangle, l) : FloatTensor(triangle, l);
  out->tensors[prefix + "U"] = HalfTensor({d, d}, RandomOrthogonal(static_cast<int>(d), rng));
  out->tensors[prefix + "sigma"] = Tensor("I16", {d}, sigma);
  out->tensors[prefix + "sensitivity"] = FloatTensor({1 + 2 * m}, sensitivity);
  out->tensors[prefix + "certificate"] =
      FloatTensor({4}, {1e-5, o.largest_kld, o.largest_kld, o.largest_kld});
}

}  // namespace

Partition OneHeadGroups(const Geometry& g) {
  Partition p;
  for (int l = 0; l < static_cast<int>(g.layers.size()); ++l) {
    for (const StreamGeometry& s : g.layers[l].streams) {
      for (int h = 0; h < s.heads; ++h) p.push_back({{l, static_cast<int>(s.kind), h}});
    }
  }
  return p;
}

Partition OneStreamGroups(const Geometry& g) {
  Partition p;
  for (int l = 0; l < static_cast<int>(g.layers.size()); ++l) {
    for (const StreamGeometry& s : g.layers[l].streams) {
      p.emplace_back();
      for (int h = 0; h < s.heads; ++h) p.back().push_back({l, static_cast<int>(s.kind), h});
    }
  }
  return p;
}

Partition LayerGroups(const Geometry& g, int layers_each) {
  Partition p;
  for (int l = 0; l < static_cast<int>(g.layers.size()); ++l) {
    if (l % layers_each == 0) p.emplace_back();
    for (const StreamGeometry& s : g.layers[l].streams) {
      for (int h = 0; h < s.heads; ++h) p.back().push_back({l, static_cast<int>(s.kind), h});
    }
  }
  return p;
}

std::vector<uint8_t> RawProfile::Serialize() const {
  std::vector<uint8_t> file;
  SafetensorsWriter writer([&file](absl::Span<const uint8_t> bytes) {
    file.insert(file.end(), bytes.begin(), bytes.end());
    return absl::OkStatus();
  });
  auto check = [](const absl::Status& s) {
    if (!s.ok()) std::fprintf(stderr, "%s\n", s.ToString().c_str()), std::abort();
  };
  for (const auto& [key, value] : metadata) writer.SetMetadata(key, value);
  for (const auto& [name, t] : tensors) check(writer.Declare(name, t.dtype, t.shape));
  check(writer.Begin());
  for (const auto& [name, t] : tensors) check(writer.Write(t.bytes));
  check(writer.Finish());
  return file;
}

RawProfile MakeSyntheticProfile(const SyntheticOptions& o) {
  std::mt19937 rng(o.seed);
  RawProfile out;
  out.metadata = {{"kvcask.profile", "1"},
                  {"codec", "fklt"},
                  {"name", "synthetic"},
                  {"model", "none"},
                  {"geometry", GeometryToJson(o.geometry)}};
  auto ints = [&out](const char* name, std::vector<int> v) {
    const int64_t n = v.size();
    out.tensors[name] = Tensor("I32", {n}, v);
  };
  ints("fklt.version", {0});
  ints("fklt.groups", {static_cast<int>(o.partition.size())});
  ints("fklt.steps", {o.step_exponent - 6, o.step_exponent, o.step_exponent + 6});
  ints("fklt.active_threshold", {-21});
  ints("fklt.sinks", {4});
  ints("fklt.l_scale_log2", {0});
  ints("fklt.table_sets", {1});
  ints("fklt.preset_table_set", {0, 0, 0});
  out.tensors["fklt.kappa"] = FloatTensor({3}, {1, 1, 1});
  out.tensors["fklt.rounding"] = FloatTensor({1}, {.5});
  const RawTables tables = GaussianTables();
  out.tensors["fklt.tables.0.shape"] = Tensor("I16", {42, 3}, tables.shape);
  out.tensors["fklt.tables.0.freq"] =
      Tensor("I16", {static_cast<int64_t>(tables.freq.size())}, tables.freq);
  std::vector<double> centroids;
  for (int c = 0; c < kCoordinateTables; ++c) {
    // Within a cell the density falls, the more the narrower the class.
    const double pull = .25 / (1 + ClassSigma(c));
    for (int q = 1; q <= 3; ++q) centroids.push_back(q - pull);
  }
  out.tensors["fklt.tables.0.centroids"] = FloatTensor({kCoordinateTables, 3}, centroids);
  for (size_t g = 0; g < o.partition.size(); ++g) AddGroup(o, static_cast<int>(g), rng, &out);
  return out;
}

std::shared_ptr<const Profile> ParseOrDie(const RawProfile& raw) {
  auto profile = Profile::Parse(raw.Serialize());
  if (!profile.ok()) std::fprintf(stderr, "%s\n", profile.status().ToString().c_str()), std::abort();
  return *profile;
}

std::vector<double> DrawToken(const GroupModel& g, double amplitude, std::mt19937& rng) {
  std::normal_distribution<double> normal;
  std::vector<double> y(g.dimensions);
  for (int r = 0; r < g.dimensions; ++r) {
    y[r] = amplitude * std::exp2(g.sigma[r] / 16.0) * normal(rng);
  }
  return ReferenceInverse(g, y);
}

}  // namespace kvcask::fklt
