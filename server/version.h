// What this build is.
#pragma once

namespace kvcask {

inline constexpr char kVersion[] = "0.1.0";
extern const char kCommit[];  // git, "+" when the tree had changes; "unknown" outside git

}  // namespace kvcask
