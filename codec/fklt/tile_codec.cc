#include "codec/fklt/tile_codec.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "codec/api/jobs.h"
#include "codec/base/strided.h"
#include "codec/fklt/quantise.h"
#include "codec/fklt/received.h"
#include "codec/fklt/sinks.h"
#include "codec/fklt/tile.h"

namespace kvcask::fklt {
namespace {

constexpr float kLargestElement = 65504;   // of fp16: GPU backends compute in it
constexpr int kFinerSteps = 2;             // attempts after the first, an octave each
constexpr double kMostSinkShare = .25;

// Cuts a workspace into typed, aligned pieces: run once to measure, once to cut.
class Arena {
 public:
  explicit Arena(uint8_t* memory) : memory_(memory) {}
  template <typename T>
  T* Take(size_t n) {
    at_ = (at_ + 63) & ~size_t{63};
    T* p = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at_);
    at_ += n * sizeof(T);
    return p;
  }
  size_t used() const { return at_ + 64; }

 private:
  uint8_t* memory_;
  size_t at_ = 0;
};

struct Scratch {
  float* head;  // [tokens][max head_dim]
  float* x;     // [tokens][D], encode: the coded ones, then the sinks
  float* x2;    // [tokens][D], encode: by place
  float* y;     // [D + sketch blocks][kMaxTokens]
  uint8_t* classes;
  int16_t* symbols;
  uint8_t* segment;
};

Scratch TakeScratch(const GroupCoder& group, int tokens, Workspace& workspace) {
  auto cut = [&](Arena arena, Scratch* s) {
    const size_t d = group.dimensions();
    s->head = arena.Take<float>(static_cast<size_t>(tokens) * group.max_head_dim());
    s->x = arena.Take<float>(tokens * d);
    s->x2 = arena.Take<float>(tokens * d);
    s->y = arena.Take<float>(kMaxTokens * (d + group.sketch_blocks()));
    const size_t symbols = SymbolLayout::MaxSymbols(tokens, group.dimensions());
    s->classes = arena.Take<uint8_t>(symbols + 64);
    s->symbols = arena.Take<int16_t>(symbols + 64);
    s->segment = arena.Take<uint8_t>(SegmentScratchBytes());
    return arena.used();
  };
  Scratch s;
  const size_t bytes = cut(Arena(nullptr), &s);
  uint8_t* memory = workspace.Get(bytes + 64).data();
  memory += -reinterpret_cast<uintptr_t>(memory) & 63;
  cut(Arena(memory), &s);
  return s;
}

TileModel ModelOf(const FkltProfile& profile, const GroupCoder& group) {
  return {group.model().sigma, profile.table_sets, profile.active_threshold};
}

// INVALID_ARGUMENT with the place of the first element that is NaN or infinite; OK when none is.
absl::Status FindNonFinite(const GroupCoder& group, const EncodeJob& job) {
  for (const MemberPlace& m : group.members()) {
    for (int t = 0; t < job.tokens; ++t) {
      for (int d = 0; d < m.head_dim; ++d) {
        const float v = LoadElement(job.source.At(m.plane, m.head, t, d), job.source.dtype);
        if (std::isfinite(v)) continue;
        return absl::InvalidArgumentError(absl::StrCat(
            "fklt: ", v, " at layer ", m.layer, ", stream ", StreamName(m.stream), ", head ",
            m.head, ", token ", t, " of the tile (position ", job.positions[t], "), element ", d));
      }
    }
  }
  return absl::OkStatus();
}

// What of a tile fits fp16's range once K is un-rotated and mu subtracted.
struct Fit {
  bool coded = true;  // false also when an element of any token is not finite
  bool sinks = true;
};

// x - mu, K un-rotated, into x [coded, then sinks][D].
Fit LoadCentred(const GroupCoder& group, const EncodeJob& job, absl::Span<const TokenRun> runs,
                absl::Span<const TokenRun> sinks, RopeCache* ropes, float* head, float* x) {
  const int d = group.dimensions();
  int outside = 0, sinks_outside = 0;
  auto centre = [&](const MemberPlace& m, const TokenRun& run, float* rows) {
    const float* __restrict mu = group.model().mu.data() + m.offset;
    int far = 0;
    for (int t = run.begin; t < run.end; ++t) {
      const float* __restrict from = head + static_cast<size_t>(t) * m.head_dim;
      float* __restrict to = rows + static_cast<size_t>(run.index + t - run.begin) * d + m.offset;
      for (int i = 0; i < m.head_dim; ++i) {
        const float v = from[i] - mu[i];
        far |= !(std::fabs(v) <= kLargestElement);
        to[i] = v;
      }
    }
    return far;
  };
  float* const sink_rows = x + static_cast<size_t>(CountTokens(runs)) * d;
  for (const MemberPlace& m : group.members()) {
    LoadHead(job.source, m.plane, m.head, 0, job.tokens, m.head_dim, head);
    for (const TokenRun& run : sinks) {
      for (int i = run.begin * m.head_dim; i < run.end * m.head_dim; ++i) {
        outside |= !(std::fabs(head[i]) <= std::numeric_limits<float>::max());
      }
    }
    if (m.rope != nullptr) {
      const RopeTable& table = ropes->Get(m, job.positions, 0, RopeDirection::kUnrotate);
      ApplyRope(*m.rope, table, job.tokens, m.head_dim, head);
    }
    for (const TokenRun& run : runs) outside |= centre(m, run, x);
    for (const TokenRun& run : sinks) sinks_outside |= centre(m, run, sink_rows);
  }
  return {outside == 0, sinks_outside == 0};
}

void EncodeRaw(const GroupCoder& group, EncodeJob* job) {
  WriteRawHeader(job->destination.data());
  const TokenRun all[] = {{0, job->tokens, 0}};
  job->bytes = kRawHeaderBytes +
               KeepReceived(group, job->source, all, job->destination.data() + kRawHeaderBytes);
  job->certificate.predicted_kld = 0;
}

// Encodes the coded tokens of one job, at one step after the other. After Analyse, tokens stand by
// place (FORMAT.md 3.1), so that every coordinate has a prefix of them and the GEMM is cut along.
class TileEncoder {
 public:
  TileEncoder(const FkltProfile& profile, const GroupCoder& group, RansPath path,
              int step_limit_shift, const Scratch& scratch, int preset, int tokens, int all_tokens)
      : profile_(profile),
        group_(group),
        path_(path),
        step_limit_shift_(step_limit_shift),
        s_(scratch),
        preset_(preset),
        tokens_(tokens),
        all_tokens_(all_tokens),
        model_(ModelOf(profile, group)),
        places_done_((group.dimensions() + kBlock - 1) / kBlock, 0) {}

