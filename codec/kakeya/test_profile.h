// Profiles of kakeya-1.3-ppl in memory, for tests and the fuzz target.
#pragma once

#include <absl/strings/str_cat.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/profile/profile.h"

namespace kvcask::kakeya {

struct TestTensor {
  std::vector<int64_t> shape;
  std::vector<float> numbers;
};
using TestTensors = std::map<std::string, TestTensor>;

// The file of a profile of those parameters and F32 tensors.
inline std::vector<uint8_t> TestProfileFile(const Geometry& g, const std::string& params,
                                            const TestTensors& tensors,
                                            const std::string& codec = "kakeya-1.3-ppl") {
  std::vector<uint8_t> file;
  SafetensorsWriter writer([&](absl::Span<const uint8_t> b) {
    file.insert(file.end(), b.begin(), b.end());
    return absl::OkStatus();
  });
  const auto check = [](const absl::Status& s) {
    if (!s.ok()) std::abort();
  };
  writer.SetMetadata("kvcask.profile", "1");
  writer.SetMetadata("codec", codec);
  writer.SetMetadata("name", "test");
  writer.SetMetadata("model", "test");
  writer.SetMetadata("geometry", GeometryToJson(g));
  writer.SetMetadata("kakeya", params);
  for (const auto& [name, t] : tensors) check(writer.Declare(name, "F32", t.shape));
  check(writer.Begin());
  for (const auto& [name, t] : tensors) {
    check(writer.Write({reinterpret_cast<const uint8_t*>(t.numbers.data()), t.numbers.size() * 4}));
  }
  check(writer.Finish());
  return file;
}

// The same, read; ends the program if it is none.
inline std::shared_ptr<const Profile> MakeTestProfile(const Geometry& g, const std::string& params,
                                                      const TestTensors& tensors,
                                                      const std::string& codec = "kakeya-1.3-ppl") {
  auto profile = Profile::Parse(TestProfileFile(g, params, tensors, codec));
  if (!profile.ok()) {
    std::fprintf(stderr, "%s\n", profile.status().ToString().c_str());
    std::abort();
  }
  return *profile;
}

// Factors and tables in small dyadic numbers, the same on every machine: for each key head of
// the model a factor of its own, tables of 3 bits for K and 2 for V.
inline TestTensors DyadicTensors(const Geometry& g) {
  TestTensors out;
  for (int layer = 0; layer < static_cast<int>(g.layers.size()); ++layer) {
    for (const StreamGeometry& s : g.layers[layer].streams) {
      if (s.kind != StreamKind::kK) continue;
      TestTensor t{{s.heads, s.head_dim, s.head_dim}, {}};
      for (int h = 0; h < s.heads; ++h) {
        for (int i = 0; i < s.head_dim; ++i) {
          for (int j = 0; j < s.head_dim; ++j) {
            t.numbers.push_back(i == j  ? 1 + static_cast<float>((i + h + layer) % 5) / 4
                                : j < i ? static_cast<float>((3 * i + 5 * j + h) % 5 - 2) / 16
                                        : 0);
          }
        }
      }
      out[absl::StrCat("layer_", layer, "_chol")] = t;
    }
  }
  out["centroids_k_b3"] = {{8}, {-2.25f, -1.25f, -.75f, -.25f, .25f, .75f, 1.25f, 2.25f}};
  out["centroids_v_b2"] = {{4}, {-1.5f, -.5f, .5f, 1.5f}};
  return out;
}

}  // namespace kvcask::kakeya
