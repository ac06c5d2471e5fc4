// How the rows of one stream of one layer become a constant number of bytes: what recipes name
// and what a tile says of itself. FORMAT.md beside this file.
//
// Thread-safe: values, and immutable coders.
#pragma once

#include <absl/status/statusor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace kvcask {

// Frozen in the file format.
enum class CoderKind : uint8_t {
  kRaw = 0,      // bytes as received
  kFp8 = 1,      // e4m3; with a scale for each row, or none
  kUniform = 2,  // asymmetric, by groups of a row
  kTurbo = 3,    // length, rotation, Lloyd-Max codes
  kLattice = 4,  // length, rotation, D4 or E8 points
  kChannel = 5,  // asymmetric, by channel over groups of tokens
};

// One stream's recipe. Numbers that a kind does not name are 0.
struct CoderSpec {
  CoderKind kind = CoderKind::kRaw;
  int bits = 0;   // kUniform, kChannel: 1..8; kTurbo: 1..4; kLattice: 4 (D4) or 8 (E8)
  int group = 0;  // kUniform: elements (0: the whole row); kChannel: tokens, 1..128
  int q = 0;      // kLattice: 2..1,024
  bool scaled = false;          // kFp8
  bool norm_corrected = false;  // kTurbo
  bool signs = false;           // kTurbo: random signs before the transform
  // Of every kind but kRaw:
  bool minus_mean = false;  // the profile's mean is taken off first
  bool unrotated = false;   // keys are un-rotated first; where a mean is taken off they are
  int sinks = 0;            // tokens at absolute positions below this are kept raw; 0..128

  friend bool operator==(const CoderSpec& a, const CoderSpec& b);
  friend bool operator!=(const CoderSpec& a, const CoderSpec& b) { return !(a == b); }
};

// A spec in a tile.
inline constexpr size_t kCoderSpecBytes = 8;
void WriteCoderSpec(const CoderSpec& spec, uint8_t* out);
// INVALID_ARGUMENT says which number is out of range; only what WriteCoderSpec writes is read.
absl::StatusOr<CoderSpec> ReadCoderSpec(const uint8_t* in);
absl::Status CheckCoderSpec(const CoderSpec& spec);

// Codes the rows of one head: [tokens][head_dim] of fp32.
class PlaneCoder {
 public:
  virtual ~PlaneCoder() = default;
  // How many of so many rows are coded: all, or whole groups of tokens. The rest is kept raw.
  virtual int CodedRows(int rows) const { return rows; }
  // Of CodedRows' rows.
  virtual size_t Bytes(int rows) const = 0;
  // `rows` is finite, and overwritten. False when a magnitude is too large for the form.
  virtual bool Encode(float* x, int rows, uint8_t* out) const = 0;
  // Rows [begin, end) of `rows`. False when the bytes are not the coder's.
  virtual bool Decode(const uint8_t* in, int rows, int begin, int end, float* x) const = 0;
};

// `spec` has passed CheckCoderSpec and is not kRaw; head_dim is 1..4,096.
std::unique_ptr<const PlaneCoder> MakePlaneCoder(const CoderSpec& spec, int head_dim);

// "turbo4 sinks=4": for tables and messages.
std::string DescribeCoder(const CoderSpec& spec);
// Bytes of one head and token, as a formula of D = head_dim, and as a number. kChannel's is
// that of a whole group of tokens, divided by it.
std::string CoderFormula(const CoderSpec& spec);
double CoderBytesPerRow(const CoderSpec& spec, int head_dim);

}  // namespace kvcask
