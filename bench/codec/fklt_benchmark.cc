// Speed of `fklt` on one core beside the transform's fp32 GEMM alone on the same shapes in the
// same run, with what it bought: ratio and error on the same row, zstd -3 and lz4 on the same
// bytes.
//
//   bazel run --config=opt //bench/codec:fklt_benchmark
//   ... -- --profile=P.safetensors --cache=KV.safetensors      a real model's
//   ... -- --profile=... --cache=... --bytes                   only the bytes of all its groups
//
// MB/s count the bf16 side, 10^6 bytes a second of this thread's CPU time, median of the rounds
// (spread: from the least to the most); a group is a row. `of GEMM` is the share of the GEMM's
// speed: tiles of 128 tokens, the rows that tiles of step class 0 code; each way has its own. rANS
// is timed on the tiles' own symbols, tables chosen and token classes included. `over ideal` is the
// stored bytes over the cost of their symbols under the same tables. A tile that does not decode as
// it should ends the program with status 1.
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>
#include <cblas.h>
#include <lz4.h>
#include <zstd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/fklt/fklt.h"
#include "codec/fklt/group_coder.h"
#include "codec/fklt/synthetic_profile.h"
#include "codec/fklt/tile.h"
#include "codec/transform/rope.h"

namespace kvcask {
namespace {

using fklt::FkltProfile;
using fklt::GroupModel;

int g_rounds = 9;
int g_step_limit_shift = 0;
std::string g_dump;  // a folder for the symbols of the first tiles

void Die(const std::string& why) {
  std::fprintf(stderr, "fklt_benchmark: %s\n", why.c_str());
  std::exit(1);
}

double CpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + t.tv_nsec * 1e-9;
}

struct Timing {
  double median = 0, least = 0, most = 0;  // per second, of `amount`
};

template <typename F>
Timing Measure(double amount, F f) {
  std::vector<double> speeds;
  f();
  for (int i = 0; i < g_rounds; ++i) {
    int calls = 0;
    const double start = CpuSeconds();
    double seconds = 0;
    do {
      f();
      ++calls;
      seconds = CpuSeconds() - start;
    } while (seconds < .05);
    speeds.push_back(calls * amount / seconds);
  }
  std::sort(speeds.begin(), speeds.end());
  return {speeds[speeds.size() / 2], speeds.front(), speeds.back()};
}

// Pages of one group's planes, contiguous [plane][head][token][dim] in bf16.
struct Data {
  Geometry geometry;
  std::shared_ptr<const Profile> profile;
  int group = 0;
  int tokens = 0;  // of the cache; pages of 128 of it
  uint32_t first_position = 0;
  std::vector<std::vector<uint8_t>> planes;  // of the group's layers: [head][token][dim]
};

// A page's views.
template <typename Byte>
std::vector<BasicPlaneView<Byte>> ViewPlanes(const Geometry& g, const Group& group, int tokens,
                                             std::vector<std::vector<uint8_t>>& planes, int page) {
  std::vector<BasicPlaneView<Byte>> views;
  for (int l = group.layer_begin; l < group.layer_end; ++l) {
    for (const StreamGeometry& s : g.layers[l].streams) {
      BasicPlaneView<Byte> v;
      v.dim_stride = 2;
      v.token_stride = 2 * s.head_dim;
      v.head_stride = int64_t{2} * tokens * s.head_dim;
      v.data = planes[views.size()].data() + int64_t{page} * kPageTokens * v.token_stride;
      views.push_back(v);
    }
  }
  return views;
}

struct Row {
  std::string name;
  int dimensions, rows;
  double active, ratio, predicted, error, over_ideal;
  Timing gemm_forward, gemm_inverse, encode, decode, rans_encode, rans_decode;
  Timing zstd_encode, zstd_decode, lz4_encode, lz4_decode;
  double zstd_ratio, lz4_ratio;
};

CodecSpec SpecOf(const Data& data) {
  CodecSpec spec;
  spec.model = data.geometry;
  int heads = 0;
  for (const LayerGeometry& l : data.geometry.layers) {
    for (const StreamGeometry& s : l.streams) heads = std::max(heads, s.heads);
  }
  spec.shard = {0, 1, 0, static_cast<int>(data.geometry.layers.size()), 0, heads};
  spec.profile = data.profile;
  return spec;
}

// The GEMM alone: F [rows x D] on tiles of 128 tokens, and back.
void MeasureGemm(int rows, int d, Row* row) {
  std::vector<float> f(static_cast<size_t>(rows) * d, .01f), x(static_cast<size_t>(d) * 128, .5f);
  std::vector<float> y(static_cast<size_t>(rows) * 128);
  const double bytes = 2.0 * d * 128;
  row->gemm_forward = Measure(bytes, [&] {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, 128, d, 1, f.data(), d, x.data(), d,
                0, y.data(), 128);
  });
  row->gemm_inverse = Measure(bytes, [&] {
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, 128, d, rows, 1, y.data(), 128, f.data(),
                d, 0, x.data(), d);
  });
}

