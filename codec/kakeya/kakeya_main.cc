// kakeya: one cache, or one matrix, through a Kakeya codec and back, with a report. FORMAT of
// caches: docs/cache-file.md; of matrices: a safetensors file with one F32 tensor "x" [rows, dim].
//
//   kakeya cache IN --out OUT [--params JSON] [--profile FILE] [--weights FILE]
//                [--block-tokens 512] [--residual 256] [--stages] [--dump DIR] [--report FILE]
//   kakeya matrix IN --out OUT [--params JSON] [--block-rows 512] [--report FILE]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "codec/base/dtype.h"
#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/kakeya/cache.h"
#include "codec/profile/profile.h"

namespace kvcask::kakeya {
namespace {

using nlohmann::ordered_json;

struct Options {
  std::string in, out, params, profile, weights, dump, report;
  Sealing sealing;
  int block_rows = 512;
  bool stages = false;
};

[[noreturn]] void Fail(const std::string& what) { throw std::runtime_error(what); }
void Check(const absl::Status& s) {
  if (!s.ok()) Fail(std::string(s.message()));
}

struct File {
  std::vector<uint8_t> bytes;
  SafetensorsHeader header;

  absl::Span<const uint8_t> Tensor(const std::string& name, const std::string& dtype,
                                   const std::vector<int64_t>& shape) const {
    const auto it = header.tensors.find(name);
    if (it == header.tensors.end()) Fail("no tensor " + name);
    if (it->second.dtype != dtype || it->second.shape != shape) {
      Fail(name + " has another dtype or shape than the metadata says");
    }
    return absl::MakeConstSpan(bytes).subspan(it->second.offset, it->second.bytes);
  }
};

std::vector<uint8_t> ReadBytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) Fail("cannot open " + path);
  return {std::istreambuf_iterator<char>(in), {}};
}

File ReadFile(const std::string& path) {
  File f{ReadBytes(path), {}};
  auto header = ParseSafetensorsHeader(f.bytes, f.bytes.size());
  if (!header.ok()) Fail(path + ": " + std::string(header.status().message()));
  f.header = *std::move(header);
  return f;
}

struct OutTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};

void WriteFile(const std::string& path, const std::map<std::string, std::string>& metadata,
               const std::vector<OutTensor>& tensors) {
  std::ofstream out(path, std::ios::binary);
  SafetensorsWriter writer([&](absl::Span<const uint8_t> b) {
    out.write(reinterpret_cast<const char*>(b.data()), static_cast<std::streamsize>(b.size()));
    return out ? absl::OkStatus() : absl::DataLossError("cannot write " + path);
  });
  for (const auto& [key, value] : metadata) writer.SetMetadata(key, value);
  for (const OutTensor& t : tensors) Check(writer.Declare(t.name, t.dtype, t.shape));
  Check(writer.Begin());
  for (const OutTensor& t : tensors) Check(writer.Write(t.bytes));
  Check(writer.Finish());
}

std::vector<float> ToFloats(absl::Span<const uint8_t> bytes, Dtype dtype) {
  std::vector<float> x(bytes.size() / DtypeSize(dtype));
  LoadRow(bytes.data(), static_cast<int64_t>(DtypeSize(dtype)), dtype, x.size(), x.data());
  for (float v : x) {
    if (!std::isfinite(v)) Fail("a number that is not finite");
  }
  return x;
}

std::vector<uint8_t> ToBytes(absl::Span<const float> x, Dtype dtype) {
  std::vector<uint8_t> bytes(x.size() * DtypeSize(dtype));
  StoreRow(x.data(), x.size(), dtype, bytes.data(), static_cast<int64_t>(DtypeSize(dtype)));
  return bytes;
}

const char* SafetensorsName(Dtype d) {
  return d == Dtype::kBf16 ? "BF16" : d == Dtype::kF16 ? "F16" : "F32";
}

Calibration LoadCalibration(const Options& o, const Geometry* geometry) {
  std::optional<Params> params;
  if (!o.params.empty()) {
    auto parsed = ParamsFromJson(o.params);
    Check(parsed.status());
    params = *parsed;
  }
  if (o.profile.empty() || geometry == nullptr) {
    // A matrix is of no layer.
    const int layers = geometry == nullptr ? 1024 : static_cast<int>(geometry->layers.size());
    auto c = CalibrationOf(params.value_or(*PresetParams("kakeya-1.3")), layers);
    Check(c.status());
    return *c;
  }
  auto profile = Profile::Parse(ReadBytes(o.profile));
  Check(profile.status());
  auto c = ReadCalibration(**profile, *geometry, "kakeya-1.3-ppl", params);
  Check(c.status());
  return *std::move(c);
}

