#include "codec/entropy/rans.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "codec/entropy/rans_test_tables.h"
#include "codec/entropy/rans_vector.h"

namespace kvcask {
namespace {

TableSet MakeTables() {
  const RawTables raw = GaussianTables();
  auto set = TableSet::Make(raw.shape, raw.freq);
  EXPECT_TRUE(set.ok()) << set.status();
  return *std::move(set);
}

struct Symbols {
  std::vector<uint8_t> classes;
  std::vector<int16_t> values;
};

enum class Mix { kNarrow, kAll, kHuge, kAbsent };

Symbols RandomSymbols(size_t n, int lanes, Mix mix, uint32_t seed) {
  std::mt19937 rng(seed);
  Symbols s;
  s.classes.assign((n + lanes - 1) / lanes * lanes, kAbsentClass);
  s.values.assign(s.classes.size(), 0);
  for (size_t i = 0; i < n; ++i) {
    int c = mix == Mix::kNarrow ? 12 + rng() % 8 : rng() % kTables;
    if (mix == Mix::kAbsent && rng() % 3 == 0) continue;
    s.classes[i] = static_cast<uint8_t>(c);
    if (c == kAmplitudeTable) {
      s.values[i] = static_cast<int16_t>(rng() % 16);
    } else if (c == kStepTable) {
      s.values[i] = static_cast<int16_t>(static_cast<int>(rng() % 13) - 6);
    } else {
      std::normal_distribution<double> normal(0, ClassSigma(c));
      double v = std::round(normal(rng));
      if (mix == Mix::kHuge && rng() % 7 == 0) v = static_cast<int>(rng() % 65536) - 32768;
      s.values[i] = static_cast<int16_t>(std::max(-32768.0, std::min(32767.0, v)));
    }
  }
  return s;
}

// FORMAT.md 3.5 read aloud: searches, divisions, one vector of words. Nothing shared with the
// coder but the tables' shapes and frequencies.
class SlowCoder {
 public:
  explicit SlowCoder(const RawTables& raw) {
    size_t at = 0;
    for (int t = 0; t < kTables; ++t) {
      const int n = raw.shape[t * 3 + 1];
      lo_.push_back(raw.shape[t * 3]);
      shift_.push_back(raw.shape[t * 3 + 2]);
      freq_.emplace_back(raw.freq.begin() + at, raw.freq.begin() + at + n + 1);
      at += n + 1;
    }
  }

  std::vector<uint8_t> Encode(int lanes, const Symbols& s) const {
    std::vector<uint64_t> x(lanes, 4096);
    std::vector<uint16_t> reversed;
    for (size_t step = s.classes.size() / lanes; step-- > 0;) {
      const uint8_t* c = &s.classes[step * lanes];
      const int16_t* q = &s.values[step * lanes];
      auto escaped = [&](int l) {
        const int v = q[l] >> shift_[c[l]];
        return v < lo_[c[l]] || v >= lo_[c[l]] + static_cast<int>(freq_[c[l]].size()) - 1;
      };
      for (int l = lanes - 1; l >= 0; --l) {
        if (c[l] != kAbsentClass && escaped(l)) reversed.push_back(static_cast<uint16_t>(q[l]));
      }
      for (int l = lanes - 1; l >= 0; --l) {
        if (c[l] == kAbsentClass || escaped(l) || shift_[c[l]] == 0) continue;
        Push(1, 1 << shift_[c[l]], q[l] & ((1 << shift_[c[l]]) - 1), x[l], reversed);
      }
      for (int l = lanes - 1; l >= 0; --l) {
        if (c[l] == kAbsentClass) continue;
        const auto& f = freq_[c[l]];
        const int i =
            escaped(l) ? static_cast<int>(f.size()) - 1 : (q[l] >> shift_[c[l]]) - lo_[c[l]];
        int cum = 0;
        for (int j = 0; j < i; ++j) cum += f[j];
        Push(f[i], 4096, cum, x[l], reversed);
      }
    }
    std::vector<uint8_t> out((lanes + 1) / 2);
    std::vector<bool> bits;
    for (int l = 0; l < lanes; ++l) {
      int e = 0;
      while (x[l] >> (e + 13)) ++e;
      out[l / 2] = static_cast<uint8_t>(out[l / 2] | e << (l % 2 * 4));
      for (int b = 0; b < e + 12; ++b) bits.push_back(x[l] >> b & 1);
    }
    while ((out.size() * 8 + bits.size()) % 16 != 0) bits.push_back(false);
    for (size_t b = 0; b < bits.size(); b += 8) {
      int byte = 0;
      for (int i = 0; i < 8; ++i) byte |= bits[b + i] << i;
      out.push_back(static_cast<uint8_t>(byte));
    }
    for (size_t i = reversed.size(); i-- > 0;) {
      out.push_back(static_cast<uint8_t>(reversed[i]));
      out.push_back(static_cast<uint8_t>(reversed[i] >> 8));
    }
    return out;
  }

