#include "client/cli/cache_file.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>

#include <cstring>
#include <set>

#include "client/cc/status.h"
#include "codec/base/safetensors.h"

namespace kvcask {
namespace {

constexpr char kTokenIds[] = "token_ids";

std::string SafetensorsName(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBf16:
      return "BF16";
    case Dtype::kF16:
      return "F16";
    case Dtype::kF32:
      return "F32";
  }
  return "?";
}

std::string Shape(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status CheckTensor(const std::string& name, const SafetensorsEntry& found,
                         const std::string& dtype, const std::vector<int64_t>& shape) {
  if (found.dtype != dtype) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": dtype ", found.dtype,
                                                   ", expected ", dtype, " as the metadata says"));
  }
  if (found.shape != shape) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", name, ": shape ", Shape(found.shape), ", expected ", Shape(shape),
                     name == kTokenIds ? " (tokens)" : " (kv_heads, tokens, head_dim)"));
  }
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsHeader> ReadHeader(absl::Span<const uint8_t> bytes) {
  if (bytes.size() < 8) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a file of ", bytes.size(), " bytes, expected a safetensors file (8 bytes at least)"));
  }
  const auto prefix = SafetensorsPrefixBytes(bytes.subspan(0, 8), bytes.size());
  if (!prefix.ok()) return prefix.status();
  return ParseSafetensorsHeader(bytes.subspan(0, *prefix), bytes.size());
}

// The tensors a cache of this geometry has, in the order of planes.
struct PlaneTensor {
  std::string name;
  std::vector<int64_t> shape;
};
std::vector<PlaneTensor> PlaneTensors(const Geometry& geometry, int64_t tokens) {
  std::vector<PlaneTensor> out;
  for (size_t l = 0; l < geometry.layers.size(); ++l) {
    for (const StreamGeometry& s : geometry.layers[l].streams) {
      out.push_back({PlaneName(s.kind, static_cast<int>(l)), {s.heads, tokens, s.head_dim}});
    }
  }
  return out;
}

template <typename Byte>
BasicPlaneView<Byte> DensePlane(Byte* data, const std::vector<int64_t>& shape, Dtype dtype) {
  const int64_t element = static_cast<int64_t>(DtypeSize(dtype));
  return {data, element * shape[1] * shape[2], element * shape[2], element};
}

absl::StatusOr<std::vector<uint32_t>> ReadTokenIds(absl::Span<const uint8_t> bytes) {
  std::vector<uint32_t> ids(bytes.size() / 4);
  if (!ids.empty()) std::memcpy(ids.data(), bytes.data(), ids.size() * 4);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] > INT32_MAX) {
      return absl::InvalidArgumentError(absl::StrCat("tensor token_ids: token ", i, " is ",
                                                     static_cast<int32_t>(ids[i]),
                                                     ", expected 0 or more"));
    }
  }
  return ids;
}

