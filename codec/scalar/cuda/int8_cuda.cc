#include "codec/scalar/cuda/int8_cuda.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "codec/api/jobs.h"
#include "codec/cuda/job_batch.h"
#include "codec/scalar/cuda/int8_kernels.h"
#include "device/cuda_status.h"
#include "device/memory.h"

namespace kvcask {
namespace {

constexpr size_t kHeaderBytes = 4;
constexpr uint8_t kInt8Form = 1;

class Int8Engine : public CudaEngine {
 public:
  explicit Int8Engine(Geometry geometry)
      : geometry_(std::move(geometry)), groups_(OneGroupPerLayer(geometry_)) {
    for (const Group& group : groups_) {
      HeadsOf h{static_cast<int>(heads_.size()), 0, 0};
      const auto planes = ListPlanes(geometry_, group.layer_begin, group.layer_end);
      for (size_t p = 0; p < planes.size(); ++p) {
        for (int head = 0; head < planes[p].heads; ++head) {
          heads_.push_back({static_cast<int>(p), head, planes[p].head_dim, h.count, h.elements});
          ++h.count;
          h.elements += planes[p].head_dim;
        }
      }
      most_heads_ = std::max(most_heads_, h.count);
      of_.push_back(h);
    }
  }
  ~Int8Engine() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Load() {
    KVCASK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    if (absl::Status s = table_.Reserve(heads_.size() * sizeof(Int8Head) + 1); !s.ok()) return s;
    KVCASK_CUDA(cudaMemcpy(table_.data(), heads_.data(), heads_.size() * sizeof(Int8Head),
                           cudaMemcpyHostToDevice));
    return absl::OkStatus();
  }

  std::vector<EngineRow> Rows(int group) const override {
    std::vector<EngineRow> rows;
    for (int i = 0; i < of_[group].count; ++i) {
      const Int8Head& h = heads_[of_[group].first + i];
      rows.push_back({groups_[group].layer_begin, h.plane, h.head, h.head_dim});
    }
    return rows;
  }
  cudaStream_t stream() const override { return stream_; }
  double LastSeconds() const override { return batch_.DeviceSeconds(); }

  absl::Status StartDecode(absl::Span<DecodeJob> jobs,
                           absl::Span<const uint8_t* const> device_tiles) override {
    batch_.Begin();
    for (size_t i = 0; i < jobs.size(); ++i) {
      DecodeJob& job = jobs[i];
      job.status = CheckDecodeJob(geometry_, groups_, job);
      if (!job.status.ok()) continue;
      const HeadsOf& h = of_[job.group];
      const size_t codes = kHeaderBytes + 2 * static_cast<size_t>(h.count) * job.tokens;
      const LayerGeometry& layer = geometry_.layers[groups_[job.group].layer_begin];
      if (job.tile.size() != codes + static_cast<size_t>(h.elements) * job.tokens ||
          job.tile[0] != kInt8Form || job.tile[1] != 0 || job.tile[2] != 0 || job.tile[3] != 0 ||
          (job.position_offset != 0 && layer.rope.style != RopeStyle::kNone)) {
        job.status = absl::UnimplementedError("int8 on a GPU: left to the CPU");
        continue;
      }
      Int8Tile t =
          TileOf(job.group, job.tokens, job.destination.dtype, job.destination.pages.page_tokens);
      t.token_begin = job.token_begin;
      t.token_end = job.token_end;
      t.codes = static_cast<uint32_t>(codes);
      if (job.layer_begin == job.layer_end) continue;  // of no planes: nothing is wanted
      t.tile = const_cast<uint8_t*>(TileOnDevice(device_tiles, i));
      batch_.AddJob(job.destination, t.tile == nullptr ? job.tile.size() : 0);
      batch_.Add(t, i);
    }
    if (batch_.empty()) return absl::OkStatus();
    if (absl::Status s = batch_.Cut(); !s.ok()) return s;
    for (size_t i = 0; i < batch_.size(); ++i) {
      const DecodeJob& job = jobs[batch_.job_of(i)];
      Point(i, batch_.Place(job.destination));
      if (batch_[i].tile == nullptr) batch_[i].tile = batch_.PlaceTile(job.tile);
    }
    if (absl::Status s = batch_.Send(stream_); !s.ok()) return s;
    KVCASK_CUDA(LaunchInt8Decode(batch_.device_items(), static_cast<int>(batch_.size()),
                                 most_heads_, batch_.device_failed(), stream_));
    return batch_.Receive(stream_);
  }

