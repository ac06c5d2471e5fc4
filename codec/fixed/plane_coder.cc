#include "codec/fixed/plane_coder.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "codec/base/row_kernels.h"
#include "codec/lattice/lattice.h"
#include "codec/quant/bit_pack.h"
#include "codec/quant/fp8.h"
#include "codec/quant/half.h"
#include "codec/quant/uniform.h"
#include "codec/transform/hadamard.h"
#include "codec/turboquant/turbo_rows.h"

namespace kvcask {
namespace {

// Frozen in the file format.
constexpr int kMinusMeanFlag = 1, kUnrotatedFlag = 2, kScaledFlag = 4, kNormCorrectedFlag = 8,
              kSignsFlag = 16;
constexpr int kMaxSinks = 128, kMaxTokenGroup = 128, kMaxGroup = 4096;

auto Tie(const CoderSpec& s) {
  return std::tie(s.kind, s.bits, s.group, s.q, s.scaled, s.norm_corrected, s.signs, s.minus_mean,
                  s.unrotated, s.sinks);
}

class Fp8Coder : public PlaneCoder {
 public:
  Fp8Coder(bool scaled, int dim) : scaled_(scaled), dim_(dim) {}
  size_t Bytes(int rows) const override { return (dim_ + (scaled_ ? 2 : 0)) * size_t(rows); }
  bool Encode(float* x, int rows, uint8_t* out) const override {
    for (int r = 0; r < rows; ++r, x += dim_, out += dim_) {
      float inverse = 1;
      if (scaled_) {
        const uint32_t bits = MaxMagnitudeBits(x, dim_);
        float largest;
        std::memcpy(&largest, &bits, 4);
        const uint16_t scale = HalfAtLeast(largest / kLargestE4m3);
        if (scale >= kInfiniteHalf) return false;
        StoreHalf(scale, out);
        out += 2;
        inverse = scale > 0 ? 1 / F16ToFloat(scale) : 0;
      }
      QuantiseE4m3(x, dim_, inverse, out);
    }
    return true;
  }
  bool Decode(const uint8_t* in, int, int begin, int end, float* x) const override {
    in += Bytes(begin);
    for (int r = begin; r < end; ++r, x += dim_, in += dim_) {
      float scale = 1;
      if (scaled_) {
        const uint16_t half = LoadHalf(in);
        if (half >= kInfiniteHalf) return false;
        scale = F16ToFloat(half);
        in += 2;
      }
      if (std::any_of(in, in + dim_, IsNanE4m3)) return false;
      DequantiseE4m3(in, dim_, scale, x);
    }
    return true;
  }

 private:
  const bool scaled_;
  const size_t dim_;
};

class UniformCoder : public PlaneCoder {
 public:
  UniformCoder(int bits, int group, int dim)
      : shape_{static_cast<size_t>(dim), group == 0 ? dim : group, bits} {}
  size_t Bytes(int rows) const override { return shape_.bytes() * rows; }
  bool Encode(float* x, int rows, uint8_t* out) const override {
    return EncodeUniformRows(shape_, x, rows, out);
  }
  bool Decode(const uint8_t* in, int, int begin, int end, float* x) const override {
    return DecodeUniformRows(shape_, in + Bytes(begin), end - begin, x);
  }

 private:
  const UniformRow shape_;
};

class TurboCoder : public PlaneCoder {
 public:
  TurboCoder(const CoderSpec& spec, int dim) {
    shape_.n = dim;
    shape_.bits = spec.bits;
    shape_.book = &LloydMaxCodebook(spec.bits, spec.signs ? dim : 0);
    if (spec.signs) shape_.signs = HadamardSigns(dim);
    shape_.norm_corrected = spec.norm_corrected;
  }
  size_t Bytes(int rows) const override { return shape_.bytes() * rows; }
  bool Encode(float* x, int rows, uint8_t* out) const override {
    return EncodeTurboRows(shape_, x, rows, out);
  }
  bool Decode(const uint8_t* in, int, int begin, int end, float* x) const override {
    return DecodeTurboRows(shape_, in + Bytes(begin), end - begin, x);
  }

