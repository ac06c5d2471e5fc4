#include "codec/fklt/fklt_reference.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kvcask::fklt {
namespace {

std::vector<double> RowOfU(const GroupModel& g, int r) {
  std::vector<float> row(g.dimensions);
  LoadRowOfU(g, r, row.data());
  return {row.begin(), row.end()};
}

double Sigma(const GroupModel& g, int r) { return std::exp2(g.sigma[r] / 16.0); }

// Frequencies of one table, as the file has them.
struct Table {
  int lo = 0, shift = 0;
  std::vector<int> freq;  // the escape last
};

std::vector<Table> ReadTables(const FkltProfile& profile, int set) {
  const Profile::Tensor* shape = profile.file->Find(absl::StrCat("fklt.tables.", set, ".shape"));
  const Profile::Tensor* freq = profile.file->Find(absl::StrCat("fklt.tables.", set, ".freq"));
  auto at = [](const Profile::Tensor* t, size_t i) {
    int16_t v;
    std::memcpy(&v, t->bytes.data() + 2 * i, 2);
    return static_cast<int>(v);
  };
  std::vector<Table> tables(42);
  size_t next = 0;
  for (int t = 0; t < 42; ++t) {
    tables[t].lo = at(shape, 3 * t);
    tables[t].shift = at(shape, 3 * t + 2);
    for (int i = 0; i <= at(shape, 3 * t + 1); ++i) tables[t].freq.push_back(at(freq, next++));
  }
  return tables;
}

// One segment's decoder.
class Lanes {
 public:
  Lanes(absl::Span<const uint8_t> bytes, int lanes) : bytes_(bytes), x_(lanes) {
    const size_t head = (lanes + 1) / 2;
    size_t bit = 8 * head;
    for (int l = 0; l < lanes; ++l) {
      const int e = (Byte(l / 2) >> (l % 2 * 4)) & 15;
      x_[l] = uint64_t{1} << (e + 12);
      for (int b = 0; b < e + 12; ++b, ++bit) {
        x_[l] |= static_cast<uint64_t>(Byte(bit / 8) >> (bit % 8) & 1) << b;
      }
    }
    for (; bit % 16 != 0; ++bit) good_ &= (Byte(bit / 8) >> (bit % 8) & 1) == 0;
    cursor_ = bit / 8;
  }

  // One step; null tables are absent.
  std::vector<int> Step(const std::vector<const Table*>& tables) {
    const int n = static_cast<int>(tables.size());
    std::vector<int> out(n, 0);
    std::vector<bool> escaped(n, false);
    for (int l = 0; l < n; ++l) {
      if (tables[l] == nullptr) continue;
      const std::vector<int>& freq = tables[l]->freq;
      const int slot = static_cast<int>(x_[l] % 4096);
      int s = 0, cum = 0;
      while (cum + freq[s] <= slot) cum += freq[s++];
      x_[l] = freq[s] * (x_[l] / 4096) + slot - cum;
      escaped[l] = s + 1 == static_cast<int>(freq.size());
      out[l] = tables[l]->lo + s;
    }
    for (int l = 0; l < n; ++l) {
      if (tables[l] != nullptr) Refill(l);
    }
    for (int l = 0; l < n; ++l) {
      if (tables[l] == nullptr || escaped[l] || tables[l]->shift == 0) continue;
      const int scale = 1 << tables[l]->shift;
      out[l] = out[l] * scale + static_cast<int>(x_[l] % scale);
      x_[l] /= scale;
      Refill(l);
    }
    for (int l = 0; l < n; ++l) {
      if (escaped[l]) out[l] = static_cast<int16_t>(Word());
    }
    return out;
  }

  bool Ended() const {
    return good_ && cursor_ == bytes_.size() &&
           std::all_of(x_.begin(), x_.end(), [](uint64_t x) { return x == 4096; });
  }

