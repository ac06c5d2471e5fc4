#include "codec/fklt/cuda/decoder.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "codec/api/jobs.h"
#include "codec/cuda/copy_kernel.h"
#include "codec/cuda/engine.h"
#include "codec/fklt/cuda/decode_kernels.h"
#include "codec/fklt/sinks.h"
#include "codec/fklt/tile.h"
#include "device/cuda_status.h"

namespace kvcask::fklt {
namespace {

constexpr PartTimes::Names kParts = {"copy in", "angles", "prepare", "rans",
                                     "gemm",    "store",  "copy out"};

const char* Describe(int failure) {
  switch (failure) {
    case kBrokenStates:
      return "fklt tile: broken lane states";
    case kEarlyEnd:
      return "fklt tile: a segment ends early";
    case kWrongGroups:
      return "fklt tile: its token classes make another number of symbols than its header says";
    case kWrongEnd:
      return "fklt tile: lanes do not end in their initial state";
    default:
      return "fklt tile: unused bits after the sinks are set";
  }
}

}  // namespace

absl::Status Decoder::Plan(const DecodeJob& job, size_t index, DecodeTileDesc* tile) {
  const FkltProfile& profile = model_->profile();
  if (absl::Status s = CheckDecodeJob(shard_, out_groups_, job); !s.ok()) return s;
  TileHeader header;
  absl::Status status =
      ReadTileHeader(job.tile, static_cast<int>(profile.table_sets.size()), &header);
  if (!status.ok()) return status;
  const GroupCoder& coder = model_->coder(job.group);
  const size_t d = coder.dimensions();
  const size_t token_bytes = d * DtypeSize(job.source_dtype);
  DecodeTileDesc& t = *tile;
  t.mode = header.mode;
  t.group = job.group;
  t.tokens = job.tokens;
  t.threshold = profile.active_threshold;
  t.position_offset = job.position_offset;
  t.source_dtype = static_cast<int>(job.source_dtype);
  t.dtype = static_cast<int>(job.destination.dtype);
  t.token_begin = job.token_begin;
  t.token_end = job.token_end;
  t.layer_begin = job.layer_begin;
  t.layer_end = job.layer_end;
  t.first_plane = coder.first_plane(job.layer_begin);
  t.page_tokens = job.destination.pages.page_tokens;
  t.y_scale = std::ldexp(1.0f, model_->y_exponent());
  if (header.mode == kRawMode) {
    const size_t expected = kRawHeaderBytes + token_bytes * job.tokens;
    if (job.tile.size() != expected) {
      return absl::DataLossError(
          absl::StrCat("fklt tile: raw, of ", job.tile.size(), " bytes; expected ", expected));
    }
    t.segment_bytes = kRawHeaderBytes;
    return absl::OkStatus();
  }
  const int sinks = CountBelow(job.positions, profile.sinks);
  t.coded = job.tokens - sinks;
  const bool quantised = header.mode == kCodedSinksMode;
  if (quantised && sinks == 0) {
    return absl::DataLossError("fklt tile: mode 2, sinks in 10 bits, where there are none");
  }
  const size_t kept = quantised ? SinkBytes(coder.model(), sinks) : token_bytes * sinks;
  if (t.coded == 0 || job.tile.size() - kHeaderBytes < kept) {
    return absl::DataLossError(
        absl::StrCat("fklt tile: ", job.tile.size(), " bytes, of which ", kept, " would be sinks"));
  }
  t.segment_bytes = static_cast<uint32_t>(job.tile.size() - kept);
  t.step_exponent = header.step_exponent;
  t.kcap = header.kcap;
  t.groups = header.groups;
  t.active = model_->Active(job.group, header.step_exponent);
  t.rows = t.active.rows[header.kcap + kMaxStepClass];
  const size_t total = static_cast<size_t>(header.groups) * kGroupSymbols;
  if (total < static_cast<size_t>(ClassSymbols(t.coded)) ||
      total > SymbolLayout::MaxSymbols(t.coded, coder.dimensions())) {
    return absl::DataLossError(
        absl::StrCat("fklt tile: ", header.groups, " groups of symbols for ", t.coded, " tokens"));
  }
  const SegmentCut cut = CutSegments(header.groups, header.step_limit_shift);
  size_t at = kHeaderBytes + 2 * static_cast<size_t>(cut.segments - 1);
  if (t.segment_bytes < at) {
    return absl::DataLossError(absl::StrCat("fklt tile: ", t.segment_bytes, " bytes; expected ",
                                            cut.segments, " segments"));
  }
  t.first_segment = static_cast<uint32_t>(segments_.size());
  for (int s = 0; s < cut.segments; ++s) {
    const uint8_t* const size = job.tile.data() + kHeaderBytes + 2 * s;
    const size_t bytes = s + 1 < cut.segments ? 2 * static_cast<size_t>(size[0] | size[1] << 8)
                                              : t.segment_bytes - at;
    if (bytes > t.segment_bytes - at) {
      segments_.resize(t.first_segment);
      return absl::DataLossError(absl::StrCat("fklt tile: segment ", s, " of ", bytes, " bytes at ",
                                              at, " of ", t.segment_bytes));
    }
    const uint32_t first = static_cast<uint32_t>(s) * cut.groups_each * kGroupSymbols;
    const uint32_t end =
        std::min<uint32_t>(first + static_cast<uint32_t>(cut.groups_each) * kGroupSymbols, total);
    segments_.push_back({static_cast<uint32_t>(index), static_cast<uint32_t>(at),
                         static_cast<uint32_t>(bytes), first, end - first,
                         SegmentLanes(static_cast<int>(end - first), cut.steps)});
    at += bytes;
  }
  set_of_.push_back(header.table_set);
  return absl::OkStatus();
}

absl::Status Decoder::StartDecode(absl::Span<DecodeJob> jobs,
                                  absl::Span<const uint8_t* const> device_tiles) {
  const FkltProfile& profile = model_->profile();
  tiles_.clear();
  segments_.clear();
  job_of_.clear();
  set_of_.clear();
  // Tiles of one table set beside one another, so that a launch has one.
  for (int set = 0; set < model_->table_sets(); ++set) {
    for (size_t i = 0; i < jobs.size(); ++i) {
      DecodeJob& job = jobs[i];
      const int its = !job.tile.empty() && job.tile[0] != kRawMode && job.tile.size() > 1
                          ? job.tile[1] >> 4 & 3
                          : 0;
      if (its != set && !(set == 0 && its >= model_->table_sets())) {
        continue;
      }
      DecodeTileDesc tile{};
      const size_t sets = set_of_.size();
      job.status = Plan(job, tiles_.size(), &tile);
      if (!job.status.ok()) continue;
      if (set_of_.size() == sets) set_of_.push_back(set);
      tiles_.push_back(tile);
      job_of_.push_back(i);
    }
  }
  if (tiles_.empty()) return absl::OkStatus();

  std::vector<GemmBatch> gemms(model_->groups());
  int tokens = 0, wanted = 0;
  for (DecodeTileDesc& t : tiles_) {
    tokens = std::max(tokens, t.tokens);
    wanted = std::max(wanted, t.token_end - t.token_begin);
    if (t.mode == kRawMode) continue;
    GemmBatch& g = gemms[t.group];
    t.column = g.columns;
    g.columns += kMaxTokens;
    g.rows = std::max(g.rows, t.rows);
  }
  for (GemmBatch& g : gemms) {
    g.rows = (g.rows + 7) / 8 * 8;  // tensor cores' stride
    if (absl::Status s = CheckBatch(g.columns, g.rows); !s.ok()) return s;
  }

  // Inputs: one copy of descriptions, planes, pages, positions and tiles.
  const AngleTables angles(jobs, job_of_);
  size_t planes = 0, pages = 0, bytes = 0;
  for (size_t i = 0; i < tiles_.size(); ++i) {
    const DecodeJob& job = jobs[job_of_[i]];
    planes += job.destination.planes.size();
    pages += job.destination.pages.offsets.size();
    if (CudaEngine::TileOnDevice(device_tiles, job_of_[i]) == nullptr) {
      bytes += (job.tile.size() + 15) / 16 * 16;
    }
  }
  struct Inputs {
    DecodeTileDesc* tiles;
    SegmentDesc* segments;
    DevicePlane* planes;
    int64_t* pages;
    uint32_t* positions;
    AngleDesc* angles;
    uint8_t* bytes;
  };
  auto cut_inputs = [&](Cutter c, Inputs* in) {
    in->tiles = c.Take<DecodeTileDesc>(tiles_.size());
    in->segments = c.Take<SegmentDesc>(segments_.size());
    in->planes = c.Take<DevicePlane>(planes);
    in->pages = c.Take<int64_t>(pages);
    in->positions = c.Take<uint32_t>(angles.positions);
    in->angles = c.Take<AngleDesc>(angles.tables.size());
    in->bytes = c.Take<uint8_t>(bytes);
    return c.used();
  };
  Inputs host, device;
  const size_t input_bytes = cut_inputs(Cutter(), &host);
  if (absl::Status s = memory_->staging.Reserve(input_bytes); !s.ok()) return s;
  if (absl::Status s = memory_->inputs.Reserve(input_bytes); !s.ok()) return s;
  cut_inputs(Cutter(memory_->staging.data()), &host);
  cut_inputs(Cutter(memory_->inputs.data()), &device);

  struct Work {
    TileState* states;
    int* failed;
    uint32_t* angles;
  } work;
  auto cut_work = [&](Cutter c, Work* w) {
    w->states = c.Take<TileState>(tiles_.size());
    w->failed = c.Take<int>(tiles_.size());
    w->angles = c.Take<uint32_t>(angles.positions * model_->all_pairs());
    for (size_t g = 0; g < gemms.size(); ++g) {
      gemms[g].y = c.Take<__half>(static_cast<size_t>(gemms[g].columns) * gemms[g].rows);
      gemms[g].x =
          c.Take<__half>(static_cast<size_t>(gemms[g].columns) * model_->coder(g).dimensions());
    }
    return c.used();
  };
  if (absl::Status s = memory_->work.Reserve(cut_work(Cutter(), &work)); !s.ok()) return s;
  cut_work(Cutter(memory_->work.data()), &work);

  angles.Describe(device.positions, work.angles, model_->all_pairs(), host.positions, host.angles);
  size_t plane = 0, page = 0, byte = 0;
  for (size_t i = 0; i < tiles_.size(); ++i) {
    DecodeTileDesc& t = tiles_[i];
    const DecodeJob& job = jobs[job_of_[i]];
    const GemmBatch& g = gemms[t.group];
    t.y = g.y;
    t.x = g.x + static_cast<size_t>(t.column) * model_->coder(t.group).dimensions();
    t.y_stride = g.columns;
    t.gemm_rows = t.mode == kRawMode ? 0 : g.rows;
    t.planes = device.planes + plane;
    for (const PlaneView& p : job.destination.planes) {
      host.planes[plane++] = {p.data, p.head_stride, p.token_stride, p.dim_stride};
    }
    t.pages = job.destination.pages.offsets.empty() ? nullptr : device.pages + page;
    for (int64_t offset : job.destination.pages.offsets) host.pages[page++] = offset;
    t.positions = host.angles[angles.of_tile[i]].positions;
    t.angles = host.angles[angles.of_tile[i]].angles;
    t.bytes = CudaEngine::TileOnDevice(device_tiles, job_of_[i]);
    if (t.bytes == nullptr) {
      t.bytes = device.bytes + byte;
      std::memcpy(host.bytes + byte, job.tile.data(), job.tile.size());
      byte += (job.tile.size() + 15) / 16 * 16;
    }
    host.tiles[i] = t;
  }
  std::copy(segments_.begin(), segments_.end(), host.segments);
  times_->Mark(0, stream_, kParts);
  KVCASK_CUDA(CopyPiece(memory_->inputs.data(), memory_->staging.data(), input_bytes,
                        cudaMemcpyHostToDevice, stream_));
  times_->Mark(1, stream_, kParts);

  // A launch for each run of tiles of one table set; segments are in the same order.
  std::vector<DecodeBatch> batches;
  for (size_t begin = 0; begin < tiles_.size();) {
    size_t end = begin;
    while (end < tiles_.size() && set_of_[end] == set_of_[begin]) ++end;
    DecodeBatch b{};
    b.tiles = device.tiles + begin;
    b.tile_count = static_cast<int>(end - begin);
    b.states = work.states + begin;
    b.failed = work.failed + begin;
    b.groups = model_->device_groups();
    b.ropes = model_->device_ropes();
    b.rope_count = model_->rope_count();
    b.all_pairs = model_->all_pairs();
    b.sinks = static_cast<int>(profile.sinks);
    b.tables = model_->tables(set_of_[begin]);
    b.segments = device.segments;
    b.first_tile = static_cast<int>(begin);
    b.first_segment = static_cast<int>(
        std::lower_bound(segments_.begin(), segments_.end(), begin,
                         [](const SegmentDesc& s, size_t tile) { return s.tile < tile; }) -
        segments_.begin());
    b.segment_count = static_cast<int>(std::lower_bound(segments_.begin(), segments_.end(), end,
                                                        [](const SegmentDesc& s, size_t tile) {
                                                          return s.tile < tile;
                                                        }) -
                                       segments_.begin()) -
                      b.first_segment;
    batches.push_back(b);
    begin = end;
  }
  KVCASK_CUDA(LaunchAngles(model_->Angles(device.angles, angles.tables.size()), tokens, stream_));
  times_->Mark(2, stream_, kParts);
  for (const DecodeBatch& b : batches) KVCASK_CUDA(LaunchPrepare(b, stream_));
  times_->Mark(3, stream_, kParts);
  for (const DecodeBatch& b : batches) KVCASK_CUDA(LaunchSegments(b, stream_));
  times_->Mark(4, stream_, kParts);
  for (size_t g = 0; g < gemms.size(); ++g) {
    const GemmBatch& gemm = gemms[g];
    if (gemm.columns == 0) continue;
    const DeviceModel::Matrix inverse = model_->Inverse(static_cast<int>(g));
    const float alpha = std::ldexp(1.0f, -model_->y_exponent()) / inverse.scale;
    if (gemm.rows == 0) {
      KVCASK_CUDA(cudaMemsetAsync(
          gemm.x, 0, static_cast<size_t>(gemm.columns) * model_->coder(g).dimensions() * 2,
          stream_));
      continue;
    }
    absl::Status status =
        cublas_->MultiplyTransposed(stream_, gemm.columns, model_->coder(g).dimensions(),
                                    std::min(gemm.rows, model_->coder(g).dimensions()), alpha,
                                    gemm.y, gemm.columns, inverse.data, gemm.x);
    if (!status.ok()) return status;
  }
  times_->Mark(5, stream_, kParts);
  for (const DecodeBatch& b : batches) {
    KVCASK_CUDA(LaunchStore(b, wanted, model_->head_dim(), model_->max_members(), stream_));
  }
  times_->Mark(6, stream_, kParts);
  if (absl::Status s = memory_->states_back.Reserve(tiles_.size() * sizeof(int)); !s.ok()) return s;
  KVCASK_CUDA(CopyPiece(memory_->states_back.data(), work.failed, tiles_.size() * sizeof(int),
                        cudaMemcpyDeviceToHost, stream_));
  times_->Mark(7, stream_, kParts);
  return absl::OkStatus();
}

absl::Status Decoder::FinishDecode(absl::Span<DecodeJob> jobs) {
  if (tiles_.empty()) return absl::OkStatus();
  KVCASK_CUDA(cudaStreamSynchronize(stream_));
  const int* const failed = reinterpret_cast<const int*>(memory_->states_back.data());
  for (size_t i = 0; i < tiles_.size(); ++i) {
    if (failed[i] == kGood) continue;
    jobs[job_of_[i]].status = failed[i] == kBeyondHalf
                                  ? absl::UnimplementedError("fklt: a coordinate beyond fp16")
                                  : absl::DataLossError(Describe(failed[i]));
  }
  return absl::OkStatus();
}

}  // namespace kvcask::fklt
