#include "codec/fixed/cuda/fixed_cuda.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "codec/api/jobs.h"
#include "codec/cuda/job_batch.h"
#include "codec/fixed/cuda/fixed_kernels.h"
#include "codec/fixed/plane_coder.h"
#include "codec/fixed/presets.h"
#include "codec/quant/lloyd_max.h"
#include "device/cuda_status.h"
#include "device/memory.h"

namespace kvcask {
namespace {

constexpr uint8_t kCodedForm = 1;
static_assert(kFixedSpecBytes == kCoderSpecBytes);

// The kernels that do a spec; kNoCoder: none.
FixedCoder KernelsOf(const CoderSpec& spec) {
  CoderSpec known;
  known.kind = spec.kind;
  known.bits = spec.bits;
  if (spec.kind == CoderKind::kUniform) {
    known.bits = kInt4Bits;
    known.group = kInt4Group;
    return spec == known ? kInt4Coder : kNoCoder;
  }
  if (spec.kind != CoderKind::kTurbo) return kNoCoder;
  known.norm_corrected = known.signs = true;
  const bool there = spec == known && spec.bits >= kTurbo2Coder && spec.bits <= kTurbo4Coder;
  return there ? static_cast<FixedCoder>(spec.bits) : kNoCoder;
}

size_t RowBytes(FixedCoder coder, int head_dim) {
  const size_t n = head_dim;
  if (coder == kInt4Coder) return 4 * ((n + kInt4Group - 1) / kInt4Group) + (n * kInt4Bits + 7) / 8;
  return 2 + (n * coder + 7) / 8;
}

TurboTable MakeTable(int bits, int head_dim) {
  const Codebook& book = LloydMaxCodebook(bits, head_dim);
  const int half = static_cast<int>(book.levels.size());
  TurboTable table{};
  for (int m = 0; m < half; ++m) {
    table.levels[half + m] = static_cast<float>(book.levels[m]) * kCodebookUnit;
    table.levels[half - 1 - m] = -table.levels[half + m];
    table.thresholds[m] = book.thresholds[m];
    table.squares[m] = book.levels[m] * book.levels[m];
  }
  return table;
}

// Elements of 16 bits side by side, rows at addresses that are multiples of 16, but for pages.
template <typename Plane>
bool IsWide(const Plane& p, Dtype dtype) {
  return DtypeSize(dtype) == 2 && p.dim_stride == 2 && p.token_stride % 16 == 0 &&
         p.head_stride % 16 == 0 && reinterpret_cast<uintptr_t>(p.data) % 16 == 0;
}

class FixedEngine : public CudaEngine {
 public:
  FixedEngine(Geometry geometry, const FixedPreset& preset)
      : geometry_(std::move(geometry)), groups_(OneGroupPerLayer(geometry_)), preset_(preset) {
    for (const Group& group : groups_) {
      planes_.push_back(ListPlanes(geometry_, group.layer_begin, group.layer_end));
    }
  }
  ~FixedEngine() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Load() {
    KVCASK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    std::vector<TurboTable> tables;
    for (const std::vector<PlaneInfo>& planes : planes_) {
      for (const PlaneInfo& p : planes) {
        for (int bits = kTurbo2Coder; bits <= kTurbo4Coder; ++bits) {
          if (!table_of_.emplace(std::pair(bits, p.head_dim), tables.size()).second) continue;
          tables.push_back(MakeTable(bits, p.head_dim));
        }
      }
    }
    const size_t bytes = tables.size() * sizeof(TurboTable);
    if (absl::Status s = tables_.Reserve(bytes + 1); !s.ok()) return s;
    KVCASK_CUDA(cudaMemcpy(tables_.data(), tables.data(), bytes, cudaMemcpyHostToDevice));
    return absl::OkStatus();
  }

