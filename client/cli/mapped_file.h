// Files as memory.
//
// A map belongs to one thread until it is shared as const.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <memory>
#include <string>

namespace kvcask {

// A regular file, read-only. Cutting it short while it is mapped raises SIGBUS.
class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (not a regular file).
  static absl::StatusOr<std::shared_ptr<const MappedFile>> Open(const std::string& path);
  ~MappedFile();
  absl::Span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  const uint8_t* data_;
  size_t size_;
};

// From now on a program that reads a MappedFile past what is left of it says so, naming the
// file, and ends with status 1, instead of dying of SIGBUS. First thing in main.
void ReportFilesCutShort();

// A new file of a known size, written as memory and seen under its name only after Publish:
// what is there under that name stays whole until then. Destroying it unpublished removes it.
class OutputFile {
 public:
  // Takes the disk space at once: RESOURCE_EXHAUSTED says how much was missing.
  static absl::StatusOr<std::unique_ptr<OutputFile>> Create(const std::string& path, size_t size);
  ~OutputFile();
  uint8_t* data() { return data_; }
  absl::Status Publish();

 private:
  OutputFile(std::string path, std::string temporary, uint8_t* data, size_t size)
      : path_(std::move(path)), temporary_(std::move(temporary)), data_(data), size_(size) {}
  const std::string path_;
  const std::string temporary_;
  uint8_t* data_;
  const size_t size_;
  bool published_ = false;
};

}  // namespace kvcask