 private:
  int Byte(size_t i) {
    if (i >= bytes_.size()) good_ = false;
    return i < bytes_.size() ? bytes_[i] : 0;
  }
  int Word() {
    const int low = Byte(cursor_), high = Byte(cursor_ + 1);
    cursor_ += 2;
    return low | high << 8;
  }
  void Refill(int l) {
    if (x_[l] < 4096) x_[l] = x_[l] << 16 | static_cast<uint64_t>(Word());
  }
  absl::Span<const uint8_t> bytes_;
  std::vector<uint64_t> x_;
  size_t cursor_ = 0;
  bool good_ = true;
};

}  // namespace

std::vector<double> ReferenceForward(const GroupModel& g, const std::vector<double>& x) {
  std::vector<double> z(g.dimensions, 0), y(g.dimensions, 0);
  for (const Member& m : g.members) {
    size_t at = m.l_offset;
    for (int i = 0; i < m.head_dim; ++i) {
      const double centred = x[m.offset + i] - g.mu[m.offset + i];
      for (int j = 0; j <= i; ++j) z[m.offset + j] += g.l[at++] * centred;
    }
  }
  for (int r = 0; r < g.dimensions; ++r) {
    const std::vector<double> u = RowOfU(g, r);
    for (int i = 0; i < g.dimensions; ++i) y[r] += u[i] * z[i];
  }
  return y;
}

std::vector<double> ReferenceInverse(const GroupModel& g, const std::vector<double>& y) {
  std::vector<double> z(g.dimensions, 0), x(g.mu.begin(), g.mu.end());
  for (int r = 0; r < g.dimensions; ++r) {
    if (y[r] == 0) continue;
    const std::vector<double> u = RowOfU(g, r);
    for (int i = 0; i < g.dimensions; ++i) z[i] += u[i] * y[r];
  }
  for (const Member& m : g.members) {
    // L^T d = z, from the last element up.
    auto l = [&](int i, int j) {
      return g.l[m.l_offset + static_cast<size_t>(i) * (i + 1) / 2 + j];
    };
    std::vector<double> d(m.head_dim);
    for (int j = m.head_dim - 1; j >= 0; --j) {
      d[j] = z[m.offset + j];
      for (int i = j + 1; i < m.head_dim; ++i) d[j] -= l(i, j) * d[i];
      d[j] /= l(j, j);
      x[m.offset + j] += d[j];
    }
  }
  return x;
}