  // From x - mu in s_.x: the leading coordinates, sensitivities, step classes, places.
  void Analyse() {
    const int m = group_.model().leading();
    const int lead = std::min(group_.dimensions(), (m + kBlock - 1) / kBlock * kBlock);
    group_.Forward(0, lead, tokens_, s_.x, s_.y, kMaxTokens);
    const float* p = group_.model().sensitivity.data();
    alignas(32) float eta[kMaxTokens];
    std::fill_n(eta, tokens_, p[0]);
    for (int r = 0; r < m; ++r) {
      AddToPredictor(Row(r), tokens_, group_.inverse_sigma(r), p[1 + r], p[1 + m + r], eta, path_);
    }
    float weight[kMaxTokens];
    for (int t = 0; t < tokens_; ++t) {
      const float e = std::isfinite(eta[t]) ? std::min(8.0f, std::max(-8.0f, eta[t])) : 0.0f;
      weight[t] = std::exp(e);
      const int k = static_cast<int>(std::lround(.5 * e / std::log(2.0)));
      classes_.step[t] = static_cast<int8_t>(std::min(kMaxStepClass, std::max(-kMaxStepClass, k)));
    }
    uint8_t token_at[kMaxTokens];
    SortTokens(classes_.step, tokens_, token_at);
    const size_t d = group_.dimensions();
    for (int place = 0; place < tokens_; ++place) {
      const int t = token_at[place];
      weight_[place] = weight[t];
      std::memcpy(s_.x2 + place * d, s_.x + t * d, d * sizeof(float));
    }
    for (int r = 0; r < lead; ++r) {
      float* const row = Row(r);
      float by_place[kMaxTokens];
      for (int place = 0; place < tokens_; ++place) by_place[place] = row[token_at[place]];
      std::memcpy(row, by_place, tokens_ * sizeof(float));
    }
    std::fill_n(places_done_.begin(), (lead + kBlock - 1) / kBlock, tokens_);
    kcap_ = classes_.step[token_at[0]];
  }