// rANS on the symbols of the tiles, and their ideal cost.
void MeasureEntropy(const FkltProfile& profile, const GroupModel& g,
                    const std::vector<std::vector<uint8_t>>& tiles, int tokens, Row* row) {
  const fklt::TileModel model{g.sigma, profile.table_sets, profile.active_threshold};
  struct Tile {
    fklt::TileHeader header;
    fklt::SymbolLayout layout;
    fklt::TokenClasses classes;
    std::vector<uint8_t> symbol_classes;
    std::vector<int16_t> symbols;
  };
  std::vector<Tile> parsed(tiles.size());
  double count = 0, ideal = 0, bytes = 0;
  for (size_t i = 0; i < tiles.size(); ++i) {
    Tile& t = parsed[i];
    const size_t most = fklt::SymbolLayout::MaxSymbols(tokens, g.dimensions);
    t.symbol_classes.resize(most);
    t.symbols.resize(most);
    if (!fklt::ReadTileHeader(tiles[i], 4, &t.header).ok() || t.header.mode != fklt::kCodedMode ||
        !fklt::ReadTile(tiles[i], t.header, model, tokens, &t.layout, &t.classes,
                        t.symbol_classes.data(), t.symbols.data())
             .ok()) {
      Die("a tile does not parse");
    }
    for (size_t j = 0; j < t.layout.symbols(); ++j) {
      if (t.symbol_classes[j] == kAbsentClass) continue;
      ++count;
      ideal += profile.table_sets[t.header.table_set].Cost(t.symbol_classes[j], t.symbols[j]) / 8;
    }
    bytes += tiles[i].size();
  }
  row->over_ideal = bytes / ideal - 1;
  row->active = count / tokens / tiles.size() - 2;  // less the classes
  std::vector<uint8_t> scratch(fklt::SegmentScratchBytes()), out(4 * g.dimensions * 128);
  row->rans_encode = Measure(count, [&] {
    for (Tile& t : parsed) {
      const TableSet& tables = profile.table_sets[t.header.table_set];
      if (fklt::WriteTile(t.header, tables, t.classes, t.layout, t.symbol_classes.data(),
                          t.symbols.data(), scratch.data(), out.data(), out.size()) == 0) {
        Die("a tile does not encode again");
      }
    }
  });
  Tile again = parsed[0];
  row->rans_decode = Measure(count, [&] {
    for (size_t i = 0; i < tiles.size(); ++i) {
      if (!fklt::ReadTile(tiles[i], parsed[i].header, model, tokens, &again.layout, &again.classes,
                          again.symbol_classes.data(), again.symbols.data())
               .ok()) {
        Die("a tile does not parse again");
      }
    }
  });
}