 private:
  static void Push(uint64_t f, uint64_t m, uint64_t cum, uint64_t& x, std::vector<uint16_t>& out) {
    // x stays below 2^28 = 4096 << 16 after x -> x / f m + ...
    if (x >= f * (4096 / m) << 16) {
      out.push_back(static_cast<uint16_t>(x));
      x >>= 16;
    }
    x = x / f * m + x % f + cum;
  }
  std::vector<int> lo_, shift_;
  std::vector<std::vector<int>> freq_;
};

std::vector<RansPath> Paths() {
  std::vector<RansPath> paths;
  for (RansPath path : kAllRansPaths) {
    if (RansPathAvailable(path)) paths.push_back(path);
  }
  return paths;
}

std::vector<uint8_t> Encode(const TableSet& t, int lanes, const Symbols& s, RansPath path) {
  std::vector<uint8_t> out(MaxSegmentBytes(static_cast<int>(s.classes.size())));
  out.resize(EncodeSegment(t, lanes, s.classes, s.values.data(), out.data(), path));
  return out;
}

bool Decode(const TableSet& t, int lanes, absl::Span<const uint8_t> bytes,
            const std::vector<uint8_t>& classes, RansPath path, std::vector<int16_t>* values) {
  values->assign(classes.size(), 77);
  SegmentDecoder decoder;
  if (!decoder.Open(bytes, lanes, path)) return false;
  // In two parts, as a codec does that learns the classes on the way.
  const size_t first = classes.size() / lanes / 3 * lanes;
  const absl::Span<const uint8_t> all(classes);
  return decoder.Decode(t, all.subspan(0, first), values->data()) &&
         decoder.Decode(t, all.subspan(first), values->data() + first) && decoder.Finished();
}

TEST(RansTest, EveryPathWritesTheBytesOfTheSlowCoderAndReadsThemBack) {
  const RawTables raw = GaussianTables();
  const TableSet tables = MakeTables();
  const SlowCoder slow(raw);
  uint32_t seed = 1;
  for (Mix mix : {Mix::kNarrow, Mix::kAll, Mix::kHuge, Mix::kAbsent}) {
    for (int lanes : {1, 2, 4, 8, 16, 32}) {
      for (size_t n : {0, 1, 31, 32, 500, 4096, 16384}) {
        SCOPED_TRACE(testing::Message() << "mix " << static_cast<int>(mix) << " lanes " << lanes
                                        << " symbols " << n << " seed " << seed);
        const Symbols s = RandomSymbols(n, lanes, mix, seed++);
        const std::vector<uint8_t> want = slow.Encode(lanes, s);
        for (RansPath path : Paths()) {
          EXPECT_EQ(Encode(tables, lanes, s, path), want) << RansPathName(path);
          std::vector<int16_t> back;
          ASSERT_TRUE(Decode(tables, lanes, want, s.classes, path, &back)) << RansPathName(path);
          EXPECT_EQ(back, s.values) << RansPathName(path);
        }
      }
    }
  }
}

// Vector operations as plain loops: what the kernel of the vector paths does at any width, on
// machines without the instructions too.
template <int kWidth>
struct PlainVector {
  struct Reg {
    uint32_t lane[kWidth];
  };
  using Mask = uint32_t;
  static constexpr int kLanes = kWidth;
  template <typename F>
  static Reg Each(F f) {
    Reg r;
    for (int l = 0; l < kWidth; ++l) r.lane[l] = static_cast<uint32_t>(f(l));
    return r;
  }
  template <typename F>
  static Mask EachBit(F f) {
    Mask m = 0;
    for (int l = 0; l < kWidth; ++l) m |= static_cast<Mask>(f(l)) << l;
    return m;
  }
  static Reg Set(int v) {
    return Each([&](int) { return v; });
  }
  static Reg Load(const uint32_t* p) {
    return Each([&](int l) { return p[l]; });
  }
  static void Store(Reg x, uint32_t* p) { std::copy_n(x.lane, kWidth, p); }
  static Reg LoadBytes(const uint8_t* p) {
    return Each([&](int l) { return p[l]; });
  }
  static Reg LoadWords(const uint8_t* p) {
    return Each([&](int l) { return p[2 * l] | p[2 * l + 1] << 8; });
  }
  static Reg LoadSymbols(const int16_t* p) {
    return Each([&](int l) { return p[l]; });
  }
  static void StoreSymbols(Reg x, int16_t* p) {
    for (int l = 0; l < kWidth; ++l) p[l] = static_cast<int16_t>(x.lane[l]);
  }
  static Reg Gather(const uint32_t* table, Reg index) {
    return Each([&](int l) { return table[index.lane[l]]; });
  }
  static Reg And(Reg a, Reg b) {
    return Each([&](int l) { return a.lane[l] & b.lane[l]; });
  }
  static Reg Or(Reg a, Reg b) {
    return Each([&](int l) { return a.lane[l] | b.lane[l]; });
  }
  static Reg Add(Reg a, Reg b) {
    return Each([&](int l) { return a.lane[l] + b.lane[l]; });
  }
  static Reg Sub(Reg a, Reg b) {
    return Each([&](int l) { return a.lane[l] - b.lane[l]; });
  }
  static Reg Multiply(Reg a, Reg b) {
    return Each([&](int l) { return a.lane[l] * b.lane[l]; });
  }
  template <int k>
  static Reg Shl(Reg a) {
    return Each([&](int l) { return a.lane[l] << k; });
  }
  template <int k>
  static Reg Shr(Reg a) {
    return Each([&](int l) { return a.lane[l] >> k; });
  }
  template <int k>
  static Reg Sar(Reg a) {
    return Each([&](int l) { return static_cast<int32_t>(a.lane[l]) >> k; });
  }
  static Mask None() { return 0; }
  static Mask Equal(Reg a, Reg b) {
    return EachBit([&](int l) { return a.lane[l] == b.lane[l]; });
  }
  static Mask Greater(Reg a, Reg b) {
    return EachBit(
        [&](int l) { return static_cast<int32_t>(a.lane[l]) > static_cast<int32_t>(b.lane[l]); });
  }
  static Mask AndNot(Mask a, Mask b) { return ~a & b; }
  static bool Any(Mask m) { return m != 0; }
  static int Count(Mask m) { return __builtin_popcount(m); }
  static Reg Select(Mask m, Reg a, Reg b) {
    return Each([&](int l) { return m >> l & 1 ? a.lane[l] : b.lane[l]; });
  }
  static Reg Expand(Mask m, Reg words) {
    int n = 0;
    return Each([&](int l) { return m >> l & 1 ? words.lane[n++] : 0; });
  }
  static uint8_t* PushWords(Mask stay, Reg x, uint8_t* cursor) {
    for (int l = kWidth - 1; l >= 0; --l) {
      if (stay >> l & 1) continue;
      *--cursor = static_cast<uint8_t>(x.lane[l] >> 8);
      *--cursor = static_cast<uint8_t>(x.lane[l]);
    }
    return cursor;
  }
  static Reg Divide(Reg x, Reg multiplier, Reg entry) {
    return Each([&](int l) {
      return uint64_t{x.lane[l]} * multiplier.lane[l] >> (28 + (entry.lane[l] >> 25));
    });
  }
};

// The kernel on V against the portable path: states, words and symbols, damaged words too.
template <typename V>
void CheckKernel(int lanes, Mix mix, size_t n, uint32_t seed) {
  SCOPED_TRACE(testing::Message() << "width " << V::kLanes << " lanes " << lanes << " mix "
                                  << static_cast<int>(mix) << " symbols " << n << " seed " << seed);
  using namespace rans_internal;
  const TableSet tables = MakeTables();
  const Symbols s = RandomSymbols(n, lanes, mix, seed);
  const size_t steps = s.classes.size() / lanes;
  std::vector<uint8_t> fast(MaxSegmentBytes(static_cast<int>(s.classes.size()))), slow = fast;
  std::vector<uint32_t> x(lanes, kRansInitial), y = x;
  uint8_t* a = fast.data() + fast.size();
  uint8_t* b = slow.data() + slow.size();
  EncodeSteps<V>(tables, lanes, s.classes.data(), s.values.data(), steps, x.data(), a);
  for (size_t i = steps; i-- > 0;) {
    EncodeStep(tables, lanes, &s.classes[i * lanes], &s.values[i * lanes], y.data(), b);
  }
  ASSERT_EQ(x, y);
  std::vector<uint8_t> words(a, fast.data() + fast.size());
  ASSERT_EQ(words, std::vector<uint8_t>(b, slow.data() + slow.size()));
  std::mt19937 rng(seed);
  for (int damage = 0; damage < 3 && !words.empty(); ++damage) {
    if (damage > 0) words[rng() % words.size()] ^= static_cast<uint8_t>(1 + rng() % 255);
    std::vector<uint32_t> u = x, v = x;
    std::vector<int16_t> p(s.classes.size()), q = p;
    const uint8_t* c = words.data();
    const uint8_t* d = words.data();
    const uint8_t* const end = words.data() + words.size();
    const bool ok =
        DecodeSteps<V>(tables, lanes, s.classes.data(), p.data(), steps, u.data(), c, end);
    bool want = true;
    for (size_t i = 0; i < steps && want; ++i) {
      want = DecodeStep(tables, lanes, &s.classes[i * lanes], &q[i * lanes], v.data(), d, end);
    }
    ASSERT_EQ(ok, want);
    if (!ok) continue;
    EXPECT_EQ(p, q);
    EXPECT_EQ(u, v);
    EXPECT_EQ(c, d);
    if (damage == 0) {
      EXPECT_EQ(p, s.values);
    }
  }
}

TEST(RansTest, TheVectorKernelIsRightAtEveryWidth) {
  uint32_t seed = 1000;
  for (Mix mix : {Mix::kNarrow, Mix::kAll, Mix::kHuge, Mix::kAbsent}) {
    for (size_t n : {32, 700, 6000}) {
      for (int lanes : {8, 16, 32}) CheckKernel<PlainVector<8>>(lanes, mix, n, seed++);
      for (int lanes : {16, 32}) CheckKernel<PlainVector<16>>(lanes, mix, n, seed++);
    }
  }
}

TEST(RansTest, Avx512RunsWhereTheMachineHasIt) {
  if (!RansPathAvailable(RansPath::kAvx512)) {
    GTEST_SKIP() << "this machine has no AVX-512: its path is compiled, not run here";
  }
  EXPECT_STREQ(RansPathName(RansPath::kBest), "avx512");
}

TEST(RansTest, SegmentsComeCloseToTheIdealCodeLength) {
  const TableSet tables = MakeTables();
  for (int n : {600, 2000, 6000, 16384}) {
    const int lanes = SegmentLanes(n);
    const Symbols s = RandomSymbols(n, lanes, Mix::kNarrow, 5);
    double ideal = 0;
    for (size_t i = 0; i < s.classes.size(); ++i) {
      if (s.classes[i] != kAbsentClass) ideal += tables.Cost(s.classes[i], s.values[i]) / 8;
    }
    const size_t bytes = Encode(tables, lanes, s, RansPath::kBest).size();
    EXPECT_LT(bytes, ideal * (n < 2000 ? 1.04 : 1.025)) << n << " symbols, " << lanes << " lanes";
    EXPECT_GT(bytes, ideal);
    RecordProperty(absl::StrCat("percent_over_ideal_", n).c_str(), (bytes / ideal - 1) * 100);
    printf("%d symbols, %d lanes: ideal %.1f, %zu bytes, +%.2f %%\n", n, lanes, ideal, bytes,
           (bytes / ideal - 1) * 100);
  }
}

TEST(RansTest, TruncationAndTrailingBytesAreRefused) {
  const TableSet tables = MakeTables();
  for (int lanes : {1, 8, 32}) {
    const Symbols s = RandomSymbols(3000, lanes, Mix::kAll, 9);
    const std::vector<uint8_t> bytes = Encode(tables, lanes, s, RansPath::kBest);
    for (RansPath path : Paths()) {
      std::vector<int16_t> back;
      for (size_t cut = 0; cut < bytes.size(); cut += cut < 200 ? 1 : 97) {
        // A copy of exact size, so that a read past the end is seen by the sanitizers.
        const std::vector<uint8_t> part(bytes.begin(), bytes.begin() + cut);
        EXPECT_FALSE(Decode(tables, lanes, part, s.classes, path, &back)) << cut;
      }
      std::vector<uint8_t> longer = bytes;
      longer.resize(longer.size() + 2);
      EXPECT_FALSE(Decode(tables, lanes, longer, s.classes, path, &back));
    }
  }
}

TEST(RansTest, PathsAgreeOnDamagedBytesAndNearlyAllDamageIsSeen) {
  const TableSet tables = MakeTables();
  const Symbols s = RandomSymbols(2000, 32, Mix::kNarrow, 11);
  const std::vector<uint8_t> bytes = Encode(tables, 32, s, RansPath::kBest);
  std::mt19937 rng(12);
  int accepted = 0;
  for (int i = 0; i < 2000; ++i) {
    std::vector<uint8_t> bad = bytes;
    bad[rng() % bad.size()] ^= static_cast<uint8_t>(1 << rng() % 8);
    std::vector<int16_t> a, b;
    const bool ok = Decode(tables, 32, bad, s.classes, RansPath::kPortable, &a);
    EXPECT_EQ(Decode(tables, 32, bad, s.classes, RansPath::kBest, &b), ok);
    if (ok) {
      EXPECT_EQ(a, b);
    }
    accepted += ok;
  }
  // What slips through is an escape's value or a shift bit, and damage that lanes recover from by
  // chance: the chunk's CRC32C is there for them.
  printf("%d of 2000 flipped bits accepted\n", accepted);
  EXPECT_LT(accepted, 20);
}

TEST(TableSetTest, RefusesTablesThatBreakARule) {
  const RawTables good = GaussianTables();
  auto expect_refused = [](RawTables raw, absl::string_view what) {
    const auto made = TableSet::Make(raw.shape, raw.freq);
    ASSERT_FALSE(made.ok()) << what;
    EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
  };
  RawTables t = good;
  ++t.freq[0];
  expect_refused(t, "a sum of 4097");
  t = good;
  --t.freq[0];
  expect_refused(t, "a sum of 4095");
  t = good;
  t.freq[0] = 0;
  expect_refused(t, "a frequency of 0");
  t = good;
  t.freq[0] = -5;
  expect_refused(t, "a negative frequency");
  t = good;
  t.freq.pop_back();
  expect_refused(t, "too few");
  t = good;
  t.freq.push_back(1);
  expect_refused(t, "too many");
  t = good;
  t.shape[1] = 0;
  expect_refused(t, "no symbols");
  t = good;
  t.shape[39 * 3 + 2] = 9;
  expect_refused(t, "a shift of 9");
  t = good;
  t.shape[0] = -128;
  expect_refused(t, "the escape's value as a symbol");
  t = good;
  t.shape.pop_back();
  expect_refused(t, "a short shape");
}

TEST(TableSetTest, NormalizedFrequenciesSumAndAreNeverZero) {
  for (const std::vector<double>& counts : {std::vector<double>{1},
                                            {0, 0, 5},
                                            {1e9, 1, 1, 1},
                                            std::vector<double>(256, 0.0),
                                            std::vector<double>(4096, 3.0)}) {
    int sum = 0;
    for (int f : NormalizeFrequencies(counts)) {
      EXPECT_GE(f, 1);
      sum += f;
    }
    EXPECT_EQ(sum, 4096);
  }
}

}  // namespace
}  // namespace kvcask
