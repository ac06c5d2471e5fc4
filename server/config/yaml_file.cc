#include "server/config/yaml_file.h"

#include <absl/strings/str_cat.h>
#include <yaml-cpp/yaml.h>

#include <fstream>
#include <sstream>

namespace kvcask {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;

absl::Status At(const std::string& path, const YAML::Mark& mark, absl::string_view text) {
  return absl::InvalidArgumentError(absl::StrCat(path, ":", mark.line + 1, ": ", text));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot open it"));
  std::string text(kMaxFileBytes + 1, '\0');
  in.read(&text[0], text.size());
  if (in.bad()) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot read it"));
  text.resize(in.gcount());
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": larger than ", kMaxFileBytes, " bytes"));
  }
  return text;
}

// May throw YAML::Exception.
absl::StatusOr<std::vector<YamlSetting>> Parse(const std::string& path, const std::string& text) {
  std::vector<YamlSetting> settings;
  const YAML::Node root = YAML::Load(text);
  if (!root || root.IsNull()) return settings;  // nothing but comments
  if (!root.IsMap()) return At(path, root.Mark(), "expected lines of the form `key: value`");
  for (const auto& entry : root) {
    if (!entry.first.IsScalar()) return At(path, entry.first.Mark(), "a key that is not a word");
    YamlSetting setting;
    setting.key = entry.first.Scalar();
    setting.line = entry.first.Mark().line + 1;
    if (entry.second.IsScalar()) {
      setting.values.push_back(entry.second.Scalar());
    } else if (entry.second.IsSequence()) {
      setting.is_list = true;
      for (const YAML::Node& item : entry.second) {
        if (!item.IsScalar()) {
          return At(path, item.Mark(), absl::StrCat(setting.key, ": an item that is no value"));
        }
        setting.values.push_back(item.Scalar());
      }
    } else {
      return At(path, entry.first.Mark(),
                absl::StrCat(setting.key, ": expected a value or a list of values, found ",
                             entry.second.IsMap() ? "a mapping" : "nothing"));
    }
    settings.push_back(std::move(setting));
  }
  return settings;
}

}  // namespace

absl::StatusOr<std::vector<YamlSetting>> ReadYamlSettings(const std::string& path) {
  const auto text = ReadFile(path);
  if (!text.ok()) return text.status();
  try {
    return Parse(path, *text);
  } catch (const YAML::Exception& e) {
    return At(path, e.mark, e.msg);
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", e.what()));
  }
}

}  // namespace kvcask