  // Writes the tile's header and segments at step exponent `i` and sets the predicted KLD;
  // returns its bytes, or 0 when it can't be coded below `limit` or is over the floor.
  size_t Encode(int i, uint8_t* out, size_t limit, double* predicted) {
    TileHeader header;
    header.kcap = kcap_;
    header.table_set = profile_.preset_table_set[preset_];
    header.step_exponent = i;
    header.step_limit_shift = step_limit_shift_;
    layout_.Reset(model_, header, tokens_, classes_.step);
    ComputeRows();
    PlaceScales scales;
    ChooseAmplitudes(
        ActiveRows(model_.sigma.data(), group_.dimensions(), i, 0, profile_.active_threshold),
        scales.terms);
    for (int p = 0; p < tokens_; ++p) {
      const int k = classes_.step[layout_.token_at(p)];
      scales.step[p] = StepOf(i, k);
      scales.inverse_step[p] = StepOf(-i, -k);
    }
    const TableSet& tables = profile_.table_sets[header.table_set];
    alignas(32) float error[kMaxTokens] = {};
    for (int r = 0; r < layout_.rows(); ++r) {
      const size_t at = layout_.offset(r);
      if (!QuantiseRow(RowTerm(model_.sigma[r], i), Row(r), layout_.count(r), profile_.rounding,
                       tables.centroids(), scales, s_.classes + at, s_.symbols + at, error,
                       path_)) {
        return 0;
      }
    }
    AddDropped(error);
    double loss = 0;
    for (int p = 0; p < tokens_; ++p) loss += .5 * weight_[p] * error[p];
    *predicted = profile_.kappa[preset_] * loss / all_tokens_ + group_.model().bf16_floor;
    if (!(*predicted <= group_.model().largest_kld[preset_])) return 0;
    return WriteTile(header, tables, classes_, layout_, s_.classes, s_.symbols, s_.segment, out,
                     limit, path_);
  }

 private:
  static constexpr int kBlock = GroupCoder::kSketchRows;
  float* Row(int r) const { return s_.y + static_cast<size_t>(r) * kMaxTokens; }

  // y of all coordinates that the layout has, to the end of each place's last block.
  void ComputeRows() {
    const int blocks = (layout_.rows() + kBlock - 1) / kBlock;
    for (int b = 0; b < blocks;) {
      const int places = layout_.PlacesOver(b * kBlock);
      if (places <= places_done_[b]) {
        ++b;
        continue;
      }
      // Neighbouring blocks of nearly as many places go into one GEMM.
      int end = b + 1;
      while (end < blocks && places_done_[end] < places &&
             layout_.PlacesOver(end * kBlock) >= places - 8) {
        ++end;
      }
      group_.Forward(b * kBlock, std::min(group_.dimensions(), end * kBlock), places, s_.x2,
                     Row(b * kBlock), kMaxTokens);
      for (; b < end; ++b) places_done_[b] = places;
    }
  }

