#include "codec/fklt/cuda/fklt_cuda.h"

#include <absl/container/flat_hash_map.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "codec/api/jobs.h"
#include "codec/fklt/cuda/decode_kernels.h"
#include "codec/fklt/cuda/encode_kernels.h"
#include "codec/fklt/cuda/plan.h"
#include "codec/fklt/sinks.h"
#include "codec/fklt/tile.h"
#include "device/cublas.h"
#include "device/cuda_status.h"
#include "device/memory.h"

namespace kvcask::fklt {
namespace {

// fp16 operands: matrices are scaled so that their largest element is about this.
constexpr float kLargestOperand = 256;
constexpr int kParts = 7;
constexpr const char* kDecodeParts[kParts] = {"copy in", "angles", "prepare", "rans",
                                              "gemm",    "store",  "copy out"};
constexpr const char* kEncodeParts[kParts] = {"copy in", "gather",   "gemm", "quantise",
                                              "rans",    "assemble", "copy out"};
// Tokens of a finer step class have no more coordinates than this class has: FORMAT.md 5.3.
constexpr int kEncodeKcap = 3;

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

int CountBelow(absl::Span<const uint32_t> positions, uint32_t limit) {
  return static_cast<int>(
      std::count_if(positions.begin(), positions.end(), [&](uint32_t p) { return p < limit; }));
}

int64_t OffsetOf(const DecodeJob& job) { return job.position_offset; }
int64_t OffsetOf(const EncodeJob&) { return 0; }

// Tables of angles: the tiles of a page name the same positions, and share one.
struct AngleTables {
  struct Table {
    absl::Span<const uint32_t> positions;
    int64_t position_offset;
    size_t first;  // of all positions
  };
  std::vector<Table> tables;
  std::vector<size_t> of_tile;
  size_t positions = 0;

