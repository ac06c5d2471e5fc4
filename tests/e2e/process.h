// Child processes of the end-to-end tests: started with pipes, waited for with deadlines,
// killed when the test forgets them.
#pragma once

#include <absl/time/time.h>
#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace kvcask {

class Process {
 public:
  // Starts argv[0] (a path). Its stdout is read by ReadLine, its stderr goes to
  // `stderr_path`. Ends the test program when that is impossible.
  Process(const std::vector<std::string>& argv, const std::string& stderr_path,
          const std::vector<std::string>& environment = {});
  ~Process();  // SIGKILL
  Process(const Process&) = delete;

  // The next line of its stdout, without the end; none at the end of it or after `timeout`.
  std::optional<std::string> ReadLine(absl::Duration timeout);
  // All that is left of its stdout.
  std::string ReadAll(absl::Duration timeout);
  void Signal(int signal);
  pid_t pid() const { return pid_; }
  // Its exit code, or 128 + the signal that ended it; none when it still runs after `timeout`.
  std::optional<int> Wait(absl::Duration timeout);

 private:
  bool Fill(absl::Time deadline);
  pid_t pid_ = -1;
  int stdout_ = -1;
  std::string buffer_;
  std::optional<int> status_;
};

}  // namespace kvcask