absl::StatusOr<ReferenceTile> ReferenceParse(const FkltProfile& profile, const GroupModel& g,
                                             absl::Span<const uint8_t> tile, int tokens) {
  if (tile.size() < 6 || tile[0] < 1 || tile[0] > 2 || tile[1] >> 6 > 2) {
    return absl::DataLossError("no tile");
  }
  const int most_steps = 512 >> (tile[1] >> 6);
  ReferenceTile out;
  out.kcap = (tile[1] & 15) - 6;
  out.table_set = tile[1] >> 4 & 3;
  out.step_exponent = static_cast<int16_t>(tile[2] | tile[3] << 8);
  if (out.kcap > 6 || out.table_set >= static_cast<int>(profile.table_sets.size())) {
    return absl::DataLossError("no tile");
  }
  const int i = out.step_exponent;
  auto rows_of = [&](int k) {
    int n = 0;
    k = std::min(k, out.kcap);
    while (n < g.dimensions && g.sigma[n] - 2 * i + 8 * k >= profile.active_threshold) ++n;
    return n;
  };
  const int groups = tile[4] | tile[5] << 8;
  const int segments = (groups + most_steps - 1) / most_steps;
  if (groups == 0) return absl::DataLossError("no symbols");
  const int each = (groups + segments - 1) / segments;
  size_t at = 6 + 2 * (segments - 1);
  if (tile.size() < at) return absl::DataLossError("no sizes");
  const std::vector<Table> tables = ReadTables(profile, out.table_set);
  out.amplitude.assign(tokens, 0);
  out.step.assign(tokens, 0);
  out.q.assign(tokens, std::vector<int>(g.dimensions, 0));
  out.table.assign(tokens, std::vector<int>(g.dimensions, -1));
  // What symbol j of the tile is: row -2 amplitude, -1 step class, -3 absent. The coordinates are
  // known when the classes are.
  std::vector<std::pair<int, int>> order;
  for (int row : {-2, -1}) {
    for (int t = 0; t < tokens; ++t) order.push_back({row, t});
  }
  while (order.size() % 32 != 0) order.push_back({-3, 0});
  const size_t class_symbols = order.size();
  auto add_coordinates = [&] {
    std::vector<int> places(tokens);
    for (int t = 0; t < tokens; ++t) places[t] = t;
    std::stable_sort(places.begin(), places.end(),
                     [&](int a, int b) { return out.step[a] > out.step[b]; });
    for (int r = 0; r < g.dimensions; ++r) {
      for (int t : places) {
        if (r < rows_of(out.step[t])) order.push_back({r, t});
      }
    }
    while (order.size() % 32 != 0) order.push_back({-3, 0});
  };
  for (int s = 0; s < segments; ++s) {
    const size_t bytes =
        s + 1 < segments ? 2 * (tile[6 + 2 * s] | tile[7 + 2 * s] << 8) : tile.size() - at;
    if (bytes > tile.size() - at || bytes % 2 != 0) return absl::DataLossError("a segment's size");
    const size_t first = 32 * static_cast<size_t>(s) * each;
    const size_t end = std::min<size_t>(first + 32 * each, 32 * static_cast<size_t>(groups));
    size_t lanes = 1;
    while (lanes < 32 && lanes * most_steps < end - first) lanes *= 2;
    Lanes decoder(tile.subspan(at, bytes), static_cast<int>(lanes));
    for (size_t j = first; j < end; j += lanes) {
      if (j == class_symbols) {
        add_coordinates();
        if (order.size() != 32 * static_cast<size_t>(groups)) return absl::DataLossError("groups");
      }
      if (order.size() < j + lanes) return absl::DataLossError("groups");
      std::vector<const Table*> step(lanes, nullptr);
      for (size_t l = 0; l < lanes; ++l) {
        const auto [row, t] = order[j + l];
        if (row == -2 || row == -1) step[l] = &tables[42 + row];
        if (row < 0) continue;
        const int e = g.sigma[row] + 8 * (out.amplitude[t] - 8) - 2 * i + 8 * out.step[t];
        const int c = static_cast<int>(std::floor((5 * e + 16) / 32.0)) + 16;
        out.table[t][row] = std::max(0, std::min(39, c));
        step[l] = &tables[out.table[t][row]];
      }
      const std::vector<int> q = decoder.Step(step);
      for (size_t l = 0; l < lanes; ++l) {
        const auto [row, t] = order[j + l];
        if (row == -2) out.amplitude[t] = q[l];
        if (row == -1) out.step[t] = q[l];
        if (row >= 0) out.q[t][row] = q[l];
      }
    }
    if (!decoder.Ended()) return absl::DataLossError("a segment's end");
    at += bytes;
  }
  return out;
}

size_t ReferenceSinkBytes(const GroupModel& g, int sinks) {
  return g.members.size() * sinks + (static_cast<size_t>(g.dimensions) * sinks * 10 + 7) / 8;
}

Matrix ReferenceSinks(const GroupModel& g, int sinks, absl::Span<const uint8_t> bytes) {
  Matrix x(sinks, std::vector<double>(g.mu.begin(), g.mu.end()));
  const size_t exponents = g.members.size() * sinks;
  const size_t elements = static_cast<size_t>(g.dimensions) * sinks;
  size_t vector = 0, element = 0;
  for (const Member& m : g.members) {
    for (int t = 0; t < sinks; ++t) {
      const double step = std::exp2((bytes[vector++] - 192) / 8.0);
      for (int i = 0; i < m.head_dim; ++i, ++element) {
        const int high = bytes[exponents + element];
        const int low = bytes[exponents + elements + element / 4] >> (2 * (element % 4)) & 3;
        x[t][m.offset + i] += (4 * high + low - 512) * step;
      }
    }
  }
  return x;
}