 private:
  TurboRow shape_;
};

class LatticeCoder : public PlaneCoder {
 public:
  LatticeCoder(const CoderSpec& spec, int dim)
      : lattice_{spec.bits == 4 ? LatticeKind::kD4 : LatticeKind::kE8, spec.q},
        dim_(dim),
        signs_(HadamardSigns(dim)) {}
  size_t Bytes(int rows) const override { return LatticeRowBytes(lattice_, dim_) * rows; }
  bool Encode(float* x, int rows, uint8_t* out) const override {
    return EncodeLatticeRows(lattice_, signs_.data(), dim_, x, rows, out);
  }
  bool Decode(const uint8_t* in, int, int begin, int end, float* x) const override {
    return DecodeLatticeRows(lattice_, signs_.data(), dim_, in + Bytes(begin), end - begin, x);
  }

 private:
  const Lattice lattice_;
  const size_t dim_;
  const std::vector<float> signs_;
};

class ChannelCoder : public PlaneCoder {
 public:
  ChannelCoder(int bits, int group, int dim) : bits_(bits), group_(group), dim_(dim) {}
  int CodedRows(int rows) const override { return rows / group_ * group_; }
  size_t Bytes(int rows) const override { return GroupBytes() * (rows / group_); }
  bool Encode(float* x, int rows, uint8_t* out) const override {
    for (int r = 0; r + group_ <= rows; r += group_, out += GroupBytes()) {
      if (!EncodeUniformColumns(x + r * dim_, group_, dim_, bits_, out)) return false;
    }
    return true;
  }
  bool Decode(const uint8_t* in, int rows, int begin, int end, float* x) const override {
    for (int r = 0; r + group_ <= rows; r += group_, in += GroupBytes()) {
      const int from = std::max(begin, r), to = std::min(end, r + group_);
      if (from >= to) continue;
      if (!DecodeUniformColumns(in, group_, dim_, bits_, from - r, to - r,
                                x + (from - begin) * dim_)) {
        return false;
      }
    }
    return true;
  }

 private:
  size_t GroupBytes() const { return UniformColumnsBytes(group_, dim_, bits_); }
  const int bits_, group_;
  const size_t dim_;
};

template <typename... Args>
absl::Status Bad(const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("stream: ", what...));
}

absl::Status CheckRange(const char* name, int found, int low, int high) {
  if (found >= low && found <= high) return absl::OkStatus();
  return Bad(name, " ", found, "; expected ", low, " to ", high);
}

}  // namespace

bool operator==(const CoderSpec& a, const CoderSpec& b) { return Tie(a) == Tie(b); }

absl::Status CheckCoderSpec(const CoderSpec& s) {
  CoderSpec known;  // the numbers that this kind names
  known.kind = s.kind;
  if (s.kind != CoderKind::kRaw) {
    known.minus_mean = s.minus_mean;
    known.unrotated = s.unrotated;
    known.sinks = s.sinks;
  }
  absl::Status range = CheckRange("sinks", s.sinks, 0, kMaxSinks);
  switch (s.kind) {
    case CoderKind::kRaw:
      break;
    case CoderKind::kFp8:
      known.scaled = s.scaled;
      break;
    case CoderKind::kUniform:
      range.Update(CheckRange("bits", s.bits, 1, 8));
      range.Update(CheckRange("group", s.group, 0, kMaxGroup));
      known.bits = s.bits;
      known.group = s.group;
      break;
    case CoderKind::kTurbo:
      range.Update(CheckRange("bits", s.bits, 1, 4));
      known.bits = s.bits;
      known.norm_corrected = s.norm_corrected;
      known.signs = s.signs;
      break;
    case CoderKind::kLattice:
      if (s.bits != 4 && s.bits != 8) range.Update(Bad("lattice ", s.bits, "; expected 4 or 8"));
      range.Update(CheckRange("q", s.q, kMinLatticeQ, kMaxLatticeQ));
      known.bits = s.bits;
      known.q = s.q;
      break;
    case CoderKind::kChannel:
      range.Update(CheckRange("bits", s.bits, 1, 8));
      range.Update(CheckRange("group", s.group, 1, kMaxTokenGroup));
      known.bits = s.bits;
      known.group = s.group;
      break;
    default:
      return Bad("unknown kind ", static_cast<int>(s.kind));
  }
  if (!range.ok()) return range;
  if (s != known) return Bad("a number that its kind does not have");
  return absl::OkStatus();
}

void WriteCoderSpec(const CoderSpec& s, uint8_t* out) {
  out[0] = static_cast<uint8_t>(s.kind);
  out[1] = static_cast<uint8_t>(s.bits);
  out[2] = static_cast<uint8_t>((s.minus_mean ? kMinusMeanFlag : 0) |
                                (s.unrotated ? kUnrotatedFlag : 0) | (s.scaled ? kScaledFlag : 0) |
                                (s.norm_corrected ? kNormCorrectedFlag : 0) |
                                (s.signs ? kSignsFlag : 0));
  out[3] = static_cast<uint8_t>(s.sinks);
  out[4] = static_cast<uint8_t>(s.group);
  out[5] = static_cast<uint8_t>(s.group >> 8);
  out[6] = static_cast<uint8_t>(s.q);
  out[7] = static_cast<uint8_t>(s.q >> 8);
}

