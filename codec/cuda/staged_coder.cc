#include "codec/cuda/staged_coder.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "codec/api/jobs.h"
#include "codec/base/strided.h"
#include "device/cuda_status.h"
#include "device/memory.h"

namespace kvcask {
namespace {

constexpr size_t kAlign = 256;
size_t Up(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

// A group's heads of one plane, dense: [heads][tokens][head_dim].
struct PlaneRange {
  int layer = 0;
  int head_begin = 0, head_end = 0;
  int head_dim = 0;
};

class StagedCoder : public DeviceCoder {
 public:
  StagedCoder(std::unique_ptr<CudaEngine> engine, const Codec& cpu)
      : engine_(std::move(engine)), cpu_(cpu) {
    for (size_t g = 0; g < cpu.groups().size(); ++g) {
      const Group& group = cpu.groups()[g];
      std::vector<PlaneRange> ranges;
      for (const PlaneInfo& p : ListPlanes(cpu.geometry(), group.layer_begin, group.layer_end)) {
        ranges.push_back({p.layer, 0, 0, p.head_dim});
      }
      rows_.push_back(engine_->Rows(static_cast<int>(g)));
      for (const EngineRow& r : rows_.back()) {
        PlaneRange& range = ranges[r.plane];
        if (range.head_end == range.head_begin) {
          range.head_begin = r.head;
          range.head_end = r.head + 1;
        }
        range.head_begin = std::min(range.head_begin, r.head);
        range.head_end = std::max(range.head_end, r.head + 1);
      }
      ranges_.push_back(std::move(ranges));
    }
  }

  absl::Status Encode(absl::Span<EncodeJob> jobs) override;
  absl::Status Decode(absl::Span<DecodeJob> jobs) override;

 private:
  // Bytes of a group's planes of layers [begin, end).
  size_t Size(int group, int begin, int end, int tokens, Dtype dtype) const {
    size_t bytes = 0;
    for (const PlaneRange& r : ranges_[group]) {
      if (r.layer < begin || r.layer >= end) continue;
      bytes += Up(DtypeSize(dtype) * tokens * r.head_dim * (r.head_end - r.head_begin));
    }
    return bytes;
  }
  // They, in memory at `base`, as an engine wants them.
  template <typename Plane>
  void Place(int group, int begin, int end, int tokens, Dtype dtype, uint8_t* base,
             std::vector<Plane>* planes) const {
    const int64_t element = static_cast<int64_t>(DtypeSize(dtype));
    size_t at = 0;
    for (const PlaneRange& r : ranges_[group]) {
      if (r.layer < begin || r.layer >= end) continue;
      const int64_t head = element * tokens * r.head_dim;
      // Head 0 would lie before the range's first; nobody asks for it there.
      planes->push_back({base + at - r.head_begin * head, head, element * r.head_dim, element});
      at += Up(static_cast<size_t>(head) * (r.head_end - r.head_begin));
    }
  }
  // Which of the planes from `layer_begin` on a row is in.
  int FirstPlane(int group, int layer_begin) const {
    int first = 0;
    while (first < static_cast<int>(ranges_[group].size()) &&
           ranges_[group][first].layer < layer_begin) {
      ++first;
    }
    return first;
  }

  const std::unique_ptr<CudaEngine> engine_;
  const Codec& cpu_;
  std::vector<std::vector<EngineRow>> rows_;     // of each group
  std::vector<std::vector<PlaneRange>> ranges_;  // of each group, by plane
  PinnedMemory host_, tiles_;
  DeviceMemory device_;
};

absl::Status StagedCoder::Encode(absl::Span<EncodeJob> jobs) {
  const Geometry& g = cpu_.geometry();
  const size_t n = jobs.size();
  std::vector<size_t> at(n), tile_at(n);
  std::vector<size_t> good;
  size_t bytes = 0, tile_bytes = 0;
  for (size_t i = 0; i < n; ++i) {
    EncodeJob& job = jobs[i];
    job.bytes = 0;
    job.certificate = {};
    const bool sizable = job.group >= 0 && static_cast<size_t>(job.group) < cpu_.groups().size() &&
                         job.tokens >= 0 && job.tokens <= kPageTokens;
    const size_t most = sizable ? cpu_.MaxTileBytes(job.group, job.tokens, job.source.dtype) : 0;
    job.status = CheckEncodeJob(g, cpu_.groups(), job, most);
    if (!job.status.ok()) continue;
    const Group& group = cpu_.groups()[job.group];
    at[i] = bytes;
    bytes += Size(job.group, group.layer_begin, group.layer_end, job.tokens, job.source.dtype);
    tile_at[i] = tile_bytes;
    tile_bytes += Up(most);
    good.push_back(i);
  }
  if (good.empty()) return absl::OkStatus();
  absl::Status status = host_.Reserve(bytes);
  status.Update(tiles_.Reserve(tile_bytes));
  status.Update(device_.Reserve(bytes));
  if (!status.ok()) return status;

  std::vector<EncodeJob> staged(good.size());
  std::vector<std::vector<ConstPlaneView>> planes(good.size());
  std::vector<uint8_t*> out(good.size());
  for (size_t k = 0; k < good.size(); ++k) {
    const EncodeJob& job = jobs[good[k]];
    const Group& group = cpu_.groups()[job.group];
    std::vector<PlaneView> mine;
    Place(job.group, group.layer_begin, group.layer_end, job.tokens, job.source.dtype,
          host_.data() + at[good[k]], &mine);
    for (const EngineRow& r : rows_[job.group]) {
      GatherHead(job.source, r.plane, r.head, 0, job.tokens, r.head_dim,
                 mine[r.plane].data + r.head * mine[r.plane].head_stride);
    }
    Place(job.group, group.layer_begin, group.layer_end, job.tokens, job.source.dtype,
          device_.data() + at[good[k]], &planes[k]);
    staged[k] = job;
    staged[k].source.planes = planes[k];
    staged[k].source.pages = {};
    out[k] = tiles_.data() + tile_at[good[k]];
  }
  KVCASK_CUDA(cudaMemcpyAsync(device_.data(), host_.data(), bytes, cudaMemcpyHostToDevice,
                              engine_->stream()));
  status = engine_->Encode(absl::MakeSpan(staged), out);
  if (!status.ok()) {
    cudaStreamSynchronize(engine_->stream());
    return status;
  }
  // An engine that leaves all of a batch to the CPU does not wait for its stream, and the copy's memory
  // is the next batch's.
  KVCASK_CUDA(cudaStreamSynchronize(engine_->stream()));
  for (size_t k = 0; k < good.size(); ++k) {
    EncodeJob& job = jobs[good[k]];
    job.status = staged[k].status;
    if (!job.status.ok() || staged[k].bytes == 0) continue;
    if (staged[k].bytes > job.destination.size()) {
      return absl::InternalError("a device wrote a tile larger than any is");
    }
    std::memcpy(job.destination.data(), out[k], staged[k].bytes);
    job.bytes = staged[k].bytes;
    job.certificate = staged[k].certificate;
  }
  return absl::OkStatus();
}

absl::Status StagedCoder::Decode(absl::Span<DecodeJob> jobs) {
  const Geometry& g = cpu_.geometry();
  std::vector<DecodeJob> staged;
  std::vector<size_t> good, at;
  size_t bytes = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    DecodeJob& job = jobs[i];
    job.status = CheckDecodeJob(g, cpu_.groups(), job);
    if (!job.status.ok()) continue;
    good.push_back(i);
    at.push_back(bytes);
    bytes += Size(job.group, job.layer_begin, job.layer_end, job.token_end - job.token_begin,
                  job.destination.dtype);
  }
  if (good.empty()) return absl::OkStatus();
  absl::Status status = host_.Reserve(bytes);
  status.Update(device_.Reserve(bytes));
  if (!status.ok()) return status;
  std::vector<std::vector<PlaneView>> planes(good.size());
  std::vector<const uint8_t*> device_tiles;
  for (size_t k = 0; k < good.size(); ++k) {
    const DecodeJob& job = jobs[good[k]];
    device_tiles.push_back(job.device_tile);
    Place(job.group, job.layer_begin, job.layer_end, job.token_end - job.token_begin,
          job.destination.dtype, device_.data() + at[k], &planes[k]);
    staged.push_back(job);
    staged[k].destination.planes = planes[k];
    staged[k].destination.pages = {};
  }
  status = engine_->StartDecode(absl::MakeSpan(staged), device_tiles);
  if (status.ok()) {
    status = CudaStatus(cudaMemcpyAsync(host_.data(), device_.data(), bytes, cudaMemcpyDeviceToHost,
                                        engine_->stream()),
                        "copy of decoded elements");
  }
  if (!status.ok()) {
    cudaStreamSynchronize(engine_->stream());
    return status;
  }
  // The engine waits for its stream, and so for the copy.
  if (absl::Status s = engine_->FinishDecode(absl::MakeSpan(staged)); !s.ok()) return s;
  KVCASK_CUDA(cudaStreamSynchronize(engine_->stream()));
  for (size_t k = 0; k < good.size(); ++k) {
    DecodeJob& job = jobs[good[k]];
    job.status = staged[k].status;
    if (!job.status.ok()) continue;
    const int tokens = job.token_end - job.token_begin;
    std::vector<PlaneView> mine;
    Place(job.group, job.layer_begin, job.layer_end, tokens, job.destination.dtype,
          host_.data() + at[k], &mine);
    const int first = FirstPlane(job.group, job.layer_begin);
    for (const EngineRow& r : rows_[job.group]) {
      if (r.layer < job.layer_begin || r.layer >= job.layer_end) continue;
      const PlaneView& from = mine[r.plane - first];
      ScatterHead(from.data + r.head * from.head_stride, job.destination, r.plane - first, r.head,
                  0, tokens, r.head_dim);
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::unique_ptr<DeviceCoder> MakeStagedCoder(std::unique_ptr<CudaEngine> engine, const Codec& cpu) {
  return std::make_unique<StagedCoder>(std::move(engine), cpu);
}

}  // namespace kvcask
