// Cache files: a KV cache as one safetensors file. Tensors k.LL and v.LL (or latent.LL),
// [kv_heads, tokens, head_dim], for each layer that keeps something; token_ids (I32, [tokens])
// where they are known; the geometry, the model and the first position in the metadata. See
// docs/cache-file.md.
//
// Values; const use is thread-safe.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "client/cli/mapped_file.h"
#include "codec/base/geometry_json.h"
#include "codec/base/views.h"

namespace kvcask {

// What a cache file holds beside its planes.
struct CacheInfo {
  CacheMetadata metadata;           // model, geometry, dtype, tokens, first_position
  std::string extra_key;            // "" mostly
  int layer_begin = 0;              // of the model, of the file's layer 0
  std::vector<uint32_t> token_ids;  // tokens of them, or none
};

class CacheFile {
 public:
  // Reads the header and checks everything: INVALID_ARGUMENT says what was found, what was
  // expected and where. The planes are mapped, not read.
  static absl::StatusOr<CacheFile> Open(const std::string& path);

  const CacheInfo& info() const { return info_; }
  const Geometry& geometry() const { return info_.metadata.geometry; }
  uint64_t tokens() const { return static_cast<uint64_t>(info_.metadata.tokens); }
  // All planes, dense. Valid as long as owner() is held.
  ConstKvView view() const { return {info_.metadata.dtype, planes_, {}}; }
  std::shared_ptr<const void> owner() const { return file_; }

 private:
  std::shared_ptr<const MappedFile> file_;
  CacheInfo info_;
  std::vector<ConstPlaneView> planes_;
};

// Writes one: Create, fill the planes, Publish.
class CacheFileWriter {
 public:
  static absl::StatusOr<CacheFileWriter> Create(const std::string& path, const CacheInfo& info);
  // All planes, dense, zeros until written.
  KvView view() const { return {dtype_, planes_, {}}; }
  absl::Status Publish() { return file_->Publish(); }

 private:
  Dtype dtype_ = Dtype::kBf16;
  std::unique_ptr<OutputFile> file_;
  std::vector<PlaneView> planes_;
};

// "k.07": the tensor of a stream of a layer.
std::string PlaneName(StreamKind kind, int layer);

}  // namespace kvcask