  // Adds the energy of the coordinates that places do not have: exactly up to the end of the
  // block that a place's last one is in, estimated from the sketch for the blocks after it.
  void AddDropped(float* error) {
    const int d = group_.dimensions();
    const int blocks = (layout_.rows() + kBlock - 1) / kBlock;
    const int least = layout_.rows_at(tokens_ - 1);
    for (int r = least; r < std::min(d, blocks * kBlock); ++r) {
      const int coded = r < layout_.rows() ? layout_.count(r) : 0;
      const int places = layout_.PlacesOver(r / kBlock * kBlock);
      AddToAmplitude(Row(r) + coded, places - coded, 1, error + coded, path_);
    }
    const int first = (least + kBlock - 1) / kBlock;
    float* const sketch = Row(d);
    group_.Sketch(first, tokens_, s_.x2, sketch, kMaxTokens);
    for (int b = first; b < group_.sketch_blocks(); ++b) {
      const int over = layout_.PlacesOver(b * kBlock);
      AddToAmplitude(sketch + static_cast<size_t>(b - first) * kMaxTokens + over, tokens_ - over, 1,
                     error + over, path_);
    }
  }

  // From each place's coordinates below `rows`; sets the terms too.
  void ChooseAmplitudes(int rows, int16_t* terms) {
    alignas(32) float sum[kMaxTokens] = {};
    for (int r = 0; r < std::min(rows, layout_.rows()); ++r) {
      AddToAmplitude(Row(r), layout_.count(r), group_.inverse_sigma(r), sum, path_);
    }
    for (int p = 0; p < tokens_; ++p) {
      const int n = std::min(rows, layout_.rows_at(p));
      const int t = layout_.token_at(p);
      int a = 8;
      if (n > 0) {
        const float mean = std::min(1e30f, std::max(1e-30f, sum[p] / static_cast<float>(n)));
        a = static_cast<int>(std::lround(std::log2(mean))) + 8;
      }
      classes_.amplitude[t] = static_cast<uint8_t>(std::min(15, std::max(0, a)));
      terms[p] = static_cast<int16_t>(TokenTerm(classes_.amplitude[t], classes_.step[t]));
    }
  }

