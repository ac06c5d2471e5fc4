#include "server/exec/device_codec.h"

#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "server/log/log.h"

namespace kvcask {
namespace {

void ReportLost(DeviceState* state, const absl::Status& why) {
  if (state->Lose(why)) {
    Log(LogLevel::kError, "the device is lost; codecs run on the CPU",
        {{"error", std::string(why.message())}});
  }
}

// Does for the CPU's codec what is Encode or Decode of both.
struct Encoding {
  using Job = EncodeJob;
  static absl::Status OnDevice(DeviceCoder& coder, absl::Span<EncodeJob> jobs) {
    return coder.Encode(jobs);
  }
  static absl::Status OnCpu(const Codec& codec, absl::Span<EncodeJob> jobs, Workspace& w) {
    return codec.Encode(jobs, w);
  }
  static bool Left(const EncodeJob& job) { return job.status.ok() && job.bytes == 0; }
};
struct Decoding {
  using Job = DecodeJob;
  static absl::Status OnDevice(DeviceCoder& coder, absl::Span<DecodeJob> jobs) {
    return coder.Decode(jobs);
  }
  static absl::Status OnCpu(const Codec& codec, absl::Span<DecodeJob> jobs, Workspace& w) {
    return codec.Decode(jobs, w);
  }
  static bool Left(const DecodeJob& job) {
    return job.status.code() == absl::StatusCode::kUnimplemented;
  }
};

class DeviceCodec : public Codec {
 public:
  DeviceCodec(std::unique_ptr<Codec> cpu, DeviceState* state)
      : cpu_(std::move(cpu)), state_(state) {}

  const Codec& cpu() const { return *cpu_; }
  void Add(std::unique_ptr<DeviceCoder> coder) {
    idle_.push_back(coder.get());
    coders_.push_back(std::move(coder));
  }

  CodecId id() const override { return cpu_->id(); }
  const Geometry& geometry() const override { return cpu_->geometry(); }
  absl::Span<const Group> groups() const override { return cpu_->groups(); }
  size_t MaxTileBytes(int group, int tokens, Dtype dtype) const override {
    return cpu_->MaxTileBytes(group, tokens, dtype);
  }
  bool tile_is_source() const override { return cpu_->tile_is_source(); }

  absl::Status Encode(absl::Span<EncodeJob> jobs, Workspace& workspace) const override {
    return Run<Encoding>(jobs, workspace);
  }
  absl::Status Decode(absl::Span<DecodeJob> jobs, Workspace& workspace) const override {
    return Run<Decoding>(jobs, workspace);
  }
  double MeasureKld(const EncodeJob& job, const ConstKvView& decoded) const override {
    return cpu_->MeasureKld(job, decoded);
  }

 private:
  template <typename Way>
  absl::Status Run(absl::Span<typename Way::Job> jobs, Workspace& workspace) const {
    if (!state_->lost() && OnDevice<Way>(jobs)) {
      std::vector<size_t> left;
      for (size_t i = 0; i < jobs.size(); ++i) {
        if (Way::Left(jobs[i])) left.push_back(i);
      }
      ++state_->batches;
      state_->tiles += jobs.size() - left.size();
      state_->cpu_tiles += left.size();
      for (size_t i : left) {
        if (absl::Status s = Way::OnCpu(*cpu_, jobs.subspan(i, 1), workspace); !s.ok()) return s;
      }
      return absl::OkStatus();
    }
    state_->cpu_tiles += jobs.size();
    return Way::OnCpu(*cpu_, jobs, workspace);
  }

  // False: the CPU must do all of it.
  template <typename Way>
  bool OnDevice(absl::Span<typename Way::Job> jobs) const {
    DeviceCoder* coder;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      free_.wait(lock, [this] { return !idle_.empty(); });
      coder = idle_.back();
      idle_.pop_back();
    }
    const absl::Status status =
        state_->lost() ? state_->why() : Way::OnDevice(*coder, jobs);  // lost while this waited
    {
      std::lock_guard<std::mutex> lock(mutex_);
      idle_.push_back(coder);
    }
    free_.notify_one();
    if (status.ok()) return true;
    if (status.code() == absl::StatusCode::kResourceExhausted) {
      ++state_->short_of_memory;
    } else {
      ReportLost(state_, status);
    }
    return false;
  }

  const std::unique_ptr<Codec> cpu_;
  DeviceState* const state_;
  std::vector<std::unique_ptr<DeviceCoder>> coders_;
  mutable std::mutex mutex_;
  mutable std::condition_variable free_;
  mutable std::vector<DeviceCoder*> idle_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Codec>> MakeCodecOn(DeviceBackend* device, DeviceState* state,
                                                   const CodecEntry& entry, const CodecSpec& spec) {
  absl::StatusOr<std::unique_ptr<Codec>> cpu = entry.make(spec);
  if (!cpu.ok() || device == nullptr || state->lost()) return cpu;
  auto codec = std::make_unique<DeviceCodec>(*std::move(cpu), state);
  for (int i = 0; i < kBatchesInFlight; ++i) {
    auto coder = device->MakeCoder(entry, spec, codec->cpu());
    if (coder.ok() && *coder == nullptr) return entry.make(spec);
    if (!coder.ok()) {
      if (coder.status().code() != absl::StatusCode::kResourceExhausted) {
        ReportLost(state, coder.status());
        return entry.make(spec);
      }
      if (i > 0) break;  // one batch at a time, then
      ++state->short_of_memory;
      return entry.make(spec);
    }
    codec->Add(*std::move(coder));
  }
  return std::unique_ptr<Codec>(std::move(codec));
}

}  // namespace kvcask