  template <typename Job>
  AngleTables(absl::Span<Job> jobs, const std::vector<size_t>& job_of) {
    absl::flat_hash_map<std::tuple<const uint32_t*, size_t, int64_t>, size_t> known;
    for (size_t job : job_of) {
      const absl::Span<const uint32_t> p = jobs[job].positions;
      const auto [it, fresh] =
          known.emplace(std::make_tuple(p.data(), p.size(), OffsetOf(jobs[job])), tables.size());
      if (fresh) {
        tables.push_back({p, OffsetOf(jobs[job]), positions});
        positions += p.size();
      }
      of_tile.push_back(it->second);
    }
  }
  // Fills in what the device gets: `host` is filled, the addresses in it are the device's.
  void Describe(const uint32_t* device_positions, float* device_angles, int all_pairs,
                uint32_t* host_positions, AngleDesc* host) const {
    for (const Table& t : tables) {
      *host++ = {device_positions + t.first, device_angles + 2 * t.first * all_pairs,
                 t.position_offset, static_cast<int>(t.positions.size())};
      std::copy(t.positions.begin(), t.positions.end(), host_positions + t.first);
    }
  }
};

template <typename T>
absl::Status Upload(const std::vector<T>& from, DeviceMemory* to) {
  if (absl::Status s = to->Reserve(std::max<size_t>(1, from.size() * sizeof(T))); !s.ok()) return s;
  KVCASK_CUDA(
      cudaMemcpy(to->data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  return absl::OkStatus();
}

// In fp16, scaled by a power of two so that the largest element is about kLargestOperand.
absl::Status UploadMatrix(absl::Span<const float> m, DeviceMemory* to, float* scale) {
  float largest = 1e-30f;
  for (float v : m) largest = std::max(largest, std::fabs(v));
  *scale = std::ldexp(1.0f, std::ilogb(kLargestOperand / largest));
  std::vector<__half> half(m.size());
  for (size_t i = 0; i < half.size(); ++i) half[i] = __float2half(m[i] * *scale);
  return Upload(half, to);
}

// One group on the device.
struct LoadedGroup {
  DeviceMemory inverse, forward, sketch;  // [D][D], [D][D], [sketch blocks][D] fp16
  float inverse_scale = 1, forward_scale = 1, sketch_scale = 1;
  // By number of coordinates: those rows of `forward`, then the sketches of the rest, so that one
  // GEMM makes both. There are as many as the profile has presets.
  std::map<int, std::unique_ptr<DeviceMemory>> forward_and_sketch;
  int active_step = std::numeric_limits<int>::min();
  StepRows active{};
};

// Kernels count the elements of a group's y in 32 bits.
absl::Status CheckBatch(int columns, uint64_t rows) {
  if (rows * columns <= std::numeric_limits<uint32_t>::max()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("fklt: ", columns / kMaxTokens, " tiles of one group in a batch"));
}

// Tiles of one group in one batch, side by side in one GEMM.
struct GemmBatch {
  int columns = 0;  // kMaxTokens for each tile
  int rows = 0;
  __half* y = nullptr;
  __half* x = nullptr;
};

class Engine : public FkltCuda {
 public:
  Engine(std::shared_ptr<const FkltProfile> profile, absl::Span<const GroupCoder* const> coders,
         const Geometry& shard)
      : profile_(std::move(profile)), coders_(coders.begin(), coders.end()), shard_(shard) {}

  ~Engine() override {
    for (cudaEvent_t e : events_) {
      if (e != nullptr) cudaEventDestroy(e);
    }
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Load() {
    auto cublas = Cublas::Load();
    if (!cublas.ok()) return cublas.status();
    cublas_ = *std::move(cublas);
    KVCASK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    for (cudaEvent_t& e : events_) KVCASK_CUDA(cudaEventCreate(&e));
    for (const GroupCoder* c : coders_) {
      out_groups_.push_back(c->group());
      max_members_ = std::max(max_members_, static_cast<int>(c->members().size()));
      for (const MemberPlace& m : c->members()) head_dim_ = std::max(head_dim_, m.head_dim);
    }
    if (absl::Status s = LoadTables(); !s.ok()) return s;
    return LoadGroups();
  }

  absl::Status StartDecode(absl::Span<DecodeJob> jobs,
                           absl::Span<const uint8_t* const> device_tiles) override;
  absl::Status FinishDecode(absl::Span<DecodeJob> jobs) override;
  absl::Status Encode(absl::Span<EncodeJob> jobs, absl::Span<uint8_t* const> device_out) override;

  std::vector<std::pair<const char*, float>> LastParts() const override {
    std::vector<std::pair<const char*, float>> parts;
    for (int i = 0; i < kParts; ++i) {
      float ms = 0;
      if (cudaEventElapsedTime(&ms, events_[i], events_[i + 1]) != cudaSuccess) ms = -1;
      parts.emplace_back((encoding_ ? kEncodeParts : kDecodeParts)[i], ms);
    }
    return parts;
  }
  cudaStream_t stream() const override { return stream_; }
  double LastSeconds() const override {
    float ms = 0;
    const bool known =
        cudaEventElapsedTime(&ms, events_.front(), events_.back()) == cudaSuccess;
    return known ? ms * 1e-3 : -1;
  }
  std::vector<EngineRow> Rows(int group) const override {
    std::vector<EngineRow> rows;
    for (const MemberPlace& m : coders_[group]->members()) {
      rows.push_back({m.layer, m.plane, m.head, m.head_dim});
    }
    return rows;
  }

 private:
  absl::Status LoadTables();
  absl::Status LoadGroups();
  // Checks one job and fills its description and segments; pointers are set later.
  absl::Status Plan(const DecodeJob& job, size_t index, DecodeTileDesc* tile);
  // Of a group's tokens at a step: worked out again where the step is not the last one's.
  const StepRows& Active(int group, int step_exponent);
  // See LoadedGroup::forward_and_sketch.
  absl::StatusOr<const __half*> ForwardAndSketch(int group, int rows);
  AngleBatch Angles(const AngleDesc* tables, size_t count) const {
    return {tables, static_cast<int>(count),
            reinterpret_cast<const DeviceRope*>(rope_memory_.data()), rope_count_, all_pairs_};
  }
  void Mark(int i) { cudaEventRecord(events_[i], stream_); }

  const std::shared_ptr<const FkltProfile> profile_;
  const std::vector<const GroupCoder*> coders_;
  const Geometry& shard_;
  std::vector<Group> out_groups_;
  std::unique_ptr<Cublas> cublas_;
  cudaStream_t stream_ = nullptr;
  std::array<cudaEvent_t, kParts + 1> events_{};

  std::vector<std::unique_ptr<DeviceMemory>> tables_memory_;  // a table set each
  std::vector<DeviceTables> tables_;
  std::vector<std::unique_ptr<LoadedGroup>> groups_;
  DeviceMemory group_memory_, member_memory_, mu_memory_, sigma_memory_, inverse_sigma_memory_;
  DeviceMemory rope_memory_, frequency_memory_;
  DeviceMemory sensitivity_memory_;
  bool encoding_ = false;
  int rope_count_ = 0, all_pairs_ = 0, max_members_ = 0, head_dim_ = 0, y_exponent_ = 0;

  // Of the batch under way.
  std::vector<DecodeTileDesc> tiles_;
  std::vector<size_t> job_of_;  // of a tile
  std::vector<int> set_of_;     // table set of a tile
  std::vector<SegmentDesc> segments_;
  PinnedMemory staging_, states_back_;
  DeviceMemory work_, inputs_;
};

absl::Status Engine::LoadTables() {
  for (const TableSet& set : profile_->table_sets) {
    std::vector<uint8_t> index(kClasses * kTableSlots), shift(kAllTables);
    std::vector<SymbolEntry> entry;
    std::vector<uint32_t> class_entries(kClasses, kNoEntries);
    for (int c = 0; c < kAllTables; ++c) shift[c] = static_cast<uint8_t>(set.shift(c));
    for (int c = 0; c < kClasses; ++c) {
      std::vector<SymbolEntry> symbols;
      for (int s = 0; s < kTableSlots; ++s) {
        const uint32_t e = set.decode()[c * kTableSlots + s];
        if (e >> 20 == 0) {  // the first slot of a symbol
          const int v = static_cast<int8_t>(e & 255), n = std::abs(v);
          const float centre = n > 3 ? static_cast<float>(n) : set.centroids()[c * 4 + n];
          const bool plain = v != -128 && shift[c] == 0;
          float value = v < 0 ? -centre : centre;
          const uint32_t nan = 0x7fc00000u | (e & 255);
          if (!plain) std::memcpy(&value, &nan, sizeof(value));
          symbols.push_back({s | (static_cast<int>(e >> 8 & 4095) - 4095) * 4096, value});
        }
        index[c * kTableSlots + s] = static_cast<uint8_t>(symbols.size() - 1);
      }
      if (entry.size() + symbols.size() <= kMostEntries) {
        class_entries[c] = static_cast<uint32_t>(entry.size() * sizeof(SymbolEntry));
        entry.insert(entry.end(), symbols.begin(), symbols.end());
      }
    }
    entry.resize((entry.size() + 1) / 2 * 2);  // 16 bytes at a time
    std::vector<uint2> encode_entry(kEncodeEntries);
    for (int i = 0; i < kEncodeEntries; ++i) {
      const uint32_t e = set.encode()[i], f = e & 0x1fff;
      const bool plain = f != 0 && i % 256 != 0 && shift[i / 256] == 0;
      encode_entry[i] = plain ? make_uint2(f << 16 | (e >> 25 & 15) << 12 | (e >> 13 & 4095),
                                           set.multiplier()[i] << 3)
                              : make_uint2(1u << 31, 0);
    }
    auto memory = std::make_unique<DeviceMemory>();
    DeviceTables t{};
    uint8_t *p_index, *p_shift;
    SymbolEntry* p_entry;
    uint2* p_encode_entry;
    uint32_t *p_class_entries, *p_decode, *p_encode, *p_multiplier;
    float* p_centroids;
    auto cut = [&](Cutter c) {
      p_index = c.Take<uint8_t>(index.size());
      p_entry = c.Take<SymbolEntry>(entry.size());
      p_encode_entry = c.Take<uint2>(kEncodeEntries);
      p_class_entries = c.Take<uint32_t>(class_entries.size());
      p_shift = c.Take<uint8_t>(shift.size());
      p_decode = c.Take<uint32_t>(kAllTables * kTableSlots);
      p_encode = c.Take<uint32_t>(kAllTables * 256);
      p_multiplier = c.Take<uint32_t>(kAllTables * 256);
      p_centroids = c.Take<float>(kAllTables * 4);
      return c.used();
    };
    if (absl::Status s = memory->Reserve(cut(Cutter())); !s.ok()) return s;
    cut(Cutter(memory->data()));
    auto copy = [&](void* to, const void* from, size_t bytes) {
      return CudaStatus(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "tables");
    };
    absl::Status status = copy(p_index, index.data(), index.size());
    status.Update(copy(p_entry, entry.data(), entry.size() * sizeof(SymbolEntry)));
    status.Update(
        copy(p_encode_entry, encode_entry.data(), encode_entry.size() * sizeof(uint2)));
    status.Update(copy(p_class_entries, class_entries.data(), class_entries.size() * 4));
    status.Update(copy(p_shift, shift.data(), shift.size()));
    status.Update(copy(p_decode, set.decode(), kAllTables * kTableSlots * 4));
    status.Update(copy(p_encode, set.encode(), kAllTables * 256 * 4));
    status.Update(copy(p_multiplier, set.multiplier(), kAllTables * 256 * 4));
    status.Update(copy(p_centroids, set.centroids(), kAllTables * 16));
    if (!status.ok()) return status;
    t.index = p_index;
    t.entry = p_entry;
    t.encode_entry = p_encode_entry;
    t.class_entries = p_class_entries;
    t.entries = static_cast<int>(entry.size());
    t.complete = std::find(class_entries.begin(), class_entries.end(), kNoEntries) ==
                 class_entries.end();
    t.shift = p_shift;
    t.decode = p_decode;
    t.encode = p_encode;
    t.multiplier = p_multiplier;
    t.centroids = p_centroids;
    tables_.push_back(t);
    tables_memory_.push_back(std::move(memory));
  }
  return absl::OkStatus();
}

absl::Status Engine::LoadGroups() {
  // Ropes that differ, by the first layer that has them.
  std::vector<DeviceRope> ropes;
  std::vector<size_t> frequency_at;
  std::vector<float> frequencies;
  std::map<int, int> rope_of_id;
  std::vector<DeviceMember> members;
  std::vector<float> mu, inverse_sigma;
  std::vector<int16_t> sigma;
  std::vector<DeviceGroup> groups;
  struct At {
    size_t member, row;
  };
  std::vector<At> at;
  std::vector<float> sensitivity;
  std::vector<size_t> sensitivity_at;
  // y^ is kept in units near the balanced step: fp16 holds 2^-3 to 2^15 of it.
  y_exponent_ = -static_cast<int>(std::lround(profile_->steps[1] / 8.0));
  for (const GroupCoder* c : coders_) {
    at.push_back({members.size(), mu.size()});
    for (const MemberPlace& m : c->members()) {
      int rope = -1;
      if (m.rope != nullptr) {
        const auto [it, fresh] = rope_of_id.emplace(m.rope_id, static_cast<int>(ropes.size()));
        rope = it->second;
        if (fresh) {
          frequency_at.push_back(frequencies.size());
          const int pairs = static_cast<int>(m.rope->inv_freq.size());
          ropes.push_back({static_cast<int>(m.rope->style), pairs,
                           static_cast<double>(m.rope->attention_scale), nullptr, all_pairs_});
          frequencies.insert(frequencies.end(), m.rope->inv_freq.begin(), m.rope->inv_freq.end());
          all_pairs_ += pairs;
        }
      }
      members.push_back({m.offset, m.head_dim, m.plane, m.layer, m.head, rope});
    }
    const GroupModel& model = c->model();
    mu.insert(mu.end(), model.mu.begin(), model.mu.end());
    sigma.insert(sigma.end(), model.sigma.begin(), model.sigma.end());
    for (int r = 0; r < model.dimensions; ++r) inverse_sigma.push_back(c->inverse_sigma(r));
    sensitivity_at.push_back(sensitivity.size());
    sensitivity.insert(sensitivity.end(), model.sensitivity.begin(), model.sensitivity.end());
    DeviceGroup group{};
    group.dimensions = model.dimensions;
    group.members = static_cast<int>(c->members().size());
    group.leading = model.leading();
    groups.push_back(group);
    auto loaded = std::make_unique<LoadedGroup>();
    absl::Status status = UploadMatrix(c->inverse(), &loaded->inverse, &loaded->inverse_scale);
    status.Update(UploadMatrix(c->forward(), &loaded->forward, &loaded->forward_scale));
    status.Update(UploadMatrix(c->sketch(), &loaded->sketch, &loaded->sketch_scale));
    if (!status.ok()) return status;
    groups_.push_back(std::move(loaded));
  }
  absl::Status status = Upload(members, &member_memory_);
  status.Update(Upload(mu, &mu_memory_));
  status.Update(Upload(sigma, &sigma_memory_));
  status.Update(Upload(inverse_sigma, &inverse_sigma_memory_));
  status.Update(Upload(frequencies, &frequency_memory_));
  status.Update(Upload(sensitivity, &sensitivity_memory_));
  if (!status.ok()) return status;
  for (size_t i = 0; i < ropes.size(); ++i) {
    ropes[i].inv_freq =
        reinterpret_cast<const float*>(frequency_memory_.data()) + frequency_at[i];
  }
  for (size_t g = 0; g < groups.size(); ++g) {
    groups[g].member =
        reinterpret_cast<const DeviceMember*>(member_memory_.data()) + at[g].member;
    groups[g].mu = reinterpret_cast<const float*>(mu_memory_.data()) + at[g].row;
    groups[g].sigma = reinterpret_cast<const int16_t*>(sigma_memory_.data()) + at[g].row;
    groups[g].inverse_sigma =
        reinterpret_cast<const float*>(inverse_sigma_memory_.data()) + at[g].row;
    groups[g].sensitivity =
        reinterpret_cast<const float*>(sensitivity_memory_.data()) + sensitivity_at[g];
  }
  rope_count_ = static_cast<int>(ropes.size());
  status.Update(Upload(ropes, &rope_memory_));
  status.Update(Upload(groups, &group_memory_));
  return status;
}

const StepRows& Engine::Active(int group, int step_exponent) {
  LoadedGroup& g = *groups_[group];
  if (g.active_step != step_exponent) {
    const GroupModel& model = coders_[group]->model();
    for (int k = -kMaxStepClass; k <= kMaxStepClass; ++k) {
      g.active.rows[k + kMaxStepClass] = static_cast<uint16_t>(ActiveRows(
          model.sigma.data(), model.dimensions, step_exponent, k, profile_->active_threshold));
    }
    g.active_step = step_exponent;
  }
  return g.active;
}

absl::StatusOr<const __half*> Engine::ForwardAndSketch(int group, int rows) {
  LoadedGroup& g = *groups_[group];
  std::unique_ptr<DeviceMemory>& memory = g.forward_and_sketch[rows];
  if (memory == nullptr) {
    const size_t row_bytes = coders_[group]->dimensions() * sizeof(__half);
    const int first = rows / 16, blocks = coders_[group]->sketch_blocks() - first;
    auto fresh = std::make_unique<DeviceMemory>();
    if (absl::Status s = fresh->Reserve((rows + blocks) * row_bytes); !s.ok()) return s;
    KVCASK_CUDA(cudaMemcpyAsync(fresh->data(), g.forward.data(), rows * row_bytes,
                                cudaMemcpyDeviceToDevice, stream_));
    KVCASK_CUDA(cudaMemcpyAsync(fresh->data() + rows * row_bytes,
                                g.sketch.data() + first * row_bytes, blocks * row_bytes,
                                cudaMemcpyDeviceToDevice, stream_));
    memory = std::move(fresh);
  }
  return reinterpret_cast<const __half*>(memory->data());
}

absl::Status Engine::Plan(const DecodeJob& job, size_t index, DecodeTileDesc* tile) {
  if (absl::Status s = CheckDecodeJob(shard_, out_groups_, job); !s.ok()) return s;
  TileHeader header;
  absl::Status status =
      ReadTileHeader(job.tile, static_cast<int>(profile_->table_sets.size()), &header);
  if (!status.ok()) return status;
  const GroupCoder& coder = *coders_[job.group];
  const size_t d = coder.dimensions();
  const size_t token_bytes = d * DtypeSize(job.source_dtype);
  DecodeTileDesc& t = *tile;
  t.mode = header.mode;
  t.group = job.group;
  t.tokens = job.tokens;
  t.threshold = profile_->active_threshold;
  t.position_offset = job.position_offset;
  t.source_dtype = static_cast<int>(job.source_dtype);
  t.dtype = static_cast<int>(job.destination.dtype);
  t.token_begin = job.token_begin;
  t.token_end = job.token_end;
  t.layer_begin = job.layer_begin;
  t.layer_end = job.layer_end;
  t.first_plane = coder.first_plane(job.layer_begin);
  t.page_tokens = job.destination.pages.page_tokens;
  t.y_scale = std::ldexp(1.0f, y_exponent_);
  if (header.mode == kRawMode) {
    const size_t expected = kRawHeaderBytes + token_bytes * job.tokens;
    if (job.tile.size() != expected) {
      return absl::DataLossError(
          absl::StrCat("fklt tile: raw, of ", job.tile.size(), " bytes; expected ", expected));
    }
    t.segment_bytes = kRawHeaderBytes;
    return absl::OkStatus();
  }
  const int sinks = CountBelow(job.positions, profile_->sinks);
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
  t.active = Active(job.group, header.step_exponent);
  t.rows = t.active.rows[header.kcap + kMaxStepClass];
  const size_t total = static_cast<size_t>(header.groups) * kGroupSymbols;
  if (total < static_cast<size_t>(ClassSymbols(t.coded)) ||
      total > SymbolLayout::MaxSymbols(t.coded, coder.dimensions())) {
    return absl::DataLossError(absl::StrCat("fklt tile: ", header.groups, " groups of symbols for ",
                                            t.coded, " tokens"));
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
      return absl::DataLossError(absl::StrCat("fklt tile: segment ", s, " of ", bytes,
                                              " bytes at ", at, " of ", t.segment_bytes));
    }
    const uint32_t first = static_cast<uint32_t>(s) * cut.groups_each * kGroupSymbols;
    const uint32_t end = std::min<uint32_t>(
        first + static_cast<uint32_t>(cut.groups_each) * kGroupSymbols, total);
    segments_.push_back({static_cast<uint32_t>(index), static_cast<uint32_t>(at),
                         static_cast<uint32_t>(bytes), first, end - first,
                         SegmentLanes(static_cast<int>(end - first), cut.steps)});
    at += bytes;
  }
  set_of_.push_back(header.table_set);
  return absl::OkStatus();
}

absl::Status Engine::StartDecode(absl::Span<DecodeJob> jobs,
                                 absl::Span<const uint8_t* const> device_tiles) {
  encoding_ = false;
  tiles_.clear();
  segments_.clear();
  job_of_.clear();
  set_of_.clear();
  // Tiles of one table set beside one another, so that a launch has one.
  for (size_t set = 0; set < tables_.size(); ++set) {
    for (size_t i = 0; i < jobs.size(); ++i) {
      DecodeJob& job = jobs[i];
      const int its =
          !job.tile.empty() && job.tile[0] != kRawMode && job.tile.size() > 1 ? job.tile[1] >> 4 & 3
                                                                              : 0;
      if (static_cast<size_t>(its) != set && !(set == 0 && its >= static_cast<int>(tables_.size()))) {
        continue;
      }
      DecodeTileDesc tile{};
      const size_t sets = set_of_.size();
      job.status = Plan(job, tiles_.size(), &tile);
      if (!job.status.ok()) continue;
      if (set_of_.size() == sets) set_of_.push_back(static_cast<int>(set));
      tiles_.push_back(tile);
      job_of_.push_back(i);
    }
  }
  if (tiles_.empty()) return absl::OkStatus();

  std::vector<GemmBatch> gemms(coders_.size());
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
    if (TileOnDevice(device_tiles, job_of_[i]) == nullptr) {
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
  if (absl::Status s = staging_.Reserve(input_bytes); !s.ok()) return s;
  if (absl::Status s = inputs_.Reserve(input_bytes); !s.ok()) return s;
  cut_inputs(Cutter(staging_.data()), &host);
  cut_inputs(Cutter(inputs_.data()), &device);

  struct Work {
    TileState* states;
    int* failed;
    float* angles;
  } work;
  auto cut_work = [&](Cutter c, Work* w) {
    w->states = c.Take<TileState>(tiles_.size());
    w->failed = c.Take<int>(tiles_.size());
    w->angles = c.Take<float>(2 * angles.positions * all_pairs_);
    for (size_t g = 0; g < gemms.size(); ++g) {
      gemms[g].y = c.Take<__half>(static_cast<size_t>(gemms[g].columns) * gemms[g].rows);
      gemms[g].x =
          c.Take<__half>(static_cast<size_t>(gemms[g].columns) * coders_[g]->dimensions());
    }
    return c.used();
  };
  if (absl::Status s = work_.Reserve(cut_work(Cutter(), &work)); !s.ok()) return s;
  cut_work(Cutter(work_.data()), &work);

  angles.Describe(device.positions, work.angles, all_pairs_, host.positions, host.angles);
  size_t plane = 0, page = 0, byte = 0;
  for (size_t i = 0; i < tiles_.size(); ++i) {
    DecodeTileDesc& t = tiles_[i];
    const DecodeJob& job = jobs[job_of_[i]];
    const GemmBatch& g = gemms[t.group];
    t.y = g.y;
    t.x = g.x;
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
    t.bytes = TileOnDevice(device_tiles, job_of_[i]);
    if (t.bytes == nullptr) {
      t.bytes = device.bytes + byte;
      std::memcpy(host.bytes + byte, job.tile.data(), job.tile.size());
      byte += (job.tile.size() + 15) / 16 * 16;
    }
    host.tiles[i] = t;
  }
  std::copy(segments_.begin(), segments_.end(), host.segments);
  Mark(0);
  KVCASK_CUDA(cudaMemcpyAsync(inputs_.data(), staging_.data(), input_bytes,
                              cudaMemcpyHostToDevice, stream_));
  Mark(1);

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
    b.groups = reinterpret_cast<const DeviceGroup*>(group_memory_.data());
    b.ropes = reinterpret_cast<const DeviceRope*>(rope_memory_.data());
    b.rope_count = rope_count_;
    b.all_pairs = all_pairs_;
    b.sinks = static_cast<int>(profile_->sinks);
    b.tables = tables_[set_of_[begin]];
    b.segments = device.segments;
    b.first_tile = static_cast<int>(begin);
    b.first_segment = static_cast<int>(
        std::lower_bound(segments_.begin(), segments_.end(), begin,
                         [](const SegmentDesc& s, size_t tile) { return s.tile < tile; }) -
        segments_.begin());
    b.segment_count = static_cast<int>(
        std::lower_bound(segments_.begin(), segments_.end(), end,
                         [](const SegmentDesc& s, size_t tile) { return s.tile < tile; }) -
        segments_.begin()) - b.first_segment;
    batches.push_back(b);
    begin = end;
  }
  KVCASK_CUDA(LaunchAngles(Angles(device.angles, angles.tables.size()), tokens, stream_));
  Mark(2);
  for (const DecodeBatch& b : batches) KVCASK_CUDA(LaunchPrepare(b, stream_));
  Mark(3);
  for (const DecodeBatch& b : batches) KVCASK_CUDA(LaunchSegments(b, stream_));
  Mark(4);
  for (size_t g = 0; g < gemms.size(); ++g) {
    const GemmBatch& gemm = gemms[g];
    if (gemm.columns == 0) continue;
    const float alpha = std::ldexp(1.0f, -y_exponent_) / groups_[g]->inverse_scale;
    if (gemm.rows == 0) {
      KVCASK_CUDA(cudaMemsetAsync(
          gemm.x, 0, static_cast<size_t>(gemm.columns) * coders_[g]->dimensions() * 2, stream_));
      continue;
    }
    absl::Status status = cublas_->MultiplyTransposed(
        stream_, gemm.columns, coders_[g]->dimensions(),
        std::min(gemm.rows, coders_[g]->dimensions()), alpha, gemm.y, gemm.columns,
        reinterpret_cast<const __half*>(groups_[g]->inverse.data()), gemm.x);
    if (!status.ok()) return status;
  }
  Mark(5);
  for (const DecodeBatch& b : batches) {
    KVCASK_CUDA(LaunchStore(b, wanted, head_dim_, max_members_, stream_));
  }
  Mark(6);
  if (absl::Status s = states_back_.Reserve(tiles_.size() * sizeof(int)); !s.ok()) return s;
  KVCASK_CUDA(cudaMemcpyAsync(states_back_.data(), work.failed, tiles_.size() * sizeof(int),
                              cudaMemcpyDeviceToHost, stream_));
  Mark(7);
  return absl::OkStatus();
}

absl::Status Engine::FinishDecode(absl::Span<DecodeJob> jobs) {
  if (tiles_.empty()) return absl::OkStatus();
  KVCASK_CUDA(cudaStreamSynchronize(stream_));
  const int* const failed = reinterpret_cast<const int*>(states_back_.data());
  for (size_t i = 0; i < tiles_.size(); ++i) {
    if (failed[i] == kGood) continue;
    jobs[job_of_[i]].status = failed[i] == kBeyondHalf
                                  ? absl::UnimplementedError("fklt: a coordinate beyond fp16")
                                  : absl::DataLossError(Describe(failed[i]));
  }
  return absl::OkStatus();
}

absl::Status Engine::Encode(absl::Span<EncodeJob> jobs, absl::Span<uint8_t* const> device_out) {
  encoding_ = true;
  std::vector<EncodeTileDesc> tiles;
  std::vector<size_t> job_of;
  std::vector<GemmBatch> gemms(coders_.size());
  uint64_t symbols = 0;
  size_t planes = 0, pages = 0;
  int tokens = 0, segments_most = 0, set = -1;
  for (size_t i = 0; i < jobs.size(); ++i) {
    EncodeJob& job = jobs[i];
    job.bytes = 0;
    job.certificate = {};
    const bool sizable = job.group >= 0 && static_cast<size_t>(job.group) < coders_.size();
    const size_t token_bytes =
        sizable ? coders_[job.group]->dimensions() * DtypeSize(job.source.dtype) : 0;
    job.status = CheckEncodeJob(shard_, out_groups_, job, 0);
    if (!job.status.ok()) continue;
    const GroupCoder& coder = *coders_[job.group];
    const int preset =
        job.quality == Quality::kNearLossless ? 0 : job.quality == Quality::kCompact ? 2 : 1;
    // One launch has one table set; sinks are the CPU's.
    if (set < 0) set = profile_->preset_table_set[preset];
    if (profile_->preset_table_set[preset] != set ||
        CountBelow(job.positions, profile_->sinks) != 0) {
      continue;
    }
    EncodeTileDesc t{};
    t.group = job.group;
    t.tokens = t.coded = job.tokens;
    t.dtype = static_cast<int>(job.source.dtype);
    t.page_tokens = job.source.pages.page_tokens;
    t.step_exponent = profile_->steps[preset];
    t.table_set = set;
    t.threshold = profile_->active_threshold;
    t.kcap_most = kEncodeKcap;
    t.y_scale = std::ldexp(1.0f, -y_exponent_);
    t.rounding = profile_->rounding;
    t.kappa = profile_->kappa[preset];
    t.bf16_floor = coder.model().bf16_floor;
    t.largest_kld = coder.model().largest_kld[preset];
    t.limit = static_cast<uint32_t>(kRawHeaderBytes + token_bytes * job.tokens - 1);
    t.out = device_out[i];
    t.symbols = symbols;
    t.active = Active(job.group, t.step_exponent);
    const int rows = t.active.rows[kEncodeKcap + kMaxStepClass];
    const size_t most = SymbolLayout::MaxSymbols(job.tokens, rows);
    symbols += (most + 127) / 128 * 128;
    segments_most = std::max(
        segments_most, CutSegments(static_cast<int>((most + kGroupSymbols - 1) / kGroupSymbols))
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
    const uint64_t rows = gemms[g].rows + coders_[g]->sketch_blocks();
    if (absl::Status s = CheckBatch(gemms[g].columns, rows); !s.ok()) return s;
  }
  const AngleTables angles(jobs, job_of);

  struct Inputs {
    EncodeTileDesc* tiles;
    AngleDesc* angles;
    DevicePlane* planes;
    int64_t* pages;
    uint32_t* positions;
  } host, device;
  auto cut_inputs = [&](Cutter c, Inputs* in) {
    in->tiles = c.Take<EncodeTileDesc>(tiles.size());
    in->angles = c.Take<AngleDesc>(angles.tables.size());
    in->planes = c.Take<DevicePlane>(planes);
    in->pages = c.Take<int64_t>(pages);
    in->positions = c.Take<uint32_t>(angles.positions);
    return c.used();
  };
  const size_t input_bytes = cut_inputs(Cutter(), &host);
  if (absl::Status s = staging_.Reserve(input_bytes); !s.ok()) return s;
  if (absl::Status s = inputs_.Reserve(input_bytes); !s.ok()) return s;
  cut_inputs(Cutter(staging_.data()), &host);
  cut_inputs(Cutter(inputs_.data()), &device);
  struct Work {
    EncodeState* states;
    uint16_t* symbols;
    int16_t* integers;
    float* angles;
    uint32_t* segment_bytes;
    uint8_t* scratch;
    std::vector<__half*> y, x;
  } work;
  auto cut_work = [&](Cutter c) {
    work.states = c.Take<EncodeState>(tiles.size());
    work.symbols = c.Take<uint16_t>(symbols);
    work.integers = c.Take<int16_t>(symbols);
    work.angles = c.Take<float>(2 * angles.positions * all_pairs_);
    work.segment_bytes = c.Take<uint32_t>(tiles.size() * segments_most);
    work.scratch = c.Take<uint8_t>(tiles.size() * segments_most * kSegmentScratch);
    work.x.clear();
    work.y.clear();
    for (size_t g = 0; g < gemms.size(); ++g) {
      const size_t columns = gemms[g].columns;
      work.x.push_back(c.Take<__half>(columns * coders_[g]->dimensions()));
      work.y.push_back(c.Take<__half>(columns * (gemms[g].rows + coders_[g]->sketch_blocks())));
    }
    return c.used();
  };
  if (absl::Status s = work_.Reserve(cut_work(Cutter())); !s.ok()) return s;
  cut_work(Cutter(work_.data()));

  angles.Describe(device.positions, work.angles, all_pairs_, host.positions, host.angles);
  size_t plane = 0, page = 0;
  for (size_t i = 0; i < tiles.size(); ++i) {
    EncodeTileDesc& t = tiles[i];
    const EncodeJob& job = jobs[job_of[i]];
    t.x = work.x[t.group];
    t.y = work.y[t.group];
    t.y_stride = gemms[t.group].columns;
    t.gemm_rows = gemms[t.group].rows;
    t.sketch_scale =
        t.y_scale * groups_[t.group]->forward_scale / groups_[t.group]->sketch_scale;
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
  }
  EncodeBatch b{};
  b.tiles = device.tiles;
  b.tile_count = static_cast<int>(tiles.size());
  b.groups = reinterpret_cast<const DeviceGroup*>(group_memory_.data());
  b.ropes = reinterpret_cast<const DeviceRope*>(rope_memory_.data());
  b.rope_count = rope_count_;
  b.all_pairs = all_pairs_;
  b.sinks = static_cast<int>(profile_->sinks);
  b.tables = tables_[set];
  b.states = work.states;
  b.symbols = work.symbols;
  b.integers = work.integers;
  b.segment_bytes = work.segment_bytes;
  b.segments_most = segments_most;
  Mark(0);
  KVCASK_CUDA(cudaMemcpyAsync(inputs_.data(), staging_.data(), input_bytes,
                              cudaMemcpyHostToDevice, stream_));
  Mark(1);
  KVCASK_CUDA(cudaMemsetAsync(work.states, 0, tiles.size() * sizeof(EncodeState), stream_));
  KVCASK_CUDA(LaunchAngles(Angles(device.angles, angles.tables.size()), tokens, stream_));
  KVCASK_CUDA(LaunchGather(b, tokens, head_dim_, max_members_, stream_));
  Mark(2);
  for (size_t g = 0; g < gemms.size(); ++g) {
    const int columns = gemms[g].columns, d = coders_[g]->dimensions(), rows = gemms[g].rows;
    if (columns == 0) continue;
    const int sketches = std::max(0, coders_[g]->sketch_blocks() - rows / 16);
    const __half* matrix = reinterpret_cast<const __half*>(groups_[g]->forward.data());
    if (sketches > 0) {
      auto both = ForwardAndSketch(static_cast<int>(g), rows);
      if (!both.ok()) return both.status();
      matrix = *both;
    }
    absl::Status status = cublas_->MultiplyByTransposed(
        stream_, std::min(rows, d) + sketches, columns, d,
        std::ldexp(1.0f, y_exponent_) / groups_[g]->forward_scale, matrix, work.x[g], work.y[g],
        columns);
    if (!status.ok()) return status;
  }
  Mark(3);
  KVCASK_CUDA(LaunchQuantise(b, stream_));
  Mark(4);
  KVCASK_CUDA(LaunchEncodeSegments(b, stream_));
  Mark(5);
  KVCASK_CUDA(LaunchAssemble(b, stream_));
  Mark(6);
  if (absl::Status s = states_back_.Reserve(tiles.size() * sizeof(EncodeState)); !s.ok()) return s;
  KVCASK_CUDA(cudaMemcpyAsync(states_back_.data(), work.states,
                              tiles.size() * sizeof(EncodeState), cudaMemcpyDeviceToHost,
                              stream_));
  Mark(7);
  KVCASK_CUDA(cudaStreamSynchronize(stream_));
  const EncodeState* const states = reinterpret_cast<const EncodeState*>(states_back_.data());
  for (size_t i = 0; i < tiles.size(); ++i) {
    if (states[i].failed != kEncoded) continue;
    jobs[job_of[i]].bytes = states[i].bytes;
    jobs[job_of[i]].certificate.predicted_kld = states[i].predicted;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<FkltCuda>> FkltCuda::Make(
    std::shared_ptr<const FkltProfile> profile, absl::Span<const GroupCoder* const> coders,
    const Geometry& shard) {
  int devices = 0;
  KVCASK_CUDA(cudaGetDeviceCount(&devices));
  if (devices == 0) return absl::UnavailableError("CUDA: no device");
  auto engine = std::make_unique<Engine>(std::move(profile), coders, shard);
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
    auto engine = FkltCuda::Make(*std::move(profile), pointers, shard_);
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