void MeasureGeneral(const Data& data, Row* row) {
  std::vector<uint8_t> all;
  for (const auto& plane : data.planes) all.insert(all.end(), plane.begin(), plane.end());
  all.resize(std::min<size_t>(all.size(), 8 << 20));
  std::vector<char> out(ZSTD_compressBound(all.size())), back(all.size());
  size_t size = 0;
  row->zstd_encode = Measure(
      all.size(), [&] { size = ZSTD_compress(out.data(), out.size(), all.data(), all.size(), 3); });
  row->zstd_ratio = static_cast<double>(all.size()) / size;
  row->zstd_decode =
      Measure(all.size(), [&] { ZSTD_decompress(back.data(), back.size(), out.data(), size); });
  if (std::memcmp(back.data(), all.data(), all.size()) != 0) Die("zstd");
  std::vector<char> out4(LZ4_compressBound(static_cast<int>(all.size())));
  int size4 = 0;
  const char* in = reinterpret_cast<const char*>(all.data());
  row->lz4_encode = Measure(all.size(), [&] {
    size4 = LZ4_compress_default(in, out4.data(), static_cast<int>(all.size()),
                                 static_cast<int>(out4.size()));
  });
  row->lz4_ratio = static_cast<double>(all.size()) / size4;
  row->lz4_decode = Measure(all.size(), [&] {
    LZ4_decompress_safe(out4.data(), back.data(), size4, static_cast<int>(back.size()));
  });
  if (std::memcmp(back.data(), all.data(), all.size()) != 0) Die("lz4");
}

// What rans_decode_bench.cu reads: see there.
void Dump(const std::string& path, const FkltProfile& profile, const GroupModel& g,
          const std::vector<std::vector<uint8_t>>& tiles, int tokens) {
  std::ofstream out(path, std::ios::binary);
  auto put = [&out](uint32_t v) { out.write(reinterpret_cast<const char*>(&v), 4); };
  const fklt::TileModel model{g.sigma, profile.table_sets, profile.active_threshold};
  put(0x534e4152);  // "RANS"
  const TableSet& tables = profile.table_sets[0];
  out.write(reinterpret_cast<const char*>(tables.decode()), 43 * 4096 * 4);
  for (int t = 0; t < 43; ++t) put(t < kTables ? tables.shift(t) : 0);
  put(static_cast<uint32_t>(g.dimensions));
  for (int16_t s : g.sigma) put(static_cast<uint32_t>(static_cast<int32_t>(s)));
  put(static_cast<uint32_t>(profile.active_threshold));
  put(static_cast<uint32_t>(tokens));
  put(static_cast<uint32_t>(tiles.size()));
  for (const std::vector<uint8_t>& tile : tiles) {
    fklt::TileHeader header;
    fklt::SymbolLayout layout;
    fklt::TokenClasses classes;
    const size_t most = fklt::SymbolLayout::MaxSymbols(tokens, g.dimensions);
    std::vector<uint8_t> symbol_classes(most);
    std::vector<int16_t> symbols(most);
    if (!fklt::ReadTileHeader(tile, 4, &header).ok() ||
        !fklt::ReadTile(tile, header, model, tokens, &layout, &classes, symbol_classes.data(),
                        symbols.data())
             .ok()) {
      Die("dump: a tile does not parse");
    }
    put(static_cast<uint32_t>(tile.size()));
    out.write(reinterpret_cast<const char*>(tile.data()), tile.size());
    put(static_cast<uint32_t>(layout.symbols()));
    out.write(reinterpret_cast<const char*>(symbols.data()), 2 * layout.symbols());
  }
  if (!out) Die("can't write " + path);
  std::fprintf(stderr, "wrote %zu tiles to %s\n", tiles.size(), path.c_str());
}

