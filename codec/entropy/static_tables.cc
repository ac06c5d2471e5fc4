#include "codec/entropy/static_tables.h"

#include <algorithm>
#include <cmath>

#include <absl/strings/str_cat.h>

namespace kvcask {
namespace {

absl::Status CheckShape(int table, int lo, int n, int shift) {
  auto bad = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("table ", table, " (lo ", lo, ", n ", n,
                                                   ", shift ", shift, "): ", what));
  };
  if (n < 1 || lo < -127 || lo + n - 1 > 127) return bad("symbols outside -127..127");
  if (shift < 0 || shift > kMaxTableShift) return bad("shift outside 0..8");
  if (table == kAmplitudeTable && (lo != 0 || n != 16 || shift != 0)) return bad("expected 0, 16, 0");
  if (table == kStepTable && (lo != -6 || n != 13 || shift != 0)) return bad("expected -6, 13, 0");
  if (table < kCoordinateTables && (lo > 0 || lo + n <= 0)) return bad("0 is not a symbol");
  return absl::OkStatus();
}

// k of FORMAT.md's "one multiplication": with m = ceil(2^k / f), x < 2^28 and
// 2^(k-28) >= f, floor(x m / 2^k) = floor(x / f), since m exceeds 2^k / f by less than 1.
int ReciprocalBits(int f) {
  int bits = 0;
  while ((1 << bits) < f) ++bits;
  return 28 + bits;
}

}  // namespace

absl::StatusOr<TableSet> TableSet::Make(absl::Span<const int16_t> shape,
                                        absl::Span<const int16_t> freq,
                                        absl::Span<const float> centroids) {
  if (!centroids.empty() && centroids.size() != kCoordinateTables * 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("centroids: ", centroids.size(), ", expected ", kCoordinateTables * 3));
  }
  if (shape.size() != kTables * 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("table shapes: ", shape.size(), " numbers, expected ", kTables * 3));
  }
  TableSet set;
  set.shape_.resize(kTables + 1);
  set.decode_.resize((kTables + 1) * kProbabilityOne);
  set.encode_.resize((kTables + 1) * 256);
  set.multiplier_.resize((kTables + 1) * 256);
  auto add = [&set](int table, int v, int f, int cum) {
    for (int s = cum; s < cum + f; ++s) {
      set.decode_[table * kProbabilityOne + s] = static_cast<uint32_t>(v & 255) |
                                                 static_cast<uint32_t>(f - 1) << 8 |
                                                 static_cast<uint32_t>(s - cum) << 20;
    }
    const int k = ReciprocalBits(f);
    set.encode_[table * 256 + v + 128] = static_cast<uint32_t>(f) |
                                         static_cast<uint32_t>(cum) << 13 |
                                         static_cast<uint32_t>(k - 28) << 25;
    set.multiplier_[table * 256 + v + 128] =
        static_cast<uint32_t>(((uint64_t{1} << k) + f - 1) / f);
  };
  size_t at = 0;
  for (int table = 0; table < kTables; ++table) {
    const int lo = shape[table * 3], n = shape[table * 3 + 1], shift = shape[table * 3 + 2];
    if (auto status = CheckShape(table, lo, n, shift); !status.ok()) return status;
    if (freq.size() - at < static_cast<size_t>(n) + 1) {
      return absl::InvalidArgumentError(absl::StrCat("table ", table, ": frequencies end early"));
    }
    const bool escapes = table < kCoordinateTables;
    int cum = 0;
    for (int s = 0; s <= n; ++s) {
      const int f = freq[at + s];
      const bool escape = s == n;
      if (escape && !escapes ? f != 0 : f < 1 || f > kProbabilityOne - cum) {
        return absl::InvalidArgumentError(absl::StrCat(
            "table ", table, ", symbol ", s, ": frequency ", f, ", after ", cum, " of 4096"));
      }
      if (f > 0) add(table, escape ? kEscape : lo + s, f, cum);
      cum += f;
    }
    if (cum != kProbabilityOne) {
      return absl::InvalidArgumentError(
          absl::StrCat("table ", table, ": frequencies sum to ", cum, ", expected 4096"));
    }
    set.shape_[table] = {lo, n, shift};
    if (shift > 0) set.first_shifted_ = std::min(set.first_shifted_, table);
    at += n + 1;
  }
  if (at != freq.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tables: ", freq.size(), " frequencies, expected ", at));
  }
  add(kAbsentClass, 0, kProbabilityOne, 0);
  for (int table = 0; table <= kTables; ++table) {
    for (int q = 0; q < 4; ++q) {
      const bool given = q > 0 && table < kCoordinateTables && !centroids.empty();
      set.centroids_.push_back(given ? centroids[table * 3 + q - 1] : static_cast<float>(q));
    }
  }
  return set;
}

double TableSet::Cost(int table, int q) const {
  const TableShape& s = shape_[table];
  const int v = q >> s.shift;
  const bool escape = v < s.lo || v >= s.lo + s.n;
  const uint32_t f = encode_[table * 256 + (escape ? kEscape : v) + 128] & 0x1fff;
  return kProbabilityBits - std::log2(static_cast<double>(f)) + (escape ? 16 : s.shift);
}

std::vector<int16_t> NormalizeFrequencies(absl::Span<const double> counts) {
  const size_t n = counts.size();
  double total = 0;
  for (double c : counts) total += c;
  std::vector<int16_t> freq(n, 1);
  int sum = 0;
  for (size_t i = 0; i < n; ++i) {
    const double p = total > 0 ? counts[i] / total : 1.0 / n;
    freq[i] = static_cast<int16_t>(std::max(1.0, std::floor(p * kProbabilityOne + .5)));
    sum += freq[i];
  }
  // What is left over goes, one by one, where it costs least or gains most.
  for (; sum != kProbabilityOne; sum += sum < kProbabilityOne ? 1 : -1) {
    const int d = sum < kProbabilityOne ? 1 : -1;
    size_t best = n;
    double best_gain = -INFINITY;
    for (size_t i = 0; i < n; ++i) {
      if (freq[i] + d < 1) continue;
      const double gain = (counts[i] + 1e-9) * std::log(static_cast<double>(freq[i] + d) / freq[i]);
      if (gain > best_gain) best_gain = gain, best = i;
    }
    freq[best] = static_cast<int16_t>(freq[best] + d);
  }
  return freq;
}

}  // namespace kvcask
