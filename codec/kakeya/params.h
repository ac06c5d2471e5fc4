// What a Kakeya codec does to a stream of rows: the switches of v1.0 to v1.3-PPL, each alone,
// the presets, and their JSON, which profiles carry. Where the published descriptions leave a
// thing open, the comment says what is done here.
//
// Thread-safe: values and pure functions.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "codec/base/dtype.h"

namespace kvcask::kakeya {

enum class Residual {
  kSparse,  // v1.0: the largest coordinates as (index, value), the others dropped
  kCoded,   // v1.2 on: WHT, then a Lloyd-Max code for every coordinate
};

enum class PcaMethod { kExact, kRandomized };

// What the scale of a row's decoded residual is fitted to. The published parameter has these
// names; what it changes was not published.
enum class Metric {
  kMse,           // the plain norm, as the scale was described
  kInnerProduct,  // <decoded, residual> = |residual|^2: products with the row are unbiased
  kLinf,          // the least largest error of a coordinate, over scales near the norm
};

enum class RowOrder {
  kPerHead,  // a block is consecutive tokens of one head
  kPooled,   // rows token by token, heads of a token side by side: blocks mix heads
};

struct StreamParams {
  bool coded = true;  // false: the stream is kept as it was received (K only, V only)
  Residual residual = Residual::kCoded;
  Dtype skeleton = Dtype::kBf16;  // of means, bases, centres; with kSparse of t and values too

  PcaMethod pca = PcaMethod::kExact;
  double variance_ratio = .95;  // the least rank that holds so much of the variance
  double rank_factor = 0;       // cap: max(2, head_dim * factor); 0: none
  int rank = 0;                 // cap as a number; 0: none
  int oversample = 8;           // randomized: further columns of the range finder
  int power_iterations = 2;
  bool share_basis = false;  // one basis for all blocks of the stream, centres per block

  int clusters = 16;
  int sparse_count = 8;  // kSparse: coordinates kept of a row (d_res)

  int bits = 3;  // kCoded: 1..4
  Metric metric = Metric::kMse;
  bool norm_correction = false;       // the decoded residual has the residual's norm
  double outlier_threshold = 0;       // above it a coordinate is kept as fp16; 0: none
  bool calibrated_centroids = false;  // the profile's table for these bits
};

struct Params {
  StreamParams k, v;
  RowOrder rows = RowOrder::kPerHead;
  int block_rows = 512;
  uint64_t seed = 0;          // of the range finder and of the first centres
  bool unrotate_keys = true;  // keys are coded as before RoPE, in the style of the geometry
  bool whiten_keys = false;   // keys are coded times the Cholesky factor of E[q q^T]
  int sink_tokens = 0;        // tokens at absolute positions below it are kept as received
  // Layers of the model; negative counts from the end, -1 the last, until ResolveLayers.
  std::vector<int> raw_layers;  // boundary layers, kept as received
  std::vector<int> hot_layers;  // adaptive bits: keys of these layers have hot_bits
  int hot_bits = 4;
};

inline constexpr int kMaxClusters = 256;
inline constexpr int kMaxBlockRows = 1 << 16;
inline constexpr int kMaxSinkTokens = 255;
inline constexpr size_t kMaxRecipeJsonBytes = 1024;

// "kakeya-1.0", "kakeya-1.2", "kakeya-1.3", "kakeya-1.3-ppl".
absl::StatusOr<Params> PresetParams(absl::string_view name);

// INVALID_ARGUMENT names the number that is out of its range.
absl::Status CheckParams(const Params& params);

// {"preset": "kakeya-1.3", "rows": "pooled", "k": {"bits": 4}, "raw_layers": [0, 1]}: what is
// not named is as in the preset. At most 64 KiB. INVALID_ARGUMENT names a key that is unknown
// or of the wrong kind.
absl::StatusOr<Params> ParamsFromJson(absl::string_view json);
// The same over `base`, of whatever preset: "preset" is then unknown.
absl::StatusOr<Params> ParamsFromJson(absl::string_view json, const Params& base);
// All of them, on one line.
std::string ParamsToJson(const Params& params);

// Layers from the end as layers from the start. INVALID_ARGUMENT: one that a model of so many
// layers has not.
absl::Status ResolveLayers(int layers, Params* params);

// A recipe: what a client changes of a codec's parameters, under a name. The files of recipes/.
struct Recipe {
  const char* name;
  const char* json;
};
absl::Span<const Recipe> Recipes();

// A client's setting: "", the name of a recipe, or parameters as JSON without a preset, at most
// kMaxRecipeJsonBytes. Its canonical form: equal settings have equal texts. INVALID_ARGUMENT
// lists the names, or says what ParamsFromJson does.
absl::StatusOr<std::string> CanonicalSetting(absl::string_view setting);
// `base` with a canonical setting's changes.
absl::StatusOr<Params> ApplySetting(absl::string_view setting, const Params& base);

}  // namespace kvcask::kakeya