Row Measure(const std::string& name, Data& data, Quality quality) {
  auto made = MakeFkltCodecWith(SpecOf(data), {RansPath::kBest, g_step_limit_shift});
  if (!made.ok()) Die(made.status().ToString());
  const Codec& codec = **made;
  const std::shared_ptr<const FkltProfile> profile = *FkltProfile::Read(data.profile);
  const GroupModel& g = profile->groups[data.group];
  const Group& group = codec.groups()[data.group];
  const int pages = data.tokens / kPageTokens;
  std::vector<std::vector<uint8_t>> back = data.planes;
  const size_t slot = codec.MaxTileBytes(data.group, kPageTokens, Dtype::kBf16);
  std::vector<uint8_t> memory(slot * pages);
  std::vector<std::vector<ConstPlaneView>> in(pages);
  std::vector<std::vector<PlaneView>> out(pages);
  std::vector<std::vector<uint32_t>> positions(pages);
  std::vector<EncodeJob> encodes(pages);
  std::vector<DecodeJob> decodes(pages);
  for (int p = 0; p < pages; ++p) {
    in[p] = ViewPlanes<const uint8_t>(data.geometry, group, data.tokens, data.planes, p);
    out[p] = ViewPlanes<uint8_t>(data.geometry, group, data.tokens, back, p);
    for (int t = 0; t < kPageTokens; ++t) {
      positions[p].push_back(data.first_position + p * kPageTokens + t);
    }
    EncodeJob& e = encodes[p];
    e.group = data.group;
    e.tokens = kPageTokens;
    e.source.planes = in[p];
    e.positions = positions[p];
    e.quality = quality;
    e.destination = absl::MakeSpan(&memory[slot * p], slot);
    DecodeJob& d = decodes[p];
    d.group = data.group;
    d.tokens = d.token_end = kPageTokens;
    d.positions = positions[p];
    d.layer_begin = group.layer_begin;
    d.layer_end = group.layer_end;
    d.destination.planes = out[p];
  }
  Workspace workspace;
  const double bytes = 2.0 * g.dimensions * kPageTokens * pages;
  Row row;
  row.name = name;
  row.dimensions = g.dimensions;
  row.encode = Measure(bytes, [&] { (void)codec.Encode(absl::MakeSpan(encodes), workspace); });
  double stored = 0, predicted = 0;
  std::vector<std::vector<uint8_t>> tiles;
  for (int p = 0; p < pages; ++p) {
    if (!encodes[p].status.ok()) Die(encodes[p].status.ToString());
    decodes[p].tile = encodes[p].destination.first(encodes[p].bytes);
    stored += encodes[p].bytes;
    predicted += encodes[p].certificate.predicted_kld / pages;
    if (decodes[p].tile[0] == fklt::kCodedMode && positions[p][0] >= profile->sinks) {
      tiles.emplace_back(decodes[p].tile.begin(), decodes[p].tile.end());
    }
  }
  row.decode = Measure(bytes, [&] { (void)codec.Decode(absl::MakeSpan(decodes), workspace); });
  double error = 0, energy = 0;
  for (int p = 0; p < pages; ++p) {
    if (!decodes[p].status.ok()) Die(decodes[p].status.ToString());
  }
  for (size_t i = 0; i < data.planes.size(); ++i) {
    for (size_t b = 0; b < data.planes[i].size(); b += 2) {
      const double x = LoadElement(&data.planes[i][b], Dtype::kBf16);
      const double e = x - LoadElement(&back[i][b], Dtype::kBf16);
      error += e * e;
      energy += x * x;
    }
  }
  row.ratio = bytes / stored;
  row.predicted = predicted;
  row.error = std::sqrt(error / energy);
  if (!(row.error < .9)) Die(absl::StrCat(name, ": relative error ", row.error));
  row.rows =
      fklt::ActiveRows(g.sigma.data(), g.dimensions, profile->steps[static_cast<int>(quality) - 1],
                       0, profile->active_threshold);
  MeasureGemm(row.rows, g.dimensions, &row);
  MeasureEntropy(*profile, g, tiles, kPageTokens, &row);
  MeasureGeneral(data, &row);
  if (!g_dump.empty()) {
    std::string file = absl::StrCat(g_dump, "/", name, ".rans");
    std::replace(file.begin() + g_dump.size() + 1, file.end(), ' ', '_');
    Dump(file, *profile, g, tiles, kPageTokens);
  }
  return row;
}

