#include "tests/e2e/process.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

extern char** environ;

namespace kvcask {
namespace {

void Require(bool ok, const char* what) {
  if (ok) return;
  std::perror(what);
  std::abort();
}

int MillisecondsLeft(absl::Time deadline) {
  const int64_t ms = absl::ToInt64Milliseconds(deadline - absl::Now());
  return static_cast<int>(std::max<int64_t>(0, std::min<int64_t>(ms, 1 << 30)));
}

}  // namespace

Process::Process(const std::vector<std::string>& argv, const std::string& stderr_path,
                 const std::vector<std::string>& environment) {
  int out[2];
  Require(pipe2(out, O_CLOEXEC) == 0, "pipe2");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  posix_spawn_file_actions_addopen(&actions, 2, stderr_path.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                   0600);
  std::vector<char*> args, env;
  for (const std::string& a : argv) args.push_back(const_cast<char*>(a.c_str()));
  args.push_back(nullptr);
  for (const std::string& e : environment) env.push_back(const_cast<char*>(e.c_str()));
  for (char** e = environ; *e != nullptr; ++e) env.push_back(*e);
  env.push_back(nullptr);
  const int error = posix_spawn(&pid_, args[0], &actions, nullptr, args.data(), env.data());
  posix_spawn_file_actions_destroy(&actions);
  close(out[1]);
  stdout_ = out[0];
  errno = error;
  Require(error == 0, argv[0].c_str());
}

Process::~Process() {
  if (!status_) {
    kill(pid_, SIGKILL);
    Wait(absl::Seconds(30));
  }
  close(stdout_);
}

bool Process::Fill(absl::Time deadline) {
  struct pollfd p = {stdout_, POLLIN, 0};
  if (poll(&p, 1, MillisecondsLeft(deadline)) <= 0) return false;
  char bytes[4096];
  const ssize_t n = read(stdout_, bytes, sizeof(bytes));
  if (n <= 0) return false;
  buffer_.append(bytes, static_cast<size_t>(n));
  return true;
}

std::optional<std::string> Process::ReadLine(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  for (;;) {
    const size_t end = buffer_.find('\n');
    if (end != buffer_.npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return line;
    }
    if (!Fill(deadline)) return std::nullopt;
  }
}

std::string Process::ReadAll(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (Fill(deadline)) {
  }
  return std::move(buffer_);
}

void Process::Signal(int signal) { Require(kill(pid_, signal) == 0, "kill"); }

std::optional<int> Process::Wait(absl::Duration timeout) {
  if (status_) return status_;
  // A pidfd is readable when the process has ended: no polling.
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
  Require(fd >= 0, "pidfd_open");
  struct pollfd p = {fd, POLLIN, 0};
  const int ready = poll(&p, 1, MillisecondsLeft(absl::Now() + timeout));
  close(fd);
  if (ready <= 0) return std::nullopt;
  int status = 0;
  Require(waitpid(pid_, &status, 0) == pid_, "waitpid");
  status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return status_;
}

}  // namespace kvcask
