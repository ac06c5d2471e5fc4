#include "codec/fklt/fklt_profile.h"

#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include "codec/base/dtype.h"
#include "codec/fklt/tile_layout.h"

namespace kvcask::fklt {
namespace {

constexpr int kMostGroups = 65536;
constexpr int kMaxLeading = 96;

template <typename... Args>
absl::Status Bad(const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("fklt profile: ", what...));
}

// Typed reads of tensors, each with its checks.
class Tensors {
 public:
  explicit Tensors(const Profile& profile) : profile_(profile) {}

  absl::StatusOr<const Profile::Tensor*> Get(const std::string& name,
                                             absl::Span<const char* const> dtypes,
                                             const std::vector<int64_t>& shape) const {
    const Profile::Tensor* t = profile_.Find(name);
    if (t == nullptr) return Bad("tensor ", name, " is missing");
    bool known = false;
    for (const char* d : dtypes) known |= t->dtype == d;
    if (!known) return Bad(name, " is ", t->dtype, "; expected ", absl::StrJoin(dtypes, " or "));
    if (t->shape != shape) {
      return Bad(name, " has shape [", absl::StrJoin(t->shape, ", "), "]; expected [",
                 absl::StrJoin(shape, ", "), "]");
    }
    return t;
  }

  // Integers of I32 or I16, each in low..high.
  template <typename T>
  absl::Status Integers(const std::string& name, const char* dtype,
                        const std::vector<int64_t>& shape, int64_t low, int64_t high,
                        std::vector<T>* out) const {
    auto t = Get(name, {dtype}, shape);
    if (!t.ok()) return t.status();
    const absl::Span<const uint8_t> bytes = (*t)->bytes;
    const bool wide = std::strcmp(dtype, "I32") == 0;
    const size_t n = bytes.size() / (wide ? 4 : 2);
    out->resize(n);
    for (size_t i = 0; i < n; ++i) {
      int32_t v;
      if (wide) {
        std::memcpy(&v, bytes.data() + 4 * i, 4);
      } else {
        int16_t narrow;
        std::memcpy(&narrow, bytes.data() + 2 * i, 2);
        v = narrow;
      }
      if (v < low || v > high) {
        return Bad(name, "[", i, "] is ", v, "; expected ", low, " to ", high);
      }
      (*out)[i] = static_cast<T>(v);
    }
    return absl::OkStatus();
  }

