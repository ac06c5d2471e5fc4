#include "codec/fixed/cuda/fixed_cuda.h"

#include <absl/strings/str_cat.h>
#include <absl/types/span.h>

#include <algorithm>
#include <limits>
#include <map>
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

// False: a cell would have two thresholds.
bool MakeTable(int bits, int head_dim, TurboTable* table) {
  const Codebook& book = LloydMaxCodebook(bits, head_dim);
  const int half = static_cast<int>(book.levels.size());
  *table = {};
  for (int m = 0; m < half; ++m) {
    table->levels[half + m] = static_cast<float>(book.levels[m]) * kCodebookUnit;
    table->levels[half - 1 - m] = -table->levels[half + m];
    table->thresholds[m] = book.thresholds[m];
    table->squares[m] = book.levels[m] * book.levels[m];
  }
  const auto word = [&](int m) {
    return static_cast<uint32_t>(m) << (32 - bits) | static_cast<uint32_t>(table->squares[m]);
  };
  for (int cell = 0, m = 0; cell < kTurboCells; ++cell) {
    const bool last = cell + 1 == kTurboCells;
    const auto is_here = [&] {
      return m + 1 < half && (last || book.thresholds[m + 1] < static_cast<float>(cell + 1) / 4);
    };
    table->cell_words[cell][0] = word(m);
    const float threshold =
        is_here() ? book.thresholds[++m] : std::numeric_limits<float>::infinity();
    table->cell_thresholds[cell][0] = table->cell_thresholds[cell][1] = threshold;
    table->cell_words[cell][1] = word(m);
    if (is_here()) return false;
  }
  return true;
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
          tables.emplace_back();
          has_cells_.push_back(MakeTable(bits, p.head_dim, &tables.back()));
        }
      }
    }
    const size_t bytes = tables.size() * sizeof(TurboTable);
    if (absl::Status s = tables_.Reserve(bytes + 1); !s.ok()) return s;
    KVCASK_CUDA(cudaMemcpy(tables_.data(), tables.data(), bytes, cudaMemcpyHostToDevice));
    for (size_t g = 0; g < groups_.size(); ++g) {
      std::vector<uint8_t> specs;
      for (const PlaneInfo& p : planes_[g]) {
        specs.resize(specs.size() + kFixedSpecBytes);
        WriteCoderSpec(p.kind == StreamKind::kK ? preset_.key : preset_.value,
                       &specs[specs.size() - kFixedSpecBytes]);
      }
      encode_plans_.push_back(MakePlan(static_cast<int>(g), specs));
    }
    decode_plans_ = encode_plans_;
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
  double LastSeconds() const override { return batch_.DeviceSeconds(); }

  absl::Status StartDecode(absl::Span<DecodeJob> jobs,
                           absl::Span<const uint8_t* const> device_tiles) override;
  absl::Status FinishDecode(absl::Span<DecodeJob> jobs) override;
  absl::Status Encode(absl::Span<EncodeJob> jobs, absl::Span<uint8_t* const> out) override;

 private:
  // What does not change from tile to tile of a group whose streams are coded in one way.
  struct Plan {
    std::vector<uint8_t> specs;        // the streams' specs, as a tile has them
    std::vector<FixedStream> streams;  // all but what depends on the job; body: bytes before it
                                       // of one token
    size_t token_bytes = 0;            // 0: left to the CPU
    size_t Bytes(int tokens) const {
      return token_bytes == 0 ? 0 : kFixedHeaderBytes + specs.size() + token_bytes * tokens;
    }
  };
  Plan MakePlan(int group, absl::Span<const uint8_t> specs) const;
  // Of what a tile says of its streams. Tiles of one recipe follow each other.
  const Plan& PlanOf(int group, absl::Span<const uint8_t> tile);
  // The streams of a tile to the batch.
  void AddStreams(const Plan& plan, const FixedStream& job_part, size_t job);
  // The views of jobs to their streams, then all to the device.
  template <typename Job, typename ViewOf>
  absl::Status Send(absl::Span<Job> jobs, ViewOf view_of);
  absl::Status Launch(cudaError_t (*int4)(const FixedLaunch&),
                      cudaError_t (*turbo)(const FixedLaunch&, int bits, int head_dim, bool wide));

  const Geometry geometry_;
  const std::vector<Group> groups_;
  const FixedPreset preset_;
  std::vector<std::vector<PlaneInfo>> planes_;      // of each group
  std::map<std::pair<int, int>, size_t> table_of_;  // by bits and head_dim
  std::vector<bool> has_cells_;                     // of each table
  cudaStream_t stream_ = nullptr;
  DeviceMemory tables_;

  std::vector<Plan> encode_plans_;  // of each group
  std::vector<Plan> decode_plans_;  // of each group: of the tile that came last
  JobBatch<FixedStream> batch_;     // under way
};

