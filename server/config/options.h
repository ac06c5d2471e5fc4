// The settings of kvcaskd as data: one row each, from which flags, --help and the keys of
// the configuration file are made, so that the three cannot differ.
#pragma once

#include <absl/status/status.h>

#include <functional>
#include <string>
#include <vector>

#include "server/config/config.h"

namespace kvcask {

struct Option {
  std::string name;   // "memory-budget": flag --memory-budget, key memory-budget
  std::string value;  // how --help names its value; "" takes none
  std::string group;  // in --help; "" hides it
  std::string help;
  bool repeatable = false;
  // Sets it from its text, "true" or "false" where it takes no value; of a repeatable one,
  // adds. INVALID_ARGUMENT.
  std::function<absl::Status(const std::string&, Config*)> set;
};

// In the order of --help. Not --config, --help, --version.
const std::vector<Option>& Options();
// What no single option can see: defaults of lists, TLS, addresses that others reach.
absl::Status FinishConfig(Config* config);

}  // namespace kvcask