// Bytes of all groups at every step limit, sinks and tile headers included.
void PrintBytes(std::vector<Data>& groups, Quality quality) {
  std::printf("%s:", std::string(QualityName(quality)).c_str());
  double first = 0;
  for (int shift = 0; shift <= fklt::kMaxStepLimitShift; ++shift) {
    auto codec = MakeFkltCodecWith(SpecOf(groups[0]), {RansPath::kBest, shift});
    if (!codec.ok()) Die(codec.status().ToString());
    Workspace workspace;
    double bytes = 0, raw = 0, predicted = 0;
    int tiles = 0, modes[3] = {};
    for (Data& data : groups) {
      const Group& group = (*codec)->groups()[data.group];
      std::vector<uint8_t> out((*codec)->MaxTileBytes(data.group, kPageTokens, Dtype::kBf16));
      for (int page = 0; page < data.tokens / kPageTokens; ++page) {
        const auto planes =
            ViewPlanes<const uint8_t>(data.geometry, group, data.tokens, data.planes, page);
        std::vector<uint32_t> positions(kPageTokens);
        for (int t = 0; t < kPageTokens; ++t) {
          positions[t] = data.first_position + page * kPageTokens + t;
        }
        EncodeJob job;
        job.group = data.group;
        job.tokens = kPageTokens;
        job.source.planes = planes;
        job.positions = positions;
        job.quality = quality;
        job.destination = absl::MakeSpan(out);
        (void)(*codec)->Encode({&job, 1}, workspace);
        if (!job.status.ok()) Die(job.status.ToString());
        bytes += job.bytes;
        raw += out.size() - fklt::kRawHeaderBytes;
        predicted += job.certificate.predicted_kld * groups.size();
        ++tiles;
        ++modes[out[0]];
      }
    }
    if (shift == 0) {
      first = bytes;
      std::printf(" predicted KLD %.5f; %d tiles raw, %d coded, %d with sinks in 10 bits;",
                  predicted / tiles, modes[0], modes[1], modes[2]);
    }
    std::printf(" step limit %d: %.0f bytes, %.2fx, %+.2f %%;", 512 >> shift, bytes, raw / bytes,
                100 * (bytes / first - 1));
  }
  std::printf("\n");
}

std::string Speed(const Timing& t) {
  return absl::StrFormat("%.0f (%.0f-%.0f)", t.median / 1e6, t.least / 1e6, t.most / 1e6);
}

// One row of a Markdown table each, its head before the first.
void Print(const Row& r) {
  static bool first = true;
  if (first) {
    std::printf(
        "| group | D | rows | symbols a token | ratio | predicted KLD | RMS error | over ideal | "
        "encode MB/s | of GEMM | decode MB/s | of GEMM | GEMM forward | inverse | rANS encode "
        "M/s | decode | zstd -3 ratio | encode | decode | lz4 ratio | encode | decode |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
        "\n");
    first = false;
  }
  auto share = [](const Timing& t, const Timing& gemm) {
    return absl::StrFormat("%.0f %%", 100 * t.median / gemm.median);
  };
  std::printf("| %s | %d | %d | %.0f | %.2f | %.3g | %.4f | %.2f %% |", r.name.c_str(),
              r.dimensions, r.rows, r.active, r.ratio, r.predicted, r.error, 100 * r.over_ideal);
  std::printf(" %s | %s | %s | %s | %s | %s |", Speed(r.encode).c_str(),
              share(r.encode, r.gemm_forward).c_str(), Speed(r.decode).c_str(),
              share(r.decode, r.gemm_inverse).c_str(), Speed(r.gemm_forward).c_str(),
              Speed(r.gemm_inverse).c_str());
  std::printf(" %s | %s | %.2f | %s | %s | %.2f | %s | %s |\n", Speed(r.rans_encode).c_str(),
              Speed(r.rans_decode).c_str(), r.zstd_ratio, Speed(r.zstd_encode).c_str(),
              Speed(r.zstd_decode).c_str(), r.lz4_ratio, Speed(r.lz4_encode).c_str(),
              Speed(r.lz4_decode).c_str());
  std::fflush(stdout);
}

