#include "codec/fklt/cuda/fklt_cuda.h"

#include <utility>

#include "codec/fklt/cuda/batch_parts.h"
#include "codec/fklt/cuda/decoder.h"
#include "codec/fklt/cuda/device_model.h"
#include "codec/fklt/cuda/encoder.h"
#include "device/cublas.h"
#include "device/cuda_status.h"

namespace kvcask::fklt {
namespace {

class Engine : public FkltCuda {
 public:
  Engine(std::shared_ptr<const FkltProfile> profile, absl::Span<const GroupCoder* const> coders,
         const Geometry& shard, int step_limit_shift)
      : step_limit_shift_(step_limit_shift), model_(std::move(profile), coders), shard_(shard) {
    for (const GroupCoder* c : coders) groups_.push_back(c->group());
  }

  ~Engine() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Load() {
    auto cublas = Cublas::Load();
    if (!cublas.ok()) return cublas.status();
    cublas_ = *std::move(cublas);
    KVCASK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    KVCASK_CUDA(times_.Create());
    const EngineParts parts{&model_, cublas_.get(), stream_, &shard_, groups_, &times_, &memory_};
    decoder_ = std::make_unique<Decoder>(parts);
    encoder_ = std::make_unique<Encoder>(parts, step_limit_shift_);
    return model_.Load();
  }

  absl::Status StartDecode(absl::Span<DecodeJob> jobs,
                           absl::Span<const uint8_t* const> device_tiles) override {
    return decoder_->StartDecode(jobs, device_tiles);
  }
  absl::Status FinishDecode(absl::Span<DecodeJob> jobs) override {
    return decoder_->FinishDecode(jobs);
  }
  absl::Status Encode(absl::Span<EncodeJob> jobs, absl::Span<uint8_t* const> device_out) override {
    return encoder_->Encode(jobs, device_out);
  }
  void TimeParts(bool wanted) override { times_.Parts(wanted); }
  std::vector<std::pair<const char*, float>> LastParts() const override { return times_.Last(); }
  cudaStream_t stream() const override { return stream_; }
  double LastSeconds() const override { return times_.All() * 1e-3; }
  std::vector<EngineRow> Rows(int group) const override {
    std::vector<EngineRow> rows;
    for (const MemberPlace& m : model_.coder(group).members()) {
      rows.push_back({m.layer, m.plane, m.head, m.head_dim});
    }
    return rows;
  }

 private:
  const int step_limit_shift_;
  DeviceModel model_;
  const Geometry& shard_;
  std::vector<Group> groups_;
  std::unique_ptr<Cublas> cublas_;
  cudaStream_t stream_ = nullptr;
  PartTimes times_;
  BatchMemory memory_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<Encoder> encoder_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<FkltCuda>> FkltCuda::Make(std::shared_ptr<const FkltProfile> profile,
                                                         absl::Span<const GroupCoder* const> coders,
                                                         const Geometry& shard,
                                                         int step_limit_shift) {
  int devices = 0;
  KVCASK_CUDA(cudaGetDeviceCount(&devices));
  if (devices == 0) return absl::UnavailableError("CUDA: no device");
  auto engine = std::make_unique<Engine>(std::move(profile), coders, shard, step_limit_shift);
  if (absl::Status s = engine->Load(); !s.ok()) return s;
  return std::unique_ptr<FkltCuda>(std::move(engine));
}

namespace {

// Keeps what an engine borrows.
class OwnedEngine : public CudaEngine {
 public:
  absl::Status Load(const CodecSpec& spec) {
    auto shard = SliceGeometry(spec.model, spec.shard);
    if (!shard.ok()) return shard.status();
    shard_ = *std::move(shard);
    auto profile = FkltProfile::Read(spec.profile);
    if (!profile.ok()) return profile.status();
    std::vector<const GroupCoder*> pointers;
    for (const GroupModel& model : (*profile)->groups) {
      const Member& m = model.members[0];  // groups never cross a shard: the CPU's codec checked
      if (m.layer < spec.shard.layer_begin || m.layer >= spec.shard.layer_end ||
          m.head < spec.shard.head_begin || m.head >= spec.shard.head_end) {
        continue;
      }
      auto coder = GroupCoder::Make(model, shard_, spec.shard);
      if (!coder.ok()) return coder.status();
      pointers.push_back(coder->get());
      coders_.push_back(*std::move(coder));
    }
    auto engine = FkltCuda::Make(*std::move(profile), pointers, shard_,
                                 spec.short_segments ? kMaxStepLimitShift : 0);
    if (!engine.ok()) return engine.status();
    engine_ = *std::move(engine);
    return absl::OkStatus();
  }

  std::vector<EngineRow> Rows(int group) const override { return engine_->Rows(group); }
  absl::Status StartDecode(absl::Span<DecodeJob> jobs,
                           absl::Span<const uint8_t* const> device_tiles) override {
    return engine_->StartDecode(jobs, device_tiles);
  }
  absl::Status FinishDecode(absl::Span<DecodeJob> jobs) override {
    return engine_->FinishDecode(jobs);
  }
  absl::Status Encode(absl::Span<EncodeJob> jobs, absl::Span<uint8_t* const> out) override {
    return engine_->Encode(jobs, out);
  }
  cudaStream_t stream() const override { return engine_->stream(); }
  double LastSeconds() const override { return engine_->LastSeconds(); }

 private:
  Geometry shard_;
  std::vector<std::unique_ptr<GroupCoder>> coders_;
  std::unique_ptr<FkltCuda> engine_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaEngine>> MakeFkltEngine(const CodecSpec& spec) {
  auto engine = std::make_unique<OwnedEngine>();
  if (absl::Status s = engine->Load(spec); !s.ok()) return s;
  return std::unique_ptr<CudaEngine>(std::move(engine));
}

}  // namespace kvcask::fklt
