#include "codec/base/safetensors.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "codec/base/checked_math.h"

namespace kvcask {
namespace {

using nlohmann::json;

constexpr uint64_t kLengthBytes = 8;

template <typename... Args>
absl::Status Bad(const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("safetensors: ", what...));
}

// Names come from the file: printable and short in messages.
std::string Quoted(const std::string& name) {
  return absl::StrCat("\"", absl::CHexEscape(absl::string_view(name).substr(0, 80)), "\"");
}

uint64_t LoadU64(const uint8_t* p) {
  uint64_t v = 0;
  for (int i = 7; i >= 0; --i) v = v << 8 | p[i];
  return v;
}

// Takes exactly {name: {"dtype": s, "shape": [n...], "data_offsets": [n, n]}...,
// "__metadata__": {s: s}} and stops at the first thing that is not so: nothing is built that
// the file could make large, except the tables that it is read for.
class HeaderReader : public json::json_sax_t {
 public:
  explicit HeaderReader(SafetensorsHeader* out) : out_(out) {}

  const std::string& error() const { return error_; }
  size_t error_at() const { return error_at_; }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_float(double, const std::string&) override { return Unexpected("a fraction"); }
  bool binary(binary_t&) override { return Unexpected("binary"); }
  bool number_integer(int64_t v) override {
    return Fail(absl::StrCat("negative number ", v), where());
  }

  bool number_unsigned(uint64_t v) override {
    if (state_ == State::kShape) {
      if (entry_.shape.size() == kMaxSafetensorsRank) {
        return Fail(absl::StrCat("more than ", kMaxSafetensorsRank, " dimensions"), where());
      }
      if (v > static_cast<uint64_t>(INT64_MAX)) return Fail("dimension too large", where());
      entry_.shape.push_back(static_cast<int64_t>(v));
      return true;
    }
    if (state_ == State::kOffsets) {
      if (offsets_.size() == 2) return Fail("more than two data_offsets", where());
      offsets_.push_back(v);
      return true;
    }
    return Unexpected("a number");
  }

  bool string(std::string& v) override {
    if (state_ == State::kMetadata && metadata_key_seen_) {
      metadata_key_seen_ = false;
      out_->metadata[key_] = std::move(v);
      return true;
    }
    if (state_ == State::kTensor && key_ == "dtype") {
      if (SafetensorsDtypeSize(v) == 0) {
        return Fail(absl::StrCat("unknown dtype ", Quoted(v)), where());
      }
      entry_.dtype = std::move(v);
      return true;
    }
    return Unexpected("a string");
  }

  bool start_object(size_t) override {
    if (state_ == State::kStart) {
      state_ = State::kTop;
    } else if (state_ == State::kTop && name_ == "__metadata__") {
      state_ = State::kMetadata;
    } else if (state_ == State::kTop) {
      state_ = State::kTensor;
      entry_ = SafetensorsEntry();
      offsets_.clear();
      keys_.clear();
    } else {
      return Unexpected("an object");
    }
    return true;
  }

  bool key(std::string& k) override {
    if (state_ == State::kTop) {
      if (!names_.insert(k).second) return Fail(absl::StrCat(Quoted(k), " twice"), "header");
      if (names_.size() > kMaxSafetensorsTensors + 1) {
        return Fail(absl::StrCat("more than ", kMaxSafetensorsTensors, " tensors"), "header");
      }
      name_ = std::move(k);
      return true;
    }
    if (state_ == State::kMetadata) {
      if (out_->metadata.count(k)) return Fail(absl::StrCat(Quoted(k), " twice"), "metadata");
      key_ = std::move(k);
      metadata_key_seen_ = true;
      return true;
    }
    if (k != "dtype" && k != "shape" && k != "data_offsets") {
      return Fail(absl::StrCat("unknown key ", Quoted(k)), where());
    }
    if (!keys_.insert(k).second) return Fail(absl::StrCat(Quoted(k), " twice"), where());
    key_ = std::move(k);
    return true;
  }