  // Floats of F32 (and F16, where `half` allows), finite and in low..high.
  absl::Status Floats(const std::string& name, bool half, const std::vector<int64_t>& shape,
                      float low, float high, std::vector<float>* out) const {
    auto t = half ? Get(name, {"F32", "F16"}, shape) : Get(name, {"F32"}, shape);
    if (!t.ok()) return t.status();
    const Dtype dtype = (*t)->dtype == "F32" ? Dtype::kF32 : Dtype::kF16;
    const size_t element = DtypeSize(dtype);
    out->resize((*t)->bytes.size() / element);
    LoadRow((*t)->bytes.data(), static_cast<int64_t>(element), dtype, out->size(), out->data());
    for (size_t i = 0; i < out->size(); ++i) {
      if (!((*out)[i] >= low && (*out)[i] <= high)) {  // NaN fails too
        return Bad(name, "[", i, "] is ", (*out)[i], "; expected ", low, " to ", high);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Integer(const std::string& name, int64_t low, int64_t high, int* out) const {
    std::vector<int> v;
    if (absl::Status s = Integers(name, "I32", {1}, low, high, &v); !s.ok()) return s;
    *out = v[0];
    return absl::OkStatus();
  }

  // First dimension of a tensor whose shape is read from the file.
  absl::StatusOr<int64_t> Length(const std::string& name) const {
    const Profile::Tensor* t = profile_.Find(name);
    if (t == nullptr) return Bad("tensor ", name, " is missing");
    if (t->shape.empty()) return Bad(name, " has no shape");
    return t->shape[0];
  }

 private:
  const Profile& profile_;
};

#define KVCASK_RETURN_IF_ERROR(expr) \
  if (absl::Status s_ = (expr); !s_.ok()) return s_

absl::Status ReadMembers(const Tensors& in, const std::string& prefix, const Geometry& geometry,
                         GroupModel* g, std::set<std::tuple<int, int, int>>* seen) {
  const std::string name = prefix + "members";
  absl::StatusOr<int64_t> count = in.Length(name);
  if (!count.ok()) return count.status();
  if (*count < 1 || *count > kMaxDimensions) return Bad(name, " has ", *count, " rows");
  std::vector<int> rows;
  KVCASK_RETURN_IF_ERROR(in.Integers(name, "I32", {*count, 3}, 0, 1 << 20, &rows));
  int64_t dimensions = 0, triangle = 0;
  for (int64_t i = 0; i < *count; ++i) {
    const int layer = rows[3 * i], stream = rows[3 * i + 1], head = rows[3 * i + 2];
    const StreamGeometry* found = nullptr;
    if (layer < static_cast<int>(geometry.layers.size())) {
      for (const StreamGeometry& s : geometry.layers[layer].streams) {
        if (static_cast<int>(s.kind) == stream && head < s.heads) found = &s;
      }
    }
    const std::string who =
        absl::StrCat(name, "[", i, "], layer ", layer, " stream ", stream, " head ", head);
    if (found == nullptr) return Bad(who, ", is not in the geometry");
    if (!seen->insert({layer, stream, head}).second) return Bad(who, ", is in two places");
    g->members.push_back({layer, found->kind, head, found->head_dim, static_cast<int>(dimensions),
                          static_cast<size_t>(triangle)});
    dimensions += found->head_dim;
    triangle += static_cast<int64_t>(found->head_dim) * (found->head_dim + 1) / 2;
    if (dimensions > kMaxDimensions) {
      return Bad(name, ": more than ", kMaxDimensions, " dimensions");
    }
  }
  g->dimensions = static_cast<int>(dimensions);
  return absl::OkStatus();
}

// U (U^T v) against v for vectors of +-1: what is not orthogonal shows in nearly all of them.
absl::Status CheckOrthogonal(const GroupModel& g, const std::string& name) {
  constexpr int kVectors = 8;
  const int d = g.dimensions;
  std::vector<float> row(d);
  std::vector<double> sums(static_cast<size_t>(kVectors) * d);
  auto sign = [](int vector, int r) {
    uint64_t h = (static_cast<uint64_t>(vector) << 32 | static_cast<uint32_t>(r)) + 1;
    h *= 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
    h *= 0xbf58476d1ce4e5b9u;
    return h >> 63 ? 1.0f : -1.0f;
  };
  for (int r = 0; r < d; ++r) {
    LoadRowOfU(g, r, row.data());
    double norm = 0;
    for (int i = 0; i < d; ++i) {
      if (!(std::fabs(row[i]) <= 1.01f)) {
        return Bad(name, "[", r, ", ", i, "] is ", row[i], "; expected -1 to 1");
      }
      norm += static_cast<double>(row[i]) * row[i];
    }
    if (std::fabs(norm - 1) > .02) {
      return Bad(name, " row ", r, " has squared norm ", norm, "; expected 1");
    }
    for (int v = 0; v < kVectors; ++v) {
      const float s = sign(v, r);
      double* sum = &sums[static_cast<size_t>(v) * d];
      for (int i = 0; i < d; ++i) sum[i] += s * row[i];
    }
  }
  for (int r = 0; r < d; ++r) {
    LoadRowOfU(g, r, row.data());
    for (int v = 0; v < kVectors; ++v) {
      const double* sum = &sums[static_cast<size_t>(v) * d];
      double dot = 0;
      for (int i = 0; i < d; ++i) dot += sum[i] * row[i];
      if (std::fabs(dot - sign(v, r)) > kOrthogonality) {
        return Bad(name, " is not orthogonal: row ", r, " with the others is off by ",
                   std::fabs(dot - sign(v, r)), "; expected at most ", kOrthogonality);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReadGroup(const Tensors& in, int index, float l_scale, const Geometry& geometry,
                       GroupModel* g, std::set<std::tuple<int, int, int>>* seen) {
  const std::string prefix = absl::StrCat("group.", index, ".");
  KVCASK_RETURN_IF_ERROR(ReadMembers(in, prefix, geometry, g, seen));
  const int64_t d = g->dimensions;
  KVCASK_RETURN_IF_ERROR(in.Floats(prefix + "mu", true, {d}, -3e38f, 3e38f, &g->mu));
  const Member& last = g->members.back();
  const int64_t triangle =
      static_cast<int64_t>(last.l_offset) + int64_t{last.head_dim} * (last.head_dim + 1) / 2;
  KVCASK_RETURN_IF_ERROR(in.Floats(prefix + "L", true, {triangle}, -3e38f, 3e38f, &g->l));
  for (float& x : g->l) x *= l_scale;
  for (const Member& m : g->members) {
    size_t at = m.l_offset;
    for (int i = 0; i < m.head_dim; ++i) {
      at += i;  // now at (i, i)
      if (!(g->l[at] > 0 && g->l[at] <= 3e38f)) {
        return Bad(prefix, "L: layer ", m.layer, " stream ", static_cast<int>(m.stream), " head ",
                   m.head, ": diagonal ", i, " is ", g->l[at], "; expected > 0");
      }
      ++at;
    }
  }
  KVCASK_RETURN_IF_ERROR(
      in.Integers(prefix + "sigma", "I16", {d}, -1024, 1023, &g->sigma));
  for (int r = 1; r < d; ++r) {
    if (g->sigma[r] > g->sigma[r - 1]) {
      return Bad(prefix, "sigma[", r, "] is ", g->sigma[r], ", more than the one before, ",
                 g->sigma[r - 1]);
    }
  }
  auto u = in.Get(prefix + "U", {"F16"}, {d, d});
  if (!u.ok()) return u.status();
  g->u = (*u)->bytes;
  KVCASK_RETURN_IF_ERROR(CheckOrthogonal(*g, prefix + "U"));
  absl::StatusOr<int64_t> n = in.Length(prefix + "sensitivity");
  if (!n.ok()) return n.status();
  if (*n < 1 || *n % 2 == 0 || *n / 2 > kMaxLeading || *n / 2 > d) {
    return Bad(prefix, "sensitivity has ", *n, " numbers; expected 1 + 2 m, m at most ",
               kMaxLeading, " and ", d);
  }
  KVCASK_RETURN_IF_ERROR(
      in.Floats(prefix + "sensitivity", false, {*n}, -1e6f, 1e6f, &g->sensitivity));
  std::vector<float> certificate;
  KVCASK_RETURN_IF_ERROR(
      in.Floats(prefix + "certificate", false, {4}, 0, 3e38f, &certificate));
  g->bf16_floor = certificate[0];
  for (int q = 0; q < 3; ++q) g->largest_kld[q] = certificate[1 + q];
  return absl::OkStatus();
}

absl::Status ReadTables(const Tensors& in, int index, std::vector<TableSet>* sets) {
  const std::string prefix = absl::StrCat("fklt.tables.", index, ".");
  std::vector<int16_t> shape, freq;
  KVCASK_RETURN_IF_ERROR(
      in.Integers(prefix + "shape", "I16", {kTables, 3}, -32768, 32767, &shape));
  absl::StatusOr<int64_t> n = in.Length(prefix + "freq");
  if (!n.ok()) return n.status();
  KVCASK_RETURN_IF_ERROR(in.Integers(prefix + "freq", "I16", {*n}, 0, kProbabilityOne, &freq));
  std::vector<float> centroids;
  KVCASK_RETURN_IF_ERROR(
      in.Floats(prefix + "centroids", false, {kCoordinateTables, 3}, .5f, 3.5f, &centroids));
  for (size_t i = 0; i < centroids.size(); ++i) {
    if (std::fabs(centroids[i] - (i % 3 + 1)) > .5f) {
      return Bad(prefix, "centroids[", i / 3, ", ", i % 3, "] is ", centroids[i], "; expected ",
                 i % 3 + 1, " +- .5");
    }
  }
  absl::StatusOr<TableSet> set = TableSet::Make(shape, freq, centroids);
  if (!set.ok()) return Bad("table set ", index, ": ", set.status().message());
  sets->push_back(*std::move(set));
  return absl::OkStatus();
}

// Every sub-vector of the geometry is in `seen`.
absl::Status CheckComplete(const Geometry& geometry, const std::set<std::tuple<int, int, int>>& seen) {
  for (size_t l = 0; l < geometry.layers.size(); ++l) {
    for (const StreamGeometry& s : geometry.layers[l].streams) {
      for (int h = 0; h < s.heads; ++h) {
        if (seen.count({static_cast<int>(l), static_cast<int>(s.kind), h}) == 0) {
          return Bad("layer ", l, " stream ", static_cast<int>(s.kind), " head ", h,
                     " is in no group");
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

void LoadRowOfU(const GroupModel& group, int row, float* out) {
  LoadRow(group.u.data() + static_cast<size_t>(row) * group.dimensions * 2, 2, Dtype::kF16,
          group.dimensions, out);
}

absl::StatusOr<std::shared_ptr<const FkltProfile>> FkltProfile::Read(
    std::shared_ptr<const Profile> file) {
  if (file->codec() != "fklt") return Bad("it is for codec ", file->codec(), "; expected fklt");
  const Tensors in(*file);
  auto out = std::make_shared<FkltProfile>();
  out->file = file;
  int version = 0, groups = 0, sinks = 0, l_scale = 0, sets = 0;
  KVCASK_RETURN_IF_ERROR(in.Integer("fklt.version", 0, 1 << 30, &version));
  if (version != 0) {
    return absl::UnimplementedError(
        absl::StrCat("fklt profile: fklt.version is ", version, "; this program reads 0"));
  }
  KVCASK_RETURN_IF_ERROR(in.Integer("fklt.groups", 1, kMostGroups, &groups));
  KVCASK_RETURN_IF_ERROR(in.Integer("fklt.sinks", 0, 64, &sinks));
  KVCASK_RETURN_IF_ERROR(in.Integer("fklt.l_scale_log2", -64, 64, &l_scale));
  KVCASK_RETURN_IF_ERROR(in.Integer("fklt.table_sets", 1, 4, &sets));
  KVCASK_RETURN_IF_ERROR(
      in.Integer("fklt.active_threshold", -64, 64, &out->active_threshold));
  out->sinks = static_cast<uint32_t>(sinks);
  std::vector<int> steps, preset_sets;
  std::vector<float> kappa, rounding;
  KVCASK_RETURN_IF_ERROR(in.Integers("fklt.steps", "I32", {3}, -600, 600, &steps));
  KVCASK_RETURN_IF_ERROR(
      in.Integers("fklt.preset_table_set", "I32", {3}, 0, sets - 1, &preset_sets));
  KVCASK_RETURN_IF_ERROR(in.Floats("fklt.kappa", false, {3}, 0, 1e6f, &kappa));
  KVCASK_RETURN_IF_ERROR(in.Floats("fklt.rounding", false, {1}, .4f, .6f, &rounding));
  out->rounding = rounding[0];
  for (int q = 0; q < 3; ++q) {
    out->steps[q] = steps[q];
    out->kappa[q] = kappa[q];
    out->preset_table_set[q] = preset_sets[q];
  }
  for (int s = 0; s < sets; ++s) {
    KVCASK_RETURN_IF_ERROR(ReadTables(in, s, &out->table_sets));
  }
  std::set<std::tuple<int, int, int>> seen;
  out->groups.resize(groups);
  const float scale = std::ldexp(1.0f, l_scale);
  for (int g = 0; g < groups; ++g) {
    KVCASK_RETURN_IF_ERROR(ReadGroup(in, g, scale, file->geometry(), &out->groups[g], &seen));
  }
  KVCASK_RETURN_IF_ERROR(CheckComplete(file->geometry(), seen));
  return out;
}

}  // namespace kvcask::fklt
