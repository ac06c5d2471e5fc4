// The version of kvcask, as --version, GetServerInfo and kvcask_build_info tell it.
#pragma once

namespace kvcask {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace kvcask