  bool end_object() override {
    if (state_ == State::kTensor) {
      if (keys_.size() != 3) return Fail("dtype, shape or data_offsets is missing", where());
      if (offsets_.size() != 2 || offsets_[0] > offsets_[1]) {
        return Fail("data_offsets are not [begin, end]", where());
      }
      entry_.offset = offsets_[0];
      entry_.bytes = offsets_[1] - offsets_[0];
      out_->tensors.emplace(name_, std::move(entry_));
      state_ = State::kTop;
    } else {
      state_ = state_ == State::kMetadata ? State::kTop : State::kEnd;
    }
    return true;
  }

  bool start_array(size_t) override {
    if (state_ == State::kTensor && key_ == "shape") {
      state_ = State::kShape;
    } else if (state_ == State::kTensor && key_ == "data_offsets") {
      state_ = State::kOffsets;
    } else {
      return Unexpected("an array");
    }
    return true;
  }
  bool end_array() override {
    state_ = State::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    error_at_ = position;
    return Fail("not JSON", absl::StrCat("header byte ", position));
  }

 private:
  enum class State { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

  std::string where() const {
    return state_ == State::kStart ? "header" : absl::StrCat("header entry ", Quoted(name_));
  }
  bool Fail(const std::string& what, const std::string& where) {
    error_ = absl::StrCat(where, ": ", what);
    return false;
  }
  bool Unexpected(const char* what) {
    return Fail(absl::StrCat("found ", what, ", expected ",
                             state_ == State::kStart      ? "an object"
                             : state_ == State::kMetadata ? "a string"
                             : state_ == State::kTop      ? "an object for each name"
                             : state_ == State::kTensor
                                 ? "dtype as a string, shape and data_offsets as arrays"
                                 : "a whole number"),
                where());
  }

  SafetensorsHeader* out_;
  State state_ = State::kStart;
  std::string name_, key_, error_;
  bool metadata_key_seen_ = false;
  SafetensorsEntry entry_;
  std::vector<uint64_t> offsets_;
  std::set<std::string> names_, keys_;
  size_t error_at_ = 0;
};

// Bytes of a tensor of this dtype and shape; false on overflow.
bool TensorBytes(absl::string_view dtype, absl::Span<const int64_t> shape, uint64_t* bytes) {
  uint64_t n = static_cast<uint64_t>(SafetensorsDtypeSize(dtype));
  // A zero anywhere makes the product zero, whatever overflowed before it.
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) n = 0;
  for (int64_t d : shape) {
    if (n != 0 && !CheckedMul<uint64_t>(n, static_cast<uint64_t>(d), &n)) return false;
  }
  *bytes = n;
  return true;
}

// Makes offsets absolute and checks sizes, bounds and overlaps.
absl::Status CheckTensors(uint64_t file_bytes, SafetensorsHeader* header) {
  const uint64_t data_bytes = file_bytes - header->data_offset;
  std::vector<std::pair<uint64_t, const std::pair<const std::string, SafetensorsEntry>*>> order;
  for (auto& [name, t] : header->tensors) {
    uint64_t expected;
    if (!TensorBytes(t.dtype, t.shape, &expected)) {
      return Bad("tensor ", Quoted(name), ": its shape overflows 64 bits");
    }
    if (t.bytes != expected) {
      return Bad("tensor ", Quoted(name), ": data_offsets give ", t.bytes, " bytes; expected ",
                 expected, " for its dtype and shape");
    }
    if (t.offset > data_bytes || t.bytes > data_bytes - t.offset) {
      return Bad("tensor ", Quoted(name), ": data_offsets ", t.offset, " to ", t.offset + t.bytes,
                 " leave the file; expected at most ", data_bytes);
    }
    t.offset += header->data_offset;
  }
  for (const auto& entry : header->tensors) {
    if (entry.second.bytes > 0) order.emplace_back(entry.second.offset, &entry);
  }
  std::sort(order.begin(), order.end());
  for (size_t i = 1; i < order.size(); ++i) {
    const auto& [before_name, before] = *order[i - 1].second;
    if (order[i].first < before.offset + before.bytes) {
      return Bad("tensors ", Quoted(before_name), " and ", Quoted(order[i].second->first),
                 " overlap at file byte ", order[i].first);
    }
  }
  return absl::OkStatus();
}

}  // namespace

