#include "codec/scalar/cuda/int8_cuda.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "codec/api/jobs.h"
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

  absl::Status StartDecode(absl::Span<DecodeJob> jobs,
                           absl::Span<const uint8_t* const> device_tiles) override {
    Begin();
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
      if (!device_tiles.empty()) {
        t.tile = const_cast<uint8_t*>(device_tiles[i]);
      } else {
        bytes_ += (job.tile.size() + 15) / 16 * 16;
      }
      Add(t, i, job.destination.planes.size(), job.destination.pages.offsets.size());
    }
    if (tiles_.empty()) return absl::OkStatus();
    if (absl::Status s = Cut(); !s.ok()) return s;
    size_t plane = 0, page = 0, byte = 0;
    for (size_t i = 0; i < tiles_.size(); ++i) {
      const DecodeJob& job = jobs[job_of_[i]];
      Point(i, job.destination, &plane, &page);
      if (!device_tiles.empty()) continue;
      tiles_[i].tile = device_.bytes + byte;
      std::memcpy(host_.bytes + byte, job.tile.data(), job.tile.size());
      byte += (job.tile.size() + 15) / 16 * 16;
    }
    if (absl::Status s = Send(); !s.ok()) return s;
    KVCASK_CUDA(LaunchInt8Decode(device_.tiles, static_cast<int>(tiles_.size()), most_heads_,
                                 device_.failed, stream_));
    return Receive();
  }

  absl::Status FinishDecode(absl::Span<DecodeJob> jobs) override {
    if (tiles_.empty()) return absl::OkStatus();
    KVCASK_CUDA(cudaStreamSynchronize(stream_));
    for (size_t i = 0; i < tiles_.size(); ++i) {
      if (Failed(i)) {
        jobs[job_of_[i]].status = absl::DataLossError("int8 tile: a scale is not a finite number");
      }
    }
    return absl::OkStatus();
  }

  absl::Status Encode(absl::Span<EncodeJob> jobs, absl::Span<uint8_t* const> out) override {
    Begin();
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
      Add(t, i, job.source.planes.size(), job.source.pages.offsets.size());
    }
    if (tiles_.empty()) return absl::OkStatus();
    if (absl::Status s = Cut(); !s.ok()) return s;
    size_t plane = 0, page = 0;
    for (size_t i = 0; i < tiles_.size(); ++i) Point(i, jobs[job_of_[i]].source, &plane, &page);
    if (absl::Status s = Send(); !s.ok()) return s;
    KVCASK_CUDA(LaunchInt8Encode(device_.tiles, static_cast<int>(tiles_.size()), most_heads_,
                                 device_.failed, stream_));
    if (absl::Status s = Receive(); !s.ok()) return s;
    KVCASK_CUDA(cudaStreamSynchronize(stream_));
    for (size_t i = 0; i < tiles_.size(); ++i) {
      EncodeJob& job = jobs[job_of_[i]];
      if (Failed(i)) continue;
      job.bytes = tiles_[i].codes + static_cast<size_t>(of_[job.group].elements) * job.tokens;
    }
    return absl::OkStatus();
  }

 private:
  struct HeadsOf {
    int first, count, elements;  // of a token
  };
  struct Parts {
    Int8Tile* tiles;
    DevicePlane* planes;
    int64_t* pages;
    int* failed;
    uint8_t* bytes;
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
  void Begin() {
    tiles_.clear();
    job_of_.clear();
    planes_ = pages_ = bytes_ = 0;
  }
  void Add(const Int8Tile& t, size_t job, size_t planes, size_t pages) {
    tiles_.push_back(t);
    job_of_.push_back(job);
    planes_ += planes;
    pages_ += pages;
  }
  // Memory for the batch, the same on both sides.
  absl::Status Cut() {
    auto cut = [&](Cutter c, Parts* parts) {
      parts->tiles = c.Take<Int8Tile>(tiles_.size());
      parts->planes = c.Take<DevicePlane>(planes_);
      parts->pages = c.Take<int64_t>(pages_);
      parts->failed = c.Take<int>(tiles_.size());
      parts->bytes = c.Take<uint8_t>(bytes_);
      return c.used();
    };
    used_ = cut(Cutter(), &host_);
    absl::Status status = staging_.Reserve(used_);
    status.Update(inputs_.Reserve(used_));
    if (!status.ok()) return status;
    cut(Cutter(staging_.data()), &host_);
    cut(Cutter(inputs_.data()), &device_);
    return absl::OkStatus();
  }
  template <typename View>
  void Point(size_t i, const View& view, size_t* plane, size_t* page) {
    tiles_[i].planes = device_.planes + *plane;
    for (const auto& p : view.planes) {
      host_.planes[(*plane)++] = {const_cast<uint8_t*>(p.data), p.head_stride, p.token_stride,
                                  p.dim_stride};
    }
    tiles_[i].pages = view.pages.offsets.empty() ? nullptr : device_.pages + *page;
    for (int64_t offset : view.pages.offsets) host_.pages[(*page)++] = offset;
  }
  absl::Status Send() {
    std::copy(tiles_.begin(), tiles_.end(), host_.tiles);
    std::fill(host_.failed, host_.failed + tiles_.size(), 0);
    KVCASK_CUDA(
        cudaMemcpyAsync(inputs_.data(), staging_.data(), used_, cudaMemcpyHostToDevice, stream_));
    return absl::OkStatus();
  }
  absl::Status Receive() {
    KVCASK_CUDA(cudaMemcpyAsync(host_.failed, device_.failed, tiles_.size() * sizeof(int),
                                cudaMemcpyDeviceToHost, stream_));
    return absl::OkStatus();
  }
  bool Failed(size_t i) const { return host_.failed[i] != 0; }

  const Geometry geometry_;
  const std::vector<Group> groups_;
  std::vector<Int8Head> heads_;
  std::vector<HeadsOf> of_;  // of each group
  int most_heads_ = 0;
  cudaStream_t stream_ = nullptr;
  DeviceMemory table_, inputs_;
  PinnedMemory staging_;

  // Of the batch under way.
  std::vector<Int8Tile> tiles_;
  std::vector<size_t> job_of_;
  size_t planes_ = 0, pages_ = 0, bytes_ = 0, used_ = 0;
  Parts host_{}, device_{};
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
