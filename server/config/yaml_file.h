// A YAML file of settings, as keys and texts with their lines.
#pragma once

#include <absl/status/statusor.h>

#include <string>
#include <vector>

namespace kvcask {

struct YamlSetting {
  std::string key;
  int line = 0;  // from 1
  bool is_list = false;
  std::vector<std::string> values;  // one, unless is_list
};

// The top-level mapping's entries in the file's order: `key: scalar` or `key: [scalars]`.
// NOT_FOUND or INVALID_ARGUMENT, with file and line.
absl::StatusOr<std::vector<YamlSetting>> ReadYamlSettings(const std::string& path);

}  // namespace kvcask