  std::vector<EngineRow> Rows(int group) const override {
    std::vector<EngineRow> rows;
    for (size_t p = 0; p < planes_[group].size(); ++p) {
      const PlaneInfo& plane = planes_[group][p];
      for (int h = 0; h < plane.heads; ++h) {
        rows.push_back({plane.layer, static_cast<int>(p), h, plane.head_dim});
      }
    }
    return rows;
  }
  cudaStream_t stream() const override { return stream_; }

  absl::Status StartDecode(absl::Span<DecodeJob> jobs,
                           absl::Span<const uint8_t* const> device_tiles) override;
  absl::Status FinishDecode(absl::Span<DecodeJob> jobs) override;
  absl::Status Encode(absl::Span<EncodeJob> jobs, absl::Span<uint8_t* const> out) override;

 private:
  // Each stream of a tile: kernels and row bytes. Returns the tile's bytes; 0: left to the CPU.
  template <typename SpecOf>
  size_t PlanTile(int group, int tokens, SpecOf spec_of);
  // The group's streams as planned, to the batch. Bodies follow each other.
  void AddStreams(int group, const FixedStream& common, size_t job);
  // The views of jobs to their streams, then all to the device.
  template <typename Job, typename ViewOf>
  absl::Status Send(absl::Span<Job> jobs, ViewOf view_of, bool with_tiles);
  absl::Status Launch(cudaError_t (*int4)(const FixedLaunch&),
                      cudaError_t (*turbo)(const FixedLaunch&, int bits, int head_dim, bool wide));

  const Geometry geometry_;
  const std::vector<Group> groups_;
  const FixedPreset preset_;
  std::vector<std::vector<PlaneInfo>> planes_;      // of each group
  std::map<std::pair<int, int>, size_t> table_of_;  // by bits and head_dim
  cudaStream_t stream_ = nullptr;
  DeviceMemory tables_;