  const FkltProfile& profile_;
  const GroupCoder& group_;
  const RansPath path_;
  const int step_limit_shift_;
  const Scratch s_;
  const int preset_, tokens_, all_tokens_;
  const TileModel model_;
  std::vector<int> places_done_;  // of each block of rows, how many places' y are there
  int kcap_ = 0;
  TokenClasses classes_;
  SymbolLayout layout_;
  float weight_[kMaxTokens];  // by place
};

// Appends the sinks to a coded tile and their cost to its certificate: in 10 bits where that
// is cheap in bytes and in nats, else as received.
void AddSinks(const FkltProfile& profile, const GroupCoder& group, int preset,
              absl::Span<const TokenRun> runs, bool fit, const Scratch& s, int coded,
              EncodeJob* job) {
  const GroupModel& model = group.model();
  const int sinks = CountTokens(runs);
  uint8_t* const out = job->destination.data() + job->bytes;
  const size_t received =
      static_cast<size_t>(model.dimensions) * sinks * DtypeSize(job->source.dtype);
  const size_t bytes = SinkBytes(model, sinks);
  if (fit && bytes < received) {
    const double loss =
        profile.kappa[preset] * kSinkSensitivity / job->tokens *
        QuantiseSinks(model, sinks, s.x + static_cast<size_t>(coded) * model.dimensions, out);
    const double predicted = job->certificate.predicted_kld + loss;
    if (loss <= kMostSinkShare * predicted && predicted <= model.largest_kld[preset]) {
      job->destination[0] = kCodedSinksMode;
      job->bytes += bytes;
      job->certificate.predicted_kld = predicted;
      return;
    }
  }
  job->bytes += KeepReceived(group, job->source, runs, out);
}

// Copies the wanted elements of the members in [first, last) of the group to the destination,
// keys turned. Token t of the wanted ones is row row_of[t] of x [rows][columns].
void StoreMembers(const GroupCoder& group, int first, int last, const DecodeJob& job,
                  absl::Span<const TokenRun> runs, int first_index, int columns,
                  absl::Span<const uint32_t> positions, const int* row_of, RopeCache* ropes,
                  float* head, const float* x) {
  const int base = group.members()[first].offset;
  for (int i = first; i < last; ++i) {
    const MemberPlace& m = group.members()[i];
    const int plane = WantedPlane(group, m, job);
    const int tokens = static_cast<int>(positions.size());
    for (int t = 0; t < tokens; ++t) {
      std::memcpy(head + static_cast<size_t>(t) * m.head_dim,
                  x + static_cast<size_t>(row_of[t]) * columns + m.offset - base,
                  m.head_dim * sizeof(float));
    }
    if (m.rope != nullptr) {
      const RopeTable& table =
          ropes->Get(m, positions, job.position_offset, RopeDirection::kRotate);
      ApplyRope(*m.rope, table, tokens, m.head_dim, head);
    }
    for (const TokenRun& run : runs) {
      const TokenRun part = Clip(run, job);
      if (part.begin == part.end) continue;
      StoreHead(head + static_cast<size_t>(part.index - first_index) * m.head_dim, job.destination,
                plane, m.head, part.begin - job.token_begin, part.end - job.token_begin,
                m.head_dim);
    }
  }
}

// The places of coded tokens [first, last), in order.
struct WantedPlaces {
  WantedPlaces(const SymbolLayout& layout, int first, int last) : all(layout.tokens()) {
    for (int p = 0; p < layout.tokens(); ++p) {
      before[p] = count;
      const int t = layout.token_at(p);
      if (t < first || t >= last) continue;
      row_of[t - first] = count;
      place[count++] = p;
    }
    before[layout.tokens()] = count;
  }
  // Moves the wanted of the row's first n places to its front; 0 for those it does not have.
  void Compress(int n, float* row) const {
    if (count < all) {
      for (int i = 0; i < before[n]; ++i) row[i] = row[place[i]];
    }
    std::fill(row + before[n], row + count, 0.0f);
  }

