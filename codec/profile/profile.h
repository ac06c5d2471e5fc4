// A model profile: a geometry and the calibration of one model, in one safetensors file.
// Read-only, shared by everything that uses it; its name is the SHA-256 of the file.
//
// Here is what all codecs need of it; a codec reads its own tensors through Find.
#pragma once

#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "codec/base/geometry.h"

namespace kvcask {

class Profile {
 public:
  // A tensor of the file, little-endian, unaligned.
  struct Tensor {
    std::string dtype;  // safetensors names: "F16", "F32", "I32", "U8", "I8", ...
    std::vector<int64_t> shape;
    absl::Span<const uint8_t> bytes;
  };

  // Takes the file's bytes. INVALID_ARGUMENT says what is wrong and where: header, sizes,
  // geometry. What belongs to one codec is checked when that codec is made.
  static absl::StatusOr<std::shared_ptr<const Profile>> Parse(std::vector<uint8_t> file);

  const Fingerprint& fingerprint() const { return fingerprint_; }
  const Geometry& geometry() const { return geometry_; }
  const std::string& codec() const { return codec_; }  // that it is for: "fklt", "int8"
  const std::string& name() const { return name_; }
  const std::string& model() const { return model_; }
  size_t size_bytes() const { return file_.size(); }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const Tensor* Find(const std::string& name) const;

 private:
  Profile() = default;
  std::vector<uint8_t> file_;
  Fingerprint fingerprint_{};
  Geometry geometry_;
  std::string codec_, name_, model_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Tensor> tensors_;
};

// Largest profile that Parse takes.
inline constexpr size_t kMaxProfileBytes = size_t{1} << 30;

}  // namespace kvcask