  absl::Status FinishDecode(absl::Span<DecodeJob> jobs) override {
    if (batch_.empty()) return absl::OkStatus();
    KVCASK_CUDA(cudaStreamSynchronize(stream_));
    for (size_t i = 0; i < batch_.size(); ++i) {
      if (batch_.Failed(i)) {
        jobs[batch_.job_of(i)].status =
            absl::DataLossError("int8 tile: a scale is not a finite number");
      }
    }
    return absl::OkStatus();
  }

  absl::Status Encode(absl::Span<EncodeJob> jobs, absl::Span<uint8_t* const> out) override {
    batch_.Begin();
    for (size_t i = 0; i < jobs.size(); ++i) {
      EncodeJob& job = jobs[i];
      job.bytes = 0;
      job.certificate = {};
      job.status = CheckEncodeJob(geometry_, groups_, job, 0);
      if (!job.status.ok()) continue;
      const HeadsOf& h = of_[job.group];
      const size_t codes = kHeaderBytes + 2 * static_cast<size_t>(h.count) * job.tokens;
      const size_t elements = static_cast<size_t>(h.elements) * job.tokens;
      if (codes + elements >= kHeaderBytes + elements * DtypeSize(job.source.dtype)) continue;
      Int8Tile t = TileOf(job.group, job.tokens, job.source.dtype, job.source.pages.page_tokens);
      t.codes = static_cast<uint32_t>(codes);
      t.tile = out[i];
      batch_.AddJob(job.source);
      batch_.Add(t, i);
    }
    if (batch_.empty()) return absl::OkStatus();
    if (absl::Status s = batch_.Cut(); !s.ok()) return s;
    for (size_t i = 0; i < batch_.size(); ++i) Point(i, batch_.Place(jobs[batch_.job_of(i)].source));
    if (absl::Status s = batch_.Send(stream_); !s.ok()) return s;
    KVCASK_CUDA(LaunchInt8Encode(batch_.device_items(), static_cast<int>(batch_.size()),
                                 most_heads_, batch_.device_failed(), stream_));
    if (absl::Status s = batch_.Receive(stream_); !s.ok()) return s;
    KVCASK_CUDA(cudaStreamSynchronize(stream_));
    for (size_t i = 0; i < batch_.size(); ++i) {
      EncodeJob& job = jobs[batch_.job_of(i)];
      if (batch_.Failed(i)) continue;
      job.bytes = batch_[i].codes + static_cast<size_t>(of_[job.group].elements) * job.tokens;
    }
    return absl::OkStatus();
  }

 private:
  struct HeadsOf {
    int first, count, elements;  // of a token
  };

  Int8Tile TileOf(int group, int tokens, Dtype dtype, int page_tokens) const {
    Int8Tile t{};
    t.heads = reinterpret_cast<const Int8Head*>(table_.data()) + of_[group].first;
    t.head_count = of_[group].count;
    t.tokens = t.token_end = tokens;
    t.dtype = static_cast<int>(dtype);
    t.page_tokens = page_tokens;
    return t;
  }
  void Point(size_t i, const DeviceView& view) {
    batch_[i].planes = view.planes;
    batch_[i].pages = view.pages;
  }

  const Geometry geometry_;
  const std::vector<Group> groups_;
  std::vector<Int8Head> heads_;
  std::vector<HeadsOf> of_;  // of each group
  int most_heads_ = 0;
  cudaStream_t stream_ = nullptr;
  DeviceMemory table_;
  JobBatch<Int8Tile> batch_;  // under way
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaEngine>> MakeInt8Engine(const CodecSpec& spec) {
  if (spec.profile != nullptr) return std::unique_ptr<CudaEngine>();
  auto geometry = SliceGeometry(spec.model, spec.shard);
  if (!geometry.ok()) return geometry.status();
  auto engine = std::make_unique<Int8Engine>(*std::move(geometry));
  if (absl::Status s = engine->Load(); !s.ok()) return s;
  return std::unique_ptr<CudaEngine>(std::move(engine));
}

}  // namespace kvcask