  int all, count = 0;
  int before[kMaxTokens + 1];  // wanted places before a place
  int place[kMaxTokens];
  int row_of[kMaxTokens];  // of token first + t among the wanted places
};

// x of the wanted places: GEMMs over runs of coordinates that nearly as many places have.
void Invert(const GroupCoder& group, const SymbolLayout& layout, const WantedPlaces& wanted,
            const float* y, int column_begin, int column_end, float* x) {
  group.StartInverse(wanted.count, column_begin, column_end, x);
  for (int r = 0; r < layout.rows();) {
    const int places = wanted.before[layout.count(r)];
    int end = r + 1;
    while (end < layout.rows() &&
           (wanted.before[layout.count(end)] >= places - 8 || end - r < 16)) {
      ++end;
    }
    group.AddInverse(r, end, places, y + static_cast<size_t>(r) * kMaxTokens, kMaxTokens,
                     column_begin, column_end, x);
    r = end;
  }
}

// Writes the wanted of the sinks x [sinks][D] to the destination.
void StoreSinks(const GroupCoder& group, absl::Span<const TokenRun> runs, const DecodeJob& job,
                float* head, const float* x) {
  std::vector<uint32_t> positions;
  std::vector<int> row_of;
  for (const TokenRun& run : runs) {
    const TokenRun part = Clip(run, job);
    for (int t = part.begin; t < part.end; ++t) {
      positions.push_back(job.positions[t]);
      row_of.push_back(part.index + t - part.begin);
    }
  }
  if (row_of.empty()) return;
  RopeCache ropes;  // of its own: the caller's holds the coded tokens' tables
  const absl::Span<const MemberPlace> members = group.members();
  for (int i = 0; i < static_cast<int>(members.size()); ++i) {
    if (WantedPlane(group, members[i], job) < 0) continue;
    StoreMembers(group, i, i + 1, job, runs, row_of[0], group.dimensions(), positions,
                 row_of.data(), &ropes, head, x + members[i].offset);
  }
}

absl::Status DecodeCoded(const FkltProfile& profile, const GroupCoder& group, RansPath path,
                         const TileHeader& header, absl::Span<const uint8_t> tile,
                         absl::Span<const TokenRun> runs, RopeCache* ropes, const Scratch& s,
                         const DecodeJob& job) {
  SymbolLayout layout;
  TokenClasses classes;
  absl::Status status = ReadTile(tile, header, ModelOf(profile, group), CountTokens(runs), &layout,
                                 &classes, s.classes, s.symbols, path);
  if (!status.ok()) return status;
  // The wanted tokens, among the coded.
  int first = -1, last = -1;
  std::vector<uint32_t> positions;
  for (const TokenRun& run : runs) {
    const TokenRun part = Clip(run, job);
    if (part.begin == part.end) continue;
    if (first < 0) first = part.index;
    last = part.index + part.end - part.begin;
    positions.insert(positions.end(), job.positions.begin() + part.begin,
                     job.positions.begin() + part.end);
  }
  if (first < 0) return absl::OkStatus();
  const WantedPlaces wanted(layout, first, last);
  float step[kMaxTokens];
  for (int p = 0; p < layout.tokens(); ++p) {
    step[p] = StepOf(header.step_exponent, classes.step[layout.token_at(p)]);
  }
  const float* centroids = profile.table_sets[header.table_set].centroids();
  for (int r = 0; r < layout.rows(); ++r) {
    float* const row = s.y + static_cast<size_t>(r) * kMaxTokens;
    DequantiseRow(s.classes + layout.offset(r), s.symbols + layout.offset(r), layout.count(r),
                  centroids, step, row, path);
    wanted.Compress(layout.count(r), row);
  }
  // Members that are wanted and lie beside one another in the group's vector, at once.
  const absl::Span<const MemberPlace> members = group.members();
  for (size_t begin = 0; begin < members.size();) {
    size_t end = begin;
    while (end < members.size() && WantedPlane(group, members[end], job) >= 0) ++end;
    if (end > begin) {
      const int column_begin = members[begin].offset;
      const int column_end = members[end - 1].offset + members[end - 1].head_dim;
      Invert(group, layout, wanted, s.y, column_begin, column_end, s.x);
      StoreMembers(group, static_cast<int>(begin), static_cast<int>(end), job, runs, first,
                   column_end - column_begin, positions, wanted.row_of, ropes, s.head, s.x);
    }
    begin = std::max(end, begin + 1);
  }
  return absl::OkStatus();
}

}  // namespace

const RopeTable& RopeCache::Get(const MemberPlace& member, absl::Span<const uint32_t> positions,
                                int64_t offset, RopeDirection direction) {
  if (positions != absl::MakeConstSpan(positions_) || offset != offset_ ||
      direction != direction_) {
    positions_.assign(positions.begin(), positions.end());
    offset_ = offset;
    direction_ = direction;
    tables_.clear();
  }
  for (const auto& [id, table] : tables_) {
    if (id == member.rope_id) return table;
  }
  tables_.emplace_back(member.rope_id, MakeRopeTable(*member.rope, positions, offset, direction));
  return tables_.back().second;
}