ordered_json ToJson(const Fidelity& f) {
  return {{"mse", f.mse},
          {"snr", f.snr},
          {"correlation", f.correlation},
          {"relative_l2", f.relative_l2}};
}

void WriteReport(const Options& o, const ordered_json& report) {
  const std::string text = report.dump(1) + "\n";
  if (o.report.empty()) {
    std::cout << text;
  } else if (!(std::ofstream(o.report) << text)) {
    Fail("cannot write " + o.report);
  }
}

// The sealed tokens of every head: a matrix.
std::vector<float> Sealed(absl::Span<const float> rows, int heads, int64_t tokens, int dim,
                          int64_t begin, int64_t end) {
  std::vector<float> out;
  for (int h = 0; h < heads; ++h) {
    const float* first = &rows[(h * tokens + begin) * dim];
    out.insert(out.end(), first, first + (end - begin) * dim);
  }
  return out;
}

void RunCache(const Options& o) {
  const File in = ReadFile(o.in);
  auto meta = ParseCacheMetadata(in.header.metadata);
  Check(meta.status());
  const Calibration calibration = LoadCalibration(o, &meta->geometry);
  std::optional<File> weights;
  if (!o.weights.empty()) weights = ReadFile(o.weights);
  std::vector<OutTensor> out;
  ordered_json planes = ordered_json::array();
  uint64_t raw = 0, stored = 0, coded_raw = 0, coded_stored = 0;
  const auto positions = static_cast<uint32_t>(meta->first_position);
  for (int layer = 0; layer < static_cast<int>(meta->geometry.layers.size()); ++layer) {
    const LayerGeometry& g = meta->geometry.layers[layer];
    for (const StreamGeometry& s : g.streams) {
      const char* stream = s.kind == StreamKind::kK   ? "k"
                           : s.kind == StreamKind::kV ? "v"
                                                      : "latent";
      const std::string name = absl::StrFormat("%s.%02d", stream, layer);
      const std::vector<int64_t> shape = {s.heads, meta->tokens, s.head_dim};
      const std::vector<float> rows =
          ToFloats(in.Tensor(name, SafetensorsName(meta->dtype), shape), meta->dtype);
      std::vector<double> w;
      if (weights) {
        const auto loaded = ToFloats(
            weights->Tensor(absl::StrFormat("w.%02d", layer), "F32", {meta->tokens}), Dtype::kF32);
        w.assign(loaded.begin(), loaded.end());
      }
      const PlaneShape plane = {s.kind, layer, 0, s.heads, s.head_dim, &g.rope};
      auto r = RoundTripPlane(calibration, plane, o.sealing, positions, rows, w, o.stages);
      Check(r.status());
      raw += r->raw_bytes, stored += r->stored_bytes;
      if (r->coded) {
        coded_stored += r->section_bytes;
        coded_raw += r->raw_bytes - (r->stored_bytes - r->section_bytes);
      }
      ordered_json line = {{"layer", layer},
                           {"stream", stream},
                           {"coded", r->coded},
                           {"sealed_tokens", r->sealed_tokens},
                           {"raw_bytes", r->raw_bytes},
                           {"stored_bytes", r->stored_bytes},
                           {"section_bytes", r->section_bytes},
                           {"skeleton_bytes", r->skeleton_bytes}};
      if (r->coded) {
        const int64_t sinks = std::max<int64_t>(
            0, calibration.params.sink_tokens - static_cast<int64_t>(meta->first_position));
        const auto clean = Sealed(rows, s.heads, meta->tokens, s.head_dim, sinks, r->sealed_tokens);
        line["ranks"] = r->ranks;
        line["decoded"] = ToJson(Compare(
            clean, Sealed(r->rows, s.heads, meta->tokens, s.head_dim, sinks, r->sealed_tokens)));
        if (o.stages) {
          line["quantiser_variance"] = r->quantiser_variance;
          for (const Stage& stage : r->stages) {
            line["stages"][stage.name] = ToJson(Compare(clean, stage.rows));
          }
        }
        if (!o.dump.empty()) {
          const std::vector<int64_t> matrix = {static_cast<int64_t>(clean.size()) / s.head_dim,
                                               s.head_dim};
          std::vector<OutTensor> dumped = {
              {"original", "F32", matrix, ToBytes(clean, Dtype::kF32)}};
          for (const Stage& stage : r->stages) {
            dumped.push_back({stage.name, "F32", matrix, ToBytes(stage.rows, Dtype::kF32)});
          }
          if (!r->quantiser_input.empty()) {
            dumped.push_back({"quantiser_input",
                              "F32",
                              {static_cast<int64_t>(r->quantiser_input.size())},
                              ToBytes(r->quantiser_input, Dtype::kF32)});
          }
          WriteFile(o.dump + "/" + name + ".safetensors", {}, dumped);
        }
      }
      planes.push_back(std::move(line));
      out.push_back({name, SafetensorsName(meta->dtype), shape, ToBytes(r->rows, meta->dtype)});
    }
  }
  if (in.header.tensors.count("token_ids") != 0) {
    const auto ids = in.Tensor("token_ids", "I32", {meta->tokens});
    out.push_back({"token_ids", "I32", {meta->tokens}, {ids.begin(), ids.end()}});
  }
  if (!o.out.empty()) WriteFile(o.out, in.header.metadata, out);
  ordered_json report = {
      {"model", meta->model},
      {"tokens", meta->tokens},
      {"block_tokens", o.sealing.block_tokens},
      {"residual_tokens", o.sealing.residual_tokens},
      {"raw_bytes", raw},
      {"stored_bytes", stored},
      {"ratio", static_cast<double>(raw) / static_cast<double>(stored)},
      {"coded_ratio",
       coded_stored == 0 ? 0 : static_cast<double>(coded_raw) / static_cast<double>(coded_stored)},
      {"params", ordered_json::parse(ParamsToJson(calibration.params))},
      {"planes", std::move(planes)}};
  WriteReport(o, report);
}

