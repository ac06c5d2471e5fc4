#include "client/cli/compare.h"

#include <absl/strings/str_cat.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "client/cc/rectangles.h"

namespace kvcask {
namespace {

const char* StreamName(StreamKind kind) {
  return kind == StreamKind::kK ? "K" : kind == StreamKind::kV ? "V" : "latent";
}

absl::Status Mismatch(const char* what, const std::string& found, const std::string& expected) {
  return absl::InvalidArgumentError(absl::StrCat("the second file is not part of the first: ", what,
                                                 " ", found, ", expected ", expected));
}

void CompareRow(const uint8_t* a, Dtype a_dtype, const uint8_t* b, Dtype b_dtype, size_t n,
                StreamDifference* out) {
  for (size_t i = 0; i < n; ++i) {
    const double x = LoadElement(a + i * DtypeSize(a_dtype), a_dtype);
    const double y = LoadElement(b + i * DtypeSize(b_dtype), b_dtype);
    double error = std::abs(x - y);
    if (std::isnan(x) && std::isnan(y)) error = 0;
    if (x == y) error = 0;  // infinities of one sign
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    out->max_abs_error = std::max(out->max_abs_error, error);
    out->squared_error += error * error;
    if (std::isfinite(x)) out->squared_value += x * x;
  }
  out->elements += n;
}

// The layers of b as a geometry must equal those of a.
absl::Status CheckGeometry(const CacheFile& a, int a_layer, const CacheFile& b) {
  const int layers = static_cast<int>(b.geometry().layers.size());
  const int a_layers = static_cast<int>(a.geometry().layers.size());
  if (a_layer < 0 || a_layer + layers > a_layers) {
    return Mismatch(
        "layers", absl::StrCat(b.info().layer_begin, " to ", b.info().layer_begin + layers),
        absl::StrCat("some of ", a.info().layer_begin, " to ", a.info().layer_begin + a_layers));
  }
  Geometry part;
  part.layers.assign(a.geometry().layers.begin() + a_layer,
                     a.geometry().layers.begin() + a_layer + layers);
  for (LayerGeometry& l : part.layers) {
    if (l.kind == LayerKind::kShared) l.shared_with -= a_layer;
  }
  if (part.ComputeFingerprint() == b.geometry().ComputeFingerprint()) return absl::OkStatus();
  return Mismatch("geometry", ToHex(b.geometry().ComputeFingerprint()),
                  ToHex(part.ComputeFingerprint()));
}

}  // namespace

double StreamDifference::RelativeRms() const {
  if (squared_error == 0) return 0;
  if (squared_value == 0) return std::numeric_limits<double>::infinity();
  return std::sqrt(squared_error / squared_value);
}

absl::StatusOr<CacheDifference> CompareCaches(const CacheFile& a, const CacheFile& b) {
  CacheDifference out;
  // A file that was put and fetched again has forgotten which layers of a model it held.
  const bool forgotten = a.geometry().layers.size() == b.geometry().layers.size() &&
                         (a.info().layer_begin == 0 || b.info().layer_begin == 0);
  const int a_layer = forgotten ? 0 : b.info().layer_begin - a.info().layer_begin;
  if (absl::Status s = CheckGeometry(a, a_layer, b); !s.ok()) return s;
  const int64_t a_first = a.info().metadata.first_position;
  const int64_t b_first = b.info().metadata.first_position;
  const int64_t shift = b_first - a_first;
  const int64_t a_tokens = a.info().metadata.tokens, b_tokens = b.info().metadata.tokens;
  if (shift < 0 || shift > a_tokens || b_tokens > a_tokens - shift) {
    return Mismatch("positions", absl::StrCat(b_first, " to ", b_first + b_tokens),
                    absl::StrCat("some of ", a_first, " to ", a_first + a_tokens));
  }
  out.tokens = static_cast<uint64_t>(b_tokens);
  out.token_begin = static_cast<uint64_t>(shift);
  out.layers = static_cast<int>(b.geometry().layers.size());
  out.layer_begin = a_layer;

  const ConstKvView va = a.view(), vb = b.view();
  const int first = FirstPlane(a.geometry(), a_layer);
  out.exact = va.dtype == vb.dtype;
  int plane = 0;
  for (const LayerGeometry& layer : b.geometry().layers) {
    for (const StreamGeometry& s : layer.streams) {
      StreamDifference& d = out.streams[StreamName(s.kind)];
      const size_t n = static_cast<size_t>(b_tokens) * s.head_dim;
      for (int h = 0; h < s.heads; ++h) {
        const uint8_t* pa = va.At(first + plane, h, shift, 0);
        const uint8_t* pb = vb.At(plane, h, 0, 0);
        if (out.exact && std::memcmp(pa, pb, n * DtypeSize(va.dtype)) != 0) out.exact = false;
        CompareRow(pa, va.dtype, pb, vb.dtype, n, &d);
      }
      ++plane;
    }
  }
  const std::vector<uint32_t>&ia = a.info().token_ids, &ib = b.info().token_ids;
  if (ia.empty() != ib.empty()) {
    out.token_ids_differ = true;
  } else if (!ia.empty()) {
    out.token_ids_differ = !std::equal(ib.begin(), ib.end(), ia.begin() + shift);
  }
  if (out.token_ids_differ) out.exact = false;
  return out;
}

}  // namespace kvcask