// A made-up group of `layers` layers with about `active` coordinates.
Data Synthetic(int layers, int heads, int head_dim, int active, int pages) {
  Data data;
  data.geometry =
      UniformGeometry(layers, heads, head_dim, StandardRope(RopeStyle::kRotateHalf, head_dim, 1e5));
  fklt::SyntheticOptions o;
  o.geometry = data.geometry;
  o.partition = fklt::LayerGroups(data.geometry, layers);
  o.active = active / (2.0 * layers * heads * head_dim);
  o.sensitivity = .023;  // step classes of some +-1
  data.profile = fklt::ParseOrDie(MakeSyntheticProfile(o));
  data.tokens = pages * kPageTokens;
  data.first_position = 4096;
  const auto profile = *FkltProfile::Read(data.profile);
  const GroupModel& g = profile->groups[0];
  auto coder = fklt::GroupCoder::Make(g, data.geometry, {0, 1, 0, layers, 0, heads});
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  const int d = g.dimensions;
  for (int l = 0; l < 2 * layers; ++l) {
    data.planes.emplace_back(int64_t{2} * heads * data.tokens * head_dim);
  }
  std::vector<float> y(static_cast<size_t>(d) * 128), x(static_cast<size_t>(d) * 128),
      row(head_dim);
  for (int p = 0; p < pages; ++p) {
    std::vector<float> amplitude(128);
    for (float& a : amplitude) a = std::exp2(.3f * normal(rng));
    for (int r = 0; r < d; ++r) {
      const float sigma = std::exp2(g.sigma[r] / 16.0f);
      for (int t = 0; t < 128; ++t) y[r * 128 + t] = sigma * amplitude[t] * normal(rng);
    }
    (*coder)->StartInverse(128, 0, d, x.data());
    (*coder)->AddInverse(0, d, 128, y.data(), 128, 0, d, x.data());
    for (const fklt::MemberPlace& m : (*coder)->members()) {
      for (int t = 0; t < 128; ++t) {
        std::copy_n(&x[static_cast<size_t>(t) * d + m.offset], head_dim, row.begin());
        if (m.rope != nullptr) {
          const uint32_t position[] = {data.first_position + p * 128u + t};
          ApplyRope(*m.rope, MakeRopeTable(*m.rope, position, 0, RopeDirection::kRotate), 1,
                    head_dim, row.data());
        }
        const size_t at = (static_cast<size_t>(m.head) * data.tokens + p * 128 + t) * head_dim * 2;
        StoreRow(row.data(), head_dim, Dtype::kBf16, &data.planes[m.plane][at], 2);
      }
    }
  }
  return data;
}