absl::Status ReadExtras(const std::map<std::string, std::string>& metadata, CacheInfo* info) {
  if (const auto it = metadata.find("extra_key"); it != metadata.end()) {
    info->extra_key = it->second;
  }
  if (const auto it = metadata.find("layer_begin"); it != metadata.end()) {
    if (!absl::SimpleAtoi(it->second, &info->layer_begin) || info->layer_begin < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("metadata layer_begin: \"", it->second, "\", expected a layer's number"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string PlaneName(StreamKind kind, int layer) {
  const char* stream = kind == StreamKind::kK ? "k" : kind == StreamKind::kV ? "v" : "latent";
  return absl::StrFormat("%s.%02d", stream, layer);
}

absl::StatusOr<CacheFile> CacheFile::Open(const std::string& path) {
  auto mapped = MappedFile::Open(path);
  if (!mapped.ok()) return mapped.status();
  CacheFile file;
  file.file_ = *std::move(mapped);
  const absl::Span<const uint8_t> bytes = file.file_->bytes();
  const auto header = ReadHeader(bytes);
  if (!header.ok()) return Annotate(header.status(), path);
  auto metadata = ParseCacheMetadata(header->metadata);
  if (!metadata.ok()) return Annotate(metadata.status(), path);
  file.info_.metadata = *std::move(metadata);
  if (absl::Status s = ReadExtras(header->metadata, &file.info_); !s.ok()) return Annotate(s, path);

  const Dtype dtype = file.info_.metadata.dtype;
  std::set<std::string> known;
  for (const PlaneTensor& p : PlaneTensors(file.geometry(), file.info_.metadata.tokens)) {
    const auto it = header->tensors.find(p.name);
    if (it == header->tensors.end()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", p.name,
                                                     " is missing; the geometry has ",
                                                     file.geometry().layers.size(), " layers"));
    }
    if (absl::Status s = CheckTensor(p.name, it->second, SafetensorsName(dtype), p.shape);
        !s.ok()) {
      return Annotate(s, path);
    }
    file.planes_.push_back(DensePlane(bytes.data() + it->second.offset, p.shape, dtype));
    known.insert(p.name);
  }
  if (const auto it = header->tensors.find(kTokenIds); it != header->tensors.end()) {
    if (absl::Status s = CheckTensor(kTokenIds, it->second, "I32", {file.info_.metadata.tokens});
        !s.ok()) {
      return Annotate(s, path);
    }
    auto ids = ReadTokenIds(bytes.subspan(it->second.offset, it->second.bytes));
    if (!ids.ok()) return Annotate(ids.status(), path);
    file.info_.token_ids = *std::move(ids);
    known.insert(kTokenIds);
  }
  for (const auto& [name, entry] : header->tensors) {
    if (known.count(name) == 0) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", name, " ",
                                                     Shape(entry.shape),
                                                     " belongs to no layer of the geometry"));
    }
  }
  return file;
}

absl::StatusOr<CacheFileWriter> CacheFileWriter::Create(const std::string& path,
                                                        const CacheInfo& info) {
  std::vector<uint8_t> head;
  SafetensorsWriter writer([&](absl::Span<const uint8_t> bytes) {
    head.insert(head.end(), bytes.begin(), bytes.end());
    return absl::OkStatus();
  });
  const CacheMetadata& m = info.metadata;
  for (const auto& [key, value] : MakeCacheMetadata(m)) writer.SetMetadata(key, value);
  if (!info.extra_key.empty()) writer.SetMetadata("extra_key", info.extra_key);
  if (info.layer_begin != 0) writer.SetMetadata("layer_begin", absl::StrCat(info.layer_begin));
  size_t bytes = 0;
  const auto tensors = PlaneTensors(m.geometry, m.tokens);
  for (const PlaneTensor& p : tensors) {
    absl::Status s = writer.Declare(p.name, SafetensorsName(m.dtype), p.shape);
    if (!s.ok()) return s;
    bytes += static_cast<size_t>(p.shape[0] * p.shape[1] * p.shape[2]) * DtypeSize(m.dtype);
  }
  if (!info.token_ids.empty()) {
    absl::Status s = writer.Declare(kTokenIds, "I32", {m.tokens});
    if (!s.ok()) return s;
  }
  if (absl::Status s = writer.Begin(); !s.ok()) return s;

  auto file = OutputFile::Create(path, head.size() + bytes + info.token_ids.size() * 4);
  if (!file.ok()) return file.status();
  CacheFileWriter out;
  out.dtype_ = m.dtype;
  out.file_ = *std::move(file);
  uint8_t* at = out.file_->data();
  std::memcpy(at, head.data(), head.size());
  at += head.size();
  for (const PlaneTensor& p : tensors) {
    out.planes_.push_back(DensePlane(at, p.shape, m.dtype));
    at += p.shape[0] * p.shape[1] * p.shape[2] * static_cast<int64_t>(DtypeSize(m.dtype));
  }
  if (!info.token_ids.empty()) {
    std::memcpy(at, info.token_ids.data(), info.token_ids.size() * 4);
  }
  return out;
}

}  // namespace kvcask
