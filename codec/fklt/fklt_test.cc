#include "codec/fklt/fklt.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "codec/fklt/fklt_reference.h"
#include "codec/fklt/synthetic_profile.h"
#include "codec/format/chunk.h"
#include "codec/testing/test_cache.h"
#include "codec/transform/rope.h"

namespace kvcask {
namespace {

using fklt::FkltProfile;
using fklt::GroupModel;
using fklt::Matrix;
using fklt::Member;

Geometry SmallGeometry() {
  return UniformGeometry(4, 2, 16, StandardRope(RopeStyle::kRotateHalf, 16, 10000));
}

fklt::SyntheticOptions Options(const Geometry& g, fklt::Partition partition) {
  fklt::SyntheticOptions o;
  o.geometry = g;
  o.partition = std::move(partition);
  return o;
}

// A codec, its profile and a cache that fits it.
struct Fixture {
  explicit Fixture(const fklt::SyntheticOptions& options)
      : file(ParseOrDie(MakeSyntheticProfile(options))), profile(*FkltProfile::Read(file)) {
    spec.model = options.geometry;
    const int layers = static_cast<int>(options.geometry.layers.size());
    spec.shard = {0, 1, 0, layers, 0, options.geometry.layers[0].streams[0].heads};
    spec.profile = file;
    auto made = MakeFkltCodec(spec);
    EXPECT_TRUE(made.ok()) << made.status();
    codec = *std::move(made);
  }

