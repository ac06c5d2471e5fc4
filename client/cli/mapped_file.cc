#include "client/cli/mapped_file.h"

#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace kvcask {
namespace {

absl::Status ErrnoStatus(int error, const std::string& what) {
  const std::string text = absl::StrCat(what, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(text);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(text);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(text);
    default:
      return absl::UnknownError(text);
  }
}

// What is mapped, where a signal handler may look.
struct Mapped {
  std::atomic<const uint8_t*> data{nullptr};
  std::atomic<size_t> size{0};
  char path[1024];
};
Mapped mapped[8];

void Remember(const uint8_t* data, size_t size, const std::string& path) {
  for (Mapped& m : mapped) {
    const uint8_t* expected = nullptr;
    if (m.size != 0 || !m.data.compare_exchange_strong(expected, data)) continue;
    const size_t n = std::min(path.size(), sizeof(m.path) - 1);
    std::memcpy(m.path, path.data(), n);
    m.path[n] = '\0';
    m.size = size;
    return;
  }
}

void Forget(const uint8_t* data) {
  for (Mapped& m : mapped) {
    if (m.data != data) continue;
    m.size = 0;
    m.data = nullptr;
  }
}

void Say(const char* text) { (void)!write(STDERR_FILENO, text, std::strlen(text)); }

void OnBusError(int, siginfo_t* info, void*) {
  const auto* at = static_cast<const uint8_t*>(info->si_addr);
  for (const Mapped& m : mapped) {
    const uint8_t* data = m.data;
    if (m.size == 0 || at < data || at >= data + m.size) continue;
    Say("kvcask: ");
    Say(m.path);
    Say(": it was cut short, or could not be read, while it was in use\n");
    _exit(1);
  }
  signal(SIGBUS, SIG_DFL);  // somebody else's: as if there were no handler
  raise(SIGBUS);
}

}  // namespace

void ReportFilesCutShort() {
  struct sigaction action = {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

absl::StatusOr<std::shared_ptr<const MappedFile>> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, path);
  struct stat st;
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  const size_t size = static_cast<size_t>(st.st_size);
  void* data = nullptr;
  if (size > 0) {
    data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      const int error = errno;
      close(fd);
      return ErrnoStatus(error, path);
    }
  }
  close(fd);
  if (size > 0) Remember(static_cast<const uint8_t*>(data), size, path);
  return std::shared_ptr<const MappedFile>(new MappedFile(static_cast<const uint8_t*>(data), size));
}

MappedFile::~MappedFile() {
  if (size_ == 0) return;
  Forget(data_);
  munmap(const_cast<uint8_t*>(data_), size_);
}

absl::StatusOr<std::unique_ptr<OutputFile>> OutputFile::Create(const std::string& path,
                                                               size_t size) {
  const std::string temporary = absl::StrCat(path, ".partial.", getpid());
  const int fd = open(temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return ErrnoStatus(errno, path);
  int error = posix_fallocate(fd, 0, static_cast<off_t>(size));
  void* data = MAP_FAILED;
  if (error == 0) {
    data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) error = errno;
  }
  close(fd);
  if (error != 0) {
    unlink(temporary.c_str());
    return ErrnoStatus(error, absl::StrCat(path, ": ", size, " bytes"));
  }
  return std::unique_ptr<OutputFile>(
      new OutputFile(path, temporary, static_cast<uint8_t*>(data), size));
}

absl::Status OutputFile::Publish() {
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return ErrnoStatus(errno, path_);
  published_ = true;
  return absl::OkStatus();
}

OutputFile::~OutputFile() {
  munmap(data_, size_);
  if (!published_) unlink(temporary_.c_str());
}

}  // namespace kvcask