absl::Status EncodeTile(const FkltProfile& profile, const GroupCoder& group, RansPath path,
                        int step_limit_shift, RopeCache* ropes, Workspace& workspace,
                        EncodeJob* job) {
  const std::vector<TokenRun> coded = ListRuns(job->positions, profile.sinks, false);
  const std::vector<TokenRun> sinks = ListRuns(job->positions, profile.sinks, true);
  const int preset = PresetOf(job->quality);
  const Scratch s = TakeScratch(group, job->tokens, workspace);
  const Fit fit = LoadCentred(group, *job, coded, sinks, ropes, s.head, s.x);
  if (!fit.coded) {
    if (absl::Status status = FindNonFinite(group, *job); !status.ok()) return status;
    EncodeRaw(group, job);
    return absl::OkStatus();
  }
  const int tokens = CountTokens(coded);
  if (tokens > 0) {
    const size_t element = DtypeSize(job->source.dtype);
    const size_t token_bytes = static_cast<size_t>(group.dimensions()) * element;
    const size_t limit = kRawHeaderBytes + token_bytes * tokens - 1;  // below the raw form
    TileEncoder encoder(profile, group, path, step_limit_shift, s, preset, tokens, job->tokens);
    encoder.Analyse();
    for (int finer = 0; finer <= kFinerSteps; ++finer) {
      double predicted;
      const size_t bytes = encoder.Encode(profile.steps[preset] - 8 * finer,
                                          job->destination.data(), limit, &predicted);
      if (bytes == 0) continue;
      job->bytes = bytes;
      job->certificate.predicted_kld = predicted;
      if (!sinks.empty()) AddSinks(profile, group, preset, sinks, fit.sinks, s, tokens, job);
      return absl::OkStatus();
    }
  }
  EncodeRaw(group, job);
  return absl::OkStatus();
}

absl::Status DecodeTile(const FkltProfile& profile, const GroupCoder& group, RansPath path,
                        RopeCache* ropes, Workspace& workspace, const DecodeJob& job) {
  TileHeader header;
  absl::Status status =
      ReadTileHeader(job.tile, static_cast<int>(profile.table_sets.size()), &header);
  if (!status.ok()) return status;
  const Scratch s = TakeScratch(group, job.tokens, workspace);
  const size_t token_bytes = static_cast<size_t>(group.dimensions()) * DtypeSize(job.source_dtype);
  if (header.mode == kRawMode) {
    const size_t expected = kRawHeaderBytes + token_bytes * job.tokens;
    if (job.tile.size() != expected) {
      return absl::DataLossError(
          absl::StrCat("fklt tile: raw, of ", job.tile.size(), " bytes; expected ", expected));
    }
    const TokenRun all[] = {{0, job.tokens, 0}};
    RestoreReceived(group, job.tile.subspan(kRawHeaderBytes), all, job, s.head);
    return absl::OkStatus();
  }
  const std::vector<TokenRun> coded = ListRuns(job.positions, profile.sinks, false);
  const std::vector<TokenRun> sinks = ListRuns(job.positions, profile.sinks, true);
  const bool quantised = header.mode == kCodedSinksMode;
  const int sink_tokens = CountTokens(sinks);
  if (quantised && sinks.empty()) {
    return absl::DataLossError("fklt tile: mode 2, sinks in 10 bits, where there are none");
  }
  const size_t kept = quantised ? SinkBytes(group.model(), sink_tokens) : token_bytes * sink_tokens;
  if (coded.empty() || job.tile.size() - kHeaderBytes < kept) {
    return absl::DataLossError(
        absl::StrCat("fklt tile: ", job.tile.size(), " bytes, of which ", kept, " would be sinks"));
  }
  const size_t split = job.tile.size() - kept;
  status =
      DecodeCoded(profile, group, path, header, job.tile.subspan(0, split), coded, ropes, s, job);
  if (!status.ok()) return status;
  if (!quantised) {
    RestoreReceived(group, job.tile.subspan(split), sinks, job, s.head);
    return absl::OkStatus();
  }
  status = DequantiseSinks(group.model(), sink_tokens, job.tile.subspan(split), s.x);
  if (!status.ok()) return status;
  StoreSinks(group, sinks, job, s.head, s.x);
  return absl::OkStatus();
}

}  // namespace kvcask::fklt
