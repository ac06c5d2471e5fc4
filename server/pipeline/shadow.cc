#include "server/pipeline/shadow.h"

#include <absl/strings/str_cat.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <utility>

#include "codec/base/crc32c.h"
#include "codec/base/strided.h"
#include "codec/format/chunk.h"
#include "server/log/log.h"

namespace kvcask {
namespace {

constexpr int kNice = 10;  // a tenth of a core's share beside threads at 0

// All planes of a shard, [plane][head][token][dim] of fp32.
struct Planes {
  Planes(const Geometry& g, int tokens) {
    size_t elements = 0;
    for (const LayerGeometry& layer : g.layers) {
      first.push_back(static_cast<int>(streams.size()));
      for (const StreamGeometry& s : layer.streams) {
        streams.push_back(s);
        elements += static_cast<size_t>(s.heads) * tokens * s.head_dim;
      }
    }
    first.push_back(static_cast<int>(streams.size()));
    memory.resize(elements);
    float* at = memory.data();
    for (const StreamGeometry& s : streams) {
      PlaneView v;
      v.data = reinterpret_cast<uint8_t*>(at);
      v.dim_stride = sizeof(float);
      v.token_stride = v.dim_stride * s.head_dim;
      v.head_stride = v.token_stride * tokens;
      planes.push_back(v);
      at += static_cast<size_t>(s.heads) * tokens * s.head_dim;
    }
  }
  std::vector<StreamGeometry> streams;  // by plane
  std::vector<int> first;               // plane of each layer, and one more
  std::vector<float> memory;
  std::vector<PlaneView> planes;
};

// A group's planes from a token on.
template <typename View, typename From>
std::vector<View> Part(const std::vector<From>& planes, const std::vector<int>& first,
                       const Group& group, int token_begin) {
  std::vector<View> out;
  for (int p = first[group.layer_begin]; p < first[group.layer_end]; ++p) {
    const From& v = planes[p];
    out.push_back({v.data == nullptr ? nullptr : v.data + token_begin * v.token_stride,
                   v.head_stride, v.token_stride, v.dim_stride});
  }
  return out;
}

struct Sums {
  double error = 0, energy = 0;
};

// Adds what differs between a plane's tokens from one on, of what was finite. DATA_LOSS: that came
// back as what is not.
absl::Status AddErrors(const ConstKvView& put, const ConstKvView& back, int plane,
                       const StreamGeometry& stream, int token_begin, int token_end, Sums* sums) {
  const size_t n = static_cast<size_t>(token_end - token_begin) * stream.head_dim;
  std::vector<float> a(n), b(n);
  for (int h = 0; h < stream.heads; ++h) {
    LoadHead(put, plane, h, token_begin, token_end, stream.head_dim, a.data());
    LoadHead(back, plane, h, token_begin, token_end, stream.head_dim, b.data());
    for (size_t i = 0; i < n; ++i) {
      if (!std::isfinite(a[i])) continue;
      if (!std::isfinite(b[i])) {
        return absl::DataLossError(absl::StrCat(a[i], " came back as ", b[i], ": plane ", plane,
                                                " of the shard, head ", h, ", token ",
                                                token_begin + i / stream.head_dim));
      }
      const double e = static_cast<double>(a[i]) - b[i];
      sums->error += e * e;
      sums->energy += static_cast<double>(a[i]) * a[i];
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ShadowReport> MeasureChunk(const ShadowBlock& block, Workspace& workspace) {
  auto view = ParseChunk(block.chunk, Verify::kAll);
  if (!view.ok()) return view.status();
  const Codec& codec = *block.codec;
  const ChunkHeader& header = view->header;
  Planes decoded(codec.geometry(), header.tokens);
  std::vector<int> token_begin(decoded.streams.size(), header.tokens);  // by plane
  for (size_t i = 0; i < view->tiles.size(); ++i) {
    const TileEntry& entry = view->tiles[i];
    if (entry.tokens == 0) continue;
    const Group& group = codec.groups()[entry.group];
    const auto planes =
        Part<PlaneView>(decoded.planes, decoded.first, group, entry.token_begin);
    DecodeJob job;
    job.group = entry.group;
    job.tokens = job.token_end = entry.tokens;
    job.source_dtype = header.dtype;
    job.tile = view->tile(static_cast<int>(i));
    job.positions = absl::MakeConstSpan(header.positions).subspan(entry.token_begin, entry.tokens);
    if (!header.token_ids.empty()) {
      job.token_ids =
          absl::MakeConstSpan(header.token_ids).subspan(entry.token_begin, entry.tokens);
    }
    job.layer_begin = group.layer_begin;
    job.layer_end = group.layer_end;
    job.destination.dtype = Dtype::kF32;
    job.destination.planes = planes;
    absl::Status s = codec.Decode(absl::MakeSpan(&job, 1), workspace);
    if (s.ok()) s = job.status;
    if (!s.ok()) return s;
    for (int p = decoded.first[group.layer_begin]; p < decoded.first[group.layer_end]; ++p) {
      token_begin[p] = entry.token_begin;
    }
  }

  // After all tiles: groups of single heads share planes.
  ConstKvView put, back;
  std::vector<ConstPlaneView> back_planes =
      Part<ConstPlaneView>(decoded.planes, decoded.first,
                           {0, static_cast<int>(codec.geometry().layers.size())}, 0);
  put.dtype = header.dtype;
  put.planes = block.source;
  back.dtype = Dtype::kF32;
  back.planes = back_planes;
  Sums sums;
  for (size_t p = 0; p < decoded.streams.size(); ++p) {
    if (token_begin[p] == header.tokens) continue;
    const absl::Status s = AddErrors(put, back, static_cast<int>(p), decoded.streams[p],
                                     token_begin[p], header.tokens, &sums);
    if (!s.ok()) return s;
  }
  ShadowReport report;
  // Zeros that did not come back as zeros: all of it is error.
  if (sums.error > 0) {
    report.relative_error = sums.energy > 0 ? std::sqrt(sums.error / sums.energy) : 1;
  }

  double certified = 0, measured = 0;
  bool any_certified = false;
  for (const TileEntry& entry : view->tiles) {
    if (entry.tokens == 0 || entry.certificate.predicted_kld < 0) continue;
    const Group& group = codec.groups()[entry.group];
    const auto put_planes =
        Part<ConstPlaneView>(block.source, decoded.first, group, entry.token_begin);
    const auto back_part =
        Part<ConstPlaneView>(back_planes, decoded.first, group, entry.token_begin);
    EncodeJob job;
    job.group = entry.group;
    job.tokens = entry.tokens;
    job.source.dtype = header.dtype;
    job.source.planes = put_planes;
    job.positions = absl::MakeConstSpan(header.positions).subspan(entry.token_begin, entry.tokens);
    job.quality = block.quality;
    ConstKvView part;
    part.dtype = Dtype::kF32;
    part.planes = back_part;
    double kld = codec.MeasureKld(job, part);
    // Who certifies and does not measure is lossless.
    if (kld < 0) kld = sums.error == 0 ? 0 : std::numeric_limits<double>::infinity();
    any_certified = true;
    certified += entry.certificate.predicted_kld;
    measured += kld;
  }
  if (any_certified) {
    report.certified_kld = certified;
    report.measured_kld = measured;
    report.result = measured <= certified * kShadowTolerance ? ShadowResult::kWithin
                                                             : ShadowResult::kOver;
  }
  return report;
}

Shadow::Shadow(ShadowOptions options, Metrics* metrics)
    : options_(options), metrics_(metrics), budget_(options.bytes) {
  if (on()) thread_ = std::thread([this] { Run(); });
}

Shadow::~Shadow() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

bool Shadow::Samples(absl::string_view name) const {
  if (!on()) return false;
  // The CRC's bits are linear in the name's; names that differ in little are mixed apart
  // (the finaliser of splitmix64).
  uint64_t h = Crc32c({reinterpret_cast<const uint8_t*>(name.data()), name.size()});
  h = (h + 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9;
  h = (h ^ (h >> 27)) * 0x94d049bb133111eb;
  h ^= h >> 31;
  return static_cast<double>(h >> 11) * 0x1p-53 < options_.fraction;
}

std::optional<Reservation> Shadow::TakeRoom(uint64_t bytes) {
  auto room = budget_.Reserve(bytes, "a block's raw form");
  if (room.ok()) return *std::move(room);
  metrics_->ShadowSkipped();
  return std::nullopt;
}

void Shadow::Submit(ShadowBlock block) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(block));
  }
  wake_.notify_one();
}

void Shadow::WaitIdle() {
  std::unique_lock<std::mutex> lock(mutex_);
  idle_.wait(lock, [this] { return queue_.empty() && !measuring_; });
}

void Shadow::Run() {
  // Linux keeps this by thread.
  setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), kNice);
  Workspace workspace;
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    {
      ShadowBlock block = std::move(queue_.front());
      queue_.pop_front();
      measuring_ = true;
      lock.unlock();
      Measure(block, workspace);
    }
    lock.lock();
    measuring_ = false;
    if (queue_.empty()) idle_.notify_all();
  }
}

void Shadow::Measure(const ShadowBlock& block, Workspace& workspace) {
  const auto report = MeasureChunk(block, workspace);
  if (!report.ok()) {
    metrics_->Shadowed(block.codec_name, ShadowResult::kFailed, 0, 0);
    Log(LogLevel::kError, "shadow: a chunk did not come back",
        {{"codec", block.codec_name},
         {"session", block.session},
         {"shard", block.shard},
         {"error", std::string(report.status().message())}});
    return;
  }
  const bool certified = report->certified_kld > 0 && std::isfinite(report->measured_kld);
  metrics_->Shadowed(block.codec_name, report->result,
                     certified ? report->measured_kld / report->certified_kld : -1,
                     report->relative_error);
  if (report->result == ShadowResult::kOver) {
    Log(LogLevel::kError, "shadow: a chunk is over its certificate",
        {{"codec", block.codec_name},
         {"session", block.session},
         {"shard", block.shard},
         {"certified_kld", report->certified_kld},
         {"measured_kld", report->measured_kld},
         {"relative_error", report->relative_error}});
  }
}

}  // namespace kvcask
