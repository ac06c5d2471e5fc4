#include "codec/fklt/cuda/encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "codec/api/jobs.h"
#include "codec/cuda/copy_kernel.h"
#include "codec/fklt/cuda/encode_kernels.h"
#include "codec/fklt/tile.h"
#include "device/cuda_status.h"

namespace kvcask::fklt {
namespace {

constexpr PartTimes::Names kParts = {"copy in", "gather",   "gemm",    "quantise",
                                     "rans",    "assemble", "copy out"};
// Tokens of a finer step class have no more coordinates than this class has: FORMAT.md 5.3.
constexpr int kEncodeKcap = 3;

}  // namespace

absl::Status Encoder::Encode(absl::Span<EncodeJob> jobs, absl::Span<uint8_t* const> device_out) {
  const FkltProfile& profile = model_->profile();
  std::vector<EncodeTileDesc> tiles;
  std::vector<size_t> job_of;
  std::vector<GemmBatch> gemms(model_->groups());
  uint64_t symbols = 0;
  size_t planes = 0, pages = 0;
  int tokens = 0, segments_most = 0, set = -1;
  for (size_t i = 0; i < jobs.size(); ++i) {
    EncodeJob& job = jobs[i];
    job.bytes = 0;
    job.certificate = {};
    const bool sizable = job.group >= 0 && static_cast<size_t>(job.group) < model_->groups();
    const size_t token_bytes =
        sizable ? model_->coder(job.group).dimensions() * DtypeSize(job.source.dtype) : 0;
    job.status = CheckEncodeJob(shard_, out_groups_, job, 0);
    if (!job.status.ok()) continue;
    const GroupCoder& coder = model_->coder(job.group);
    const int preset = job.quality == Quality::kNearLossless ? 0
                       : job.quality == Quality::kCompact    ? 2
                                                             : 1;
    // One launch has one table set; sinks are the CPU's.
    if (set < 0) set = profile.preset_table_set[preset];
    if (profile.preset_table_set[preset] != set || CountBelow(job.positions, profile.sinks) != 0) {
      continue;
    }
    EncodeTileDesc t{};
    t.group = job.group;
    t.tokens = t.coded = job.tokens;
    t.dtype = static_cast<int>(job.source.dtype);
    t.page_tokens = job.source.pages.page_tokens;
    t.step_exponent = profile.steps[preset];
    t.table_set = set;
    t.threshold = profile.active_threshold;
    t.kcap_most = kEncodeKcap;
    t.y_scale = std::ldexp(1.0f, -model_->y_exponent());
    t.rounding = profile.rounding;
    t.kappa = profile.kappa[preset];
    t.bf16_floor = coder.model().bf16_floor;
    t.largest_kld = coder.model().largest_kld[preset];
    t.limit = static_cast<uint32_t>(kRawHeaderBytes + token_bytes * job.tokens - 1);
    t.out = device_out[i];
    t.symbols = symbols;
    t.active = model_->Active(job.group, t.step_exponent);
    const int rows = t.active.rows[kEncodeKcap + kMaxStepClass];
    const size_t most = SymbolLayout::MaxSymbols(job.tokens, rows);
    symbols += (most + 127) / 128 * 128;
    segments_most = std::max(
        segments_most,
        CutSegments(static_cast<int>((most + kGroupSymbols - 1) / kGroupSymbols), step_limit_shift_)
            .segments);
    GemmBatch& g = gemms[t.group];
    t.column = g.columns;
    g.columns += kMaxTokens;
    g.rows = std::max({g.rows, (rows + 15) / 16 * 16, (coder.model().leading() + 15) / 16 * 16});
    tokens = std::max(tokens, job.tokens);
    planes += job.source.planes.size();
    pages += job.source.pages.offsets.size();
    tiles.push_back(t);
    job_of.push_back(i);
  }
  if (tiles.empty()) return absl::OkStatus();
  for (size_t g = 0; g < gemms.size(); ++g) {
    const uint64_t rows = gemms[g].rows + model_->coder(g).sketch_blocks();
    if (absl::Status s = CheckBatch(gemms[g].columns, rows); !s.ok()) return s;
  }
  const AngleTables angles(jobs, job_of);

  struct Inputs {
    EncodeTileDesc* tiles;
    EncodeState* states;
    AngleDesc* angles;
    DevicePlane* planes;
    int64_t* pages;
    uint32_t* positions;
  } host, device;
  auto cut_inputs = [&](Cutter c, Inputs* in) {
    in->tiles = c.Take<EncodeTileDesc>(tiles.size());
    in->states = c.Take<EncodeState>(tiles.size());
    in->angles = c.Take<AngleDesc>(angles.tables.size());
    in->planes = c.Take<DevicePlane>(planes);
    in->pages = c.Take<int64_t>(pages);
    in->positions = c.Take<uint32_t>(angles.positions);
    return c.used();
  };
  const size_t input_bytes = cut_inputs(Cutter(), &host);
  if (absl::Status s = memory_->staging.Reserve(input_bytes); !s.ok()) return s;
  if (absl::Status s = memory_->inputs.Reserve(input_bytes); !s.ok()) return s;
  cut_inputs(Cutter(memory_->staging.data()), &host);
  cut_inputs(Cutter(memory_->inputs.data()), &device);
  struct Work {
    uint16_t* symbols;
    int16_t* integers;
    uint32_t* angles;
    uint32_t* segment_bytes;
    uint8_t* scratch;
    std::vector<__half*> y, x;
  } work;
  auto cut_work = [&](Cutter c) {
    work.symbols = c.Take<uint16_t>(symbols);
    work.integers = c.Take<int16_t>(symbols);
    work.angles = c.Take<uint32_t>(angles.positions * model_->all_pairs());
    work.segment_bytes = c.Take<uint32_t>(tiles.size() * segments_most);
    work.scratch = c.Take<uint8_t>(tiles.size() * segments_most * kSegmentScratch);
    work.x.clear();
    work.y.clear();
    for (size_t g = 0; g < gemms.size(); ++g) {
      const size_t columns = gemms[g].columns;
      work.x.push_back(c.Take<__half>(columns * model_->coder(g).dimensions()));
      work.y.push_back(
          c.Take<__half>(columns * (gemms[g].rows + model_->coder(g).sketch_blocks())));
    }
    return c.used();
  };
  if (absl::Status s = memory_->work.Reserve(cut_work(Cutter())); !s.ok()) return s;
  cut_work(Cutter(memory_->work.data()));

  angles.Describe(device.positions, work.angles, model_->all_pairs(), host.positions, host.angles);
  size_t plane = 0, page = 0;
  for (size_t i = 0; i < tiles.size(); ++i) {
    EncodeTileDesc& t = tiles[i];
    const EncodeJob& job = jobs[job_of[i]];
    t.x = work.x[t.group] + static_cast<size_t>(t.column) * model_->coder(t.group).dimensions();
    t.y = work.y[t.group];
    t.y_stride = gemms[t.group].columns;
    t.gemm_rows = gemms[t.group].rows;
    t.sketch_scale = t.y_scale * model_->Forward(t.group).scale / model_->sketch_scale(t.group);
    t.scratch = work.scratch + i * segments_most * kSegmentScratch;
    t.segments_most = segments_most;
    t.planes = device.planes + plane;
    for (const ConstPlaneView& p : job.source.planes) {
      host.planes[plane++] = {const_cast<uint8_t*>(p.data), p.head_stride, p.token_stride,
                              p.dim_stride};
    }
    t.pages = job.source.pages.offsets.empty() ? nullptr : device.pages + page;
    for (int64_t offset : job.source.pages.offsets) host.pages[page++] = offset;
    t.positions = host.angles[angles.of_tile[i]].positions;
    t.angles = host.angles[angles.of_tile[i]].angles;
    host.tiles[i] = t;
    host.states[i] = {};
  }
  EncodeBatch b{};
  b.tiles = device.tiles;
  b.tile_count = static_cast<int>(tiles.size());
  b.groups = model_->device_groups();
  b.ropes = model_->device_ropes();
  b.rope_count = model_->rope_count();
  b.all_pairs = model_->all_pairs();
  b.sinks = static_cast<int>(profile.sinks);
  b.tables = model_->tables(set);
  b.states = device.states;
  b.symbols = work.symbols;
  b.integers = work.integers;
  b.segment_bytes = work.segment_bytes;
  b.segments_most = segments_most;
  b.step_limit_shift = step_limit_shift_;
  times_->Mark(0, stream_, kParts);
  KVCASK_CUDA(CopyPiece(memory_->inputs.data(), memory_->staging.data(), input_bytes,
                        cudaMemcpyHostToDevice, stream_));
  times_->Mark(1, stream_, kParts);
  KVCASK_CUDA(LaunchAngles(model_->Angles(device.angles, angles.tables.size()), tokens, stream_));
  KVCASK_CUDA(LaunchGather(b, tokens, model_->head_dim(), model_->max_members(), stream_));
  times_->Mark(2, stream_, kParts);
  for (size_t g = 0; g < gemms.size(); ++g) {
    const int columns = gemms[g].columns, d = model_->coder(g).dimensions(), rows = gemms[g].rows;
    if (columns == 0) continue;
    const int sketches = std::max(0, model_->coder(g).sketch_blocks() - rows / 16);
    const DeviceModel::Matrix forward = model_->Forward(static_cast<int>(g));
    const __half* matrix = forward.data;
    if (sketches > 0) {
      auto both = model_->ForwardAndSketch(static_cast<int>(g), rows, stream_);
      if (!both.ok()) return both.status();
      matrix = *both;
    }
    absl::Status status =
        cublas_->MultiplyByTransposed(stream_, std::min(rows, d) + sketches, columns, d,
                                      std::ldexp(1.0f, model_->y_exponent()) / forward.scale,
                                      matrix, work.x[g], work.y[g], columns);
    if (!status.ok()) return status;
  }
  times_->Mark(3, stream_, kParts);
  KVCASK_CUDA(LaunchQuantise(b, stream_));
  times_->Mark(4, stream_, kParts);
  KVCASK_CUDA(LaunchEncodeSegments(b, stream_));
  times_->Mark(5, stream_, kParts);
  KVCASK_CUDA(LaunchAssemble(b, stream_));
  times_->Mark(6, stream_, kParts);
  if (absl::Status s = memory_->states_back.Reserve(tiles.size() * sizeof(EncodeState)); !s.ok())
    return s;
  KVCASK_CUDA(CopyPiece(memory_->states_back.data(), device.states,
                        tiles.size() * sizeof(EncodeState), cudaMemcpyDeviceToHost, stream_));
  times_->Mark(7, stream_, kParts);
  KVCASK_CUDA(cudaStreamSynchronize(stream_));
  const EncodeState* const states =
      reinterpret_cast<const EncodeState*>(memory_->states_back.data());
  for (size_t i = 0; i < tiles.size(); ++i) {
    if (states[i].failed != kEncoded) continue;
    jobs[job_of[i]].bytes = states[i].bytes;
    jobs[job_of[i]].certificate.predicted_kld = states[i].predicted;
  }
  return absl::OkStatus();
}

}  // namespace kvcask::fklt