Matrix ReferenceDequantise(const FkltProfile& profile, const ReferenceTile& tile) {
  const Profile::Tensor* centroids =
      profile.file->Find(absl::StrCat("fklt.tables.", tile.table_set, ".centroids"));
  Matrix y(tile.q.size());
  for (size_t t = 0; t < tile.q.size(); ++t) {
    const double step = std::exp2((tile.step_exponent - 4 * tile.step[t]) / 8.0);
    for (size_t r = 0; r < tile.q[t].size(); ++r) {
      const int q = tile.q[t][r];
      double value = std::abs(q);
      if (q != 0 && std::abs(q) <= 3) {
        float c;
        std::memcpy(&c, centroids->bytes.data() + 4 * (tile.table[t][r] * 3 + std::abs(q) - 1), 4);
        value = c;
      }
      y[t].push_back((q < 0 ? -value : value) * step);
    }
  }
  return y;
}

Matrix ReferenceDecode(const FkltProfile& profile, const GroupModel& g, const ReferenceTile& tile) {
  Matrix x;
  for (const std::vector<double>& y : ReferenceDequantise(profile, tile)) {
    x.push_back(ReferenceInverse(g, y));
  }
  return x;
}

ReferenceToken ReferenceAnalyse(const GroupModel& g, const std::vector<double>& y) {
  const int m = g.leading();
  double eta = g.sensitivity[0];
  for (int r = 0; r < m; ++r) {
    const double u = std::max(-8.0, std::min(8.0, y[r] / Sigma(g, r)));
    eta += g.sensitivity[1 + r] * u + g.sensitivity[1 + m + r] * u * u;
  }
  eta = std::max(-8.0, std::min(8.0, eta));
  return {std::exp(eta), .5 * std::log2(std::exp(eta))};
}

double ReferenceAmplitude(const FkltProfile& profile, const GroupModel& g,
                          const ReferenceTile& tile, int token, const std::vector<double>& y) {
  double sum = 0;
  int n = 0;
  for (int r = 0; r < g.dimensions; ++r) {
    if (g.sigma[r] - 2 * tile.step_exponent < profile.active_threshold) continue;
    if (tile.table[token][r] < 0) continue;
    sum += std::pow(y[r] / Sigma(g, r), 2);
    ++n;
  }
  return n == 0 ? 8 : std::log2(std::max(1e-30, sum / n)) + 8;
}

double ReferenceCertificate(const FkltProfile& profile, const GroupModel& g, int preset,
                            int all_tokens, const Matrix& y, const Matrix& decoded_y) {
  double sum = 0;
  for (size_t t = 0; t < y.size(); ++t) {
    double error = 0;
    for (int r = 0; r < g.dimensions; ++r) error += std::pow(y[t][r] - decoded_y[t][r], 2);
    sum += .5 * ReferenceAnalyse(g, y[t]).sensitivity * error;
  }
  return profile.kappa[preset] * sum / all_tokens + g.bf16_floor;
}

double ReferenceSinkCertificate(const FkltProfile& profile, const GroupModel& g, int preset,
                                int all_tokens, const Matrix& x, const Matrix& decoded_x) {
  double sum = 0;
  for (size_t t = 0; t < x.size(); ++t) {
    std::vector<double> error(g.mu.begin(), g.mu.end());  // so that its z is L^T (x - x^)
    for (int i = 0; i < g.dimensions; ++i) error[i] += x[t][i] - decoded_x[t][i];
    for (double y : ReferenceForward(g, error)) sum += .5 * 2048 * y * y;
  }
  return profile.kappa[preset] * sum / all_tokens;
}

}  // namespace kvcask::fklt