absl::StatusOr<CoderSpec> ReadCoderSpec(const uint8_t* in) {
  CoderSpec s;
  s.kind = static_cast<CoderKind>(in[0]);
  s.bits = in[1];
  s.minus_mean = in[2] & kMinusMeanFlag;
  s.unrotated = in[2] & kUnrotatedFlag;
  s.scaled = in[2] & kScaledFlag;
  s.norm_corrected = in[2] & kNormCorrectedFlag;
  s.signs = in[2] & kSignsFlag;
  s.sinks = in[3];
  s.group = in[4] | in[5] << 8;
  s.q = in[6] | in[7] << 8;
  if (in[2] >= 2 * kSignsFlag) return Bad("unknown flags ", static_cast<int>(in[2]));
  if (absl::Status status = CheckCoderSpec(s); !status.ok()) return status;
  return s;
}

std::unique_ptr<const PlaneCoder> MakePlaneCoder(const CoderSpec& s, int head_dim) {
  switch (s.kind) {
    case CoderKind::kRaw:
      break;
    case CoderKind::kFp8:
      return std::make_unique<Fp8Coder>(s.scaled, head_dim);
    case CoderKind::kUniform:
      return std::make_unique<UniformCoder>(s.bits, s.group, head_dim);
    case CoderKind::kTurbo:
      return std::make_unique<TurboCoder>(s, head_dim);
    case CoderKind::kLattice:
      return std::make_unique<LatticeCoder>(s, head_dim);
    case CoderKind::kChannel:
      return std::make_unique<ChannelCoder>(s.bits, s.group, head_dim);
  }
  return nullptr;
}

std::string DescribeCoder(const CoderSpec& s) {
  std::string text;
  switch (s.kind) {
    case CoderKind::kRaw:
      return "raw";
    case CoderKind::kFp8:
      text = s.scaled ? "fp8" : "fp8 unscaled";
      break;
    case CoderKind::kUniform:
      text = absl::StrCat("int", s.bits, " group=", s.group == 0 ? "row" : absl::StrCat(s.group));
      break;
    case CoderKind::kTurbo:
      text = absl::StrCat("turbo", s.bits, s.signs ? "" : " nosigns",
                          s.norm_corrected ? "" : " nonc");
      break;
    case CoderKind::kLattice:
      text = absl::StrCat(s.bits == 4 ? "d4" : "e8", " q=", s.q);
      break;
    case CoderKind::kChannel:
      text = absl::StrCat("channel", s.bits, " group=", s.group);
      break;
  }
  if (s.sinks > 0) absl::StrAppend(&text, " sinks=", s.sinks);
  if (s.unrotated) absl::StrAppend(&text, " unrotated");
  return text;
}

std::string CoderFormula(const CoderSpec& s) {
  switch (s.kind) {
    case CoderKind::kRaw:
      return "2 D";
    case CoderKind::kFp8:
      return s.scaled ? "D + 2" : "D";
    case CoderKind::kUniform:
      return absl::StrCat("ceil(", s.bits, " D / 8) + ",
                          s.group == 0 ? "4" : absl::StrCat("4 ceil(D / ", s.group, ")"));
    case CoderKind::kTurbo:
      return absl::StrCat("ceil(", s.bits, " D / 8) + 2");
    case CoderKind::kLattice: {
      const Lattice lattice{s.bits == 4 ? LatticeKind::kD4 : LatticeKind::kE8, s.q};
      return absl::StrCat("ceil(", lattice.bits(), " ceil(D / ", s.bits, ") / 8) + 4");
    }
    case CoderKind::kChannel:
      return absl::StrCat("(ceil(", s.bits * s.group, " D / 8) + 4 D) / ", s.group);
  }
  return "";
}

double CoderBytesPerRow(const CoderSpec& s, int head_dim) {
  if (s.kind == CoderKind::kRaw) return 2.0 * head_dim;
  const int rows = s.kind == CoderKind::kChannel ? s.group : 1;
  return static_cast<double>(MakePlaneCoder(s, head_dim)->Bytes(rows)) / rows;
}

}  // namespace kvcask