FixedEngine::Plan FixedEngine::MakePlan(int group, absl::Span<const uint8_t> specs) const {
  Plan plan;
  plan.specs.assign(specs.begin(), specs.end());
  for (size_t p = 0; p < planes_[group].size(); ++p) {
    const PlaneInfo& plane = planes_[group][p];
    const absl::StatusOr<CoderSpec> spec = ReadCoderSpec(&specs[p * kFixedSpecBytes]);
    const FixedCoder coder = spec.ok() ? KernelsOf(*spec) : kNoCoder;
    if (coder == kNoCoder) return Plan{plan.specs, {}, 0};
    FixedStream s{};
    s.body = plan.token_bytes;
    s.coder = coder;
    s.index = static_cast<int>(p);
    s.heads = plane.heads;
    s.head_dim = plane.head_dim;
    s.row_bytes = static_cast<int>(RowBytes(coder, plane.head_dim));
    s.wide = 1;
    if (coder != kInt4Coder) {
      const size_t table = table_of_.at({coder, plane.head_dim});
      s.table = reinterpret_cast<const TurboTable*>(tables_.data()) + table;
      s.wide = has_cells_[table];
    }
    std::copy_n(&specs[p * kFixedSpecBytes], kFixedSpecBytes, s.spec);
    plan.streams.push_back(s);
    plan.token_bytes += static_cast<size_t>(s.row_bytes) * s.heads;
  }
  return plan;
}

const FixedEngine::Plan& FixedEngine::PlanOf(int group, absl::Span<const uint8_t> tile) {
  Plan& plan = decode_plans_[group];
  const size_t bytes = planes_[group].size() * kFixedSpecBytes;
  const absl::Span<const uint8_t> specs = tile.subspan(kFixedHeaderBytes, bytes);
  if (specs != absl::MakeConstSpan(plan.specs)) plan = MakePlan(group, specs);
  return plan;
}

void FixedEngine::AddStreams(const Plan& plan, const FixedStream& job_part, size_t job) {
  for (const FixedStream& of_plan : plan.streams) {
    FixedStream s = of_plan;
    s.tile = job_part.tile;
    s.body = kFixedHeaderBytes + plan.specs.size() + of_plan.body * job_part.tokens;
    s.tokens = job_part.tokens;
    s.page_tokens = job_part.page_tokens;
    s.dtype = job_part.dtype;
    s.token_begin = job_part.token_begin;
    s.token_end = job_part.token_end;
    batch_.Add(s, job);
  }
}

template <typename Job, typename ViewOf>
absl::Status FixedEngine::Send(absl::Span<Job> jobs, ViewOf view_of) {
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
        tile = s.tile != nullptr ? s.tile : batch_.PlaceTile(jobs[batch_.job_of(i)].tile);
      }
    }
    s.plane = placed.planes + s.index;  // a group is one layer: all of its planes, or none
    s.pages = placed.pages;
    s.wide = s.wide && pages_aligned && IsWide(view.planes[s.index], view.dtype);
    if (tile != nullptr) s.tile = tile;
  }
  return batch_.Send(stream_);
}

absl::Status FixedEngine::Launch(cudaError_t (*int4)(const FixedLaunch&),
                                 cudaError_t (*turbo)(const FixedLaunch&, int, int, bool)) {
  struct Kind {
    int coder, head_dim;
    bool wide;
    int heads;  // at most
  };
  std::vector<Kind> kinds;  // mostly there is one
  for (size_t i = 0; i < batch_.size(); ++i) {
    const FixedStream& s = batch_[i];
    const bool int4 = s.coder == kInt4Coder;  // its kernels take any head_dim and width
    const Kind kind{s.coder, int4 ? 0 : s.head_dim, !int4 && s.wide, s.heads};
    const auto same = std::find_if(kinds.begin(), kinds.end(), [&](const Kind& k) {
      return k.coder == kind.coder && k.head_dim == kind.head_dim && k.wide == kind.wide;
    });
    if (same == kinds.end()) {
      kinds.push_back(kind);
    } else {
      same->heads = std::max(same->heads, kind.heads);
    }
  }
  FixedLaunch launch{batch_.device_items(), static_cast<int>(batch_.size()), 0,
                     batch_.device_failed(), stream_};
  for (const Kind& kind : kinds) {
    launch.heads = kind.heads;
    KVCASK_CUDA(kind.coder == kInt4Coder ? int4(launch)
                                         : turbo(launch, kind.coder, kind.head_dim, kind.wide));
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
    const Plan* const plan = tile.size() < fixed ? nullptr : &PlanOf(job.group, tile);
    if (plan == nullptr || plan->token_bytes == 0 || tile.size() != plan->Bytes(job.tokens) ||
        tile[0] != kCodedForm || tile[1] != 0 || tile[2] != 0 || tile[3] != 0 ||
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
    common.tile = const_cast<uint8_t*>(TileOnDevice(device_tiles, i));
    batch_.AddJob(job.destination, common.tile == nullptr ? tile.size() : 0);
    AddStreams(*plan, common, i);
  }
  if (batch_.empty()) return absl::OkStatus();
  absl::Status status = Send(
      jobs, [](const DecodeJob& job) { return job.destination; });
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
    const Plan& plan = encode_plans_[job.group];
    size_t raw = kFixedHeaderBytes;
    for (const PlaneInfo& p : planes_[job.group]) {
      raw += DtypeSize(job.source.dtype) * job.tokens * p.heads * p.head_dim;
    }
    const size_t bytes = plan.Bytes(job.tokens);
    if (bytes >= raw) continue;
    FixedStream common{};
    common.tokens = job.tokens;
    common.page_tokens = job.source.pages.page_tokens;
    common.dtype = static_cast<int>(job.source.dtype);
    common.tile = out[i];
    batch_.AddJob(job.source);
    AddStreams(plan, common, i);
    job.bytes = bytes;
  }
  if (batch_.empty()) return absl::OkStatus();
  absl::Status status = Send(
      jobs, [](const EncodeJob& job) { return job.source; });
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
