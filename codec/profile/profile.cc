#include "codec/profile/profile.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>

#include <utility>

#include "codec/base/geometry_json.h"
#include "codec/base/safetensors.h"
#include "codec/base/sha256.h"

namespace kvcask {
namespace {

constexpr char kVersionKey[] = "kvcask.profile";
constexpr char kVersion[] = "1";
constexpr size_t kMaxNameBytes = 512;

template <typename... Args>
absl::Status Bad(const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("profile: ", what...));
}

std::string Quoted(absl::string_view s) {
  return absl::StrCat("\"", absl::CHexEscape(s.substr(0, 80)), "\"");
}

// A required key, short enough for listings and logs.
absl::Status Take(const std::map<std::string, std::string>& metadata, const char* key,
                  std::string* out) {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return Bad("metadata has no ", Quoted(key));
  if (it->second.empty() || it->second.size() > kMaxNameBytes) {
    return Bad("metadata ", Quoted(key), " has ", it->second.size(), " bytes; expected 1 to ",
               kMaxNameBytes);
  }
  *out = it->second;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Profile>> Profile::Parse(std::vector<uint8_t> file) {
  if (file.size() > kMaxProfileBytes) {
    return Bad(file.size(), " bytes; expected at most ", kMaxProfileBytes);
  }
  std::shared_ptr<Profile> profile(new Profile());
  profile->file_ = std::move(file);
  const absl::Span<const uint8_t> bytes = profile->file_;
  absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(bytes, bytes.size());
  if (!header.ok()) return Bad(header.status().message());
  std::string version;
  if (absl::Status s = Take(header->metadata, kVersionKey, &version); !s.ok()) return s;
  if (version != kVersion) {
    return absl::UnimplementedError(
        absl::StrCat("profile: version ", Quoted(version), "; expected \"", kVersion, "\""));
  }
  for (auto [key, out] : {std::pair<const char*, std::string*>{"codec", &profile->codec_},
                          {"name", &profile->name_},
                          {"model", &profile->model_}}) {
    if (absl::Status s = Take(header->metadata, key, out); !s.ok()) return s;
  }
  const auto text = header->metadata.find("geometry");
  if (text == header->metadata.end()) return Bad("metadata has no \"geometry\"");
  absl::StatusOr<Geometry> geometry = GeometryFromJson(text->second);
  if (!geometry.ok()) {
    return absl::Status(geometry.status().code(),
                        absl::StrCat("profile: ", geometry.status().message()));
  }
  profile->geometry_ = *std::move(geometry);
  for (auto& [name, entry] : header->tensors) {
    Tensor tensor;
    tensor.dtype = std::move(entry.dtype);
    tensor.shape = std::move(entry.shape);
    tensor.bytes = bytes.subspan(entry.offset, entry.bytes);
    profile->tensors_.emplace(name, std::move(tensor));
  }
  profile->metadata_ = std::move(header->metadata);
  profile->fingerprint_ = Sha256(bytes);
  return profile;
}

const Profile::Tensor* Profile::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace kvcask