  std::shared_ptr<const Profile> file;
  std::shared_ptr<const FkltProfile> profile;
  CodecSpec spec;
  std::unique_ptr<Codec> codec;
};

// Turns the K parts of un-rotated vectors to their positions (direction 1) or back (-1).
void Turn(const Geometry& geometry, const GroupModel& g, double position, int direction,
          std::vector<double>* x) {
  for (const Member& m : g.members) {
    const Rope& rope = geometry.layers[m.layer].rope;
    if (m.stream != StreamKind::kK) continue;
    for (int i = 0; i < rope.dims / 2; ++i) {
      const double angle = direction * position * rope.inv_freq[i];
      double& a = (*x)[m.offset + i];
      double& b = (*x)[m.offset + i + rope.dims / 2];
      const double turned = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = turned;
    }
  }
}

int PlaneOf(const GroupModel& g, const Member& m, int first_layer) {
  (void)g;
  return (m.layer - first_layer) * 2 + (m.stream == StreamKind::kV);
}

// Fills the members of a group with tokens drawn from the profile.
void Fill(const Fixture& f, int group, absl::Span<const uint32_t> positions, std::mt19937& rng,
          TestCache* cache) {
  const GroupModel& g = f.profile->groups[group];
  const int first = f.codec->groups()[group].layer_begin;
  std::normal_distribution<double> normal;
  for (size_t t = 0; t < positions.size(); ++t) {
    std::vector<double> x = fklt::DrawToken(g, std::exp2(.7 * normal(rng)), rng);
    Turn(f.spec.model, g, positions[t], 1, &x);
    for (const Member& m : g.members) {
      for (int d = 0; d < m.head_dim; ++d) {
        cache->Set(PlaneOf(g, m, first), m.head, static_cast<int>(t), d,
                   static_cast<float>(x[m.offset + d]));
      }
    }
  }
}

struct Encoded {
  std::vector<uint8_t> bytes;
  double predicted = -1;
  absl::Status status;
};

Encoded EncodeWith(const Codec& codec, int group, const TestCache& cache,
                   const std::vector<uint32_t>& positions, Quality quality = Quality::kBalanced) {
  Workspace workspace;
  Encoded out;
  const size_t most = codec.MaxTileBytes(group, cache.tokens(), cache.dtype());
  out.bytes.assign(most + 16, 0xa5);
  EncodeJob job;
  job.group = group;
  job.tokens = cache.tokens();
  job.source = cache.const_view();
  job.positions = positions;
  job.quality = quality;
  job.destination = absl::MakeSpan(out.bytes.data(), most);
  EXPECT_TRUE(codec.Encode(absl::MakeSpan(&job, 1), workspace).ok());
  for (size_t i = most; i < most + 16; ++i) EXPECT_EQ(out.bytes[i], 0xa5) << "written past the end";
  EXPECT_LE(job.bytes, most);
  out.bytes.resize(job.bytes);
  out.predicted = job.certificate.predicted_kld;
  out.status = job.status;
  return out;
}

DecodeJob MakeDecodeJob(const Codec& codec, int group, int tokens, Dtype dtype,
                        absl::Span<const uint8_t> tile, const std::vector<uint32_t>& positions,
                        TestCache* out) {
  DecodeJob job;
  job.group = group;
  job.tokens = tokens;
  job.source_dtype = dtype;
  job.tile = tile;
  job.positions = positions;
  job.token_begin = 0;
  job.token_end = tokens;
  job.layer_begin = codec.groups()[group].layer_begin;
  job.layer_end = codec.groups()[group].layer_end;
  job.destination = out->view();
  return job;
}

absl::Status DecodeOne(const Codec& codec, DecodeJob& job) {
  Workspace workspace;
  EXPECT_TRUE(codec.Decode(absl::MakeSpan(&job, 1), workspace).ok());
  return job.status;
}

TestCache MakeCache(const Codec& codec, int group, int tokens, Dtype dtype,
                    Layout layout = Layout::kContiguous) {
  const Group& g = codec.groups()[group];
  return TestCache(codec.geometry(), g.layer_begin, g.layer_end, tokens, dtype, layout);
}

// Un-rotated vectors of the tokens of a cache that are no sinks, or that are.
Matrix CodedVectors(const Fixture& f, int group, const TestCache& cache,
                    const std::vector<uint32_t>& positions, bool sinks = false) {
  const GroupModel& g = f.profile->groups[group];
  Matrix out;
  for (int t = 0; t < cache.tokens(); ++t) {
    if ((positions[t] < f.profile->sinks) != sinks) continue;
    std::vector<double> x(g.dimensions);
    for (const Member& m : g.members) {
      for (int d = 0; d < m.head_dim; ++d) {
        x[m.offset + d] =
            cache.Get(PlaneOf(g, m, f.codec->groups()[group].layer_begin), m.head, t, d);
      }
    }
    Turn(f.spec.model, g, positions[t], -1, &x);
    out.push_back(std::move(x));
  }
  return out;
}

Matrix Forward(const GroupModel& g, const Matrix& x) {
  Matrix y;
  for (const std::vector<double>& v : x) y.push_back(fklt::ReferenceForward(g, v));
  return y;
}

// Over tiles the sketch's noise goes and a bias would stay.
struct CertificateSums {
  double predicted = 0;  // in units of the reference's
  int tiles = 0;
};

// Everything that one tile promises, against the double reference.
void CheckAgainstReference(const Fixture& f, int group, Dtype dtype, int tokens,
                           uint32_t first_position, Layout layout, uint32_t seed,
                           CertificateSums* sums) {
  SCOPED_TRACE(testing::Message() << "group " << group << " " << DtypeName(dtype) << " tokens "
                                  << tokens << " from " << first_position << " "
                                  << LayoutName(layout) << " seed " << seed);
  std::mt19937 rng(seed);
  const GroupModel& g = f.profile->groups[group];
  const std::vector<uint32_t> positions = PositionsFrom(first_position, tokens);
  TestCache cache = MakeCache(*f.codec, group, tokens, dtype, layout);
  Fill(f, group, positions, rng, &cache);
  const Encoded tile = EncodeWith(*f.codec, group, cache, positions);
  ASSERT_TRUE(tile.status.ok()) << tile.status;
  const Matrix x = CodedVectors(f, group, cache, positions);
  const int coded = static_cast<int>(x.size());
  const int sinks = tokens - coded;
  const bool quantised = tile.bytes[0] == 2;
  ASSERT_TRUE(quantised ? sinks > 0 : tile.bytes[0] == 1) << "a coded tile";
  const size_t sink_bytes = quantised
                                ? fklt::ReferenceSinkBytes(g, sinks)
                                : static_cast<size_t>(sinks) * g.dimensions * DtypeSize(dtype);
  const size_t split = tile.bytes.size() - sink_bytes;
  const absl::Span<const uint8_t> bytes(tile.bytes);
  const auto parsed = fklt::ReferenceParse(*f.profile, g, bytes.first(split), coded);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  Matrix decoded_sinks;
  double sink_certificate = 0;
  if (quantised) {
    decoded_sinks = fklt::ReferenceSinks(g, sinks, bytes.subspan(split));
    const Matrix put = CodedVectors(f, group, cache, positions, true);
    sink_certificate = fklt::ReferenceSinkCertificate(*f.profile, g, 1, tokens, put, decoded_sinks);
    for (int t = 0; t < sinks; ++t) {
      for (const Member& m : g.members) {
        double largest = 0;
        for (int d = m.offset; d < m.offset + m.head_dim; ++d) {
          largest = std::max(largest, std::fabs(put[t][d] - g.mu[d]));
        }
        for (int d = m.offset; d < m.offset + m.head_dim; ++d) {
          ASSERT_NEAR(decoded_sinks[t][d], put[t][d], largest / 511 * .6 + 1e-6) << "sink " << t;
        }
      }
    }
  }

  // The integers are those of double arithmetic but at a rounding edge.
  const Matrix y = Forward(g, x);
  for (int t = 0; t < coded; ++t) {
    const fklt::ReferenceToken token = fklt::ReferenceAnalyse(g, y[t]);
    EXPECT_NEAR(parsed->step[t], std::max(-6.0, std::min(6.0, token.step_class)), .5001);
    const double a = fklt::ReferenceAmplitude(*f.profile, g, *parsed, t, y[t]);
    EXPECT_NEAR(parsed->amplitude[t], std::max(0.0, std::min(15.0, a)), .5001);
    const double step = std::exp2((parsed->step_exponent - 4 * parsed->step[t]) / 8.0);
    for (int r = 0; r < g.dimensions; ++r) {
      if (parsed->table[t][r] < 0) continue;
      ASSERT_NEAR(parsed->q[t][r], y[t][r] / step, .501) << "token " << t << " row " << r;
    }
  }
  EXPECT_EQ(parsed->kcap, *std::max_element(parsed->step.begin(), parsed->step.end()));

  // The certificate is the error that double arithmetic finds, up to the sketch's noise.
  const Matrix decoded_y = fklt::ReferenceDequantise(*f.profile, *parsed);
  const double certificate =
      fklt::ReferenceCertificate(*f.profile, g, 1, tokens, y, decoded_y) + sink_certificate;
  EXPECT_NEAR(tile.predicted, certificate, (coded > 30 ? .3 : .6) * certificate);
  *sums = {sums->predicted + tile.predicted / certificate, sums->tiles + 1};

  // What comes back is what double arithmetic gives.
  TestCache back = MakeCache(*f.codec, group, tokens, Dtype::kF32, layout);
  DecodeJob job = MakeDecodeJob(*f.codec, group, tokens, dtype, tile.bytes, positions, &back);
  ASSERT_TRUE(DecodeOne(*f.codec, job).ok()) << job.status;
  EXPECT_TRUE(back.PaddingIntact());
  // What shadow mode measures is that certificate too, with nothing estimated.
  EncodeJob measured;
  measured.group = group;
  measured.tokens = tokens;
  measured.source = cache.const_view();
  measured.positions = positions;
  EXPECT_NEAR(f.codec->MeasureKld(measured, back.const_view()), certificate, .02 * certificate);
  EXPECT_EQ(f.codec->MeasureKld(measured, cache.const_view()), 0) << "against itself";
  Matrix want = fklt::ReferenceDecode(*f.profile, g, *parsed);
  const int first_layer = f.codec->groups()[group].layer_begin;
  int coded_index = 0, sink_index = 0;
  for (int t = 0; t < tokens; ++t) {
    const bool sink = positions[t] < f.profile->sinks;
    const bool exact = sink && !quantised;
    std::vector<double> v;
    if (!exact) {
      v = sink ? decoded_sinks[sink_index++] : want[coded_index++];
      Turn(f.spec.model, g, positions[t], 1, &v);
    }
    for (const Member& m : g.members) {
      for (int d = 0; d < m.head_dim; ++d) {
        const int plane = PlaneOf(g, m, first_layer);
        const float got = back.Get(plane, m.head, t, d);
        if (exact) {
          ASSERT_EQ(got, cache.Get(plane, m.head, t, d)) << "sink " << t;
        } else {
          ASSERT_NEAR(got, v[m.offset + d], 2e-4 * (1 + std::fabs(v[m.offset + d])))
              << "layer " << m.layer << " head " << m.head << " token " << t << " element " << d;
        }
      }
    }
  }
}

TEST(FkltTest, EveryPartitionCodesAsDoubleArithmeticDoes) {
  const Geometry g = SmallGeometry();
  uint32_t seed = 100;
  CertificateSums sums;
  for (const fklt::Partition& partition :
       {fklt::OneHeadGroups(g), fklt::OneStreamGroups(g), fklt::LayerGroups(g, 1),
        fklt::LayerGroups(g, 2), fklt::LayerGroups(g, 3), fklt::LayerGroups(g, 4)}) {
    const Fixture f(Options(g, partition));
    ASSERT_EQ(f.codec->groups().size(), partition.size());
    const int last = static_cast<int>(partition.size()) - 1;
    CheckAgainstReference(f, 0, Dtype::kBf16, 128, 128, Layout::kContiguous, seed++, &sums);
    CheckAgainstReference(f, last, Dtype::kF32, 128, 0, Layout::kPagedNhd, seed++, &sums);
    CheckAgainstReference(f, last / 2, Dtype::kF16, 37, 2, Layout::kTransposedK, seed++, &sums);
    CheckAgainstReference(f, last, Dtype::kBf16, 96, 1000000, Layout::kPadded, seed++, &sums);
  }
  EXPECT_NEAR(sums.predicted / sums.tiles, 1, .08);
}

TEST(FkltTest, WideGroupsTakeSeveralSegments) {
  const Geometry g = UniformGeometry(2, 3, 64, StandardRope(RopeStyle::kRotateHalf, 64, 10000));
  fklt::SyntheticOptions o = Options(g, fklt::LayerGroups(g, 2));
  o.active = .6;
  CertificateSums sums;
  const Fixture f(o);
  CheckAgainstReference(f, 0, Dtype::kBf16, 128, 512, Layout::kPagedHnd, 7, &sums);
  CheckAgainstReference(f, 0, Dtype::kBf16, 128, 0, Layout::kContiguous, 8, &sums);
  CheckAgainstReference(f, 0, Dtype::kBf16, 1, 77, Layout::kContiguous, 9, &sums);
}

TEST(FkltTest, PathsAreBitIdentical) {
  const Geometry g = UniformGeometry(2, 3, 64, StandardRope(RopeStyle::kRotateHalf, 64, 10000));
  for (int layers : {1, 2}) {
    const Fixture f(Options(g, fklt::LayerGroups(g, layers)));
    auto portable = MakeFkltCodecWith(f.spec, {RansPath::kPortable, 0});
    ASSERT_TRUE(portable.ok());
    for (int tokens : {128, 124, 40, 5}) {
      std::mt19937 rng(tokens);
      const std::vector<uint32_t> positions = PositionsFrom(300, tokens);
      TestCache cache = MakeCache(*f.codec, 0, tokens, Dtype::kBf16);
      Fill(f, 0, positions, rng, &cache);
      const Encoded fast = EncodeWith(*f.codec, 0, cache, positions);
      const Encoded slow = EncodeWith(**portable, 0, cache, positions);
      EXPECT_EQ(fast.bytes, slow.bytes) << tokens << " tokens";
      EXPECT_EQ(fast.predicted, slow.predicted);
      TestCache a = MakeCache(*f.codec, 0, tokens, Dtype::kF32);
      TestCache b = MakeCache(*f.codec, 0, tokens, Dtype::kF32);
      DecodeJob ja = MakeDecodeJob(*f.codec, 0, tokens, Dtype::kBf16, fast.bytes, positions, &a);
      DecodeJob jb = MakeDecodeJob(*f.codec, 0, tokens, Dtype::kBf16, fast.bytes, positions, &b);
      ASSERT_TRUE(DecodeOne(*f.codec, ja).ok());
      ASSERT_TRUE(DecodeOne(**portable, jb).ok());
      EXPECT_EQ(FirstDifference(a, b), "");
    }
  }
}

TEST(FkltTest, AnyTokensAndLayersOfATileDecodeAlone) {
  const Geometry g = SmallGeometry();
  for (const fklt::Partition& partition : {fklt::LayerGroups(g, 4), fklt::OneHeadGroups(g)}) {
    const Fixture f(Options(g, partition));
    std::mt19937 rng(3);
    const std::vector<uint32_t> positions = PositionsFrom(1, 100);  // three sinks among them
    TestCache cache = MakeCache(*f.codec, 0, 100, Dtype::kBf16);
    Fill(f, 0, positions, rng, &cache);
    const Encoded tile = EncodeWith(*f.codec, 0, cache, positions);
    TestCache whole = MakeCache(*f.codec, 0, 100, Dtype::kF32);
    DecodeJob all = MakeDecodeJob(*f.codec, 0, 100, Dtype::kBf16, tile.bytes, positions, &whole);
    ASSERT_TRUE(DecodeOne(*f.codec, all).ok());
    const Group group = f.codec->groups()[0];
    const GroupModel& model = f.profile->groups[0];
    for (int i = 0; i < 60; ++i) {
      const int tb = rng() % 101, te = tb + rng() % (101 - tb);
      const int lb = group.layer_begin + rng() % (group.layer_end - group.layer_begin + 1);
      const int le = lb + rng() % (group.layer_end - lb + 1);
      SCOPED_TRACE(testing::Message()
                   << "tokens " << tb << ".." << te << " layers " << lb << ".." << le);
      TestCache part(f.codec->geometry(), lb, le, te - tb, Dtype::kF32, Layout::kPadded);
      DecodeJob job = MakeDecodeJob(*f.codec, 0, 100, Dtype::kBf16, tile.bytes, positions, &part);
      job.token_begin = tb;
      job.token_end = te;
      job.layer_begin = lb;
      job.layer_end = le;
      ASSERT_TRUE(DecodeOne(*f.codec, job).ok()) << job.status;
      EXPECT_TRUE(part.PaddingIntact());
      for (const Member& m : model.members) {
        if (m.layer < lb || m.layer >= le) continue;
        for (int t = tb; t < te; ++t) {
          for (int d = 0; d < m.head_dim; ++d) {
            ASSERT_NEAR(part.Get(PlaneOf(model, m, lb), m.head, t - tb, d),
                        whole.Get(PlaneOf(model, m, group.layer_begin), m.head, t, d), 2e-5);
          }
        }
      }
    }
  }
}

TEST(FkltTest, KeysComeBackAtAnotherPosition) {
  const Geometry g = SmallGeometry();
  const Fixture f(Options(g, fklt::LayerGroups(g, 4)));
  std::mt19937 rng(4);
  const std::vector<uint32_t> positions = PositionsFrom(2, 20);  // two sinks
  TestCache cache = MakeCache(*f.codec, 0, 20, Dtype::kF32);
  Fill(f, 0, positions, rng, &cache);
  const Encoded tile = EncodeWith(*f.codec, 0, cache, positions);
  TestCache here = MakeCache(*f.codec, 0, 20, Dtype::kF32);
  TestCache there = MakeCache(*f.codec, 0, 20, Dtype::kF32);
  DecodeJob a = MakeDecodeJob(*f.codec, 0, 20, Dtype::kF32, tile.bytes, positions, &here);
  DecodeJob b = MakeDecodeJob(*f.codec, 0, 20, Dtype::kF32, tile.bytes, positions, &there);
  b.position_offset = 1000;
  ASSERT_TRUE(DecodeOne(*f.codec, a).ok());
  ASSERT_TRUE(DecodeOne(*f.codec, b).ok());
  const GroupModel& model = f.profile->groups[0];
  for (int t = 0; t < 20; ++t) {
    std::vector<double> x(model.dimensions);
    for (const Member& m : model.members) {
      for (int d = 0; d < m.head_dim; ++d) {
        x[m.offset + d] = here.Get(PlaneOf(model, m, 0), m.head, t, d);
      }
    }
    Turn(g, model, 1000, 1, &x);
    for (const Member& m : model.members) {
      for (int d = 0; d < m.head_dim; ++d) {
        ASSERT_NEAR(there.Get(PlaneOf(model, m, 0), m.head, t, d), x[m.offset + d], 1e-4);
      }
    }
  }
}

TEST(FkltTest, SinksAreKnownByPositionWhereverTheyStand) {
  const Geometry g = SmallGeometry();
  const Fixture f(Options(g, fklt::LayerGroups(g, 4)));
  std::mt19937 rng(5);
  const std::vector<uint32_t> positions = {9, 3, 4, 0, 1, 100, 2, 7};
  TestCache cache = MakeCache(*f.codec, 0, 8, Dtype::kBf16);
  Fill(f, 0, positions, rng, &cache);
  const Encoded tile = EncodeWith(*f.codec, 0, cache, positions);
  TestCache back = MakeCache(*f.codec, 0, 8, Dtype::kBf16);
  DecodeJob job = MakeDecodeJob(*f.codec, 0, 8, Dtype::kBf16, tile.bytes, positions, &back);
  ASSERT_TRUE(DecodeOne(*f.codec, job).ok()) << job.status;
  for (int t : {1, 3, 4, 6}) {
    for (int p = 0; p < cache.planes(); ++p) {
      EXPECT_EQ(std::memcmp(cache.At(p, 1, t, 0), back.At(p, 1, t, 0), 32), 0) << t;
    }
  }
  EXPECT_EQ(tile.bytes[0], 1);
  // A tile of sinks alone is as it was received.
  const std::vector<uint32_t> sinks = {0, 1, 2, 3};
  TestCache four = MakeCache(*f.codec, 0, 4, Dtype::kBf16);
  four.FillRandom(rng);
  const Encoded raw = EncodeWith(*f.codec, 0, four, sinks);
  EXPECT_EQ(raw.bytes.size(), f.codec->MaxTileBytes(0, 4, Dtype::kBf16));
  TestCache same = MakeCache(*f.codec, 0, 4, Dtype::kBf16);
  DecodeJob again = MakeDecodeJob(*f.codec, 0, 4, Dtype::kBf16, raw.bytes, sinks, &same);
  ASSERT_TRUE(DecodeOne(*f.codec, again).ok());
  EXPECT_EQ(FirstDifference(four, same), "");
}

TEST(FkltTest, SinksTakeTenBitsWhereThatIsCheap) {
  const Geometry g = SmallGeometry();
  const Fixture f(Options(g, fklt::LayerGroups(g, 2)));
  const GroupModel& model = f.profile->groups[0];
  std::mt19937 rng(31);
  for (Dtype dtype : {Dtype::kBf16, Dtype::kF32}) {
    for (double amplitude : {1.0 / 64, 64.0}) {  // small: errors far below those of the others
      SCOPED_TRACE(testing::Message() << DtypeName(dtype) << " amplitude " << amplitude);
      const std::vector<uint32_t> positions = PositionsFrom(1, 100);  // three sinks
      TestCache cache = MakeCache(*f.codec, 0, 100, dtype);
      Fill(f, 0, positions, rng, &cache);
      for (int t = 0; t < 3; ++t) {
        std::vector<double> x = fklt::DrawToken(model, amplitude, rng);
        Turn(g, model, positions[t], 1, &x);
        for (const Member& m : model.members) {
          for (int d = 0; d < m.head_dim; ++d) {
            cache.Set(PlaneOf(model, m, 0), m.head, t, d, static_cast<float>(x[m.offset + d]));
          }
        }
      }
      const Encoded tile = EncodeWith(*f.codec, 0, cache, positions);
      ASSERT_TRUE(tile.status.ok()) << tile.status;
      EXPECT_EQ(tile.bytes[0], amplitude < 1 ? 2 : 1);
      if (amplitude > 1) continue;
      // Every part of the tile decodes alone, the sinks too, and at another position.
      TestCache back = MakeCache(*f.codec, 0, 100, Dtype::kF32);
      TestCache there = MakeCache(*f.codec, 0, 100, Dtype::kF32);
      DecodeJob all = MakeDecodeJob(*f.codec, 0, 100, dtype, tile.bytes, positions, &back);
      ASSERT_TRUE(DecodeOne(*f.codec, all).ok()) << all.status;
      DecodeJob moved = MakeDecodeJob(*f.codec, 0, 100, dtype, tile.bytes, positions, &there);
      moved.position_offset = 77;
      ASSERT_TRUE(DecodeOne(*f.codec, moved).ok());
      TestCache part(f.codec->geometry(), 1, 2, 2, Dtype::kF32, Layout::kPadded);
      DecodeJob some = MakeDecodeJob(*f.codec, 0, 100, dtype, tile.bytes, positions, &part);
      some.token_begin = 1;
      some.token_end = 3;
      some.layer_begin = 1;
      some.layer_end = 2;
      ASSERT_TRUE(DecodeOne(*f.codec, some).ok()) << some.status;
      EXPECT_TRUE(part.PaddingIntact());
      for (int t = 0; t < 3; ++t) {
        std::vector<double> x(model.dimensions);
        for (const Member& m : model.members) {
          for (int d = 0; d < m.head_dim; ++d) {
            const float got = back.Get(PlaneOf(model, m, 0), m.head, t, d);
            x[m.offset + d] = got;
            if (m.layer == 1 && t >= 1) {
              EXPECT_EQ(part.Get(PlaneOf(model, m, 1), m.head, t - 1, d), got);
            }
          }
        }
        Turn(g, model, 77, 1, &x);
        for (const Member& m : model.members) {
          for (int d = 0; d < m.head_dim; ++d) {
            ASSERT_NEAR(there.Get(PlaneOf(model, m, 0), m.head, t, d), x[m.offset + d], 1e-4);
          }
        }
      }
      // The same bytes are no tile where there are no sinks.
      const std::vector<uint32_t> later = PositionsFrom(500, 100);
      DecodeJob wrong = MakeDecodeJob(*f.codec, 0, 100, dtype, tile.bytes, later, &back);
      EXPECT_EQ(DecodeOne(*f.codec, wrong).code(), absl::StatusCode::kDataLoss);
      // Nor cut short within the sinks.
      const std::vector<uint8_t> cut(tile.bytes.begin(), tile.bytes.end() - 1);
      DecodeJob less = MakeDecodeJob(*f.codec, 0, 100, dtype, cut, positions, &back);
      EXPECT_EQ(DecodeOne(*f.codec, less).code(), absl::StatusCode::kDataLoss);
    }
  }
}

TEST(FkltTest, UnusedBitsBehindTheSinksAreRefused) {
  const Geometry g = UniformGeometry(1, 1, 2, StandardRope(RopeStyle::kRotateHalf, 2, 10000));
  fklt::SyntheticOptions o = Options(g, fklt::OneStreamGroups(g));
  o.active = 1;
  const Fixture f(o);
  std::mt19937 rng(32);
  const std::vector<uint32_t> positions = PositionsFrom(3, 60);  // one sink: two elements
  TestCache cache = MakeCache(*f.codec, 0, 60, Dtype::kBf16);
  Fill(f, 0, positions, rng, &cache);
  for (int p = 0; p < cache.planes(); ++p) {
    for (int d = 0; d < 2; ++d) cache.Set(p, 0, 0, d, 0);
  }
  Encoded tile = EncodeWith(*f.codec, 0, cache, positions);
  ASSERT_TRUE(tile.status.ok());
  tile.bytes.resize(tile.bytes.size() - (tile.bytes[0] == 2 ? 4 : 2 * 2));
  tile.bytes[0] = 2;
  for (uint8_t byte : {192, 128, 128}) tile.bytes.push_back(byte);  // exponent, high bits
  TestCache back = MakeCache(*f.codec, 0, 60, Dtype::kBf16);
  for (int low : {0x00, 0x0f, 0x10, 0x80}) {
    std::vector<uint8_t> bytes = tile.bytes;
    bytes.push_back(static_cast<uint8_t>(low));
    DecodeJob job = MakeDecodeJob(*f.codec, 0, 60, Dtype::kBf16, bytes, positions, &back);
    const absl::Status status = DecodeOne(*f.codec, job);
    EXPECT_EQ(status.code(), low < 16 ? absl::StatusCode::kOk : absl::StatusCode::kDataLoss)
        << status;
  }
}

TEST(FkltTest, ShorterSegmentsHoldTheSameIntegers) {
  const Geometry g = UniformGeometry(2, 3, 64, StandardRope(RopeStyle::kRotateHalf, 64, 10000));
  const Fixture f(Options(g, fklt::LayerGroups(g, 2)));
  std::mt19937 rng(33);
  const std::vector<uint32_t> positions = PositionsFrom(300, 128);
  TestCache cache = MakeCache(*f.codec, 0, 128, Dtype::kBf16);
  Fill(f, 0, positions, rng, &cache);
  const Encoded whole = EncodeWith(*f.codec, 0, cache, positions);
  const auto want = fklt::ReferenceParse(*f.profile, f.profile->groups[0], whole.bytes, 128);
  ASSERT_TRUE(want.ok());
  size_t before = whole.bytes.size();
  for (int shift : {1, 2}) {
    std::vector<uint8_t> bytes;
    for (RansPath path : {RansPath::kPortable, RansPath::kBest}) {
      auto codec = MakeFkltCodecWith(f.spec, {path, shift});
      ASSERT_TRUE(codec.ok()) << codec.status();
      const Encoded tile = EncodeWith(**codec, 0, cache, positions);
      EXPECT_EQ(tile.bytes[1] >> 6, shift);
      if (!bytes.empty()) {
        EXPECT_EQ(tile.bytes, bytes);
      }
      bytes = tile.bytes;
    }
    EXPECT_GT(bytes.size(), before);
    EXPECT_LT(bytes.size(), whole.bytes.size() * 1.08);
    before = bytes.size();
    const auto got = fklt::ReferenceParse(*f.profile, f.profile->groups[0], bytes, 128);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->q, want->q);
    TestCache a = MakeCache(*f.codec, 0, 128, Dtype::kF32);
    TestCache b = MakeCache(*f.codec, 0, 128, Dtype::kF32);
    DecodeJob ja = MakeDecodeJob(*f.codec, 0, 128, Dtype::kBf16, whole.bytes, positions, &a);
    DecodeJob jb = MakeDecodeJob(*f.codec, 0, 128, Dtype::kBf16, bytes, positions, &b);
    ASSERT_TRUE(DecodeOne(*f.codec, ja).ok());
    ASSERT_TRUE(DecodeOne(*f.codec, jb).ok());
    EXPECT_EQ(FirstDifference(a, b), "");
  }
  CodecSpec spec = f.spec;
  spec.short_segments = true;
  const auto codec = MakeFkltCodec(spec);
  ASSERT_TRUE(codec.ok()) << codec.status();
  EXPECT_EQ(EncodeWith(**codec, 0, cache, positions).bytes.size(), before);
  for (int shift : {-1, 3}) {
    EXPECT_EQ(MakeFkltCodecWith(f.spec, {RansPath::kBest, shift}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(FkltTest, QualitiesTradeBytesForError) {
  const Geometry g = SmallGeometry();
  const Fixture f(Options(g, fklt::LayerGroups(g, 4)));
  std::mt19937 rng(6);
  const std::vector<uint32_t> positions = PositionsFrom(128, 128);
  TestCache cache = MakeCache(*f.codec, 0, 128, Dtype::kBf16);
  Fill(f, 0, positions, rng, &cache);
  const Encoded fine = EncodeWith(*f.codec, 0, cache, positions, Quality::kNearLossless);
  const Encoded middle = EncodeWith(*f.codec, 0, cache, positions, Quality::kBalanced);
  const Encoded coarse = EncodeWith(*f.codec, 0, cache, positions, Quality::kCompact);
  EXPECT_GT(fine.bytes.size(), middle.bytes.size());
  EXPECT_GT(middle.bytes.size(), coarse.bytes.size());
  EXPECT_LT(fine.predicted, middle.predicted);
  EXPECT_LT(middle.predicted, coarse.predicted);
  EXPECT_EQ(EncodeWith(*f.codec, 0, cache, positions, Quality::kDefault).bytes, middle.bytes);
}

TEST(FkltTest, ATileOverTheFloorIsCodedFinerAndAtLastAsReceived) {
  const Geometry g = SmallGeometry();
  fklt::SyntheticOptions o = Options(g, fklt::LayerGroups(g, 4));
  std::mt19937 rng(8);
  const std::vector<uint32_t> positions = PositionsFrom(128, 128);
  std::unique_ptr<TestCache> cache;
  double free = 0;
  for (double share : {1.0, .5, .1, .001}) {
    o.largest_kld = share == 1.0 ? 1e30 : free * share;
    const Fixture f(o);
    if (cache == nullptr) {
      cache = std::make_unique<TestCache>(g, 0, 4, 128, Dtype::kBf16, Layout::kContiguous);
      Fill(f, 0, positions, rng, cache.get());
    }
    const Encoded tile = EncodeWith(*f.codec, 0, *cache, positions);
    ASSERT_TRUE(tile.status.ok());
    const int exponent = static_cast<int16_t>(tile.bytes[2] | tile.bytes[3] << 8);
    if (share == 1.0) {
      free = tile.predicted;
      EXPECT_EQ(exponent, -16);
    } else if (share >= .1) {
      EXPECT_LE(tile.predicted, o.largest_kld);
      EXPECT_EQ(exponent, share == .5 ? -24 : -32);
    } else {
      EXPECT_EQ(tile.bytes.size(), f.codec->MaxTileBytes(0, 128, Dtype::kBf16));
      EXPECT_EQ(tile.predicted, 0);
      TestCache back = MakeCache(*f.codec, 0, 128, Dtype::kBf16);
      DecodeJob job = MakeDecodeJob(*f.codec, 0, 128, Dtype::kBf16, tile.bytes, positions, &back);
      ASSERT_TRUE(DecodeOne(*f.codec, job).ok());
      EXPECT_EQ(FirstDifference(*cache, back), "");
    }
  }
}

TEST(FkltTest, NotANumberAndInfinityAreRefusedWithTheirPlace) {
  const Geometry g = SmallGeometry();
  const Fixture f(Options(g, fklt::LayerGroups(g, 2)));
  for (Dtype dtype : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      for (uint32_t first : {0u, 50u}) {  // among the sinks, and not
        std::mt19937 rng(1);
        TestCache cache = MakeCache(*f.codec, 1, 8, dtype);
        cache.FillRandom(rng);
        cache.Set(3, 1, 2, 5, bad);
        const Encoded tile = EncodeWith(*f.codec, 1, cache, PositionsFrom(first, 8));
        EXPECT_EQ(tile.status.code(), absl::StatusCode::kInvalidArgument);
        EXPECT_NE(tile.status.message().find("layer 3, stream V, head 1, token 2"),
                  absl::string_view::npos)
            << tile.status;
      }
    }
  }
}

TEST(FkltTest, OddInputsRoundTrip) {
  const Geometry g = SmallGeometry();
  const Fixture f(Options(g, fklt::LayerGroups(g, 2)));
  struct Case {
    const char* name;
    std::function<float(int)> value;
    bool exact;
  };
  const Case cases[] = {
      {"all equal", [](int) { return 1.5f; }, false},
      {"all zero", [](int) { return 0.0f; }, false},
      {"denormal", [](int i) { return (i % 2 ? -1 : 1) * 1e-40f; }, false},
      {"one huge outlier", [](int i) { return i == 77 ? 3e38f : 1.0f; }, true},
      {"all huge", [](int i) { return i % 2 ? -3e38f : 3e38f; }, true},
      {"at the edge of fp16", [](int i) { return i % 2 ? -65000.0f : 65000.0f; }, true},
  };
  for (const Case& c : cases) {
    for (int tokens : {1, 128}) {
      SCOPED_TRACE(testing::Message() << c.name << ", " << tokens << " tokens");
      const std::vector<uint32_t> positions = PositionsFrom(64, tokens);
      TestCache cache = MakeCache(*f.codec, 0, tokens, Dtype::kBf16);
      int i = 0;
      for (int p = 0; p < cache.planes(); ++p) {
        for (int h = 0; h < cache.heads(p); ++h) {
          for (int t = 0; t < tokens; ++t) {
            for (int d = 0; d < cache.head_dim(p); ++d) cache.Set(p, h, t, d, c.value(i++));
          }
        }
      }
      const Encoded tile = EncodeWith(*f.codec, 0, cache, positions);
      ASSERT_TRUE(tile.status.ok()) << tile.status;
      EXPECT_TRUE(std::isfinite(tile.predicted));
      TestCache back = MakeCache(*f.codec, 0, tokens, Dtype::kBf16);
      DecodeJob job =
          MakeDecodeJob(*f.codec, 0, tokens, Dtype::kBf16, tile.bytes, positions, &back);
      ASSERT_TRUE(DecodeOne(*f.codec, job).ok()) << job.status;
      if (c.exact) {
        EXPECT_EQ(FirstDifference(cache, back), "");
        continue;
      }
      // What is not coded is lost, what is coded is within a step: never worse than the mean.
      const GroupModel& model = f.profile->groups[0];
      const Matrix y = Forward(model, CodedVectors(f, 0, cache, positions));
      const Matrix z = Forward(model, CodedVectors(f, 0, back, positions));
      for (size_t t = 0; t < y.size(); ++t) {
        double energy = 0, error = 0;
        for (size_t r = 0; r < y[t].size(); ++r) {
          energy += y[t][r] * y[t][r];
          error += std::pow(y[t][r] - z[t][r], 2);
        }
        ASSERT_LT(error, energy) << "token " << t;
      }
    }
  }
}

// FORMAT.md's targets: 4 % over the ideal code length under the same tables for whole pages, 9 %
// for tiles under 2 KB.
TEST(FkltTest, TilesAreCloseToTheirIdealCodeLength) {
  const Geometry g = UniformGeometry(4, 2, 64, StandardRope(RopeStyle::kRotateHalf, 64, 10000));
  for (const fklt::Partition& partition :
       {fklt::OneHeadGroups(g), fklt::LayerGroups(g, 1), fklt::LayerGroups(g, 2)}) {
    const Fixture f(Options(g, partition));
    const GroupModel& model = f.profile->groups[0];
    for (int tokens : {128, 48, 16}) {
      std::mt19937 rng(tokens);
      const std::vector<uint32_t> positions = PositionsFrom(1280, tokens);
      TestCache cache = MakeCache(*f.codec, 0, tokens, Dtype::kBf16);
      Fill(f, 0, positions, rng, &cache);
      const Encoded tile = EncodeWith(*f.codec, 0, cache, positions);
      const auto parsed = fklt::ReferenceParse(*f.profile, model, tile.bytes, tokens);
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      const TableSet& tables = f.profile->table_sets[0];
      double ideal = 0;
      for (int t = 0; t < tokens; ++t) {
        ideal += tables.Cost(kAmplitudeTable, parsed->amplitude[t]) / 8;
        ideal += tables.Cost(kStepTable, parsed->step[t]) / 8;
        for (int r = 0; r < model.dimensions; ++r) {
          if (parsed->table[t][r] < 0) continue;
          ideal += tables.Cost(parsed->table[t][r], parsed->q[t][r]) / 8;
        }
      }
      const double over = tile.bytes.size() / ideal - 1;
      printf("D %d, %d tokens: %zu bytes, %.2f %% over the ideal %.1f\n", model.dimensions, tokens,
             tile.bytes.size(), 100 * over, ideal);
      EXPECT_LT(over, tile.bytes.size() >= 2000 ? .04 : .09);
      EXPECT_GT(over, 0);
    }
  }
}

TEST(FkltTest, DamageIsSeenByTheChunkAndHarmlessToTheDecoder) {
  const Geometry g = SmallGeometry();
  const Fixture f(Options(g, fklt::LayerGroups(g, 2)));
  std::mt19937 rng(21);
  const std::vector<uint32_t> positions = PositionsFrom(0, 128);
  std::vector<EncodedTile> tiles;
  std::vector<Encoded> encoded;
  for (int group = 0; group < 2; ++group) {
    TestCache cache = MakeCache(*f.codec, group, 128, Dtype::kBf16);
    Fill(f, group, positions, rng, &cache);
    encoded.push_back(EncodeWith(*f.codec, group, cache, positions));
  }
  for (int group = 0; group < 2; ++group) {
    tiles.push_back({group, 0, 128, encoded[group].bytes, {encoded[group].predicted}});
  }
  ChunkHeader header;
  header.codec = CodecId::kFklt;
  header.quality = Quality::kBalanced;
  header.shard = f.spec.shard;
  header.profile = f.file->fingerprint();
  header.tokens = 128;
  header.positions = positions;
  const std::vector<uint8_t> chunk = BuildChunk(header, tiles);
  ASSERT_TRUE(ParseChunk(chunk, Verify::kAll).ok());
  int accepted = 0, refused = 0;
  for (int i = 0; i < 600; ++i) {
    std::vector<uint8_t> bad = chunk;
    const size_t bit = rng() % (8 * bad.size());
    bad[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    EXPECT_FALSE(ParseChunk(bad, Verify::kAll).ok()) << "bit " << bit;
    // And the tile itself, as if checksums had been made for it.
    std::vector<uint8_t> tile = encoded[i % 2].bytes;
    const int flips = 1 + rng() % 3;
    for (int k = 0; k < flips; ++k)
      tile[rng() % tile.size()] ^= static_cast<uint8_t>(1 << rng() % 8);
    if (rng() % 4 == 0) tile.resize(rng() % (tile.size() + 1));
    const std::vector<uint8_t> exact(tile);  // no spare capacity behind it
    TestCache back = MakeCache(*f.codec, i % 2, 128, Dtype::kBf16, Layout::kPadded);
    DecodeJob job = MakeDecodeJob(*f.codec, i % 2, 128, Dtype::kBf16, exact, positions, &back);
    const absl::Status status = DecodeOne(*f.codec, job);
    EXPECT_TRUE(back.PaddingIntact());
    if (status.ok()) {
      ++accepted;
    } else {
      ++refused;
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    }
  }
  // Damage to sinks can't be seen without the checksum; most other damage is.
  printf("%d damaged tiles refused, %d decoded\n", refused, accepted);
  EXPECT_GT(refused, 0);
}

TEST(FkltTest, RandomBytesNeverDecodeOutOfBounds) {
  const Geometry g = SmallGeometry();
  const Fixture f(Options(g, fklt::LayerGroups(g, 2)));
  std::mt19937 rng(22);
  for (int i = 0; i < 600; ++i) {
    std::vector<uint8_t> tile(rng() % 600);
    for (uint8_t& b : tile) b = static_cast<uint8_t>(rng());
    if (tile.size() > 3 && rng() % 8 != 0) {
      tile[0] = rng() % 3;
      tile[1] &= 15;
      if (rng() % 2) tile[3] = 0xff;
    }
    const int tokens = 1 + rng() % 128;
    const std::vector<uint32_t> positions = PositionsFrom(rng() % 8, tokens);
    TestCache back = MakeCache(*f.codec, 0, tokens, Dtype::kBf16, Layout::kPadded);
    DecodeJob job = MakeDecodeJob(*f.codec, 0, tokens, Dtype::kBf16, tile, positions, &back);
    const absl::Status status = DecodeOne(*f.codec, job);
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kDataLoss) << status;
    EXPECT_TRUE(back.PaddingIntact());
  }
}

TEST(FkltTest, ABadJobFailsAlone) {
  const Geometry g = SmallGeometry();
  const Fixture f(Options(g, fklt::LayerGroups(g, 2)));
  std::mt19937 rng(23);
  const std::vector<uint32_t> positions = PositionsFrom(10, 16);
  TestCache cache = MakeCache(*f.codec, 0, 16, Dtype::kBf16);
  Fill(f, 0, positions, rng, &cache);
  std::vector<uint8_t> out(f.codec->MaxTileBytes(0, 16, Dtype::kBf16));
  std::vector<EncodeJob> jobs(3);
  for (EncodeJob& job : jobs) {
    job.tokens = 16;
    job.source = cache.const_view();
    job.positions = positions;
    job.destination = absl::MakeSpan(out);
  }
  jobs[0].group = 2;
  jobs[1].destination = absl::MakeSpan(out.data(), 10);
  Workspace workspace;
  ASSERT_TRUE(f.codec->Encode(absl::MakeSpan(jobs), workspace).ok());
  EXPECT_EQ(jobs[0].status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(jobs[1].status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(jobs[2].status.ok());
  EXPECT_GT(jobs[2].bytes, 0u);
}

TEST(FkltTest, AShardCodesItsOwnHeadsOnly) {
  const Geometry g = SmallGeometry();
  const Fixture whole(Options(g, fklt::OneHeadGroups(g)));
  CodecSpec spec = whole.spec;
  spec.shard = {1, 2, 2, 4, 1, 2};  // layers 2..4, head 1
  auto shard = MakeFkltCodec(spec);
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_EQ((*shard)->groups().size(), 4u);  // 2 layers x K, V
  EXPECT_EQ((*shard)->groups()[0].layer_begin, 0);
  EXPECT_EQ((*shard)->groups()[3].layer_end, 2);
  // The same data as head 1 of layer 2 in the whole model gives the same tile.
  std::mt19937 rng(30);
  const std::vector<uint32_t> positions = PositionsFrom(256, 128);
  TestCache all = MakeCache(*whole.codec, 9, 128, Dtype::kBf16);  // layer 2, K, head 1
  all.FillRandom(rng, .3f);
  TestCache part((*shard)->geometry(), 0, 1, 128, Dtype::kBf16, Layout::kPadded);
  for (int p = 0; p < 2; ++p) {
    for (int t = 0; t < 128; ++t) {
      for (int d = 0; d < 16; ++d) part.Set(p, 0, t, d, all.Get(p, 1, t, d));
    }
  }
  EXPECT_EQ(EncodeWith(*whole.codec, 9, all, positions).bytes,
            EncodeWith(**shard, 0, part, positions).bytes);

  const Fixture layers(Options(g, fklt::LayerGroups(g, 2)));
  CodecSpec cut = layers.spec;
  cut.shard = {0, 2, 0, 3, 0, 2};
  const auto refused = MakeFkltCodec(cut);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition) << refused.status();
}

}  // namespace
}  // namespace kvcask