int SafetensorsDtypeSize(absl::string_view dtype) {
  static constexpr struct {
    absl::string_view name;
    int bytes;
  } kSizes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
                {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},
                {"I32", 4},  {"F32", 4}, {"U64", 8}, {"I64", 8},     {"F64", 8}};
  for (const auto& s : kSizes) {
    if (s.name == dtype) return s.bytes;
  }
  return 0;
}

absl::StatusOr<uint64_t> SafetensorsPrefixBytes(absl::Span<const uint8_t> first8,
                                                uint64_t file_bytes) {
  if (file_bytes < kLengthBytes || first8.size() < kLengthBytes) {
    return Bad("the file has ", file_bytes, " bytes; expected at least 8 for the header's size");
  }
  const uint64_t header_bytes = LoadU64(first8.data());
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return Bad("header of ", header_bytes, " bytes at byte 0; expected at most ",
               kMaxSafetensorsHeaderBytes);
  }
  if (header_bytes > file_bytes - kLengthBytes) {
    return Bad("header of ", header_bytes, " bytes at byte 0 in a file of ", file_bytes,
               "; the file is truncated or no safetensors file");
  }
  return kLengthBytes + header_bytes;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::Span<const uint8_t> prefix,
                                                         uint64_t file_bytes) {
  absl::StatusOr<uint64_t> end = SafetensorsPrefixBytes(prefix, file_bytes);
  if (!end.ok()) return end.status();
  if (prefix.size() < *end) {
    return Bad("have ", prefix.size(), " bytes of the header; expected ", *end);
  }
  SafetensorsHeader header;
  header.data_offset = *end;
  HeaderReader reader(&header);
  if (!json::sax_parse(prefix.data() + kLengthBytes, prefix.data() + *end, &reader)) {
    return Bad(reader.error());
  }
  if (absl::Status s = CheckTensors(file_bytes, &header); !s.ok()) return s;
  return header;
}

absl::Status SafetensorsWriter::Declare(absl::string_view name, absl::string_view dtype,
                                        absl::Span<const int64_t> shape) {
  SafetensorsEntry entry;
  entry.dtype = std::string(dtype);
  entry.shape.assign(shape.begin(), shape.end());
  entry.offset = declared_bytes_;
  if (SafetensorsDtypeSize(dtype) == 0) return Bad("unknown dtype \"", dtype, "\"");
  const bool negative = std::any_of(shape.begin(), shape.end(), [](int64_t d) { return d < 0; });
  uint64_t end = 0;
  if (negative || !TensorBytes(dtype, shape, &entry.bytes) ||
      !CheckedAdd(declared_bytes_, entry.bytes, &end)) {
    return Bad("tensor \"", name, "\": negative or overflowing shape");
  }
  for (const auto& t : tensors_) {
    if (t.first == name) return Bad("tensor \"", name, "\" twice");
  }
  declared_bytes_ = end;
  tensors_.emplace_back(std::string(name), std::move(entry));
  return absl::OkStatus();
}

void SafetensorsWriter::SetMetadata(absl::string_view key, absl::string_view value) {
  metadata_[std::string(key)] = std::string(value);
}

absl::Status SafetensorsWriter::Begin() {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata_.empty()) header["__metadata__"] = metadata_;
  for (const auto& [name, t] : tensors_) {
    header[name] = {
        {"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {t.offset, t.offset + t.bytes}}};
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::vector<uint8_t> bytes(kLengthBytes);
  for (size_t i = 0; i < kLengthBytes; ++i) {
    bytes[i] = static_cast<uint8_t>(static_cast<uint64_t>(text.size()) >> (8 * i));
  }
  bytes.insert(bytes.end(), text.begin(), text.end());
  return sink_(bytes);
}

absl::Status SafetensorsWriter::Write(absl::Span<const uint8_t> bytes) {
  if (bytes.size() > declared_bytes_ - written_bytes_) {
    return absl::OutOfRangeError(absl::StrCat("safetensors: ", bytes.size(), " bytes after ",
                                              written_bytes_, "; declared were ", declared_bytes_));
  }
  written_bytes_ += bytes.size();
  return sink_(bytes);
}

absl::Status SafetensorsWriter::Finish() {
  if (written_bytes_ != declared_bytes_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "safetensors: ", written_bytes_, " bytes written; declared were ", declared_bytes_));
  }
  return absl::OkStatus();
}

}  // namespace kvcask