  std::vector<FixedCoder> plan_;  // of the tile at hand
  JobBatch<FixedStream> batch_;   // under way
};

template <typename SpecOf>
size_t FixedEngine::PlanTile(int group, int tokens, SpecOf spec_of) {
  plan_.clear();
  size_t bytes = kFixedHeaderBytes + planes_[group].size() * kFixedSpecBytes;
  for (size_t p = 0; p < planes_[group].size(); ++p) {
    const PlaneInfo& plane = planes_[group][p];
    plan_.push_back(KernelsOf(spec_of(p)));
    if (plan_.back() == kNoCoder) return 0;
    bytes += RowBytes(plan_.back(), plane.head_dim) * plane.heads * tokens;
  }
  return bytes;
}

void FixedEngine::AddStreams(int group, const FixedStream& common, size_t job) {
  FixedStream s = common;
  s.body = kFixedHeaderBytes + planes_[group].size() * kFixedSpecBytes;
  for (size_t p = 0; p < planes_[group].size(); ++p) {
    const PlaneInfo& plane = planes_[group][p];
    s.index = static_cast<int>(p);
    s.coder = plan_[p];
    s.heads = plane.heads;
    s.head_dim = plane.head_dim;
    s.row_bytes = static_cast<int>(RowBytes(plan_[p], plane.head_dim));
    s.table = nullptr;
    if (s.coder != kInt4Coder) {
      s.table =
          reinterpret_cast<const TurboTable*>(tables_.data()) + table_of_.at({s.coder, s.head_dim});
    }
    WriteCoderSpec(plane.kind == StreamKind::kK ? preset_.key : preset_.value, s.spec);
    batch_.Add(s, job);
    s.body += static_cast<size_t>(s.row_bytes) * s.heads * s.tokens;
  }
}

template <typename Job, typename ViewOf>
absl::Status FixedEngine::Send(absl::Span<Job> jobs, ViewOf view_of, bool with_tiles) {
  if (absl::Status s = batch_.Cut(); !s.ok()) return s;
  DeviceView placed{};
  uint8_t* tile = nullptr;
  bool pages_aligned = true;
  for (size_t i = 0; i < batch_.size(); ++i) {
    FixedStream& s = batch_[i];
    const auto view = view_of(jobs[batch_.job_of(i)]);
    if (i == 0 || batch_.job_of(i) != batch_.job_of(i - 1)) {
      placed = batch_.Place(view);
      pages_aligned = std::all_of(view.pages.offsets.begin(), view.pages.offsets.end(),
                                  [](int64_t offset) { return offset % 16 == 0; });
      if constexpr (std::is_same_v<Job, DecodeJob>) {
        if (with_tiles) tile = batch_.PlaceTile(jobs[batch_.job_of(i)].tile);
      }
    }
    s.plane = placed.planes + s.index;  // a group is one layer: all of its planes, or none
    s.pages = placed.pages;
    s.wide = pages_aligned && IsWide(view.planes[s.index], view.dtype);
    if (with_tiles) s.tile = tile;
  }
  return batch_.Send(stream_);
}

absl::Status FixedEngine::Launch(cudaError_t (*int4)(const FixedLaunch&),
                                 cudaError_t (*turbo)(const FixedLaunch&, int, int, bool)) {
  // By coder and, of turbo, head_dim and width: the most heads. Mostly there is one.
  std::map<std::tuple<int, int, bool>, int> heads_of;
  for (size_t i = 0; i < batch_.size(); ++i) {
    const FixedStream& s = batch_[i];
    int& heads = s.coder == kInt4Coder ? heads_of[{kInt4Coder, 0, false}]
                                       : heads_of[{s.coder, s.head_dim, s.wide}];
    heads = std::max(heads, s.heads);
  }
  FixedLaunch launch{batch_.device_items(), static_cast<int>(batch_.size()), 0,
                     batch_.device_failed(), stream_};
  for (const auto& [key, heads] : heads_of) {
    const auto [coder, head_dim, wide] = key;
    launch.heads = heads;
    KVCASK_CUDA(coder == kInt4Coder ? int4(launch) : turbo(launch, coder, head_dim, wide));
  }
  return batch_.Receive(stream_);
}

absl::Status FixedEngine::StartDecode(absl::Span<DecodeJob> jobs,
                                      absl::Span<const uint8_t* const> device_tiles) {
  batch_.Begin();
  for (size_t i = 0; i < jobs.size(); ++i) {
    DecodeJob& job = jobs[i];
    job.status = CheckDecodeJob(geometry_, groups_, job);
    if (!job.status.ok()) continue;
    const absl::Span<const uint8_t> tile = job.tile;
    const LayerGeometry& layer = geometry_.layers[groups_[job.group].layer_begin];
    const size_t fixed = kFixedHeaderBytes + planes_[job.group].size() * kFixedSpecBytes;
    const size_t bytes = tile.size() < fixed ? 0 : PlanTile(job.group, job.tokens, [&](size_t p) {
      const auto spec = ReadCoderSpec(&tile[kFixedHeaderBytes + p * kFixedSpecBytes]);
      return spec.ok() ? *spec : CoderSpec();
    });
    if (bytes == 0 || tile.size() != bytes || tile[0] != kCodedForm || tile[1] != 0 ||
        tile[2] != 0 || tile[3] != 0 ||
        (job.position_offset != 0 && layer.rope.style != RopeStyle::kNone)) {
      job.status = absl::UnimplementedError("codec/fixed on a GPU: left to the CPU");
      continue;
    }
    if (job.layer_begin == job.layer_end || job.token_begin == job.token_end) continue;
    FixedStream common{};
    common.tokens = job.tokens;
    common.page_tokens = job.destination.pages.page_tokens;
    common.dtype = static_cast<int>(job.destination.dtype);
    common.token_begin = job.token_begin;
    common.token_end = job.token_end;
    if (!device_tiles.empty()) common.tile = const_cast<uint8_t*>(device_tiles[i]);
    batch_.AddJob(job.destination, device_tiles.empty() ? tile.size() : 0);
    AddStreams(job.group, common, i);
  }
  if (batch_.empty()) return absl::OkStatus();
  absl::Status status = Send(
      jobs, [](const DecodeJob& job) { return job.destination; }, device_tiles.empty());
  return status.ok() ? Launch(LaunchInt4Decode, LaunchTurboDecode) : status;
}

absl::Status FixedEngine::FinishDecode(absl::Span<DecodeJob> jobs) {
  if (batch_.empty()) return absl::OkStatus();
  KVCASK_CUDA(cudaStreamSynchronize(stream_));
  for (size_t i = 0; i < batch_.size(); ++i) {
    if (!batch_.Failed(i)) continue;
    DecodeJob& job = jobs[batch_.job_of(i)];
    job.status = absl::DataLossError(absl::StrCat(
        preset_.name, " tile of group ", job.group, ": ",
        StreamName(planes_[job.group][batch_[i].index].kind), ": a number that no encoder writes"));
  }
  return absl::OkStatus();
}

absl::Status FixedEngine::Encode(absl::Span<EncodeJob> jobs, absl::Span<uint8_t* const> out) {
  batch_.Begin();
  for (size_t i = 0; i < jobs.size(); ++i) {
    EncodeJob& job = jobs[i];
    job.bytes = 0;
    job.certificate = {};
    job.status = CheckEncodeJob(geometry_, groups_, job, 0);
    if (!job.status.ok()) continue;
    size_t raw = kFixedHeaderBytes;
    for (const PlaneInfo& p : planes_[job.group]) {
      raw += DtypeSize(job.source.dtype) * job.tokens * p.heads * p.head_dim;
    }
    const size_t bytes = PlanTile(job.group, job.tokens, [&](size_t p) {
      return planes_[job.group][p].kind == StreamKind::kK ? preset_.key : preset_.value;
    });
    if (bytes == 0 || bytes >= raw) continue;
    FixedStream common{};
    common.tokens = job.tokens;
    common.page_tokens = job.source.pages.page_tokens;
    common.dtype = static_cast<int>(job.source.dtype);
    common.tile = out[i];
    batch_.AddJob(job.source);
    AddStreams(job.group, common, i);
    job.bytes = bytes;
  }
  if (batch_.empty()) return absl::OkStatus();
  absl::Status status = Send(
      jobs, [](const EncodeJob& job) { return job.source; }, /*with_tiles=*/false);
  if (status.ok()) status = Launch(LaunchInt4Encode, LaunchTurboEncode);
  if (!status.ok()) return status;
  KVCASK_CUDA(cudaStreamSynchronize(stream_));
  for (size_t i = 0; i < batch_.size(); ++i) {
    if (batch_.Failed(i)) jobs[batch_.job_of(i)].bytes = 0;
  }
  return absl::OkStatus();
}

// The preset without means; none where a coder of its has no kernels.
const FixedPreset* PresetOf(CodecId id, FixedPreset* preset) {
  for (const FixedPreset& p : FixedPresets()) {
    if (p.id != id) continue;
    *preset = p;
    preset->key.minus_mean = preset->value.minus_mean = false;
    const bool there = KernelsOf(preset->key) != kNoCoder && KernelsOf(preset->value) != kNoCoder;
    return there ? preset : nullptr;
  }
  return nullptr;
}

}  // namespace

bool HasFixedEngine(CodecId id) {
  FixedPreset preset;
  return PresetOf(id, &preset) != nullptr;
}

absl::StatusOr<std::unique_ptr<CudaEngine>> MakeFixedEngine(CodecId id, const CodecSpec& spec) {
  FixedPreset preset;
  if (spec.profile != nullptr || PresetOf(id, &preset) == nullptr) {
    return std::unique_ptr<CudaEngine>();
  }
  auto geometry = SliceGeometry(spec.model, spec.shard);
  if (!geometry.ok()) return geometry.status();
  auto engine = std::make_unique<FixedEngine>(*std::move(geometry), preset);
  if (absl::Status s = engine->Load(); !s.ok()) return s;
  return std::unique_ptr<CudaEngine>(std::move(engine));
}

}  // namespace kvcask