void RunMatrix(const Options& o) {
  const File in = ReadFile(o.in);
  const auto it = in.header.tensors.find("x");
  if (it == in.header.tensors.end() || it->second.dtype != "F32" || it->second.shape.size() != 2 ||
      it->second.bytes == 0 || it->second.shape[1] > kMaxDim) {
    Fail("expected one F32 tensor x [rows, dim], dim at most 4096");
  }
  const auto rows = ToFloats(in.Tensor("x", "F32", it->second.shape), Dtype::kF32);
  const int dim = static_cast<int>(it->second.shape[1]);
  const Calibration calibration = LoadCalibration(o, nullptr);
  SectionContext context;
  context.block_rows = o.block_rows;
  context.seed = calibration.params.seed;
  std::vector<uint8_t> section;
  Check(EncodeSection(rows, dim, calibration.params.k, context, &section));
  auto view = SectionView::Parse(section, it->second.shape[0], dim, nullptr);
  Check(view.status());
  std::vector<float> decoded(rows.size());
  Check(view->DecodeRows(0, it->second.shape[0], decoded.data()));
  if (!o.out.empty()) {
    WriteFile(o.out, in.header.metadata,
              {{"x", "F32", it->second.shape, ToBytes(decoded, Dtype::kF32)}});
  }
  const ordered_json report = {
      {"rows", it->second.shape[0]},
      {"dim", dim},
      {"raw_bytes", 2 * rows.size()},
      {"stored_bytes", section.size()},
      {"ratio", 2. * static_cast<double>(rows.size()) / static_cast<double>(section.size())},
      {"ranks", view->ranks()},
      {"decoded", ToJson(Compare(rows, decoded))},
      {"params", ordered_json::parse(ParamsToJson(calibration.params))["k"]}};
  WriteReport(o, report);
}

}  // namespace
}  // namespace kvcask::kakeya

int main(int argc, char** argv) {
  using namespace kvcask::kakeya;
  CLI::App app("A cache or a matrix through a Kakeya codec and back.");
  app.require_subcommand(1);
  Options o;
  auto* cache = app.add_subcommand("cache", "a cache file");
  auto* matrix = app.add_subcommand("matrix", "a matrix: F32 tensor x [rows, dim]; coded as K is");
  for (auto* sub : {cache, matrix}) {
    sub->add_option("in", o.in, "safetensors file")->required();
    sub->add_option("--out", o.out, "the decoded file");
    sub->add_option("--params", o.params, "JSON; see codec/kakeya/FORMAT.md");
    sub->add_option("--report", o.report, "JSON report (default: standard output)");
  }
  cache->add_option("--profile", o.profile, "of kakeya-1.3-ppl: whitening, centroids");
  cache->add_option("--weights", o.weights, "F32 tensors w.LL [tokens]: of tokens in the PCA");
  cache->add_option("--block-tokens", o.sealing.block_tokens)->check(CLI::Range(2, 1 << 16));
  cache->add_option("--residual", o.sealing.residual_tokens, "newest tokens never sealed")
      ->check(CLI::Range(0, 1 << 30));
  cache->add_flag("--stages", o.stages, "fidelity after every stage");
  cache->add_option("--dump", o.dump, "folder for original and stages, 2-D F32, with --stages");
  matrix->add_option("--block-rows", o.block_rows)->check(CLI::Range(1, kMaxBlockRows));
  CLI11_PARSE(app, argc, argv);
  try {
    *cache ? RunCache(o) : RunMatrix(o);
  } catch (const std::exception& e) {
    std::cerr << "kakeya: " << e.what() << "\n";
    return 1;
  }
  return 0;
}
