// The safetensors file format: 8 bytes of header size (little-endian), a JSON header, the
// tensors' bytes. Reads hostile files; writes as a stream, so that a tensor need not be in
// memory with the others.
//
// Checked when reading: the header's size before anything is allocated, JSON of exactly the
// format's form (no deeper nesting, no other keys, no name twice), sizes with checked
// arithmetic, every tensor inside the file and of the size that its dtype and shape tell, no
// two tensors overlapping. Bytes between tensors or after the last are allowed and unused.
//
// Thread-safe: values and pure functions; a writer belongs to one thread.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace kvcask {

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = uint64_t{64} << 20;
inline constexpr size_t kMaxSafetensorsTensors = size_t{1} << 20;
inline constexpr size_t kMaxSafetensorsRank = 8;

struct SafetensorsEntry {
  std::string dtype;           // as the format names it: "BF16", "F16", "F32", "I32", "U8", ...
  std::vector<int64_t> shape;  // at most kMaxSafetensorsRank
  uint64_t offset = 0;         // from the file's first byte
  uint64_t bytes = 0;
};

struct SafetensorsHeader {
  uint64_t data_offset = 0;  // of the tensors' bytes, from the file's first byte
  std::map<std::string, std::string> metadata;
  std::map<std::string, SafetensorsEntry> tensors;
};

// Bytes an element of a safetensors dtype takes; 0 for one that is unknown.
int SafetensorsDtypeSize(absl::string_view dtype);

// Bytes of `prefix` that ParseSafetensorsHeader needs, from the file's first 8 and its size.
// INVALID_ARGUMENT when the header is over the limit or leaves the file.
absl::StatusOr<uint64_t> SafetensorsPrefixBytes(absl::Span<const uint8_t> first8,
                                                uint64_t file_bytes);

// Reads the header of a file of `file_bytes`; `prefix` holds at least its first
// SafetensorsPrefixBytes. INVALID_ARGUMENT says what was found, what was expected and where.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::Span<const uint8_t> prefix,
                                                         uint64_t file_bytes);

// Writes one file through `sink`: the header, then the tensors in the order added.
class SafetensorsWriter {
 public:
  using Sink = std::function<absl::Status(absl::Span<const uint8_t>)>;

  explicit SafetensorsWriter(Sink sink) : sink_(std::move(sink)) {}

  // Before Begin. INVALID_ARGUMENT: a name twice, an unknown dtype, a negative or
  // overflowing shape.
  absl::Status Declare(absl::string_view name, absl::string_view dtype,
                       absl::Span<const int64_t> shape);
  void SetMetadata(absl::string_view key, absl::string_view value);
  // Writes the header, padded with spaces so that the tensors begin at a multiple of 8.
  absl::Status Begin();
  // The next bytes of the tensors, in the order declared, in pieces of any size.
  // OUT_OF_RANGE when they exceed what was declared.
  absl::Status Write(absl::Span<const uint8_t> bytes);
  // FAILED_PRECONDITION when less than declared was written.
  absl::Status Finish();

 private:
  Sink sink_;
  std::map<std::string, std::string> metadata_;
  std::vector<std::pair<std::string, SafetensorsEntry>> tensors_;  // offset: from the data
  uint64_t declared_bytes_ = 0;
  uint64_t written_bytes_ = 0;
};

}  // namespace kvcask