std::vector<uint8_t> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) Die("can't read " + path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Every group of a real cache, one Data each.
std::vector<Data> Real(const std::string& profile_path, const std::string& cache_path) {
  auto profile = Profile::Parse(ReadFile(profile_path));
  if (!profile.ok()) Die(profile.status().ToString());
  const std::vector<uint8_t> file = ReadFile(cache_path);
  auto header = ParseSafetensorsHeader(file, file.size());
  if (!header.ok()) Die(header.status().ToString());
  auto meta = ParseCacheMetadata(header->metadata);
  if (!meta.ok()) Die(meta.status().ToString());
  if (meta->dtype != Dtype::kBf16) Die("the cache is not bf16");
  const auto read = FkltProfile::Read(*profile);
  if (!read.ok()) Die(read.status().ToString());
  std::vector<Data> out;
  for (size_t g = 0; g < (*read)->groups.size(); ++g) {
    Data data;
    data.geometry = (*profile)->geometry();
    data.profile = *profile;
    data.group = static_cast<int>(g);
    data.tokens = static_cast<int>(meta->tokens);
    data.first_position = static_cast<uint32_t>(meta->first_position);
    int first = 1 << 30, end = 0;
    for (const fklt::Member& m : (*read)->groups[g].members) {
      first = std::min(first, m.layer);
      end = std::max(end, m.layer + 1);
    }
    for (int l = first; l < end; ++l) {
      for (const char* stream : {"k", "v"}) {
        const auto it = header->tensors.find(absl::StrFormat("%s.%02d", stream, l));
        if (it == header->tensors.end()) Die(absl::StrCat("no ", stream, " of layer ", l));
        const uint8_t* begin = file.data() + it->second.offset;
        data.planes.emplace_back(begin, begin + it->second.bytes);
      }
    }
    out.push_back(std::move(data));
  }
  return out;
}

}  // namespace

int Main(int argc, char** argv) {
  std::string profile, cache;
  Quality quality = Quality::kBalanced;
  int most = 2;  // real groups to measure
  bool bytes_only = false;
  for (int i = 1; i < argc; ++i) {
    absl::string_view arg = argv[i];
    if (absl::ConsumePrefix(&arg, "--profile=")) {
      profile = std::string(arg);
    } else if (absl::ConsumePrefix(&arg, "--cache=")) {
      cache = std::string(arg);
    } else if (absl::ConsumePrefix(&arg, "--dump=")) {
      g_dump = std::string(arg);
    } else if (absl::ConsumePrefix(&arg, "--rounds=")) {
      if (!absl::SimpleAtoi(arg, &g_rounds) || g_rounds < 1) Die("--rounds=N");
    } else if (absl::ConsumePrefix(&arg, "--step-limit-shift=")) {
      if (!absl::SimpleAtoi(arg, &g_step_limit_shift)) Die("--step-limit-shift=0..2");
    } else if (arg == "--bytes") {
      bytes_only = true;
    } else if (absl::ConsumePrefix(&arg, "--groups=")) {
      if (!absl::SimpleAtoi(arg, &most)) Die("--groups=N");
    } else if (absl::ConsumePrefix(&arg, "--quality=")) {
      auto q = ParseQuality(arg);
      if (!q.ok()) Die(q.status().ToString());
      quality = *q;
    } else {
      Die(absl::StrCat("unknown argument ", argv[i]));
    }
  }
  fklt::UseOneBlasThread();
  std::printf("rANS path: %s; OpenBLAS kernel: %s\n", RansPathName(RansPath::kBest),
              openblas_get_corename());
  if (!profile.empty()) {
    std::vector<Data> groups = Real(profile, cache);
    if (bytes_only) {
      for (Quality q : {Quality::kNearLossless, Quality::kBalanced, Quality::kCompact}) {
        PrintBytes(groups, q);
      }
      return 0;
    }
    for (size_t g = 0; g < groups.size() && static_cast<int>(g) < most; ++g) {
      Print(Measure(absl::StrCat("group ", g), groups[g], quality));
    }
    return 0;
  }
  struct Shape {
    const char* name;
    int layers, heads, head_dim, active, pages;
  };
  for (const Shape& s :
       {Shape{"synthetic 1x3x64", 1, 3, 64, 180, 16}, Shape{"synthetic 4x3x64", 4, 3, 64, 550, 8},
        Shape{"synthetic 4x2x128", 4, 2, 128, 640, 8}}) {
    Data data = Synthetic(s.layers, s.heads, s.head_dim, s.active, s.pages);
    Print(Measure(s.name, data, quality));
  }
  return 0;
}

}  // namespace kvcask

int main(int argc, char** argv) { return kvcask::Main(argc, argv); }
