// A made-up model's profile and caches that fit it, for tests and benchmarks: a random
// orthogonal U, random metrics, Gaussian coordinates whose sigmas fall over the rows.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "codec/base/geometry.h"
#include "codec/fklt/fklt_profile.h"
#include "codec/profile/profile.h"

namespace kvcask::fklt {

// (layer, stream, head) of each member of each group.
using Partition = std::vector<std::vector<std::array<int, 3>>>;

Partition OneHeadGroups(const Geometry& g);
Partition OneStreamGroups(const Geometry& g);
Partition LayerGroups(const Geometry& g, int layers_each);  // the last group may be smaller

struct SyntheticOptions {
  Geometry geometry;
  Partition partition;
  uint32_t seed = 1;
  double active = .4;         // share of rows over .4 step, balanced
  double top_octaves = 5;     // log2 of the greatest sigma, in steps
  int step_exponent = -16;    // balanced; near_lossless is 6 finer, compact 6 coarser
  double largest_kld = 1e30;  // certificate bound of every preset
  double sensitivity = .004;  // weight of each leading coordinate's square in the predictor
  bool f16_metric = true;
};

// A safetensors file as tensors by name, so that tests can damage one.
struct RawTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};
struct RawProfile {
  std::map<std::string, std::string> metadata;
  std::map<std::string, RawTensor> tensors;
  std::vector<uint8_t> Serialize() const;
};
RawProfile MakeSyntheticProfile(const SyntheticOptions& options);
// Parsed; ends the program when it is not valid.
std::shared_ptr<const Profile> ParseOrDie(const RawProfile& raw);

// One token's un-rotated vector of a group, drawn from the profile's distribution at an
// amplitude.
std::vector<double> DrawToken(const GroupModel& g, double amplitude, std::mt19937& rng);

}  // namespace kvcask::fklt
